"""search: within every row, near the relaxation, and the same every time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lana_ray.selection.highs import Relaxation
from lana_ray.selection.problem import Ints, Problem
from lana_ray.selection.program import Program, build_program
from lana_ray.selection.tabu import search


def random_program(seed: int, layers: int, candidates: int, share: float) -> Program:
    """Two budgets, each a share of the way from the cheapest selection to the dearest."""
    rng = np.random.default_rng(seed)
    tables = {name: list(rng.random((layers, candidates))) for name in ("scores", "latency_ms", "params")}
    scores = tables.pop("scores")
    budgets = {
        name: sum(c.min() + share * (c.max() - c.min()) for c in table) for name, table in tables.items()
    }
    return build_program(Problem.check(scores, tables), budgets)


def found_in(program: Program) -> Ints | None:
    return search(program, Relaxation(program).solve(program.rows, math.inf), math.inf)


@pytest.mark.parametrize(("layers", "candidates"), [(12, 30), (46, 197)])
@pytest.mark.parametrize("share", [0.2, 0.3, 1.0])
def test_selections_are_within_every_row(layers: int, candidates: int, share: float) -> None:
    program = random_program(0, layers, candidates, share)
    for _ in range(4):
        columns = found_in(program)
        assert columns is not None
        assert program.layer[columns].tolist() == list(range(layers))
        for row in program.rows:
            assert row.value[np.isin(row.index, columns)].sum() <= row.upper + 1e-8
        program = program.unlike(columns, math.floor(0.7 * layers))


def test_selections_are_near_the_relaxation() -> None:
    program = random_program(1, 46, 197, 0.15)
    for _ in range(10):
        columns = found_in(program)
        assert columns is not None
        value = Relaxation(program).solve(program.rows, math.inf).value
        score, bound = program.score(program.objective[columns].sum()), program.score(value)
        assert bound <= score <= 1.02 * bound
        program = program.unlike(columns, 32)


def test_the_same_program_has_the_same_answer() -> None:
    program = random_program(2, 20, 30, 0.2)
    for _ in range(3):
        one, other = found_in(program), found_in(program)
        assert one is not None
        assert other is not None
        assert np.array_equal(one, other)
        program = program.unlike(one, 14)


def test_no_time_leaves_only_where_the_search_starts() -> None:
    program = random_program(3, 46, 197, 0.15)
    relaxed = Relaxation(program).solve(program.rows, math.inf)
    quick, slow = search(program, relaxed, 0.0), search(program, relaxed, math.inf)
    assert slow is not None
    assert quick is None or program.objective[quick].sum() > program.objective[slow].sum()
