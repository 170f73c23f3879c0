"""What a whole network costs on every target, learnt from the networks that were sampled there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lana_ray.errors import UserError
from lana_ray.latency.predictor import LatencyPredictor
from lana_ray.latency.quality import Quality, quality
from lana_ray.progress import progress
from lana_ray.stages.sample import TargetCosts
from lana_ray.workspace import Workspace

Floats = NDArray[np.float64]

MIN_NETWORKS = 20
_TEST_SHARE = 0.2
_CURVE_POINTS = 5
_SMALLEST = 8


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A target's predictor and how it does on architectures that it was not trained on."""

    target: str
    file: str
    """In the run directory; trained on all networks."""
    curve: tuple[tuple[int, Quality], ...]
    """Networks trained on, fewest first, and the quality on the test architectures."""
    predicted_ms: Floats
    """Of the test architectures, by the last predictor of the curve."""
    measured_ms: Floats

    @property
    def quality(self) -> Quality:
        """With all training architectures."""
        return self.curve[-1][1]


def run(workspace: Workspace, costs: Mapping[str, TargetCosts]) -> list[Fit]:
    """Writes ``predictors/<target>.safetensors`` for every target.

    A fifth of the architectures is kept for testing; predictors trained on growing parts of the others give
    the learning curve. The one that is kept is trained on all.

    Raises:
        UserError: where fewer than ``MIN_NETWORKS`` networks were measured.
    """
    fits = []
    with progress("fit", len(costs)) as show:
        for number, (name, measured) in enumerate(costs.items(), 1):
            fits.append(_fit(workspace, name, *_samples(workspace, name, measured)))
            show(number)
    return fits


def _samples(workspace: Workspace, name: str, costs: TargetCosts) -> tuple[Floats, Floats]:
    networks = costs.networks
    if len(networks) < MIN_NETWORKS:
        raise UserError(
            f"target {name!r}: {len(networks)} networks measured, a predictor needs {MIN_NETWORKS}; raise "
            "measure.architectures of the target"
        )
    encodings = np.stack([workspace.space.encode(architecture) for architecture in networks]).astype(
        np.float64
    )
    return encodings, np.asarray([sample.median_ms for sample in networks.values()])


def _fit(workspace: Workspace, name: str, encodings: Floats, latencies: Floats) -> Fit:
    seed = workspace.config.run.seed
    order = np.random.default_rng(seed).permutation(len(latencies))
    test, rest = np.split(order, [round(_TEST_SHARE * len(order))])
    sizes = sorted({len(rest) >> halvings for halvings in range(_CURVE_POINTS)} - set(range(_SMALLEST)))
    curve, predicted = [], np.empty(0)
    for size in sizes:
        known = rest[:size]
        predictor = LatencyPredictor(seed=seed).fit(encodings[known], latencies[known])
        predicted = predictor.predict(encodings[test])
        curve.append((size, quality(predicted, latencies[test])))
    file = f"predictors/{name}.safetensors"
    whole = LatencyPredictor(seed=seed).fit(encodings, latencies)
    workspace.storage.write_bytes(file, whole.to_bytes())
    return Fit(
        target=name,
        file=file,
        curve=tuple(curve),
        predicted_ms=predicted,
        measured_ms=latencies[test],
    )
