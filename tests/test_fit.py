"""Predictors made of what was sampled, and of what they ask for themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from lana_ray.config import load_config
from lana_ray.latency import LatencyPredictor, predictor
from lana_ray.latency.store import SampleStore
from lana_ray.pipeline import fit_predictors
from lana_ray.report import sampling_notes, write_fit_plots
from lana_ray.report.numbers import number
from lana_ray.storage import Storage
from lana_ray.workspace import Workspace

from .runs import settings

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


def test_a_predictor_is_fitted_to_what_was_sampled(
    tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor, "_EPOCHS", 20)  # how well it learns is tested elsewhere
    measure = {"architectures": 40, "active": 10, "time_limit_s": 0.02}
    target = {"name": "eager", "runtime": "torch", "measure": measure}
    config = load_config(settings(tmp_path, targets=[target], pool={"preset": "tiny", "max_cost": None}))
    (fit,) = fit_predictors(config)
    taken = SampleStore(Storage(str(tmp_path))).read()
    networks = len({sample.key for sample in taken if sample.kind == "network"})
    assert networks in (49, 50)  # two of the 40 that are drawn may be equal
    # With the teacher there are one more; 8 are for testing, and 10 were chosen to be measured.
    assert [count for count, _ in fit.curve] == [8, 16, networks - 17, networks - 7]
    (again,) = fit_predictors(config)
    assert again.quality == fit.quality
    assert len(SampleStore(Storage(str(tmp_path))).read()) == len(taken)
    assert fit.predicted_ms.shape == fit.measured_ms.shape == (8,)
    space = Workspace(config).space
    loaded = LatencyPredictor.load(tmp_path / fit.file)
    assert loaded.predict(space.encode(space.teacher)[None])[0] > 0
    plots = write_fit_plots(Storage(str(tmp_path)), [fit])
    assert [Path(plot).name for plot in plots] == ["eager.svg", "eager-learning.svg"]
    assert all(Path(plot).read_text().startswith("<?xml") for plot in plots)
    assert fit.sample_s is not None
    assert 0.02 < fit.sample_s < 5
    assert fit_note(fit.sample_s) in sampling_notes([fit])[0]


def fit_note(seconds: float) -> str:
    return f"100\u202f000 students: {number(seconds * 1e5 / 3600)} hours on one sampler"
