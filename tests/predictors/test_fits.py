"""What is kept of a fit: how well it does, and how fast its networks were measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lana_ray.costs.samples import Sample
from lana_ray.ids import CostId
from lana_ray.predictors.fits import Fit, pace, quality, read_fit, write_fit
from lana_ray.run_dir.storage import Storage

from ..errors import refuses


def sample(time: float, seconds: float = 0.1, node: str = "a", cpus: str = "0") -> Sample:
    return Sample(
        target="ort",
        target_key="key",
        kind="network",
        key=str(time),
        what="cells",
        median_ms=1.0,
        p90_ms=1.0,
        p99_ms=1.0,
        iqr_ms=0.1,
        raw_ms=1.0,
        drift=1.0,
        repeats=10,
        seconds=seconds,
        settled=True,
        error=None,
        node=node,
        processor="cpu",
        runtime="torch",
        threads=1,
        process=1,
        cpus=cpus,
        time=time,
    )


def test_the_pace_is_the_mean_over_what_follows_one_another() -> None:
    assert pace([sample(t) for t in (0.0, 1.0, 2.0, 3.5)]) == pytest.approx(3.5 / 3)


def test_a_night_in_between_does_not_count() -> None:
    evening, morning = [sample(t) for t in range(5)], [sample(40_000.0 + t) for t in range(5)]
    assert pace(evening + morning) == 1.0


def test_samplers_side_by_side_are_told_apart() -> None:
    nodes = [sample(t + shift, node=node) for t in range(5) for shift, node in ((0.0, "a"), (0.5, "b"))]
    assert pace(nodes) == 1.0
    sharing = [sample(t / 2, seconds=0.9) for t in range(10)]  # two that a node's CPUs do not tell apart
    assert pace(sharing) == pytest.approx(0.9)


@pytest.mark.parametrize("samples", [[], [sample(0.0)], [sample(0.0), sample(1.0, node="b")]])
def test_too_few_samples_have_no_pace(samples: list[Sample]) -> None:
    assert pace(samples) is None


OF = CostId("energy_mj", "ort")
EMPTY = '{"curve": [], "predicted": [], "measured": [], "sample_s": null}'


def fit(space: str) -> Fit:
    predicted, measured = np.array([1.0, 1.0]), np.array([1.1, 2.0])
    return Fit(
        id=OF,
        space=space,
        curve=((8, quality([1.0, 2.0], measured)), (16, quality(predicted, measured))),
        predicted=predicted,
        measured=measured,
        sample_s=0.25,
    )


def test_a_fit_is_read_as_it_was_written(tmp_path: Path) -> None:
    storage, written = Storage(str(tmp_path)), fit("cells")
    assert written.file == "predictors/cells/energy_mj/ort.safetensors"
    write_fit(storage, written)
    read = read_fit(storage, "cells", OF)
    assert read is not None
    assert (read.id, read.file, read.sample_s) == (written.id, written.file, written.sample_s)
    assert np.array_equal([tuple(q) for _, q in read.curve], [tuple(q) for _, q in written.curve], True)
    assert [count for count, _ in read.curve] == [8, 16]
    assert read.predicted.tolist() == [1.0, 1.0]
    assert read.measured.tolist() == [1.1, 2.0]
    assert read_fit(storage, "layers", OF) is None
    assert read_fit(storage, "cells", CostId("latency_ms", "ort")) is None


@pytest.mark.parametrize(
    "content", ["{", "{}", "[]", '{"curve": [{"networks": 8}]}', '{"curve": ["x"]}', '{"curve": []}', EMPTY]
)
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_text("predictors/layers/energy_mj/ort.json", content)
    with refuses("damaged_file", "predictors/layers/energy_mj/ort.json"):
        read_fit(storage, "layers", OF)
