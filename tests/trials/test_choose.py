"""Fronts and hypervolumes, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lana_ray.trials.choose import front, hypervolume

POINTS = st.lists(st.tuples(st.integers(0, 20).map(float), st.integers(0, 10).map(lambda a: a / 10)))


@given(POINTS)
def test_the_front_has_what_no_other_point_beats(points: list[tuple[float, float]]) -> None:
    expected = {
        (cost, accuracy)
        for cost, accuracy in points
        if not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points)
    }
    found = front(points)
    assert set(found) == expected
    assert found == sorted(found)
    assert len(found) == len(expected)


@given(POINTS)
def test_the_hypervolume_is_the_mean_best_accuracy_over_budgets(points: list[tuple[float, float]]) -> None:
    budgets = np.arange(0, 16) + 0.5  # costs are whole, so the middle of each step stands for it
    best = [max((a for c, a in points if c <= budget), default=0.0) for budget in budgets]
    assert hypervolume(points, most=16.0) == pytest.approx(float(np.mean(best)))
