"""Predictors of the cost of networks on a target, fitted to the networks measured there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lana_ray.costs.work import network_work
from lana_ray.errors import UserError
from lana_ray.ids import Architecture, CostId
from lana_ray.measurement.latencies import Sampled
from lana_ray.monitoring.progress import progress
from lana_ray.predictors.fits import Fit, Floats, pace, quality, write_fit
from lana_ray.predictors.latency import LatencyPredictor
from lana_ray.run_dir import layout
from lana_ray.spaces.space import StudentSpace
from lana_ray.workspace import Workspace

MIN_NETWORKS = 20
"""Minimum number of networks to fit a predictor to."""
_TEST_SHARE = 0.2
_CURVE_POINTS = 5
_SMALLEST = 8
_ROUNDS = 4
"""Rounds of active learning; each fits a new predictor to choose the next networks."""
_POOL = 20
"""Random architectures per network chosen by active learning."""


@dataclass(frozen=True, kw_only=True)
class MeasuredNetworks:
    """Networks of a space that were measured on a target, and callbacks to draw more."""

    encode: Callable[[Architecture], NDArray[np.float32]]
    networks: Mapping[Architecture, float]
    """Measured costs, all in the same unit."""
    active: int
    """Number of further networks to choose by active learning, where predictors disagree most."""
    draw: Callable[[np.random.Generator], Architecture]
    structure: Callable[[Architecture], str]
    """Identity of an architecture's network, which several architectures may share."""
    sample_s: float | None = None
    """Seconds that a sampler spends on each network; None if unknown."""


Measure = Callable[[Mapping[str, Sequence[Architecture]], str], Mapping[str, Mapping[Architecture, float]]]
"""Callback ``(networks by target, title)``: returns the costs of the networks that ran, by target."""


@dataclass(frozen=True)
class _Split:
    """Costs of the networks measured on a target, split by use."""

    test: dict[Architecture, float]
    """A fifth of the networks drawn at random."""
    drawn: dict[Architecture, float]
    """The other networks drawn at random."""
    chosen: dict[Architecture, float]
    """Networks chosen by active learning."""

    @property
    def training(self) -> dict[Architecture, float]:
        return self.drawn | self.chosen


def paced(
    workspace: Workspace,
    space: StudentSpace,
    sampled: Sampled,
    networks: Iterable[Architecture],
) -> float | None:
    """Seconds that a sampler of the target spent on each network."""
    keys = {network_work(space, architecture).key for architecture in networks}
    return pace(s for s in workspace.samples.read(sampled.target_key) if s.key in keys)


def fit_predictors(
    workspace: Workspace, networks: Mapping[CostId, MeasuredNetworks], space: str, measure: Measure
) -> list[Fit]:
    """Writes a predictor of every cost and target with its quality; raises UserError if networks are too few.

    A fifth of the random architectures is kept for testing. Predictors trained on growing parts of the others
    give the learning curve, whose last point includes the networks chosen by active learning. The predictor
    that is written is trained on all networks.
    """
    splits = {of: _split(workspace, of, measured) for of, measured in networks.items()}
    for number in range(_ROUNDS):
        _measure_chosen(workspace, networks, splits, measure, number)
    fits = []
    with progress("fit", len(networks)) as show:
        for number, (of, split) in enumerate(splits.items(), 1):
            fits.append(_fit(workspace, of, space, networks[of], split))
            write_fit(workspace.storage, fits[-1])
            show(number)
    return fits


def _split(workspace: Workspace, of: CostId, measured: MeasuredNetworks) -> _Split:
    if len(measured.networks) < MIN_NETWORKS:
        raise UserError(
            "invalid_setting",
            f"target {of.target!r}: {len(measured.networks)} networks measured, but a predictor needs "
            f"{MIN_NETWORKS}; raise measure.architectures of the target, or search.cells.samples",
        )
    costs = list(measured.networks.items())
    order = np.random.default_rng(workspace.config.run.seed).permutation(len(costs))
    shuffled = [costs[position] for position in order]
    count = round(_TEST_SHARE * len(shuffled))
    return _Split(dict(shuffled[:count]), dict(shuffled[count:]), {})


def _measure_chosen(
    workspace: Workspace,
    networks: Mapping[CostId, MeasuredNetworks],
    splits: Mapping[CostId, _Split],
    measure: Measure,
    number: int,
) -> None:
    """Adds a round of networks about which each target's current predictor is least certain."""
    seed, asked = workspace.config.run.seed, dict[CostId, list[Architecture]]()
    for of, split in splits.items():
        source = networks[of]
        count = (source.active * (number + 1)) // _ROUNDS - (source.active * number) // _ROUNDS
        if count:
            # In numpy the seed [seed, 0] equals seed, which already drew the measured networks.
            rng = np.random.default_rng([seed, number + 1])
            drawn = {source.structure(a): a for a in (source.draw(rng) for _ in range(_POOL * count))}
            taken = {source.structure(a) for a in (*split.training, *split.test)}
            pool = [architecture for structure, architecture in drawn.items() if structure not in taken]
            if not pool:
                continue  # every network in the space has been measured
            predictor = _predictor(source, split.training, seed)
            chosen = predictor.choose(_encodings(source, pool), min(count, len(pool)))
            asked[of] = [pool[position] for position in chosen]
    if asked:
        by_target = {str(of.target): architectures for of, architectures in asked.items()}
        costs = measure(by_target, f"fit, round {number + 1} of {_ROUNDS}")
        for of in asked:
            splits[of].chosen.update(costs[str(of.target)])


def _fit(workspace: Workspace, of: CostId, space: str, sampled: MeasuredNetworks, split: _Split) -> Fit:
    training, tests = list(split.training.items()), _encodings(sampled, list(split.test))
    file = layout.predictor(space, of)
    seed = workspace.config.run.seed
    drawn, measured = len(split.drawn), np.array(list(split.test.values()))
    sizes = {drawn >> halvings for halvings in range(_CURVE_POINTS)} - set(range(_SMALLEST))
    curve, predicted = [], np.empty(0)
    for size in sorted(sizes | {len(training)}):
        predicted = _predictor(sampled, dict(training[:size]), seed).predict(tests)
        curve.append((size, quality(predicted, measured)))
    workspace.storage.write_bytes(file, _predictor(sampled, split.training | split.test, seed).to_bytes())
    return Fit(
        id=of,
        space=space,
        curve=tuple(curve),
        predicted=predicted,
        measured=measured,
        sample_s=sampled.sample_s,
    )


def _predictor(
    sampled: MeasuredNetworks, latencies: Mapping[Architecture, float], seed: int
) -> LatencyPredictor:
    predictor = LatencyPredictor(seed=seed)
    return predictor.fit(_encodings(sampled, list(latencies)), list(latencies.values()))


def _encodings(sampled: MeasuredNetworks, architectures: Sequence[Architecture]) -> Floats:
    return np.stack([sampled.encode(a) for a in architectures]).astype(np.float64)
