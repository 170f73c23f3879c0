"""HiGHS: the linear relaxation kept warm, and the binary program on a part of the columns.

The number of threads is left alone: HiGHS fixes it once per process and refuses to run when it changes.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np

from lana_ray.selection.problem import Floats, Ints
from lana_ray.selection.program import Program, Row

TOLERANCE = 1e-7  # of rows and objective, in the units of Program; near 1e-9 HiGHS contradicts itself
_CORE = 4  # candidates per layer in the small program that yields a first selection
_CORE_SHARE = 0.8  # of the time
_REDUCED_COST_MARGIN = 1e-6  # the relaxation's duals are exact to 1e-7


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """What is known about the optimum of a program."""

    columns: Ints | None
    """The best columns found, one per layer; None where none was found."""
    objective: float
    """Their value; inf where none was found."""
    bound: float
    """No solution is below this value; inf where there is proven to be none."""

    @property
    def proven(self) -> bool:
        return self.objective == self.bound or self.objective - self.bound <= TOLERANCE


class Relaxation:
    """The linear relaxation of a program whose rows are added and tightened one after another."""

    def __init__(self, program: Program) -> None:
        self._highs = _highs(program, np.arange(len(program.layer)))
        self._layers, self._rows = program.layers, program.rows

    def solve(self, rows: tuple[Row, ...], seconds: float) -> tuple[float, Floats]:
        """The relaxation's value and its reduced costs, shape [n].

        A column with reduced cost d is in no solution below value + d. The value is inf where there is
        no solution, -inf where the time did not suffice.
        """
        for r, row in enumerate(rows):
            if r >= len(self._rows):
                size = len(row.index)
                self._highs.addRow(-np.inf, row.upper, size, row.index.astype(np.int32), row.value)
            elif row.upper != self._rows[r].upper:
                self._highs.changeRowBounds(self._layers + r, -np.inf, row.upper)
        self._rows = rows
        status = _run(self._highs, seconds)
        if status == highspy.HighsModelStatus.kOptimal:
            return self._highs.getObjectiveValue(), np.array(self._highs.getSolution().col_dual)
        infeasible = status == highspy.HighsModelStatus.kInfeasible
        return math.inf if infeasible else -math.inf, np.empty(0)


def solve(program: Program, relaxation: Relaxation, seconds: float) -> Solution:
    """The best solution found within ``seconds``, with a bound that holds for all.

    The relaxation's reduced costs name a few promising columns per layer, whose small program soon has a
    good solution. That solution proves most other columns useless; what is left is solved starting from it.
    """
    deadline = time.monotonic() + seconds
    bound, reduced = relaxation.solve(program.rows, seconds)
    if math.isinf(bound):
        return Solution(columns=None, objective=math.inf, bound=bound)
    core = _promising(program.layer, reduced)
    first = _solve_binary(program, core, None, _CORE_SHARE * (deadline - time.monotonic()))
    useful = np.flatnonzero(reduced <= first.objective - bound + _REDUCED_COST_MARGIN)
    if first.proven and np.isin(useful, core).all():
        return first
    second = _solve_binary(program, useful, first.columns, deadline - time.monotonic())
    best = min(first, second, key=lambda solution: solution.objective)
    bound = max(bound, min(second.bound, best.objective))  # useless columns only lead above first.objective
    return Solution(columns=best.columns, objective=best.objective, bound=bound)


def _promising(layer: Ints, reduced: Floats) -> Ints:
    """The ``_CORE`` columns of each layer with the smallest reduced costs."""
    order = np.lexsort((reduced, layer))
    starts = np.searchsorted(layer, layer)  # of each column's layer
    return np.sort(order[np.arange(len(layer)) - starts < _CORE])


def _solve_binary(program: Program, columns: Ints, start: Ints | None, seconds: float) -> Solution:
    """Solves over ``columns`` only, from the solution ``start`` if there is one."""
    highs = _highs(program, columns)
    binary = np.full(len(columns), highspy.HighsVarType.kInteger)
    every = np.arange(len(columns), dtype=np.int32)
    highs.changeColsIntegrality(len(columns), every, binary)
    if start is not None:
        guess = highspy.HighsSolution()
        guess.col_value = np.isin(columns, start).astype(np.float64)
        highs.setSolution(guess)
    status = _run(highs, seconds)
    info = highs.getInfo()
    if status == highspy.HighsModelStatus.kInfeasible:
        return Solution(columns=None, objective=math.inf, bound=math.inf)
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return Solution(columns=None, objective=math.inf, bound=info.mip_dual_bound)
    chosen = columns[np.array(highs.getSolution().col_value) > 0.5]
    if not np.array_equal(program.layer[chosen], np.arange(program.layers)):
        raise RuntimeError("HiGHS returned a solution without exactly one candidate per layer")
    objective = math.fsum(program.objective[chosen])
    proven = status == highspy.HighsModelStatus.kOptimal
    return Solution(
        columns=chosen,
        objective=objective,
        bound=objective if proven else min(info.mip_dual_bound, objective),
    )


def _highs(program: Program, columns: Ints) -> Any:
    """A solver holding the relaxation of ``program`` over ``columns``, passed sparse and column-wise."""
    position = np.full(len(program.layer), -1)
    position[columns] = np.arange(len(columns))
    at, row, value = [position[columns]], [program.layer[columns]], [np.ones(len(columns))]
    for r, constraint in enumerate(program.rows):
        present = position[constraint.index] >= 0
        at.append(position[constraint.index[present]])
        row.append(np.full(int(present.sum()), program.layers + r))
        value.append(constraint.value[present])
    column = np.concatenate(at)
    order = np.argsort(column, kind="stable")
    size = np.bincount(column, minlength=len(columns))

    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(columns), program.layers + len(program.rows)
    lp.col_cost_ = program.objective[columns]
    lp.col_lower_ = np.zeros(len(columns))
    lp.col_upper_ = np.ones(len(columns))
    lp.row_lower_ = np.concatenate([np.ones(program.layers), np.full(len(program.rows), -np.inf)])
    lp.row_upper_ = np.concatenate([np.ones(program.layers), [r.upper for r in program.rows]])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_ = np.concatenate([[0], np.cumsum(size)]).astype(np.int32)
    lp.a_matrix_.index_ = np.concatenate(row)[order].astype(np.int32)
    lp.a_matrix_.value_ = np.concatenate(value)[order]

    highs = highspy.Highs()
    options = {
        "output_flag": False,
        "mip_rel_gap": 0.0,
        "mip_abs_gap": TOLERANCE,
        "mip_feasibility_tolerance": TOLERANCE,
        "primal_feasibility_tolerance": TOLERANCE,
    }
    for name, option in options.items():
        if highs.setOptionValue(name, option) != highspy.HighsStatus.kOk:
            raise RuntimeError(f"this version of HiGHS refuses {name} = {option}")
    if highs.passModel(lp) == highspy.HighsStatus.kError:
        raise RuntimeError("HiGHS refused the model")
    return highs


def _run(highs: Any, seconds: float) -> Any:
    """Runs for at most ``seconds``; the model status, of which only the settled or timed-out pass."""
    highs.setOptionValue("time_limit", max(seconds, 0.0))
    run_status, status = highs.run(), highs.getModelStatus()
    expected = (
        highspy.HighsModelStatus.kOptimal,
        highspy.HighsModelStatus.kInfeasible,
        highspy.HighsModelStatus.kTimeLimit,
    )
    if run_status == highspy.HighsStatus.kError or status not in expected:
        raise RuntimeError(f"HiGHS failed: {run_status}, {highs.modelStatusToString(status)}")
    return status
