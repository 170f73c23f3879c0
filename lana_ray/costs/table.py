"""The cost table: what each candidate costs in place, so that a network's cost is a sum."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from lana_ray.ids import Architecture, CostId, family_of

Floats = NDArray[np.float64]

# Noise of a whole network's cost, prior spread of a candidate's own deviation from its isolated cost, and of
# the deviations it shares (all relative); those that predict left-out networks best are taken.
_NOISES = (0.003, 0.006, 0.012, 0.025, 0.05)
_OWN = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
_SHARED = (0.0, 0.03, 0.06, 0.12, 0.25, 0.5)
_ROUNDS = 2
"""How often the spread of each shared deviation is searched for, given the others."""
_ENOUGH = 500
"""Networks from which these are found; the table rests on all."""
_PART = 4096
"""Networks whose leverage is computed at a time."""


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Additive model of one cost on one target: ``rest`` + Σ over layers of ``costs[layer][choice]``.

    All values are in the cost's unit.
    """

    rest: float
    """Stem, head and the call itself, less what keeps the costs of candidates from being negative."""
    costs: tuple[Floats, ...]
    """Per layer, shape [candidates]; infinite where a candidate cannot run on the target."""
    error_isolated: float = 0.0
    """Median relative error over the measured networks if isolated costs are simply added up."""
    error: float = 0.0
    """Median relative error of this table, every network predicted from the others only."""
    networks: int = 0
    """Number of measured networks that the table rests on; 0 for a cost that is exact."""

    def predict(self, architecture: Sequence[int]) -> float:
        """Cost of a whole network."""
        chosen = (cost[choice] for cost, choice in zip(self.costs, architecture, strict=True))
        return self.rest + float(sum(chosen))


@dataclass(frozen=True, kw_only=True)
class MeasuredCost:
    """One cost of one network on a target, in the cost's unit."""

    value: float
    """Median over the sessions; NaN if the network does not run."""
    iqr: float = 0.0
    drift: float = 1.0
    """How much slower the target was than at its baseline, to which the value is corrected."""
    sessions: tuple[float, ...] = ()
    """Median of each session, where the cost was measured in several."""
    error: str | None = None
    """Why the network does not run."""

    @property
    def sustained(self) -> float:
        """The cost by the clock if the target was slower than at its baseline, else the value."""
        return self.value * max(1.0, self.drift)

    def with_sessions(self, more: MeasuredCost) -> MeasuredCost:
        """The median over the sessions of both; ``more`` alone if it has none, or failed."""
        if not more.sessions or more.error is not None or self.error is not None:
            return more
        sessions = (*self.sessions, *more.sessions)
        return replace(more, value=float(np.median(sessions)), sessions=sessions)


@dataclass(frozen=True, kw_only=True)
class CostTables:
    """One cost on one target: everything measured so far, and the tables made from it."""

    id: CostId
    teacher: float
    """Cost of the teacher."""
    isolated: tuple[Floats, ...] = ()
    """Per layer, shape [candidates]: each candidate alone; infinite for one that cannot run. Empty for a
    space without layers, whose costs do not add up."""
    ops: tuple[tuple[str, ...], ...] = ()
    """Names of the operations of ``isolated``."""
    networks: Mapping[Architecture, MeasuredCost] = field(default_factory=dict)
    """The networks that ran, the teacher among them."""
    tables: tuple[CostTable, ...] = ()
    """The first as sampled, then one for every calibration with further networks."""

    @property
    def table(self) -> CostTable:
        """The latest."""
        return self.tables[-1]

    @property
    def is_exact(self) -> bool:
        """Whether the table is exact, so that students need not be measured."""
        return self.id.target is None

    def with_networks(self, more: Mapping[Architecture, MeasuredCost]) -> CostTables:
        """The same with further networks, and a table calibrated with all of them."""
        ran = {architecture: one for architecture, one in more.items() if one.error is None}
        if not ran:
            return self
        networks = {**self.networks, **ran}
        new = (_calibrated(self.isolated, self.ops, networks),) if self.isolated else ()
        return replace(self, networks=networks, tables=(*self.tables, *new))


def proportional_costs(
    of: CostId,
    priors: Iterable[Sequence[Floats]],
    ops: Sequence[Sequence[str]],
    networks: Mapping[Architecture, MeasuredCost],
    teacher: Architecture,
) -> CostTables:
    """The first table of a cost that is only measured of whole networks.

    Args:
        priors: other costs of candidates alone, which this one may be in proportion to: per layer, shape
            [candidates]. The one whose table predicts networks best, each left out in turn, is taken.
        ops: names of the candidates' operations, per layer.
        networks: at least two that ran, with the teacher.
    """
    value = networks[teacher].value
    options = []
    for prior in priors:
        added = sum(float(of_layer[j]) for of_layer, j in zip(prior, teacher, strict=True))
        isolated = tuple(of_layer * (value / added if added else 1.0) for of_layer in prior)
        options.append(first_costs(of, isolated, ops, networks, teacher))
    return min(options, key=lambda option: option.table.error)


def first_costs(
    of: CostId,
    isolated: Sequence[Floats],
    ops: Sequence[Sequence[str]],
    networks: Mapping[Architecture, MeasuredCost],
    teacher: Architecture,
) -> CostTables:
    """The first table of a cost.

    Args:
        isolated: per layer, shape [candidates]: each candidate alone; infinite for one that cannot run.
        ops: names of the candidates' operations, per layer.
        networks: at least two that ran, with the teacher.
    """
    return CostTables(
        id=of,
        teacher=networks[teacher].value,
        isolated=tuple(isolated),
        ops=tuple(map(tuple, ops)),
        networks=networks,
        tables=(_calibrated(isolated, ops, networks),),
    )


def _calibrated(
    isolated: Sequence[Floats], ops: Sequence[Sequence[str]], networks: Mapping[Architecture, MeasuredCost]
) -> CostTable:
    return calibrate(isolated, ops, list(networks), [one.value for one in networks.values()])


def calibrate(
    isolated: Sequence[Floats],
    ops: Sequence[Sequence[str]],
    architectures: Sequence[Sequence[int]],
    values: Sequence[float],
) -> CostTable:
    """Corrects isolated candidate costs by whole networks measured on the target.

    A candidate timed alone pays for a call of its own and misses the runtime's fusion and the warm caches
    of its neighbours; LANA's table, made this way, misses its targets by -8 % to +14 % (arXiv 2107.10624,
    table 2). So isolated costs are only the prior of a Bayesian linear regression of the networks' costs
    on their choices: an offset and a scale first, then each candidate by as much as the networks say.

    A priori a candidate's relative deviation is the sum of its own and of deviations that it shares with
    the same operation at other layers, with the operations of its family, and with its layer's candidates.
    So a few networks correct candidates that none of them contains. Figures: "Cost tables" in
    ``jobs/RESULTS.md``.

    Args:
        isolated: per layer, shape [candidates]; infinite for a candidate that cannot run.
        ops: names of the candidates' operations, per layer.
        architectures: the measured networks; at least two.
        values: their costs, in the unit of the table.
    """
    sizes = [len(costs) for costs in isolated]
    flat = np.concatenate([np.asarray(costs, dtype=np.float64) for costs in isolated])
    usable = np.isfinite(flat)
    prior = np.where(usable, flat, 0.0)
    y = np.asarray(values, dtype=np.float64)
    design = _design(sizes, architectures)

    added = design[:, :-1] @ prior
    simple_rest = float(np.median(y - added))
    scale, rest = _line(added, y)
    floor = 0.02 * float(np.median(y)) / len(sizes)
    basis, kinds = _components(ops, np.append(scale * prior, 0.1 * rest) + floor)
    problem = _Regression(
        design=scipy.sparse.diags_array(1 / y) @ design,
        residual=(y - rest - scale * added) / y,
        basis=basis,
        kinds=kinds,
    )
    corrections, left_out = problem.solve(_best_spreads(problem.some(_ENOUGH)))
    costs, least = _not_negative(np.where(usable, scale * prior + corrections[:-1], np.inf), sizes)
    return CostTable(
        rest=rest + float(corrections[-1]) + least,
        costs=costs,
        error_isolated=float(np.median(np.abs(simple_rest + added - y) / y)),
        error=float(np.median(np.abs(left_out))),
        networks=len(y),
    )


def _not_negative(costs: Floats, sizes: Sequence[int]) -> tuple[tuple[Floats, ...], float]:
    """Costs by layer, and the (negative) cost to add to the rest.

    Every network has one candidate of each layer, so what is added to all of them and taken off the rest
    changes no network's cost.
    """
    layers = np.split(costs, np.cumsum(sizes)[:-1])
    least = [min(0.0, float(of_layer.min())) for of_layer in layers]
    return tuple(of_layer - low for of_layer, low in zip(layers, least, strict=True)), sum(least)


def _design(sizes: Sequence[int], architectures: Sequence[Sequence[int]]) -> Any:
    """Sparse matrix [networks, candidates + 1]: a one for each choice, and one for the rest."""
    offsets = np.cumsum([0, *sizes])
    chosen = np.asarray(architectures) + offsets[:-1]
    columns = np.column_stack([chosen, np.full(len(chosen), offsets[-1])])
    ends = np.arange(len(columns) + 1) * columns.shape[1]
    ones = np.ones(columns.size)
    return scipy.sparse.csr_array((ones, columns.ravel(), ends), shape=(len(columns), offsets[-1] + 1))


def _components(ops: Sequence[Sequence[str]], spread: Floats) -> tuple[Any, NDArray[np.int64]]:
    """Independent components of the prior.

    Args:
        spread: [candidates + 1], by which a relative deviation counts; the last is that of the rest.

    Returns:
        Sparse matrix [candidates + 1, components]: what each component of size one adds; and each
        component's kind: own, operation, family, layer, rest.
    """
    names = [name for of_layer in ops for name in of_layer]
    layers = [layer for layer, of_layer in enumerate(ops) for _ in of_layer]
    groups: list[Sequence[Any]] = [range(len(names)), names, [family_of(name) for name in names], layers]
    columns = [np.unique(np.asarray(group), return_inverse=True)[1] for group in groups]
    counts = [int(column.max()) + 1 for column in columns]
    starts = np.cumsum([0, *counts])
    at = np.stack([start + column for start, column in zip(starts, columns, strict=False)], axis=1)
    row = np.append(np.repeat(np.arange(len(names)), len(groups)), len(names))
    column = np.append(at.ravel(), starts[-1])
    shape = (len(names) + 1, int(starts[-1]) + 1)
    basis = scipy.sparse.csr_array((spread[row], (row, column)), shape=shape)
    return basis, np.repeat(np.arange(len(groups) + 1), [*counts, 1])


@dataclass(frozen=True, kw_only=True)
class _Regression:
    """Corrections of the expected costs, as a Bayesian linear regression of what they leave unexplained."""

    design: Any
    """Sparse, [networks, candidates + 1]; each row relative to the network's cost."""
    residual: Floats
    """[networks]; relative too."""
    basis: Any
    """Sparse, [candidates + 1, components], see ``_components``."""
    kinds: NDArray[np.int64]
    """[components]."""

    def some(self, count: int) -> _Regression:
        """The same with at most ``count`` networks, evenly spaced."""
        if len(self.residual) <= count:
            return self
        rows = np.linspace(0, len(self.residual) - 1, count).astype(int)
        return replace(self, design=self.design[rows], residual=self.residual[rows])

    @cached_property
    def kernels(self) -> Floats:
        """Covariance of the networks' costs by kind of component, [kinds, networks, networks]."""
        parts = [self.design @ self.basis[:, self.kinds == kind] for kind in range(self.kinds[-1] + 1)]
        return np.stack([(part @ part.T).toarray() for part in parts])

    def loss(self, spreads: Sequence[float]) -> float:
        """Mean squared relative error on networks left out, each error at most 20 %."""
        inverse = self._inverse(spreads)
        left_out = inverse @ self.residual / np.diag(inverse)
        return float(np.mean(np.minimum(np.abs(left_out), 0.2) ** 2))

    def _inverse(self, spreads: Sequence[float]) -> Floats:
        noise, *own_and_shared = spreads
        scaled = zip(np.square([*own_and_shared, 1.0]), self.kernels, strict=True)
        kernel = sum(variance * part for variance, part in scaled)
        inverse: Floats = np.linalg.inv(kernel + noise**2 * np.eye(len(self.residual)))
        return inverse

    def solve(self, spreads: Sequence[float]) -> tuple[Floats, Floats]:
        """Posterior mean [candidates + 1], and each network's relative error if it is left out [networks].

        Solved in the smaller of the two dimensions, networks or components: with K = D·B·Bᵀ·Dᵀ + S, the
        basis B scaled by its spreads and noise S, the mean is B·Bᵀ·Dᵀ·K⁻¹·r = G·Dᵀ·r with the gain
        G = B·(I + Bᵀ·Dᵀ·S⁻¹·D·B)⁻¹·Bᵀ·S⁻¹. The error of network i from the others is (K⁻¹·r)ᵢ / (K⁻¹)ᵢᵢ =
        (r − D·G·Dᵀ·r)ᵢ / (1 − (D·G·Dᵀ)ᵢᵢ).

        Args:
            spreads: relative: noise, own, operation, family, layer.
        """
        noise, *own_and_shared = spreads
        design, basis = self.design, self.basis * np.append(own_and_shared, 1.0)[self.kinds]
        if design.shape[0] <= basis.shape[1]:
            inverse = self._inverse(spreads)
            weights = inverse @ self.residual
            return basis @ (basis.T @ (design.T @ weights)), weights / np.diag(inverse)
        gram = (basis.T @ (design.T @ design) @ basis).toarray() / noise**2
        gain = basis @ (basis @ np.linalg.inv(np.eye(len(gram)) + gram)).T / noise**2
        mean = gain @ (design.T @ self.residual)
        leverage = np.concatenate([(part @ gain * part.toarray()).sum(1) for part in _parts(design, _PART)])
        return mean, (self.residual - design @ mean) / (1 - leverage)


def _best_spreads(problem: _Regression) -> tuple[float, ...]:
    """The spreads with the least loss, found one after the other; candidates share nothing at first."""
    best: tuple[float, ...] = (0.0,) * 5
    for number in range(_ROUNDS + 1):
        for kind in (2, 3, 4) if number else ():
            options = [(*best[:kind], spread, *best[kind + 1 :]) for spread in _SHARED]
            best = min(options, key=problem.loss)
        options = [(*pair, *best[2:]) for pair in itertools.product(_NOISES, _OWN)]
        best = min(options, key=problem.loss)
    return best


def _parts(design: Any, rows: int) -> Iterator[Any]:
    for start in range(0, design.shape[0], rows):
        yield design[start : start + rows]


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope and offset of y on x with relative errors; the slope is 1 if the data cannot tell."""
    weight = 1 / y
    design = np.stack([x, np.ones_like(x)], axis=1)
    (slope, offset), *_ = np.linalg.lstsq(design * weight[:, None], y * weight, rcond=None)
    if not 0.01 <= slope <= 10 or offset < 0:
        total = float((x * y * weight**2).sum() / max((x * x * weight**2).sum(), 1e-30))
        return (total, 0.0) if slope > 0 and offset < 0 else (1.0, float(np.median(y - x)))
    return float(slope), float(offset)
