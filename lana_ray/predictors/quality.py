"""Quality measures of a latency predictor."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import spearmanr


class Quality(NamedTuple):
    """Agreement of predictions with measurements of architectures that were not trained on."""

    median_error: float
    """Median absolute relative error."""
    mean_error: float
    """Mean absolute relative error."""
    within_1: float
    """Share of the predictions within ±1 %."""
    within_5: float
    within_10: float
    spearman: float
    """Rank correlation; NaN if all predictions or all measurements are equal."""


def quality(predicted_ms: ArrayLike, measured_ms: ArrayLike) -> Quality:
    """Compares predictions with measurements, both [n] in milliseconds."""
    predicted, measured = np.asarray(predicted_ms, dtype=float), np.asarray(measured_ms, dtype=float)
    errors = np.abs(predicted / measured - 1)
    within_1, within_5, within_10 = (float((errors <= bound).mean()) for bound in (0.01, 0.05, 0.1))
    varied = np.ptp(predicted) > 0 and np.ptp(measured) > 0
    return Quality(
        median_error=float(np.median(errors)),
        mean_error=float(errors.mean()),
        within_1=within_1,
        within_5=within_5,
        within_10=within_10,
        spearman=float(spearmanr(predicted, measured).statistic) if varied else float("nan"),
    )
