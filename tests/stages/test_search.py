"""Both searches on the candidates of a run, from the configuration to MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lana_ray import registry
from lana_ray.config import load_config
from lana_ray.costs.samples import SampleStore
from lana_ray.ids import CostId
from lana_ray.pipeline import search_architectures
from lana_ray.predictors import latency as predictor
from lana_ray.predictors.fits import read_fit
from lana_ray.registry._session import session
from lana_ray.report.plots import sampling_notes
from lana_ray.report.searches import searches_table, write_search_plots
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.summary import SearchSummary
from lana_ray.stages import finetune
from lana_ray.workspace import Workspace, cell_space

from ..runs import settings, times

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


def test_both_searches_are_swept_and_judged_alike(tmp_path: Path, ray_cluster: None) -> None:
    asked = {"trials": 2, "grid": [0.0, 1.0], "seeds": 2, "steps": 20, "batch_size": 16}
    target = {"name": "eager", "runtime": "torch", "measure": {"architectures": 8, "time_limit_s": 0.02}}
    config = load_config(
        settings(
            tmp_path,
            targets=[target],
            budgets={"latency_ms": ["99%"]},
            search=asked,
            score={"images": 64, "students": 0},
        )
    )
    rows = search_architectures(config)
    assert [row.method for row in rows] == ["differentiable"] * 4 + ["program"] * 2
    tried = [(row.multiplier, row.seed) for row in rows if row.method == "differentiable"]
    assert sorted(tried) == [(0.0, 0), (0.0, 1), (1.0, 0), (1.0, 1)]
    space = Workspace(config).space
    for row in rows:
        assert space.label(row.choices) == row.architecture
        assert row.measured_ms > 0
        assert 0 <= row.accuracy <= 1
        assert (row.multiplier is None) == (row.seed is None) == (row.method == "program")
        if row.method == "program":
            assert (row.predicted_ms or 0) <= (row.budget or 0)
    asked_for = 0.99 * (1 - config.select.margin)
    assert rows[4].budget == pytest.approx(asked_for * rows[4].teacher_ms)
    assert rows[5].budget != rows[4].budget
    assert len({row.key for row in rows}) == 6

    uri = registry.default_tracking_uri(config.registry, Storage(str(tmp_path)))
    with session(uri) as client:
        experiments = [e.experiment_id for e in client.search_experiments()]
        runs = client.search_runs(experiments)
    children = [run for run in runs if "trial" in run.data.tags]
    (parent,) = {run.data.tags["mlflow.parentRunId"] for run in children}
    assert parent in {run.info.run_id for run in runs}
    assert {run.data.tags["trial"] for run in children} == {row.key for row in rows}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.params.get("seed") for run in children} == {"0", "1", None}

    before = times(tmp_path, "search/*/*.json")
    fewer = config.search.model_copy(update={"seeds": 1})  # of no matter to the program's sweep
    again = search_architectures(config.model_copy(update={"search": fewer}))
    assert [row for row in again if row.method == "program"] == rows[4:]
    assert search_architectures(config) == rows
    after = times(tmp_path, "search/*/*.json")
    assert {name: after[name] for name in before} == before
    assert registry.log_trials(rows, parent=parent, tracking_uri=uri, prefix="net") == 0
    assert searches_table(rows).row_count == 2
    plots = write_search_plots(Storage(str(tmp_path)), rows)
    assert [Path(plot).name for plot in plots] == ["eager-fronts.svg", "eager-lambdas.svg"]


def test_cells_are_sampled_searched_trained_and_measured(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "_EPOCHS", 20)  # how well it learns is tested elsewhere
    cells = {"space": "nasbench201", "width": 4, "cells": 1, "samples": 24, "active": 4, "trial_epochs": 0.1}
    asked = {"trials": 2, "steps": 20, "batch_size": 16, "cells": cells}
    target = {"name": "eager", "runtime": "torch", "measure": {"time_limit_s": 0.02, "soak_s": 0}}
    config = load_config(
        settings(
            tmp_path,
            targets=[target],
            budgets={"latency_ms": ["500ms", "0.001ms"]},
            search=asked,
            finetune={"epochs": 0.2},
        )
    )
    rows = search_architectures(config)
    assert [row.method for row in rows] == ["differentiable"] * 2
    space, storage = cell_space(config, 10), Storage(str(tmp_path))
    for row in rows:
        architecture = space.parse(row.architecture)
        assert architecture == row.choices == space.live(architecture)
        assert min(row.measured_ms, row.predicted_ms or 0, row.teacher_ms) > 0
        assert 0 <= row.accuracy <= 1
    cells_measured = {s.key for s in SampleStore(storage).read() if s.kind == "network"}
    assert len(cells_measured) >= 28
    fit = read_fit(storage, "cells", CostId("latency_ms", "eager"))
    assert fit is not None
    assert [count for count, _ in fit.curve] == [9, 19, 23]  # 5 are for testing; 4 were chosen
    (note,) = sampling_notes([fit])
    assert "cells: " in note
    kept = storage.list(f"search/{rows_folder(tmp_path)}", ".safetensors")
    assert len(kept) == 2
    network = space.build(rows[0].choices)
    states = [storage.read_tensors(file) for file in kept]
    assert any(state.keys() == network.state_dict().keys() for state in states)

    cells_found = SearchSummary.read(storage)
    (result,) = cells_found.results
    best = min(rows, key=lambda row: (-row.accuracy, row.key))  # equals go by their key
    assert result.architecture == best.architecture
    assert result.measured_ms <= result.budget_ms == 500
    (unmet,) = cells_found.unmet
    assert "0.001" in unmet
    uri = registry.default_tracking_uri(config.registry, storage)
    loaded = registry.load(str(result.model_uri), uri)
    assert loaded(torch.zeros(3, 3, 16, 16)).shape == (3, 10)
    assert registry.find("models:/net-eager@champion", uri).tags["architecture"] == best.architecture
    before = times(tmp_path, "search/*/*.json"), times(tmp_path, "students/*")
    assert search_architectures(config) == rows
    assert (times(tmp_path, "search/*/*.json"), times(tmp_path, "students/*")) == before
    assert SearchSummary.read(storage) == cells_found

    assert config.search.cells is not None
    other = config.search.cells.model_copy(update={"drop_path": 0.5})  # of the full training alone
    searched = config.model_copy(update={"search": config.search.model_copy(update={"cells": other})})
    chosen = best.choices
    spaces = [Workspace(each) for each in (config, searched)]
    assert len({known.student_job(known.cells, chosen).key for known in spaces}) == 2
    monkeypatch.setattr(finetune, "run", lambda *known: ([], known[3]))  # takes a minute
    assert search_architectures(searched) == rows
    assert times(tmp_path, "search/*/*.json") == before[0]


def rows_folder(folder: Path) -> str:
    (name,) = {path.parent.name for path in folder.glob("search/*/*.json")}
    return name
