"""How much of a budget is kept free."""

from __future__ import annotations

import math

from scipy.stats import t

from lana_ray.config import SelectConfig
from lana_ray.costs.table import CostTables
from lana_ray.costs.timing import spread

_OF_MEDIAN = 0.449
"""Variance of the median of three sessions, as a share of one session's, for normal scatter."""


def margin(settings: SelectConfig, costs: CostTables) -> float:
    """Share of a budget on this cost that is kept free.

    With ``select.confidence`` a further session of a network lies, with that probability, at most this far
    above the median of those it was judged by: Student's t with the degrees of freedom of the pooled
    deviation. ``select.margin`` is the least that is kept free.
    """
    sessions = [one.sessions for one in costs.networks.values() if one.sessions]
    if settings.confidence is None or not sessions:
        return settings.margin
    deviation, freedom = spread(sessions)
    if not freedom:
        return settings.margin
    above = float(t.ppf(settings.confidence, freedom)) * deviation * math.sqrt(1 + _OF_MEDIAN)
    return max(settings.margin, above / (1 + above))
