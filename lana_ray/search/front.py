"""Summary of a set of trials: its Pareto front, and how much of the plane it dominates."""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]
"""Cost (lower is better) and accuracy (higher is better)."""


def front(points: Sequence[Point]) -> list[Point]:
    """Returns the points that no other point beats in both, cheapest first and without duplicates."""
    best: list[Point] = []
    for cost, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((cost, accuracy))
    return best


def hypervolume(points: Sequence[Point], *, most: float) -> float:
    """Returns the share of the area of costs up to ``most`` and accuracies up to 1 that the points dominate.

    It is the best accuracy within a budget, averaged over all budgets up to ``most`` (Zitzler & Thiele 1999).
    """
    steps = [point for point in front(points) if point[0] < most]
    ends = [*(cost for cost, _ in steps), most][1:]
    return sum((end - cost) * accuracy for (cost, accuracy), end in zip(steps, ends, strict=True)) / most
