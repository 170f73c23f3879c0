"""Tabu search for a good selection, exchanging the candidate of one layer at a time.

Rows may be broken on the way, at a price: it starts near the relaxation's dual value of the row, rises while
the row is broken and falls while none is. The changes of all exchanges are computed at once, for several
searches in parallel. A selection agrees with an earlier one in at most one column per layer, so an exchange
adds one to the overlap with those that contain the new column, subtracts one for those that contain the old
one and leaves the others alone: over all exchanges and earlier selections that is a product of two matrices.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from lana_ray.selection.highs import Relaxed
from lana_ray.selection.problem import Floats, Ints
from lana_ray.selection.program import TOLERANCE, Program

Singles = np.ndarray[Any, np.dtype[np.float32]]

# Tried at N = 46, M = 197 with 5 to 99 earlier selections: ten times the steps come 0.1 % nearer the bound.

# Candidates per layer.
_WIDTH = 8
_SEARCHES = 64
_STEPS = 400
# Steps without a better selection.
_PATIENCE = 100
# Range of the steps for which an exchanged column stays out, end excluded.
_TABU_STEPS = (2, 6)
# Prices in units of a row's dual value, and of the largest one of an overlap.
_START, _LEAST = 0.8, 0.2
# Factors of prices in each step.
_RISE, _FALL = 1.05, 0.95
# The higher, the further from the relaxation's solution the searches start.
_NOISE = 5
# Rounding error of sums in the units of Program.
_ROUNDING = 1e-9
_FOREVER = np.iinfo(np.int32).max


@dataclass(frozen=True, kw_only=True, slots=True)
class _Grid:
    """The columns searched: ``width`` cells for each layer, those with the smallest reduced costs first."""

    width: int
    column: Ints
    """Shape [cells]."""
    objective: Floats
    """Shape [cells]; inf in cells beyond a layer's last column, never in its first."""
    cost: Floats
    """Shape [budgets, cells]."""
    limit: Floats
    """Shape [budgets, 1]."""
    member: Singles
    """1 if an earlier selection contains the column, else 0, shape [earlier, cells]."""
    may_agree: Floats
    """Shape [earlier]."""
    least_price: Singles
    """Least price of agreeing once more than allowed, shape [earlier]."""
    budget_price: Floats
    """Initial price of each budget, shape [budgets, 1]."""


@dataclass(kw_only=True, slots=True)
class _State:
    chosen: Ints
    """Cells, shape [searches, N]."""
    score: Floats
    """Shape [searches]."""
    used: Floats
    """Shape [budgets, searches]."""
    agreeing: Singles
    """Shape [searches, earlier]."""
    price: Singles
    """Shape [searches, earlier]."""
    budget_price: Floats
    """Shape [budgets, searches]."""
    tabu_until: Ints
    """The step at which a cell may be chosen, shape [searches, cells]."""


def search(program: Program, relaxed: Relaxed, seconds: float) -> Ints | None:
    """Returns the columns of the best selection found, one per layer; None if none was found.

    It is within the rows up to rounding. The same input gives the same selection, unless time runs out.
    """
    deadline = time.monotonic() + seconds
    rng = np.random.default_rng(0)
    grid = _grid(program, relaxed)
    state = _start(grid, relaxed.primal, rng)
    tabu_steps = rng.integers(*_TABU_STEPS, (_STEPS, _SEARCHES))
    best, least, found_at = None, np.inf, 0
    for step in range(_STEPS):
        fits = _reprice(grid, state)
        leader = int(np.where(fits, state.score, np.inf).argmin())
        if fits[leader] and state.score[leader] < least - _ROUNDING:
            best, least, found_at = grid.column[state.chosen[leader]], state.score[leader], step
        settled = least <= relaxed.value + TOLERANCE or step - found_at > _PATIENCE
        if (best is not None and settled) or time.monotonic() > deadline:
            break
        change = _changes(grid, state)
        change[state.tabu_until > step] = np.inf
        _exchange(grid, state, change.argmin(axis=1), step + 1 + tabu_steps[step])
    return best


def _grid(program: Program, relaxed: Relaxed) -> _Grid:
    order = np.lexsort((relaxed.reduced, program.layer))
    layers = np.arange(program.layers)
    start, end = np.searchsorted(program.layer, layers), np.searchsorted(program.layer, layers, side="right")
    width = min(_WIDTH, int((end - start).max()))
    place = start[:, None] + np.arange(width)
    real = (place < end[:, None]).ravel()
    column = order[np.minimum(place, end[:, None] - 1)].ravel()
    cell = np.full(len(order), -1)
    cell[column[real]] = np.flatnonzero(real)

    values = np.zeros((len(program.rows), len(column)))
    for r, row in enumerate(program.rows):
        at = cell[row.index]
        values[r, at[at >= 0]] = row.value[at >= 0]
    upper = np.array([row.upper for row in program.rows]) + _ROUNDING
    of_budget = np.array([row.budget is not None for row in program.rows], dtype=bool)
    duals = np.maximum(relaxed.duals, 0)
    floor = max(_LEAST * duals[~of_budget].max(initial=0), 1e-4)
    return _Grid(
        width=width,
        column=column,
        objective=np.where(real, program.objective[column], np.inf),
        cost=values[of_budget],
        limit=upper[of_budget, None],
        member=values[~of_budget].astype(np.float32),
        may_agree=upper[~of_budget],
        least_price=np.maximum(_START * duals[~of_budget], floor).astype(np.float32),
        budget_price=np.maximum(_START * duals[of_budget, None], 1e-3),
    )


def _start(grid: _Grid, primal: Floats, rng: np.random.Generator) -> _State:
    """Takes each layer's column of the largest share in the relaxation; all but one search add noise."""
    noise = rng.random((_SEARCHES, len(grid.column))) ** _NOISE
    noise[0] = 1
    share = np.where(np.isfinite(grid.objective), primal[grid.column] * noise, -1)
    first = np.arange(0, len(grid.column), grid.width)
    chosen = first + share.reshape(_SEARCHES, -1, grid.width).argmax(axis=2)
    tabu_until = np.zeros((_SEARCHES, len(grid.column)), dtype=np.int64)
    # A chosen column must not be exchanged for itself.
    np.put_along_axis(tabu_until, chosen, _FOREVER, axis=1)
    return _State(
        chosen=chosen,
        score=grid.objective[chosen].sum(axis=1),
        used=grid.cost[:, chosen].sum(axis=2),
        agreeing=grid.member.T[chosen].sum(axis=1),
        price=np.tile(grid.least_price, (_SEARCHES, 1)),
        budget_price=np.tile(grid.budget_price, _SEARCHES),
        tabu_until=tabu_until,
    )


def _reprice(grid: _Grid, state: _State) -> Any:
    """Raises the prices of broken rows and lowers those of searches that break none; returns these."""
    broken, over = state.agreeing > grid.may_agree, state.used > grid.limit
    fits = ~(broken.any(axis=1) | over.any(axis=0))
    state.price[broken] *= _RISE
    state.budget_price[over] *= _RISE
    state.price[fits] = np.maximum(state.price[fits] * _FALL, grid.least_price)
    state.budget_price[:, fits] *= _FALL
    return fits


def _changes(grid: _Grid, state: _State) -> Singles:
    """Returns the change of the objective with its prices if a cell is chosen, shape [searches, cells]."""
    searches, cells = state.tabu_until.shape
    full, broken = state.agreeing > grid.may_agree - 1, state.agreeing > grid.may_agree
    charge = np.concatenate([state.price * full, state.price * broken]) @ grid.member
    objective = grid.objective.astype(np.float32)
    at = np.arange(searches, 2 * searches)[:, None] * cells + state.chosen
    gain = charge.ravel()[at] + objective[state.chosen]
    change: Singles = (charge[:searches] + objective).reshape(searches, -1, grid.width)
    change -= gain[:, :, None]
    for cost, limit, used, price in zip(grid.cost, grid.limit, state.used, state.budget_price, strict=True):
        room = (limit - used)[:, None] + cost[state.chosen]
        excess = np.maximum(cost.reshape(-1, grid.width) - room[:, :, None], 0)
        change += (excess - np.maximum(used - limit, 0)[:, None, None]) * price[:, None, None]
    return change.reshape(searches, cells)


def _exchange(grid: _Grid, state: _State, new: Ints, tabu_until: Ints) -> None:
    """Chooses the cell ``new`` of each search; the one it replaces is tabu until the step ``tabu_until``."""
    each, layer = np.arange(len(new)), new // grid.width
    old = state.chosen[each, layer]
    state.chosen[each, layer] = new
    state.score += grid.objective[new] - grid.objective[old]
    state.used += grid.cost[:, new] - grid.cost[:, old]
    state.agreeing += grid.member[:, new].T - grid.member[:, old].T
    state.tabu_until[each, old] = tabu_until
    state.tabu_until[each, new] = _FOREVER
