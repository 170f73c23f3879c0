"""Quality of a fitted predictor and the time its samples took: a JSON file next to the predictor."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import spearmanr

from lana_ray.costs.samples import Sample
from lana_ray.errors import UserError
from lana_ray.ids import CostId
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import Storage

Floats = NDArray[np.float64]

_BREAK = 10.0
"""Gaps of more than this many medians between samples are pauses: the sampler waited, or the run ended."""


class Quality(NamedTuple):
    """Agreement of predictions with measurements of architectures that were not trained on."""

    median_error: float
    """Median absolute relative error."""
    mean_error: float
    """Mean absolute relative error."""
    within_1: float
    """Share of the predictions within ±1 %."""
    within_5: float
    within_10: float
    spearman: float
    """Rank correlation; NaN if all predictions or all measurements are equal."""


def quality(predicted_ms: ArrayLike, measured_ms: ArrayLike) -> Quality:
    """Compares predictions with measurements, both [n] in milliseconds."""
    predicted, measured = np.asarray(predicted_ms, dtype=float), np.asarray(measured_ms, dtype=float)
    errors = np.abs(predicted / measured - 1)
    within_1, within_5, within_10 = (float((errors <= bound).mean()) for bound in (0.01, 0.05, 0.1))
    varied = np.ptp(predicted) > 0 and np.ptp(measured) > 0
    return Quality(
        median_error=float(np.median(errors)),
        mean_error=float(errors.mean()),
        within_1=within_1,
        within_5=within_5,
        within_10=within_10,
        spearman=float(spearmanr(predicted, measured).statistic) if varied else float("nan"),
    )


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A predictor of one cost on one target, and its errors on architectures it was not trained on."""

    id: CostId
    space: str
    """Name of the space whose networks it predicts."""
    curve: tuple[tuple[int, Quality], ...]
    """Networks trained on, fewest first, and the quality on the test architectures."""
    predicted: Floats
    """For the test architectures, by the last predictor of the curve; in the cost's unit."""
    measured: Floats
    """For the test architectures; in the cost's unit."""
    sample_s: float | None
    """Seconds that one sampler spends on a network, see ``pace``; None if unknown."""

    @property
    def quality(self) -> Quality:
        """Quality with all training architectures."""
        return self.curve[-1][1]

    @property
    def file(self) -> str:
        """The predictor in the run directory, trained on all networks."""
        return layout.predictor(self.space, self.id)


def pace(samples: Iterable[Sample]) -> float | None:
    """Returns the mean seconds per sample of one sampler: building, loading, warm-up, timing, sending.

    None if no sampler took two samples. It averages the intervals between consecutive samples on the same
    CPUs of a node, but pauses. An interval counts as at least the time of the measurement itself, so that
    samplers that share CPUs do not look like a fast one.
    """
    by_sampler: dict[tuple[str, str], list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.time):
        by_sampler.setdefault((sample.node, sample.cpus), []).append(sample)
    intervals = [
        max(later.time - earlier.time, later.seconds)
        for consecutive in by_sampler.values()
        for earlier, later in itertools.pairwise(consecutive)
    ]
    longest = _BREAK * np.median(intervals) if intervals else 0.0
    return float(np.mean([s for s in intervals if s <= longest])) if intervals else None


def write_fit(storage: Storage, fit: Fit) -> None:
    """Writes how good a predictor is, next to its weights."""
    facts = {
        "curve": [{"networks": count, **quality._asdict()} for count, quality in fit.curve],
        "sample_s": fit.sample_s,
        "predicted": fit.predicted.tolist(),
        "measured": fit.measured.tolist(),
    }
    storage.write_json(layout.predictor_facts(fit.space, fit.id), facts)


def read_fit(storage: Storage, space: str, of: CostId) -> Fit | None:
    """The quality of a predictor, None if there is none; raises UserError if the file is damaged."""
    file = layout.predictor_facts(space, of)
    if not storage.exists(file):
        return None
    try:
        facts = storage.read_json(file)
        curve = tuple((point.pop("networks"), Quality(**point)) for point in facts["curve"])
        if not curve:
            raise ValueError("no networks")
        predicted, measured = np.array(facts["predicted"]), np.array(facts["measured"])
        sample_s = facts["sample_s"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError("damaged_file", f"{storage.url(file)}: damaged ({error}); remove it") from None
    return Fit(id=of, space=space, curve=curve, predicted=predicted, measured=measured, sample_s=sample_s)
