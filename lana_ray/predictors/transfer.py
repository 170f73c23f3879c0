"""Predicts a new device's latencies from a few measurements and many on other devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lana_ray.predictors.latency import Floats, checked

_RIDGES = np.logspace(-6, 0, 25)
"""Strengths of a source's regression, relative to the largest eigenvalue."""
_NOISES = np.logspace(-5, 1, 25)
"""Variances of a new device's measurements, relative to the largest eigenvalue."""
_OWN = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Weights of a device's own costs, relative to those it shares with the sources."""
_TYPICAL_OWN, _TYPICAL_NOISE = 2.0, 1e-2
"""Assumptions about a device before its first measurement."""


@dataclass(frozen=True)
class _Prior:
    """Features from the source devices in which any device's latency should be almost linear."""

    mean: Floats
    """Mean of the encodings, [d]."""
    weights: Floats
    """Weights of the sources' standardised latencies, [sources, d]."""
    scale: Floats
    """Cost of each entry of an encoding on the sources, root mean square, [d]."""

    def features(self, encodings: Floats, own: float) -> Floats:
        """Returns [n, sources + d]: each source's prediction, and the entries scaled by their cost there."""
        centred = encodings - self.mean
        return np.concatenate([centred @ self.weights.T, own * centred * self.scale], axis=1)

    def fold(self, weights: Floats, own: float) -> Floats:
        """Returns weights of features as weights of the centred encodings they are linear in, [d]."""
        shared, rest = np.split(weights, [len(self.weights)])
        return np.asarray(shared @ self.weights + own * self.scale * rest)


class TransferPredictor:
    """Predicts the latency on a new device from about 20 measurements, and many on other devices.

    Each source device yields a ridge regression on the encoding. A new device is a Bayesian linear regression
    on the sources' predictions and on the encoding itself, with every entry scaled by its cost on the
    sources: an entry that is expensive everywhere may differ much on this device, a cheap one little. The
    measurements' noise and the weight of the device's own costs are averaged over, weighted by the evidence
    (marginal likelihood). The scale and the average make 20 measurements suffice: ``jobs/RESULTS.md``,
    "Scale and average in a transfer".
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed
        self._prior: _Prior | None = None

    def fit(self, encodings: ArrayLike, latencies_ms: Mapping[str, ArrayLike]) -> Self:
        """Learns from source devices, at least two measurements each; raises ValueError for wrong samples.

        Args:
            encodings: [n, d].
            latencies_ms: by device, [n], positive; NaN for architectures that were not measured.
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
                encoded, times = checked(x[measured], y[measured])
            except ValueError as error:
                raise ValueError(f"device {device!r}: {error}") from None
            weights.append(_ridge(encoded - mean, times / max(float(times.std()), 1e-12)))
        stacked = np.stack(weights)
        shared = np.sqrt(((x - mean) @ stacked.T).var(0)).clip(1e-12)
        stacked = stacked / shared[:, None] / np.sqrt(len(stacked))
        scale = np.sqrt((stacked**2).sum(0))
        spread = np.sqrt((((x - mean) * scale) ** 2).sum(1).mean()).clip(1e-12)
        self._prior = _Prior(mean=mean, weights=stacked, scale=scale / spread)
        return self

    def choose(self, encodings: ArrayLike, count: int) -> NDArray[np.int64]:
        """Returns the indices [count] of architectures to measure on a new device, most informative first.

        Each is the one whose measurement reduces most the remaining variance over all encodings (A-optimal
        design), which needs no latencies. It helps if the new device is unlike the sources and does no harm
        otherwise: 0.842 compared with 0.830 for random ones on FBNet's task F1, 0.963 for both on FD, 0.965
        compared with 0.966 on ND (jobs/benchmark_predictor.py).

        Args:
            encodings: [n, d], of all architectures that could be measured, the more the better; ValueError
                for another width, and if ``count`` exceeds n.
        """
        prior = self._fitted()
        x = np.asarray(encodings, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != len(prior.mean) or not 0 <= count <= len(x):
            raise ValueError(f"cannot choose {count} of encodings {x.shape}, expected [n, {len(prior.mean)}]")
        features = np.column_stack([np.ones(len(x)), prior.features(x, _TYPICAL_OWN)])
        second = features.T @ features / len(x)
        noise = _TYPICAL_NOISE * float((features**2).sum(1).mean())
        covariance, chosen = np.eye(features.shape[1]), list[int]()
        for _ in range(count):
            spread = features @ covariance
            variance = (spread * features).sum(1) + noise
            gain = ((spread @ second) * spread).sum(1) / variance
            gain[chosen] = -np.inf
            chosen.append(int(gain.argmax()))
            reduction = spread[chosen[-1]]
            covariance -= np.outer(reduction, reduction) / variance[chosen[-1]]
        return np.array(chosen, dtype=np.int64)

    def adapt(self, encodings: ArrayLike, latency_ms: ArrayLike) -> AdaptedPredictor:
        """Returns a predictor for a device with few measurements: encodings [k, d], latencies [k] in ms.

        Raises ValueError before ``fit``, for fewer than three measurements, and for wrong samples.
        """
        prior = self._fitted()
        x, y = checked(encodings, latency_ms)
        if len(y) < 3 or x.shape[1] != len(prior.mean):
            raise ValueError(
                f"needs at least three measurements of encodings [k, {len(prior.mean)}], not {x.shape}"
            )
        mean, spread = float(y.mean()), max(float(y.std()), 1e-12)
        evidence, offsets, weights = _posteriors(prior, x, (y - mean) / spread)
        shares = np.exp(evidence - evidence.max())
        shares /= shares.sum()
        slope = spread * (shares @ weights)
        offset = mean + spread * float(shares @ offsets) - float(prior.mean @ slope)
        return AdaptedPredictor(offset=offset, weights=slope)

    def _fitted(self) -> _Prior:
        if self._prior is None:
            raise ValueError("the transfer is not fitted; call fit with the source devices first")
        return self._prior


@dataclass(frozen=True, kw_only=True)
class AdaptedPredictor:
    """Predicts the latency on the device it was adapted to; linear in the encoding."""

    offset: float
    weights: Floats

    def predict(self, encodings: ArrayLike) -> Floats:
        """Returns ``latency_ms`` [n] of encodings [n, d]."""
        return np.asarray(self.offset + np.asarray(encodings, dtype=np.float64) @ self.weights)


def _posteriors(prior: _Prior, x: Floats, y: Floats) -> tuple[Floats, Floats, Floats]:
    """Returns log evidence [m], offset [m] and weights [m, d] for every noise and every weight of own costs.

    The scale of the prior is the one with the largest evidence, in closed form.
    """
    evidence, offsets, weights = [], [], []
    for own in _OWN:
        features = prior.features(x, own)
        # The added 1 is the offset's own variance.
        values, vectors = np.linalg.eigh(features @ features.T + 1.0)
        rotated = vectors.T @ y
        for noise in _NOISES * float(values[-1]):
            spectrum = values + noise
            variance = max(float((rotated**2 / spectrum).mean()), 1e-12)
            evidence.append(-0.5 * (len(y) * np.log(variance) + np.log(spectrum).sum()))
            dual = vectors @ (rotated / spectrum)
            offsets.append(dual.sum())
            weights.append(prior.fold(features.T @ dual, own))
    return np.array(evidence), np.array(offsets), np.array(weights)


def _ridge(x: Floats, y: Floats) -> Floats:
    """Returns the weights of a ridge regression with an offset and the least leave-one-out error."""
    centred, rest, count = x - x.mean(0), y - y.mean(), len(y)
    kernel = centred @ centred.T
    values, vectors = np.linalg.eigh(kernel)
    least, best = np.inf, rest
    for strength in _RIDGES * max(float(values[-1]), 1e-12):
        inverse = (vectors / (values + strength)) @ vectors.T
        dual = inverse @ rest
        leverage = 1 / count + np.einsum("ij,ij->i", kernel, inverse)
        left_out = (rest - kernel @ dual) / np.maximum(1 - leverage, 1e-6)
        error = float((left_out**2).mean())
        if error < least:
            least, best = error, dual
    return np.asarray(centred.T @ best)
