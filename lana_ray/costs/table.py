"""The cost table: what each candidate costs in place, so that a network's cost is a sum."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from lana_ray.ids import Architecture, CostId

Floats = NDArray[np.float64]

# Prior spread of a candidate's cost around its isolated cost, and noise of a whole network's cost (both
# relative); the pair that predicts left-out networks best is taken.
_SPREADS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
_NOISES = (0.003, 0.006, 0.012, 0.025, 0.05)
_ENOUGH = 1000
"""Networks from which that pair is found; the table rests on all."""
_PART = 4096
"""Networks whose leverage is computed at a time."""


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Additive model of one cost on one target: ``rest`` + Σ over layers of ``costs[layer][choice]``.

    All values are in the cost's unit.
    """

    rest: float
    """Stem, head and the call itself."""
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
        new = (_calibrated(self.isolated, networks),) if self.isolated else ()
        return replace(self, networks=networks, tables=(*self.tables, *new))


def proportional_costs(
    of: CostId,
    priors: Iterable[Sequence[Floats]],
    networks: Mapping[Architecture, MeasuredCost],
    teacher: Architecture,
) -> CostTables:
    """The first table of a cost that is only measured of whole networks.

    Args:
        priors: other costs of candidates alone, which this one may be in proportion to: per layer, shape
            [candidates]. The one whose table predicts networks best, each left out in turn, is taken.
        networks: at least two that ran, with the teacher.
    """
    value = networks[teacher].value
    options = []
    for prior in priors:
        added = sum(float(of_layer[j]) for of_layer, j in zip(prior, teacher, strict=True))
        isolated = tuple(of_layer * (value / added if added else 1.0) for of_layer in prior)
        options.append(first_costs(of, isolated, networks, teacher))
    return min(options, key=lambda option: option.table.error)


def first_costs(
    of: CostId,
    isolated: Sequence[Floats],
    networks: Mapping[Architecture, MeasuredCost],
    teacher: Architecture,
) -> CostTables:
    """The first table of a cost.

    Args:
        isolated: per layer, shape [candidates]: each candidate alone; infinite for one that cannot run.
        networks: at least two that ran, with the teacher.
    """
    return CostTables(
        id=of,
        teacher=networks[teacher].value,
        isolated=tuple(isolated),
        networks=networks,
        tables=(_calibrated(isolated, networks),),
    )


def _calibrated(isolated: Sequence[Floats], networks: Mapping[Architecture, MeasuredCost]) -> CostTable:
    return calibrate(isolated, list(networks), [one.value for one in networks.values()])


def calibrate(
    isolated: Sequence[Floats], architectures: Sequence[Sequence[int]], values: Sequence[float]
) -> CostTable:
    """Corrects isolated candidate costs by whole networks measured on the target.

    A candidate timed alone pays for a call of its own and misses the runtime's fusion and the warm caches
    of its neighbours; LANA's table, made this way, misses its targets by -8 % to +14 % (arXiv 2107.10624,
    table 2). So isolated costs are only the prior of a Bayesian linear regression of the networks' costs
    on their choices: an offset and a scale first, then each candidate by as much as the networks say.

    Args:
        isolated: per layer, shape [candidates]; infinite for a candidate that cannot run.
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
    problem = _Regression(
        design=design,
        y=y,
        residual=y - rest - scale * added,
        expected=np.append(scale * prior, 0.1 * rest),
        floor=floor,
    )
    some = problem.some(_ENOUGH)
    spread, noise = min(itertools.product(_SPREADS, _NOISES), key=lambda pair: some.loss(*pair))
    corrections, left_out = problem.solve(spread, noise)
    costs = np.where(usable, np.maximum(scale * prior + corrections[:-1], 0.0), np.inf)
    return CostTable(
        rest=rest + float(corrections[-1]),
        costs=tuple(np.split(costs, np.cumsum(sizes)[:-1])),
        error_isolated=float(np.median(np.abs(simple_rest + added - y) / y)),
        error=float(np.median(np.abs(left_out))),
        networks=len(y),
    )


def _design(sizes: Sequence[int], architectures: Sequence[Sequence[int]]) -> Any:
    """Sparse matrix [networks, candidates + 1]: a one for each choice, and one for the rest."""
    offsets = np.cumsum([0, *sizes])
    chosen = np.asarray(architectures) + offsets[:-1]
    columns = np.column_stack([chosen, np.full(len(chosen), offsets[-1])])
    ends = np.arange(len(columns) + 1) * columns.shape[1]
    ones = np.ones(columns.size)
    return scipy.sparse.csr_array((ones, columns.ravel(), ends), shape=(len(columns), offsets[-1] + 1))


@dataclass(frozen=True, kw_only=True)
class _Regression:
    """Corrections of the expected costs, as a Bayesian linear regression of what they leave unexplained."""

    design: Any
    """Sparse, [networks, candidates + 1]."""
    y: Floats
    """[networks]."""
    residual: Floats
    """[networks]."""
    expected: Floats
    """[candidates + 1]; the last is the prior spread of the rest."""
    floor: float
    """Smallest cost whose spread counts."""

    def some(self, count: int) -> _Regression:
        """The same with at most ``count`` networks, evenly spaced."""
        if len(self.y) <= count:
            return self
        rows = np.linspace(0, len(self.y) - 1, count).astype(int)
        return replace(self, design=self.design[rows], y=self.y[rows], residual=self.residual[rows])

    def loss(self, spread: float, noise: float) -> float:
        """Mean squared relative error on networks left out, each error at most 20 %."""
        _, left_out = self.solve(spread, noise)
        return float(np.mean(np.minimum(np.abs(left_out), 0.2) ** 2))

    def solve(self, spread: float, noise: float) -> tuple[Floats, Floats]:
        """Posterior mean [candidates + 1], and each network's relative error if it is left out [networks].

        Solved in the smaller of the two dimensions, networks or candidates: with K = D·V·Dᵀ + S, prior
        variance V and noise S, the mean is V·Dᵀ·K⁻¹·r = (V⁻¹ + Dᵀ·S⁻¹·D)⁻¹·Dᵀ·S⁻¹·r, and the error of
        network i from the others (K⁻¹·r)ᵢ / (K⁻¹)ᵢᵢ.
        """
        design = self.design
        variance = np.append((spread * (self.expected[:-1] + self.floor)) ** 2, self._of_rest)
        uncertain = (noise * self.y) ** 2
        if design.shape[0] <= design.shape[1]:
            kernel = (design * variance) @ design.T
            inverse = np.linalg.inv(kernel.toarray() + np.diag(uncertain))
            weights = inverse @ self.residual
            return variance * (design.T @ weights), weights / np.diag(inverse) / self.y
        weighted = design.T * (1 / uncertain)
        inverse = np.linalg.inv((weighted @ design).toarray() + np.diag(1 / variance))
        mean = inverse @ (weighted @ self.residual)
        leverage = np.concatenate(
            [(part @ inverse * part.toarray()).sum(1) for part in _parts(design, _PART)]
        )
        weights = (self.residual - design @ mean) / uncertain
        return mean, weights / (1 / uncertain - leverage / uncertain**2) / self.y

    @property
    def _of_rest(self) -> float:
        return float((self.expected[-1] + self.floor) ** 2)


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
