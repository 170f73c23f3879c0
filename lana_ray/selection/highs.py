"""HiGHS: the linear relaxation, kept warm, and the binary program on some of the columns.

The number of threads stays at its default: HiGHS fixes it once per process and refuses to run if it changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import highspy
import numpy as np
import scipy.sparse

from lana_ray.selection.problem import Floats, Ints
from lana_ray.selection.program import TOLERANCE, Program, Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """The best solution of a program and a bound of its optimum."""

    columns: Ints | None
    """The best columns found, one per layer; None if none was found."""
    objective: float
    """Objective of the columns; inf if none was found."""
    bound: float
    """Lower bound of any solution's objective; inf if there is proven to be none."""

    @property
    def proven(self) -> bool:
        return self.objective == self.bound or self.objective - self.bound <= TOLERANCE


@dataclass(frozen=True, kw_only=True, slots=True)
class Relaxed:
    """The optimum of a linear relaxation."""

    value: float
    """Optimum; inf without a solution, -inf if time ran out; the other fields are empty in both cases."""
    primal: Floats
    """Share of each column, shape [n]."""
    reduced: Floats
    """Reduced costs, shape [n]: a column with reduced cost d is in no solution below value + d."""
    duals: Floats
    """Decrease of the value for each unit that a row's ``upper`` rises, shape [rows]."""


class _SilentHighs(highspy.Highs):
    """Prints no banner, which HiGHS prints when its constructor enables callbacks."""

    def enableCallbacks(self) -> None:
        self.setOptionValue("output_flag", False)
        super().enableCallbacks()


class Relaxation:
    """The linear relaxation of a program whose rows are added and tightened one after another."""

    def __init__(self, program: Program) -> None:
        self._highs = _highs(program, np.arange(len(program.layer)))
        self._layers, self._rows = program.layers, program.rows

    def solve(self, rows: tuple[Row, ...], seconds: float) -> Relaxed:
        """Returns the relaxation's optimum with these rows, which must begin with the last call's rows."""
        for r, row in enumerate(rows):
            if r >= len(self._rows):
                size = len(row.index)
                self._highs.addRow(-np.inf, row.upper, size, row.index.astype(np.int32), row.value)
            elif row.upper != self._rows[r].upper:
                self._highs.changeRowBounds(self._layers + r, -np.inf, row.upper)
        self._rows = rows
        status = _run(self._highs, seconds)
        if status == highspy.HighsModelStatus.kOptimal:
            solution = self._highs.getSolution()
            return Relaxed(
                value=self._highs.getObjectiveValue(),
                primal=np.array(solution.col_value),
                reduced=np.array(solution.col_dual),
                duals=-np.array(solution.row_dual)[self._layers :],
            )
        infeasible = status == highspy.HighsModelStatus.kInfeasible
        none = np.empty(0)
        return Relaxed(value=math.inf if infeasible else -math.inf, primal=none, reduced=none, duals=none)


def solve_binary(program: Program, columns: Ints, start: Ints | None, seconds: float) -> Solution:
    """Returns the best solution found within ``seconds`` over ``columns``, from ``start`` if there is one."""
    highs = _highs(program, columns)
    binary = np.full(len(columns), highspy.HighsVarType.kInteger)
    every = np.arange(len(columns), dtype=np.int32)
    highs.changeColsIntegrality(len(columns), every, binary)
    if start is not None:
        guess = highspy.HighsSolution()
        guess.col_value = np.isin(columns, start).astype(np.float64)
        highs.setSolution(guess)
    return _solution(highs, program, columns, seconds)


def solve_few(program: Program, group: Ints, most: int, seconds: float) -> Solution:
    """Returns the best solution found within ``seconds`` whose columns are in at most ``most`` groups.

    Args:
        group: group of each column, from 0; -1 for columns that do not count. Shape [n].
    """
    count, groups = len(group), int(group.max(initial=-1)) + 1
    columns = np.arange(count)
    highs = _highs(program, columns)
    for _ in range(groups):
        highs.addVar(0.0, 1.0)
    every = np.arange(count + groups, dtype=np.int32)
    highs.changeColsIntegrality(len(every), every, np.full(len(every), highspy.HighsVarType.kInteger))
    highs.addRow(-np.inf, float(most), groups, every[count:], np.ones(groups))
    for column in np.flatnonzero(group >= 0):
        pair = np.array([column, count + group[column]], dtype=np.int32)
        highs.addRow(-np.inf, 0.0, 2, pair, np.array([1.0, -1.0]))
    return _solution(highs, program, columns, seconds)


def _solution(highs: Any, program: Program, columns: Ints, seconds: float) -> Solution:
    """Solves the binary program; its first variables are ``columns``."""
    status = _run(highs, seconds)
    info = highs.getInfo()
    if status == highspy.HighsModelStatus.kInfeasible:
        return Solution(columns=None, objective=math.inf, bound=math.inf)
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return Solution(columns=None, objective=math.inf, bound=info.mip_dual_bound)
    chosen = columns[np.array(highs.getSolution().col_value)[: len(columns)] > 0.5]
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
    """Returns a solver with the relaxation of ``program`` over ``columns``, passed sparse and column-wise."""
    count, layers = len(program.layer), program.layers
    entries = [(program.layer, np.arange(count), np.ones(count))]
    entries += [
        (np.full(len(row.index), layers + r), row.index, row.value) for r, row in enumerate(program.rows)
    ]
    row, column, value = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    shape = layers + len(program.rows), count
    matrix = scipy.sparse.csc_array((value, (row, column)), shape=shape)[:, columns]

    lp = highspy.HighsLp()
    lp.num_row_, lp.num_col_ = matrix.shape
    lp.col_cost_ = program.objective[columns]
    lp.col_lower_ = np.zeros(len(columns))
    lp.col_upper_ = np.ones(len(columns))
    lp.row_lower_ = np.concatenate([np.ones(layers), np.full(len(program.rows), -np.inf)])
    lp.row_upper_ = np.concatenate([np.ones(layers), [r.upper for r in program.rows]])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = matrix.indptr, matrix.indices, matrix.data

    highs = _SilentHighs()
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
    """Runs for at most ``seconds`` and returns the model status; raises RuntimeError for unexpected ones."""
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
