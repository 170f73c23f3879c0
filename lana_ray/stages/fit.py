"""What a whole network costs on every target, learnt from the networks that were sampled there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lana_ray.errors import UserError
from lana_ray.latency.predictor import LatencyPredictor
from lana_ray.latency.quality import Quality, quality
from lana_ray.latency.sampler import network_work
from lana_ray.progress import progress
from lana_ray.spaces.layerwise import Architecture
from lana_ray.stages.sample import TargetCosts, measure
from lana_ray.workspace import Workspace

Floats = NDArray[np.float64]

MIN_NETWORKS = 20
_TEST_SHARE = 0.2
_CURVE_POINTS = 5
_SMALLEST = 8
_ROUNDS = 4
"""In which the networks that the predictor chooses are measured, each with a predictor of all before."""
_POOL = 20
"""Random architectures that each of them is chosen from."""


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


@dataclass(frozen=True)
class _Split:
    """The networks measured on a target."""

    test: dict[Architecture, float]
    """A fifth of those drawn at random; latencies in milliseconds."""
    drawn: dict[Architecture, float]
    """The others."""
    chosen: dict[Architecture, float]
    """Where predictors disagreed."""

    @property
    def known(self) -> dict[Architecture, float]:
        return self.drawn | self.chosen


def run(workspace: Workspace, costs: Mapping[str, TargetCosts]) -> list[Fit]:
    """Writes ``predictors/<target>.safetensors`` for every target.

    A fifth of the architectures is kept for testing; predictors trained on growing parts of the others give
    the learning curve, whose last point has those that were chosen where predictors disagreed. The predictor
    that is kept is trained on all.

    Raises:
        UserError: where fewer than ``MIN_NETWORKS`` networks were measured.
    """
    splits = {name: _split(workspace, name, measured) for name, measured in costs.items()}
    for number in range(_ROUNDS):
        _measure_chosen(workspace, costs, splits, number)
    fits = []
    with progress("fit", len(costs)) as show:
        for number, (name, split) in enumerate(splits.items(), 1):
            fits.append(_fit(workspace, name, split))
            show(number)
    return fits


def _split(workspace: Workspace, name: str, costs: TargetCosts) -> _Split:
    if len(costs.networks) < MIN_NETWORKS:
        raise UserError(
            f"target {name!r}: {len(costs.networks)} networks measured, a predictor needs {MIN_NETWORKS}; "
            "raise measure.architectures of the target"
        )
    latencies = [(architecture, sample.median_ms) for architecture, sample in costs.networks.items()]
    order = np.random.default_rng(workspace.config.run.seed).permutation(len(latencies))
    shuffled = [latencies[position] for position in order]
    count = round(_TEST_SHARE * len(shuffled))
    return _Split(dict(shuffled[:count]), dict(shuffled[count:]), {})


def _measure_chosen(
    workspace: Workspace, costs: Mapping[str, TargetCosts], splits: Mapping[str, _Split], number: int
) -> None:
    """Adds a round of networks that a target's predictor of the moment is least certain of."""
    space, seed = workspace.space, workspace.config.run.seed
    asked = {}
    for name, split in splits.items():
        active = costs[name].target.measure.active
        count = (active * (number + 1)) // _ROUNDS - (active * number) // _ROUNDS
        if count:
            rng = np.random.default_rng([seed, number])
            among = costs[name].considered
            drawn = dict.fromkeys(space.random(rng, among) for _ in range(_POOL * count))
            taken = split.known | split.test
            pool = [architecture for architecture in drawn if architecture not in taken]
            if not pool:
                continue  # all there are have been measured
            chosen = _predictor(workspace, split.known).choose(
                _encodings(workspace, pool), min(count, len(pool))
            )
            asked[name] = [pool[position] for position in chosen]
    jobs = {name: costs[name].job([network_work(space, a) for a in asked[name]]) for name in asked}
    if jobs:
        measure(workspace, list(jobs.values()), f"fit, round {number + 1} of {_ROUNDS}:")
    for name, job in jobs.items():
        for architecture, work in zip(asked[name], job.work, strict=True):
            if job.samples[work.key].error is None:
                splits[name].chosen[architecture] = job.samples[work.key].median_ms


def _fit(workspace: Workspace, name: str, split: _Split) -> Fit:
    known, tests = list(split.known.items()), _encodings(workspace, list(split.test))
    drawn, measured = len(split.drawn), np.array(list(split.test.values()))
    sizes = {drawn >> halvings for halvings in range(_CURVE_POINTS)} - set(range(_SMALLEST))
    curve, predicted = [], np.empty(0)
    for size in sorted(sizes | {len(known)}):
        predicted = _predictor(workspace, dict(known[:size])).predict(tests)
        curve.append((size, quality(predicted, measured)))
    file = f"predictors/{name}.safetensors"
    workspace.storage.write_bytes(file, _predictor(workspace, split.known | split.test).to_bytes())
    return Fit(target=name, file=file, curve=tuple(curve), predicted_ms=predicted, measured_ms=measured)


def _predictor(workspace: Workspace, latencies: Mapping[Architecture, float]) -> LatencyPredictor:
    predictor = LatencyPredictor(seed=workspace.config.run.seed)
    return predictor.fit(_encodings(workspace, list(latencies)), list(latencies.values()))


def _encodings(workspace: Workspace, architectures: Sequence[Architecture]) -> Floats:
    return np.stack([workspace.space.encode(a) for a in architectures]).astype(np.float64)
