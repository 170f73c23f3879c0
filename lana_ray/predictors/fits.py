"""How well a fitted predictor does, and how fast what it learnt from was measured: a file beside it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lana_ray.costs.samples import Sample
from lana_ray.errors import UserError
from lana_ray.predictors.quality import Quality
from lana_ray.run_dir.storage import Storage

Floats = NDArray[np.float64]

OF_STUDENTS = "predictors"
"""Folder of the run directory that ``lana-ray fit`` keeps predictors of students' latencies in."""
_WEIGHTS, _FACTS = ".safetensors", ".json"
_BREAK = 10.0
"""Between samples, in medians, from which on nothing was being sampled."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A target's predictor and how it does on architectures that it was not trained on.

    Of latencies, or of another cost: what is said in milliseconds is in its unit then.
    """

    target: str
    file: str
    """In the run directory; trained on all networks."""
    curve: tuple[tuple[int, Quality], ...]
    """Networks trained on, fewest first, and the quality on the test architectures."""
    predicted_ms: Floats
    """Of the test architectures, by the last predictor of the curve."""
    measured_ms: Floats
    sample_s: float | None
    """What a network took one sampler, see ``pace``; None where that is not known."""

    @property
    def quality(self) -> Quality:
        """With all training architectures."""
        return self.curve[-1][1]

    @property
    def what(self) -> str:
        """It predicts for: ``cells`` or ``students``."""
        return "cells" if self.file.startswith(folder_of("cells", "")) else "students"

    @property
    def cost(self) -> str:
        """It predicts."""
        folders = self.file.split("/")[1:-1]
        return folders[-1] if folders else "latency_ms"

    @property
    def stem(self) -> str:
        """The predictor's file without its ending: how those beside it are named."""
        return self.file.removesuffix(_WEIGHTS)


def folder_of(what: str, cost: str) -> str:
    """Where ``lana-ray search`` keeps predictors of a cost.

    Args:
        what: they predict for, ``cells`` or the students of ``layers``.
    """
    return f"predictors/{what}/{cost}"


def predictor_file(folder: str, target: str) -> str:
    """Where a target's predictor is kept in the run directory."""
    return f"{folder}/{target}{_WEIGHTS}"


def pace(samples: Iterable[Sample]) -> float | None:
    """Seconds from one sample to the next of one sampler: building, loading, warm-up, timing, sending.

    The mean over what follows one another on the same CPUs of a node. Distances of more than ``_BREAK``
    medians are left out: in between the sampler waited, or the run had ended. A distance counts at least as
    long as the measurement itself took, so that samplers which share CPUs are not taken for a fast one.

    Returns:
        None for fewer than two samples in a row.
    """
    by_sampler: dict[tuple[str, str], list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: sample.time):
        by_sampler.setdefault((sample.node, sample.cpus), []).append(sample)
    distances = np.array(
        [
            max(later.time - earlier.time, later.seconds)
            for mine in by_sampler.values()
            for earlier, later in itertools.pairwise(mine)
        ]
    )
    if not len(distances):
        return None
    return float(distances[distances <= _BREAK * np.median(distances)].mean())


def write_fit(storage: Storage, fit: Fit) -> None:
    """Writes ``<stem>.json``."""
    facts = {
        "curve": [{"networks": count, **found._asdict()} for count, found in fit.curve],
        "sample_s": fit.sample_s,
        "predicted_ms": fit.predicted_ms.tolist(),
        "measured_ms": fit.measured_ms.tolist(),
    }
    storage.write_json(fit.stem + _FACTS, facts)


def read_fit(storage: Storage, folder: str, target: str) -> Fit | None:
    """What was last written of a target's predictor; None where it was never fitted.

    Raises:
        UserError: where the file is damaged.
    """
    file = predictor_file(folder, target)
    name = file.removesuffix(_WEIGHTS) + _FACTS
    if not storage.exists(name):
        return None
    try:
        facts = storage.read_json(name)
        points = [(point.pop("networks"), Quality(**point)) for point in facts["curve"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{storage.url(name)}: damaged ({error}); remove it") from None
    return Fit(
        target=target,
        file=file,
        curve=tuple(points),
        predicted_ms=np.array(facts["predicted_ms"]),
        measured_ms=np.array(facts["measured_ms"]),
        sample_s=facts["sample_s"],
    )
