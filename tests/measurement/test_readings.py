"""Searches for other costs than latency: what is metered, kept, learnt and refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lana_ray import UserError
from lana_ray.cluster.leases import Busy
from lana_ray.cluster.placement import Placement
from lana_ray.config import Config, load_config
from lana_ray.costs.registry import METERS, unavailable
from lana_ray.costs.samples import SampleStore
from lana_ray.measurement import readings as module
from lana_ray.measurement.latencies import Sampled
from lana_ray.measurement.readings import readings
from lana_ray.pipeline import search_architectures
from lana_ray.predictors import latency as predictor
from lana_ray.report.searches import searches_table, write_search_plots
from lana_ray.run_dir.storage import Storage
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.trials.prepare import prepare_cells
from lana_ray.workspace import Workspace, cell_space, structural_space

from ..measured import sample
from ..runs import settings, times

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

COST = "peak_memory_mb"
CELLS = {"space": "nasbench201", "width": 4, "cells": 1, "samples": 24, "active": 4}


def asking(folder: Path, search: dict[str, Any], **changes: Any) -> Config:
    target = {
        "name": "eager",
        "runtime": "torch",
        "measure": {"architectures": 22, "time_limit_s": 0.02, "soak_s": 0},
    }
    small = {"trials": 2, "steps": 20, "batch_size": 16}
    return load_config(settings(folder, targets=[target], search=small | search, **changes))


def sampled(config: Config, **changes: Any) -> Sampled:
    """The first target as if its teacher had been measured."""
    placement = Placement(
        nodes=(), actors=1, label_selector=None, resources={}, num_cpus=1, num_gpus=0, stand_in=True
    )
    target = Workspace(config).targets[0].model_copy(update=changes)
    return Sampled(
        target=target,
        placement=placement,
        target_key="k",
        teacher=sample(kind="reference", key="teacher", median_ms=1.0),
        floor=None,
    )


def space_of(config: Config) -> LayerwiseSpace:
    return structural_space(config, 10)


def test_cells_are_searched_for_what_they_multiply(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "_EPOCHS", 20)  # how well it learns is tested elsewhere
    config = asking(
        tmp_path,
        {"cost": "macs", "cells": CELLS, "trials": 1},
        budgets={"latency_ms": ["0.001ms"]},  # that none keeps, so that none is trained in full
    )
    rows = search_architectures(config)
    assert [row.method for row in rows] == ["differentiable"]
    space, target = cell_space(config, 10), Workspace(config).targets[0]
    for row in rows:
        network = space.build(tuple(row.choices))
        assert row.cost == "macs"
        assert row.measured_cost == METERS["macs"].read(network, _images(target.input_shape), target)
        assert row.predicted_cost > 0
        assert row.predicted_ms is None
        assert min(row.measured_ms, row.teacher_ms, row.teacher_cost) > 0
    networks = [s for s in SampleStore(Storage(str(tmp_path))).read() if s.kind == "network"]
    found = {row.architecture for row in rows}
    assert {s.what for s in networks} == found  # the random ones take no time to measure
    before = times(tmp_path, "metered/*/*.json")
    assert len(before) >= 25  # random cells and the teacher
    assert search_architectures(config) == rows
    (prepared,) = prepare_cells(Workspace(config))
    assert prepared.teacher == rows[0].teacher_cost  # to which relative budgets refer
    assert times(tmp_path, "metered/*/*.json") == before
    assert "multiply-accumulates" in str(searches_table(rows).title)
    assert len(write_search_plots(Storage(str(tmp_path)), rows)) == 2


def _images(shape: Any) -> Any:
    import torch

    return torch.zeros(1, *shape)


def test_layers_are_searched_within_a_budget_of_parameters(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predictor, "_EPOCHS", 20)
    config = asking(
        tmp_path,
        {"cost": "params", "aim": "budget", "trials": 1},
        pool={"ops": ["identity", "mbconv_e1_k3", "mbconv_e3_k3"], "max_cost": None},
        score={"images": 64, "students": 0},
    )
    rows = search_architectures(config)
    assert [row.method for row in rows] == ["differentiable", "program"]
    space = space_of(config)
    for row in rows:
        student = space.build(tuple(row.choices))
        assert row.measured_cost == sum(p.numel() for p in student.parameters())
        assert row.teacher_cost == sum(p.numel() for p in space.network.parameters())
        assert (row.budget or 0) <= row.teacher_cost
        assert row.predicted_cost == pytest.approx(row.measured_cost)  # a table of counts is exact
        assert row.multiplier is None
        assert row.predicted_ms is None
    assert rows[1].measured_cost <= (rows[1].budget or 0)


def test_what_was_read_is_not_read_again_and_failures_keep_their_reason(
    tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = asking(tmp_path, {"cost": "peak_memory_mb"})
    if reason := unavailable(config.targets[0], ["peak_memory_mb"]):
        pytest.skip(str(reason))
    workspace, space, on = Workspace(config), space_of(config), sampled(config)
    teacher, leanest = space.teacher, (1, 0, 1)
    found = readings(workspace, space, COST, {"eager": on}, {"eager": [teacher]}, "try")["eager"]
    assert 0.1 < found[teacher] < 100
    before = times(tmp_path, "metered/*/*.json")
    more = readings(workspace, space, COST, {"eager": on}, {"eager": [teacher, leanest]}, "try")["eager"]
    assert list(more) == [teacher, leanest]
    assert more[teacher] == found[teacher]
    assert {name: times(tmp_path, "metered/*/*.json")[name] for name in before} == before
    assert "peak_memory_mb: 1 read, 1 reused" in capsys.readouterr().out

    wrong = sampled(config, input_shape=(4, 16, 16))  # the stem takes three channels
    mine = {"eager": Sampled(**{**vars(wrong), "target_key": "other"})}
    for read in ("1 read, 0 reused", "0 read, 1 reused"):
        assert readings(workspace, space, COST, mine, {"eager": [teacher]}, "try") == {"eager": {}}
        assert f"{read}, 1 failed, {space.label(teacher)} with " in " ".join(capsys.readouterr().out.split())


def test_a_reading_that_finds_no_free_cores_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = asking(tmp_path, {"cost": "params"})
    (target,) = config.targets
    answers: dict[str, list[Any]] = {
        "a": [Busy("xeon", ("process 7 (runs/other)",), own=False), 1.0],
        "b": [2.0],
    }

    def run(function: object, asked: Sequence[Any], config: Config) -> Iterator[tuple[int, Any, None]]:
        for place, (_, (_, name)) in enumerate(asked):
            yield place, answers[name].pop(0), None

    monkeypatch.setattr(module, "run_on_targets", run)
    calls = [(target, ("a",)), (target, ("b",))]
    assert list(module.run_on_cores(print, calls, config)) == [(1, 2.0, None), (0, 1.0, None)]
    said = capsys.readouterr().out
    assert f"target {target.name!r}" in said
    assert "process 7 (runs/other)" in said


def test_a_meter_that_a_node_lacks_is_refused_before_anything_is_trained(
    tmp_path: Path, ray_cluster: None
) -> None:
    config = asking(tmp_path, {"cost": "energy_mj", "cells": CELLS})
    if not unavailable(config.targets[0], ["energy_mj"]):
        pytest.skip("this machine counts its energy")
    with pytest.raises(UserError, match=r"target 'eager': search\.cost energy_mj cannot be read on its node"):
        search_architectures(config)
    assert not (tmp_path / "teacher.safetensors").exists()
