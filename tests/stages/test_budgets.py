"""What is to be chosen, and how much of each budget is kept free."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from lana_ray.config import Budget, SelectConfig
from lana_ray.stages import budgets


@pytest.mark.parametrize("deviation", [0.01, 0.05])
def test_the_share_kept_free_lets_so_many_re_measurements_keep_the_budget(deviation: float) -> None:
    """Judged by the median of three sessions at exactly the limit, a network keeps the budget in 95 %."""
    rng = np.random.default_rng(0)
    sessions = 1 + deviation * rng.standard_normal((900, 3))
    measured = cast(Any, SimpleNamespace(sessions_ms=dict(enumerate(sessions * rng.uniform(1, 9, (900, 1))))))
    free = budgets.free_share(SelectConfig(margin=0, confidence=0.95), measured)
    judged = 1 + deviation * np.median(rng.standard_normal((20_000, 3)), axis=1)
    again = 1 + deviation * rng.standard_normal(20_000)
    kept = again <= judged / (1 - free)
    assert 0.94 < kept.mean() < 0.96


def test_the_margin_is_kept_free_at_least() -> None:
    calm = cast(Any, SimpleNamespace(sessions_ms={0: (1.0, 1.0, 1.0)}))
    unknown = cast(Any, SimpleNamespace(sessions_ms={}))
    assert budgets.free_share(SelectConfig(margin=0.03, confidence=0.95), calm) == 0.03
    assert budgets.free_share(SelectConfig(margin=0.03, confidence=0.95), unknown) == 0.03
    assert budgets.free_share(SelectConfig(margin=0.03), calm) == 0.03


def test_a_joint_choice_is_opened_for_every_budget_where_there_are_targets() -> None:
    table = SimpleNamespace(rest_ms=0.1, costs_ms=[np.array([1.0, 0.2])] * 3)
    known = {name: SimpleNamespace(table=table, teacher_ms=ms) for name, ms in (("a", 4.0), ("b", 8.0))}
    asked = SimpleNamespace(latency_ms=(Budget.parse("50%"), Budget.parse("3ms")))
    config = SimpleNamespace(select=SelectConfig(joint=True, margin=0), budgets=asked)
    workspace = cast(Any, SimpleNamespace(config=config))
    opened = budgets.open_choices(workspace, cast(Any, known))
    assert [(c.name, {t: x.limit_ms for t, x in c.limits.items()}) for c in opened] == [
        ("50%", {"a": 2.0}),
        ("3ms", {"a": 3.0}),
        ("50%", {"b": 4.0}),
        ("3ms", {"b": 3.0}),
        ("50% on all", {"a": 2.0, "b": 4.0}),
        ("3ms on all", {"a": 3.0, "b": 3.0}),
    ]
    assert len(budgets.open_choices(workspace, cast(Any, {"a": known["a"]}))) == 2
