"""How much of a budget is kept free."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lana_ray.config import SelectConfig
from lana_ray.costs.table import CostTables, MeasuredCost
from lana_ray.ids import Architecture, CostId
from lana_ray.selection.margin import noise_of


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
    free = noise_of(SelectConfig(margin=0, confidence=0.95), costs(*map(tuple, sessions.tolist()))).share(3)
    judged = 1 + deviation * np.median(rng.standard_normal((20_000, 3)), axis=1)
    again = 1 + deviation * rng.standard_normal(20_000)
    kept = again <= judged / (1 - free)
    assert 0.94 < kept.mean() < 0.96


def test_the_margin_is_kept_free_at_least() -> None:
    calm = costs(*[(1.0, 1.0, 1.0)] * 200)
    assert noise_of(SelectConfig(margin=0.03, confidence=0.95), calm).share(3) == 0.03
    assert noise_of(SelectConfig(margin=0.03, confidence=None), costs((1.0, 2.0, 3.0))).share(3) == 0.03
    memory = replace(costs((1.0, 2.0)), id=CostId("peak_memory_mb", "edge"))
    assert noise_of(SelectConfig(margin=0.03), memory).share(0) == 0.03  # read once


def test_before_anything_was_measured_a_usual_spread_is_expected() -> None:
    expected = noise_of(SelectConfig(), costs())
    assert 0.02 < expected.share(3) < 0.06
    assert expected.share(9) < expected.share(3) < expected.share(1)
    one = noise_of(SelectConfig(), costs((1.0, 1.0, 1.0)))
    assert one.share(3) < expected.share(3)


def test_the_present_drift_of_a_target_is_that_of_its_last_networks() -> None:
    def drifting(drifts: list[float]) -> CostTables:
        networks: dict[Architecture, MeasuredCost] = {
            (n,): MeasuredCost(value=1.0, sessions=(1.0, 1.0), drift=drift) for n, drift in enumerate(drifts)
        }
        return replace(costs(), networks=networks)

    assert noise_of(SelectConfig(), costs()).slowdown == 1.0
    assert noise_of(SelectConfig(), drifting([0.8] * 9)).slowdown == 1.0  # absolute budgets gain nothing
    assert noise_of(SelectConfig(), drifting([1.0] * 20 + [1.4] * 8)).slowdown == 1.4
    assert noise_of(SelectConfig(confidence=None), drifting([1.2])).slowdown == 1.2
