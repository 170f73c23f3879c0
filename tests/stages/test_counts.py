"""Budgets of parameters and multiply-accumulates: counted per candidate, exact for whole students."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from lana_ray.config import BudgetsConfig, CountBudget, Target
from lana_ray.errors import UserError
from lana_ray.networks.layers import find_layers
from lana_ray.run_dir.storage import Storage
from lana_ray.spaces import LayerwiseSpace
from lana_ray.stages import counts

from ..small_networks import net

NET = net(3).eval()
OPS = ["identity", "mbconv_e1_k3", "bottleneck_w0.5_k3", "repvgg_w1_k3"]
SPACE = LayerwiseSpace(NET, find_layers(NET, torch.zeros(2, 3, 16, 16)), OPS)
TARGETS = (Target(name="edge", input_shape=(3, 16, 16)),)
FREE = [np.zeros(len(ops)) for ops in SPACE.ops]


def workspace(folder: Path, **asked: Any) -> Any:
    budgets = BudgetsConfig(latency_ms=cast(Any, "50%"), **asked)
    return SimpleNamespace(
        space=SPACE,
        teacher=NET,
        targets=TARGETS,
        storage=Storage(str(folder)),
        config=SimpleNamespace(budgets=budgets),
    )


def test_what_candidates_take_adds_up_to_whole_students(tmp_path: Path) -> None:
    here = workspace(tmp_path, params="90%", macs="80%")
    budgets = {budget.name: budget for budget in counts.counted_budgets(here, FREE)}
    teacher = counts.count_network(here, NET)
    assert {name: budget.limit for name, budget in budgets.items()} == {
        "params": pytest.approx(0.9 * teacher["params"]),
        "macs": pytest.approx(0.8 * teacher["macs"]),
    }
    rng = np.random.default_rng(0)
    for student in [SPACE.teacher, *(SPACE.random(rng) for _ in range(6))]:
        whole = counts.count_network(here, SPACE.build(student))
        for name, budget in budgets.items():
            chosen = sum(float(of_layer[j]) for of_layer, j in zip(budget.costs, student, strict=True))
            assert budget.rest + chosen == whole[name]


def test_candidates_without_a_score_are_not_counted(tmp_path: Path) -> None:
    scores = [np.where(np.arange(len(ops)) == 1, np.inf, 0.0) for ops in SPACE.ops]
    [budget] = counts.counted_budgets(workspace(tmp_path, params="90%"), scores)
    assert all(np.isinf(of_layer[1]) and np.isfinite(of_layer[[0, 2]]).all() for of_layer in budget.costs)


def test_what_was_counted_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = workspace(tmp_path, params="90%")
    [first] = counts.counted_budgets(here, FREE)
    monkeypatch.setattr(SPACE, "candidate", None)  # nothing is made again
    [again] = counts.counted_budgets(here, FREE)
    assert [list(of_layer) for of_layer in again.costs] == [list(of_layer) for of_layer in first.costs]


def test_a_budget_below_the_smallest_student_says_what_can_be_had(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"budgets.params: 10 cannot be met: the smallest student has \d+ "):
        counts.counted_budgets(workspace(tmp_path, params="10"), FREE)


@pytest.mark.parametrize(
    ("text", "value", "relative"),
    [("60%", 0.6, True), ("2.5M", 2.5e6, False), ("300k", 3e5, False), (1200, 1200.0, False)],
)
def test_counts_have_units(text: Any, value: float, relative: bool) -> None:
    found = CountBudget.parse(text)
    assert found.relative == relative
    assert found.value == pytest.approx(value)
    assert CountBudget.parse(str(found)) == found


@pytest.mark.parametrize("text", ["2.5ms", "-3", "many", "0%"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"use e\.g\. 50% or 2\.5M"):
        CountBudget.parse(text)
