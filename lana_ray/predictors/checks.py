"""Checks of a predictor's training samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def checked(encodings: ArrayLike, latency_ms: ArrayLike) -> tuple[Floats, Floats]:
    """Encodings [n, d] and latencies [n] as arrays; raises ValueError unless they match and are positive."""
    x, y = np.asarray(encodings, dtype=np.float64), np.asarray(latency_ms, dtype=np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(y):
        raise ValueError(f"encodings {x.shape} and latencies {y.shape} must have shapes [n, d] and [n]")
    if not np.isfinite(x).all():
        raise ValueError(f"encoding {int(np.flatnonzero(~np.isfinite(x).all(1))[0])} is not finite")
    wrong = np.flatnonzero(~(np.isfinite(y) & (y > 0)))
    if len(wrong):
        raise ValueError(f"latency {int(wrong[0])} is {y[wrong[0]]:g} ms, not a positive number")
    return x, y
