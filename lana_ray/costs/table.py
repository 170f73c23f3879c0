"""The cost table: what each candidate costs in place, so that a network's latency is a sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Prior spread of a candidate's cost around its isolated cost, and noise of a whole network's latency (both
# relative); the pair that predicts left-out networks best is taken.
_SPREADS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
_NOISES = (0.003, 0.006, 0.012, 0.025, 0.05)


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Additive latency model of one target: ``rest_ms`` + Σ over layers of ``costs_ms[layer][choice]``."""

    rest_ms: float
    """Stem, head and the call itself."""
    costs_ms: tuple[Floats, ...]
    """Per layer, shape [candidates]; infinite where a candidate cannot run on the target."""
    error_isolated: float
    """Median relative error over the measured networks when isolated costs are simply added up."""
    error: float
    """The same for this table, every network predicted from the others only."""
    networks: int
    """How many were measured for it."""

    def predict(self, architecture: Sequence[int]) -> float:
        """Latency in milliseconds of a whole network."""
        chosen = (cost[choice] for cost, choice in zip(self.costs_ms, architecture, strict=True))
        return self.rest_ms + float(sum(chosen))


def calibrate(
    isolated_ms: Sequence[Floats], architectures: Sequence[Sequence[int]], latencies_ms: Sequence[float]
) -> CostTable:
    """Corrects isolated candidate costs by whole networks measured on the target.

    A candidate timed alone pays for a call of its own and misses the runtime's fusion and the warm caches
    of its neighbours; LANA's table, made this way, misses its targets by -8 % to +14 % (arXiv 2107.10624,
    table 2). So the measured costs are only the prior of a Bayesian linear regression of whole latencies
    on the choices: an offset and a scale first, then each candidate by as much as the networks say.

    Args:
        isolated_ms: per layer, shape [candidates]; infinite for a candidate that cannot run.
        architectures: the networks measured; at least two.
        latencies_ms: their latencies.
    """
    sizes = [len(costs) for costs in isolated_ms]
    offsets = np.cumsum([0, *sizes])
    flat = np.concatenate([np.asarray(costs, dtype=np.float64) for costs in isolated_ms])
    usable = np.isfinite(flat)
    prior = np.where(usable, flat, 0.0)
    y = np.asarray(latencies_ms, dtype=np.float64)
    design = np.zeros((len(y), len(flat)))
    for row, architecture in enumerate(architectures):
        design[row, offsets[:-1] + np.asarray(architecture)] = 1

    added = design @ prior
    simple_rest = float(np.median(y - added))
    error_isolated = float(np.median(np.abs(simple_rest + added - y) / y))

    scale, rest = _line(added, y)
    expected = scale * prior
    floor = 0.02 * float(np.median(y)) / len(sizes)
    residual = y - rest - scale * added
    best: tuple[float, Floats, float, Floats] | None = None
    for spread in _SPREADS:
        variance = (spread * (expected + floor)) ** 2
        kernel = (design * variance) @ design.T + (0.1 * rest + floor) ** 2
        for noise in _NOISES:
            inverse = np.linalg.inv(kernel + np.diag((noise * y) ** 2))
            weights = inverse @ residual
            left_out = weights / np.diag(inverse) / y  # relative error of each network from the others
            loss = float(np.mean(np.minimum(np.abs(left_out), 0.2) ** 2))
            if best is None or loss < best[0]:
                correction = variance * (design.T @ weights)
                best = (loss, correction, (0.1 * rest + floor) ** 2 * float(weights.sum()), left_out)
    assert best is not None
    _, correction, rest_correction, left_out = best
    costs = np.where(usable, np.maximum(expected + correction, 0.0), np.inf)
    return CostTable(
        rest_ms=rest + rest_correction,
        costs_ms=tuple(np.split(costs, offsets[1:-1])),
        error_isolated=error_isolated,
        error=float(np.median(np.abs(left_out))),
        networks=len(y),
    )


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope and offset of y on x with relative errors; the slope is 1 where the data cannot tell."""
    weight = 1 / y
    design = np.stack([x, np.ones_like(x)], axis=1)
    (slope, offset), *_ = np.linalg.lstsq(design * weight[:, None], y * weight, rcond=None)
    if not 0.1 <= slope <= 10 or offset < 0:
        total = float((x * y * weight**2).sum() / max((x * x * weight**2).sum(), 1e-30))
        return (total, 0.0) if slope > 0 and offset < 0 else (1.0, float(np.median(y - x)))
    return float(slope), float(offset)
