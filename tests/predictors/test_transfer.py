"""Transfer: a new device from few measurements, better than from those alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from lana_ray.latency import TransferPredictor

LAYERS, OPS, DEVICES = 12, 5, 5
RNG = np.random.default_rng(0)
SHARED = RNG.gamma(2.0, 1.0, (LAYERS, OPS)) * np.linspace(0.2, 3, LAYERS)[:, None]


def space(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.random.default_rng(seed).integers(OPS, size=(count, LAYERS))
    return chosen, np.eye(OPS)[chosen].reshape(count, -1)


def device(seed: int) -> np.ndarray:
    """Costs that differ from the shared ones by a quarter, the dear ones by more."""
    rng = np.random.default_rng(100 + seed)
    return rng.uniform(0.1, 10) * SHARED * rng.normal(1, 0.25, SHARED.shape).clip(0.2)


def latency(costs: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return costs[np.arange(LAYERS), chosen].sum(1)


@pytest.fixture(scope="module")
def fitted() -> TransferPredictor:
    chosen, encodings = space(300, 1)
    known = {f"d{k}": latency(device(k), chosen) for k in range(DEVICES)}
    for k, values in enumerate(known.values()):
        values[k :: DEVICES + 1] = np.nan  # not every device has measured every network
    return TransferPredictor().fit(encodings, known)


@pytest.mark.parametrize("seed", [50, 51, 52])
def test_twenty_measurements_and_the_sources_beat_either_alone(fitted: TransferPredictor, seed: int) -> None:
    (few, few_encodings), (rest, encodings) = space(20, seed), space(1000, 2)
    truth = latency(device(seed), rest)
    predicted = fitted.adapt(few_encodings, latency(device(seed), few)).predict(encodings)
    rank = spearmanr(predicted, truth).statistic
    assert rank > 0.93
    assert np.median(np.abs(predicted / truth - 1)) < 0.08
    source = max(spearmanr(latency(device(k), rest), truth).statistic for k in range(DEVICES))
    centred = few_encodings - few_encodings.mean(0)
    target = latency(device(seed), few)
    alone = (encodings - few_encodings.mean(0)) @ (np.linalg.pinv(centred) @ (target - target.mean()))
    assert rank > spearmanr(alone, truth).statistic
    assert rank > source - 0.01


def test_chosen_measurements_tell_more_than_random_ones(fitted: TransferPredictor) -> None:
    rest, encodings = space(1000, 2)
    chosen = fitted.choose(encodings, 12)
    ranks: dict[str, list[float]] = {"chosen": [], "random": []}
    for seed in range(50, 60):
        truth = latency(device(seed), rest)
        random = np.random.default_rng(seed).permutation(len(rest))[:12]
        for name, few in (("chosen", chosen), ("random", random)):
            predicted = fitted.adapt(encodings[few], truth[few]).predict(encodings)
            ranks[name].append(spearmanr(predicted, truth).statistic)
    assert np.mean(ranks["chosen"]) > np.mean(ranks["random"])


def test_a_choice_is_distinct_reproducible_and_grows_at_its_end(fitted: TransferPredictor) -> None:
    encodings = space(40, 4)[1]
    everything = fitted.choose(encodings, 40)
    assert sorted(everything) == list(range(40))
    assert list(fitted.choose(encodings, 7)) == list(everything[:7])
    assert fitted.choose(encodings, 0).shape == (0,)


def test_what_cannot_be_chosen_is_refused(fitted: TransferPredictor) -> None:
    encodings = space(10, 3)[1]
    with pytest.raises(ValueError, match="not fitted"):
        TransferPredictor().choose(encodings, 3)
    for wrong, count in ((encodings, 11), (encodings, -1), (encodings[:, 1:], 3), (encodings[0], 1)):
        with pytest.raises(ValueError, match=f"cannot choose {count} of encodings"):
            fitted.choose(wrong, count)


def test_what_cannot_be_transferred_is_refused(fitted: TransferPredictor) -> None:
    encodings = space(10, 3)[1]
    ones = np.ones(10)
    with pytest.raises(ValueError, match="at least one source device"):
        TransferPredictor().fit(encodings, {})
    with pytest.raises(ValueError, match=r"device 'gpu': latencies \(9,\) do not match"):
        TransferPredictor().fit(encodings, {"gpu": ones[:9]})
    with pytest.raises(ValueError, match="device 'gpu': needs at least two measurements"):
        TransferPredictor().fit(encodings, {"gpu": np.full(10, np.nan)})
    with pytest.raises(ValueError, match=r"device 'gpu': latency 0 is -1 ms, not a positive number"):
        TransferPredictor().fit(encodings, {"gpu": -ones})
    with pytest.raises(ValueError, match="not fitted"):
        TransferPredictor().adapt(encodings, ones)
    with pytest.raises(ValueError, match="at least three measurements"):
        fitted.adapt(encodings[:2], ones[:2])
    with pytest.raises(ValueError, match=rf"encodings \[k, {LAYERS * OPS}\], not \(10, 3\)"):
        fitted.adapt(encodings[:, :3], ones)
