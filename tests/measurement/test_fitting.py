"""Predictors made of what was sampled, and of what they ask for themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from lana_ray.config import load_config
from lana_ray.costs.samples import SampleStore
from lana_ray.ids import Architecture, CostId
from lana_ray.latency import LatencyPredictor
from lana_ray.measurement.fitting import MeasuredNetworks
from lana_ray.measurement.fitting import fit_predictors as fit_networks
from lana_ray.pipeline import fit_predictors
from lana_ray.predictors import latency as predictor
from lana_ray.report.numbers import number
from lana_ray.report.plots import sampling_notes, write_fit_plots
from lana_ray.run_dir.storage import Storage
from lana_ray.spaces import NasBench201Space
from lana_ray.workspace import Workspace

from ..runs import settings

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


def test_a_predictor_is_fitted_to_what_was_sampled(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "_EPOCHS", 20)  # how well it learns is tested elsewhere
    measure = {"architectures": 40, "active": 10, "time_limit_s": 0.02, "soak_s": 0}
    target = {"name": "eager", "runtime": "torch", "measure": measure}
    config = load_config(settings(tmp_path, targets=[target], pool={"preset": "tiny", "max_cost": None}))
    (fitted,) = fit_predictors(config)
    taken = SampleStore(Storage(str(tmp_path))).read()
    networks = len({sample.key for sample in taken if sample.kind == "network"})
    assert networks in (49, 50)  # two of the 40 that are drawn may be equal
    # With the teacher there are one more; 8 are for testing, and 10 were chosen to be measured.
    assert [count for count, _ in fitted.curve] == [8, 16, networks - 17, networks - 7]
    (again,) = fit_predictors(config)
    assert again.quality == fitted.quality
    assert len(SampleStore(Storage(str(tmp_path))).read()) == len(taken)
    assert fitted.predicted.shape == fitted.measured.shape == (8,)
    space = Workspace(config).space
    loaded = LatencyPredictor.load(tmp_path / fitted.file)
    assert loaded.predict(space.encode(space.teacher)[None])[0] > 0
    plots = write_fit_plots(Storage(str(tmp_path)), [fitted])
    assert [Path(plot).name for plot in plots] == ["eager.svg", "eager-learning.svg"]
    assert all(Path(plot).read_text().startswith("<?xml") for plot in plots)
    assert fitted.sample_s is not None
    assert 0.02 < fitted.sample_s < 5
    assert fit_note(fitted.sample_s) in sampling_notes([fitted])[0]


def fit_note(seconds: float) -> str:
    return f"100\u202f000 students: {number(seconds * 1e5 / 3600)} hours on one sampler"


def test_no_network_is_measured_again_under_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edges that lead nowhere make several architectures of a cell one network."""
    monkeypatch.setattr(predictor, "_EPOCHS", 5)
    cells, rng = NasBench201Space(classes=10, width=4, cells=1), np.random.default_rng(0)
    drawn = {repr(cells.live(a)): a for a in (cells.random(rng) for _ in range(60))}
    networks = {a: 1.0 + rng.random() for a in drawn.values()}
    measured = list(drawn)

    def measure(asked: Mapping[str, Sequence[Architecture]], _: str) -> dict[str, dict[Architecture, float]]:
        measured.extend(repr(cells.live(a)) for a in asked["cpu"])
        return {"cpu": {a: 1.0 + rng.random() for a in asked["cpu"]}}

    known = MeasuredNetworks(
        encode=cells.encode,
        networks=networks,
        active=40,
        draw=cells.random,
        structure=lambda a: repr(cells.live(a)),
    )
    workspace, of = Workspace(load_config(settings(tmp_path))), CostId("latency_ms", "cpu")
    (found,) = fit_networks(workspace, {of: known}, "cells", measure)
    assert len(measured) == len(set(measured)) == len(networks) + 40
    assert found.curve[-1][0] == len(measured) - len(found.measured)
