"""How much of a budget is kept free."""

from __future__ import annotations

import numpy as np
import pytest

from lana_ray.config import SelectConfig
from lana_ray.costs.table import CostTables, MeasuredCost
from lana_ray.ids import Architecture, CostId
from lana_ray.selection.margin import margin


def costs(*sessions: tuple[float, ...]) -> CostTables:
    networks: dict[Architecture, MeasuredCost] = {
        (n,): MeasuredCost(value=1.0, sessions=some) for n, some in enumerate(sessions)
    }
    return CostTables(id=CostId("latency_ms", "edge"), teacher=1.0, networks=networks)


@pytest.mark.parametrize("deviation", [0.01, 0.05])
def test_the_share_kept_free_lets_so_many_re_measurements_keep_the_budget(deviation: float) -> None:
    """Judged by the median of three sessions at exactly the limit, a network keeps the budget in 95 %."""
    rng = np.random.default_rng(0)
    sessions = (1 + deviation * rng.standard_normal((900, 3))) * rng.uniform(1, 9, (900, 1))
    free = margin(SelectConfig(margin=0, confidence=0.95), costs(*map(tuple, sessions.tolist())))
    judged = 1 + deviation * np.median(rng.standard_normal((20_000, 3)), axis=1)
    again = 1 + deviation * rng.standard_normal(20_000)
    kept = again <= judged / (1 - free)
    assert 0.94 < kept.mean() < 0.96


@pytest.mark.parametrize("sessions", [[(1.0, 1.0, 1.0)], [()], [(1.0,)], []])
def test_the_margin_is_kept_free_at_least(sessions: list[tuple[float, ...]]) -> None:
    assert margin(SelectConfig(margin=0.03, confidence=0.95), costs(*sessions)) == 0.03
    assert margin(SelectConfig(margin=0.03), costs((1.0, 2.0, 3.0))) == 0.03
