"""HiGHS says nothing, whoever calls it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lana_ray.selection import InfeasibleBudget, select
from lana_ray.selection.max_ops import FewOperations, of_few_operations

SCORES = [[0.0, 1.0, 3.0], [0.0, 2.0, 1.5], [0.0, 0.5, 2.5]]
COSTS = {"ms": [[3.0, 1.0, 0.5]] * 3, "mb": [[1.0, 3.0, 2.0]] * 3}
OPS = [["teacher", "a", "b"]] * 3


def solve_everything() -> None:
    """The relaxation, the binary program, the one of few operations, and budgets that clash."""
    select(SCORES, COSTS, {"ms": 5.0, "mb": 7.0}, count=4)
    of_few_operations(SCORES, COSTS, {"ms": 5.0}, FewOperations(ops=OPS, most=1, free=["teacher"]))
    with pytest.raises(InfeasibleBudget):
        select(SCORES, COSTS, {"ms": 2.0, "mb": 4.0})


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    solve_everything()
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_nothing_is_printed_in_a_process_of_its_own() -> None:
    code = "from tests.selection.test_highs import solve_everything; solve_everything()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=300)
    assert (done.stdout, done.stderr) == (b"", b"")
