"""How much of a budget is kept free, since the sessions of one network differ."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from lana_ray.config import SelectConfig
from lana_ray.costs.table import CostTables
from lana_ray.costs.timing import spread

_LATEST = 8
"""Number of networks measured last whose drift is the target's present one."""
_PRIOR, _PRIOR_FREEDOM = 0.015, 4
"""The deviation expected before any session was measured, and the number of sessions that it counts for."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How the sessions of one network differ, each in a process of its own."""

    floor: float = 0.0
    """Least share of a budget that is kept free."""
    deviation: float = 0.0
    """Relative standard deviation of a session: between processes and within."""
    quantile: float = 0.0
    """Number of deviations that a session may lie above the network's latency."""
    slowdown: float = 1.0
    """How much slower than at its baseline the target was in its last sessions."""

    def share(self, sessions: int) -> float:
        """Share of a budget to keep free of a network that was measured in so many sessions.

        A further session then keeps the budget with the probability of ``quantile``. Both it and the median
        of the sessions are uncertain.
        """
        above = self.quantile * self.deviation * math.sqrt(1 + _of_median(max(sessions, 1)))
        return max(self.floor, above / (1 + above))


def noise_of(settings: SelectConfig, costs: CostTables) -> Noise:
    """How sessions differ for a cost on a target, pooled over all networks measured in several.

    The quantile is Student's t with the degrees of freedom of the pooled deviation. A cost that is read once
    has no sessions: ``select.margin`` of its budget is kept free.
    """
    sessions = [one.sessions for one in costs.networks.values() if one.sessions]
    drifts = [one.drift for one in costs.networks.values() if one.sessions]
    slowdown = max(1.0, float(np.median(drifts[-_LATEST:]))) if drifts else 1.0
    if settings.confidence is None or not costs.id.is_latency:
        return Noise(floor=settings.margin, slowdown=slowdown)
    deviation, freedom = spread(sessions)
    squares = freedom * deviation**2 + _PRIOR_FREEDOM * _PRIOR**2
    freedom += _PRIOR_FREEDOM
    return Noise(
        floor=settings.margin,
        deviation=math.sqrt(squares / freedom),
        quantile=float(stdtrit(freedom, settings.confidence)),
        slowdown=slowdown,
    )


def _of_median(count: int) -> float:
    """Variance of the median of normal values, as a share of one value's; within 2 % for any count."""
    return math.pi / (2 * (count - 1) + math.pi)
