"""Predicts a new device from a few measurements and what other devices have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lana_ray.latency.checks import checked

Floats = NDArray[np.float64]

_RIDGES = np.logspace(-6, 2, 33)  # relative to the largest eigenvalue
_OWN = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""How far a device may have costs of its own, relative to what it shares with the sources."""


class _Linear(NamedTuple):
    """``offset + features @ weights``, and how far its leave-one-out predictions are off (mean square)."""

    offset: float
    weights: Floats
    error: float

    def __call__(self, features: Floats) -> Floats:
        found: Floats = features @ self.weights + self.offset
        return found


@dataclass(frozen=True)
class _Prior:
    """What the sources say about any device: features in which its latency should be almost linear."""

    mean: Floats
    """Of the encodings, [d]."""
    weights: Floats
    """Of the sources' standardised latencies, [sources, d]."""
    scale: Floats
    """[d]: how much each entry of an encoding costs on the sources, root mean square."""

    def features(self, encodings: Floats, own: float) -> Floats:
        """[n, sources + d]: what each source would take, and the entries scaled by what they cost there."""
        centred = encodings - self.mean
        return np.concatenate([centred @ self.weights.T, own * centred * self.scale], axis=1)


class TransferPredictor:
    """Latency on a new device from about 20 measurements, given many on other devices.

    Each source device gives a ridge regression on the encoding. A new device is a ridge regression on the
    sources' predictions and on the encoding itself, whose every entry is scaled by what it costs on the
    sources: an entry that is expensive everywhere may differ here by much, a cheap one by little. The scale
    is what makes 20 measurements do: without it 0.754, with it 0.825 mean rank correlation on FBNet's task
    F1, where HELP has 0.793, MultiPredict 0.756 and NASFLAT 0.809 (``jobs/benchmark_predictor.py``).
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self._prior: _Prior | None = None

    def fit(self, encodings: ArrayLike, latencies_ms: Mapping[str, ArrayLike]) -> Self:
        """Learns from source devices.

        Args:
            encodings: [n, d].
            latencies_ms: by device, [n]; NaN where it was not measured.

        Raises:
            ValueError: for no device, shapes that do not match, a device without two measurements, or
                latencies that are not positive.
        """
        x = np.asarray(encodings, dtype=np.float64)
        if not latencies_ms:
            raise ValueError("a transfer needs the latencies of at least one source device")
        mean = x.mean(0)
        weights = []
        for device, latencies in latencies_ms.items():
            y = np.asarray(latencies, dtype=np.float64)
            if y.shape != x.shape[:1]:
                raise ValueError(f"device {device!r}: latencies {y.shape} do not match encodings {x.shape}")
            measured = ~np.isnan(y)
            if measured.sum() < 2:
                raise ValueError(f"device {device!r}: needs at least two measurements")
            try:
                known, times = checked(x[measured], y[measured])
            except ValueError as error:
                raise ValueError(f"device {device!r}: {error}") from None
            weights.append(_ridge(known - mean, times / max(times.std(), 1e-12)).weights)
        stacked = np.stack(weights)
        shared = np.sqrt(((x - mean) @ stacked.T).var(0)).clip(1e-12)
        stacked = stacked / shared[:, None] / np.sqrt(len(stacked))
        scale = np.sqrt((stacked**2).sum(0))
        spread = np.sqrt((((x - mean) * scale) ** 2).sum(1).mean()).clip(1e-12)
        self._prior = _Prior(mean=mean, weights=stacked, scale=scale / spread)
        return self

    def adapt(self, encodings: ArrayLike, latency_ms: ArrayLike) -> AdaptedPredictor:
        """A predictor for a device of which only a few measurements are there.

        Args:
            encodings: [k, d].
            latency_ms: [k], positive.

        Raises:
            ValueError: before ``fit``, for fewer than three measurements, or shapes that do not match.
        """
        if self._prior is None:
            raise ValueError("the transfer is not fitted; call fit with the source devices first")
        x, y = checked(encodings, latency_ms)
        if len(y) < 3 or x.shape[1] != len(self._prior.mean):
            raise ValueError(
                f"needs at least three measurements of encodings [k, {len(self._prior.mean)}], not {x.shape}"
            )
        fits = {own: _ridge(self._prior.features(x, own), y) for own in _OWN}
        own = min(fits, key=lambda o: fits[o].error)
        return AdaptedPredictor(self._prior, own, fits[own])


class AdaptedPredictor:
    """Predicts the latency on the device it was adapted to."""

    def __init__(self, prior: _Prior, own: float, linear: _Linear) -> None:
        self._prior, self._own, self._linear = prior, own, linear

    def predict(self, encodings: ArrayLike) -> Floats:
        """``latency_ms`` [n] of encodings [n, d]."""
        return self._linear(self._prior.features(np.asarray(encodings, dtype=np.float64), self._own))


def _ridge(x: Floats, y: Floats) -> _Linear:
    """Ridge regression with an offset, its strength chosen by the leave-one-out error in closed form."""
    mean, offset, count = x.mean(0), y.mean(), len(y)
    centred, rest = x - mean, y - offset
    kernel = centred @ centred.T
    values, vectors = np.linalg.eigh(kernel)
    best: tuple[float, Floats] | None = None
    for strength in _RIDGES * max(float(values[-1]), 1e-12):
        inverse = (vectors / (values + strength)) @ vectors.T
        dual = inverse @ rest
        leverage = 1 / count + np.einsum("ij,ij->i", kernel, inverse)
        left_out = (rest - kernel @ dual) / np.maximum(1 - leverage, 1e-6)
        error = float((left_out**2).mean())
        if best is None or error < best[0]:
            best = error, dual
    assert best is not None
    weights = centred.T @ best[1]
    return _Linear(float(offset - mean @ weights), weights, best[0])
