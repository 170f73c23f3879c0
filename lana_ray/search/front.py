"""What a set of trials came to: its Pareto front, and how much of the plane it dominates."""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]
"""Cost, the lower the better, and accuracy, the higher the better."""


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in both, cheapest first; equal ones once."""
    best: list[Point] = []
    for cost, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((cost, accuracy))
    return best


def hypervolume(points: Sequence[Point], *, most: float) -> float:
    """Share of the rectangle of cost 0 to ``most`` and accuracy 0 to 1 that the points dominate.

    It is the mean over all budgets up to ``most`` of the best accuracy within them (Zitzler & Thiele, 1999).
    """
    steps = [point for point in front(points) if point[0] < most]
    ends = [*(cost for cost, _ in steps), most][1:]
    return sum((end - cost) * accuracy for (cost, accuracy), end in zip(steps, ends, strict=True)) / most
