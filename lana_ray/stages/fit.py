"""What a whole network costs on every target, learnt from the networks that were sampled there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lana_ray.costs.samples import SampleStore
from lana_ray.costs.work import network_work
from lana_ray.errors import UserError
from lana_ray.monitoring.progress import progress
from lana_ray.predictors.fits import OF_STUDENTS, Fit, Floats, pace, predictor_file, write_fit
from lana_ray.predictors.latency import LatencyPredictor
from lana_ray.predictors.quality import quality
from lana_ray.spaces.space import Architecture, StudentSpace
from lana_ray.stages.sample import Sampled, TargetCosts
from lana_ray.workspace import Workspace

MIN_NETWORKS = 20
_TEST_SHARE = 0.2
_CURVE_POINTS = 5
_SMALLEST = 8
_ROUNDS = 4
"""In which the networks that the predictor chooses are measured, each with a predictor of all before."""
_POOL = 20
"""Random architectures that each of them is chosen from."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """Networks of a space that were measured on a target, and which more of them may be."""

    encode: Callable[[Architecture], NDArray[np.float32]]
    networks: Mapping[Architecture, float]
    """Their costs, in one unit."""
    active: int
    """Further ones to measure, where predictors disagree most."""
    draw: Callable[[np.random.Generator], Architecture]
    structure: Callable[[Architecture], str]
    """Identity of an architecture's network: several may be the same one."""
    sample_s: float | None = None
    """What each took a sampler, in seconds, where that is known."""


Measure = Callable[[Mapping[str, Sequence[Architecture]], str], Mapping[str, Mapping[Architecture, float]]]
"""Of (networks by target, a title for progress): the costs, by target, of those that ran, in this order."""


@dataclass(frozen=True)
class _Split:
    """The networks measured on a target."""

    test: dict[Architecture, float]
    """A fifth of those drawn at random; their costs."""
    drawn: dict[Architecture, float]
    """The others."""
    chosen: dict[Architecture, float]
    """Where predictors disagreed."""

    @property
    def known(self) -> dict[Architecture, float]:
        return self.drawn | self.chosen


def of_layers(workspace: Workspace, costs: Mapping[str, TargetCosts]) -> dict[str, Known]:
    """The students sampled for the cost tables, by target."""
    space = workspace.space

    def sampled(known: TargetCosts) -> Known:
        return Known(
            encode=space.encode,
            networks={a: sample.median_ms for a, sample in known.networks.items()},
            active=known.target.measure.active,
            structure=space.network_structure,
            draw=lambda rng: space.random(rng, known.considered),
            sample_s=paced(workspace, space, known, known.networks),
        )

    return {name: sampled(known) for name, known in costs.items()}


def paced(
    workspace: Workspace,
    space: StudentSpace,
    sampled: Sampled,
    networks: Iterable[Architecture],
) -> float | None:
    """Seconds that each of the networks took a sampler of the target, by what the samples say themselves."""
    keys = {network_work(space, architecture).key for architecture in networks}
    return pace(s for s in SampleStore(workspace.storage).read(sampled.target_key) if s.key in keys)


def run(
    workspace: Workspace, sampled: Mapping[str, Known], measure: Measure, folder: str = OF_STUDENTS
) -> list[Fit]:
    """Writes ``<folder>/<target>.safetensors`` for every target, and a file beside it that says how it does.

    A fifth of the architectures is kept for testing; predictors trained on growing parts of the others give
    the learning curve, whose last point has those that were chosen where predictors disagreed. The predictor
    that is kept is trained on all.

    Raises:
        UserError: where fewer than ``MIN_NETWORKS`` networks were measured.
    """
    splits = {name: _split(workspace, name, measured) for name, measured in sampled.items()}
    for number in range(_ROUNDS):
        _measure_chosen(workspace, sampled, splits, measure, number)
    fits = []
    with progress("fit", len(sampled)) as show:
        for number, (name, split) in enumerate(splits.items(), 1):
            fits.append(_fit(workspace, name, sampled[name], split, predictor_file(folder, name)))
            write_fit(workspace.storage, fits[-1])
            show(number)
    return fits


def _split(workspace: Workspace, name: str, sampled: Known) -> _Split:
    if len(sampled.networks) < MIN_NETWORKS:
        raise UserError(
            f"target {name!r}: {len(sampled.networks)} networks measured, a predictor needs {MIN_NETWORKS}; "
            "raise measure.architectures of the target, or search.cells.samples"
        )
    latencies = list(sampled.networks.items())
    order = np.random.default_rng(workspace.config.run.seed).permutation(len(latencies))
    shuffled = [latencies[position] for position in order]
    count = round(_TEST_SHARE * len(shuffled))
    return _Split(dict(shuffled[:count]), dict(shuffled[count:]), {})


def _measure_chosen(
    workspace: Workspace,
    sampled: Mapping[str, Known],
    splits: Mapping[str, _Split],
    measure: Measure,
    number: int,
) -> None:
    """Adds a round of networks that a target's predictor of the moment is least certain of."""
    seed, asked = workspace.config.run.seed, {}
    for name, split in splits.items():
        known = sampled[name]
        count = (known.active * (number + 1)) // _ROUNDS - (known.active * number) // _ROUNDS
        if count:
            # numpy takes [seed, 0] for seed, whose numbers drew the networks that are known.
            rng = np.random.default_rng([seed, number + 1])
            drawn = {known.structure(a): a for a in (known.draw(rng) for _ in range(_POOL * count))}
            taken = {known.structure(a) for a in (*split.known, *split.test)}
            pool = [architecture for structure, architecture in drawn.items() if structure not in taken]
            if not pool:
                continue  # all there are have been measured
            predictor = _predictor(known, split.known, seed)
            chosen = predictor.choose(_encodings(known, pool), min(count, len(pool)))
            asked[name] = [pool[position] for position in chosen]
    if asked:
        for name, found in measure(asked, f"fit, round {number + 1} of {_ROUNDS}").items():
            splits[name].chosen.update(found)


def _fit(workspace: Workspace, name: str, sampled: Known, split: _Split, file: str) -> Fit:
    known, tests = list(split.known.items()), _encodings(sampled, list(split.test))
    seed = workspace.config.run.seed
    drawn, measured = len(split.drawn), np.array(list(split.test.values()))
    sizes = {drawn >> halvings for halvings in range(_CURVE_POINTS)} - set(range(_SMALLEST))
    curve, predicted = [], np.empty(0)
    for size in sorted(sizes | {len(known)}):
        predicted = _predictor(sampled, dict(known[:size]), seed).predict(tests)
        curve.append((size, quality(predicted, measured)))
    workspace.storage.write_bytes(file, _predictor(sampled, split.known | split.test, seed).to_bytes())
    return Fit(
        target=name,
        file=file,
        curve=tuple(curve),
        predicted_ms=predicted,
        measured_ms=measured,
        sample_s=sampled.sample_s,
    )


def _predictor(sampled: Known, latencies: Mapping[Architecture, float], seed: int) -> LatencyPredictor:
    predictor = LatencyPredictor(seed=seed)
    return predictor.fit(_encodings(sampled, list(latencies)), list(latencies.values()))


def _encodings(sampled: Known, architectures: Sequence[Architecture]) -> Floats:
    return np.stack([sampled.encode(a) for a in architectures]).astype(np.float64)
