"""The predictor: what it learns, how it differs from its derivative, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lana_ray.latency import LatencyPredictor
from lana_ray.predictors import latency as predictor_module
from lana_ray.predictors.fits import quality
from lana_ray.run_dir.digest import DIGEST_KEY, seal, unseal

from ..errors import refuses

LAYERS, OPS = 6, 4
RNG = np.random.default_rng(0)
COSTS = RNG.uniform(0.1, 2.0, (LAYERS, OPS))


def sampled(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Architectures with additive costs, a pair of layers that interact, and 1 % of noise."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(OPS, size=(count, LAYERS))
    encodings = np.eye(OPS)[chosen].reshape(count, -1)
    latency = COSTS[np.arange(LAYERS), chosen].sum(1) + 1.5 * (chosen[:, 0] == chosen[:, 1])
    return encodings, latency * rng.normal(1, 0.01, count)


@pytest.fixture(scope="module")
def fitted() -> LatencyPredictor:
    return LatencyPredictor(seed=1).fit(*sampled(300, 1))


def test_learns_what_does_not_add_up(fitted: LatencyPredictor) -> None:
    encodings, latency = sampled(500, 2)
    found = quality(fitted.predict(encodings), latency)
    assert found.median_error < 0.03
    assert found.within_10 > 0.95
    assert found.spearman > 0.97
    design = np.c_[sampled(300, 1)[0], np.ones(300)]
    linear = np.linalg.lstsq(design, sampled(300, 1)[1], rcond=None)[0]
    alone = quality(np.c_[encodings, np.ones(500)] @ linear, latency)
    assert found.median_error < 0.6 * alone.median_error


def test_is_less_sure_where_it_has_seen_nothing(fitted: LatencyPredictor) -> None:
    known, strange = sampled(200, 1)[0], RNG.uniform(-1, 2, (200, LAYERS * OPS))
    assert fitted.predict_std(known).shape == (200,)
    assert np.median(fitted.predict_std(strange) / fitted.predict(strange)) > 3 * np.median(
        fitted.predict_std(known) / fitted.predict(known)
    )


def test_chooses_where_its_members_disagree_without_repeating_itself(fitted: LatencyPredictor) -> None:
    known, strange = sampled(200, 1)[0], RNG.uniform(-1, 2, (200, LAYERS * OPS))
    encodings = np.concatenate([known, strange])
    chosen = fitted.choose(encodings, 100)
    assert len(set(chosen.tolist())) == 100
    assert (chosen >= 200).mean() > 0.8
    assert np.array_equal(chosen, fitted.choose(encodings, 100))
    assert np.array_equal(np.sort(fitted.choose(encodings, 400)), np.arange(400))
    with pytest.raises(ValueError, match="cannot choose 401 of 400 encodings"):
        fitted.choose(encodings, 401)


def test_the_module_is_the_prediction_and_has_a_gradient(fitted: LatencyPredictor) -> None:
    encodings = sampled(20, 3)[0]
    module = fitted.as_module()
    batch = torch.tensor(encodings, dtype=torch.float32).reshape(4, 5, -1).requires_grad_()
    latency = module(batch)
    assert latency.shape == (4, 5)
    np.testing.assert_allclose(latency.detach().numpy().ravel(), fitted.predict(encodings), rtol=1e-4)
    latency.sum().backward()
    assert batch.grad is not None
    assert batch.grad.abs().sum() > 0
    assert all(not parameter.requires_grad for parameter in module.parameters())


def test_the_same_seed_gives_the_same_predictor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_module, "_EPOCHS", 20)
    encodings, latency = sampled(60, 4)
    torch.manual_seed(5)
    first = LatencyPredictor(seed=3).fit(encodings, latency).predict(encodings)
    torch.manual_seed(6)
    np.testing.assert_array_equal(LatencyPredictor(seed=3).fit(encodings, latency).predict(encodings), first)
    assert not np.array_equal(LatencyPredictor(seed=4).fit(encodings, latency).predict(encodings), first)


def test_is_saved_and_loaded(fitted: LatencyPredictor, tmp_path: Path) -> None:
    path = tmp_path / "predictor.safetensors"
    fitted.save(path)
    loaded = LatencyPredictor.load(path)
    encodings = sampled(10, 5)[0]
    assert loaded.seed == fitted.seed
    np.testing.assert_array_equal(loaded.predict(encodings), fitted.predict(encodings))
    with refuses("missing_file", "other.safetensors"):
        LatencyPredictor.load(tmp_path / "other.safetensors")
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    for damaged in (b"", content[:50], flipped):
        path.write_bytes(damaged)
        with refuses("damaged_file", str(path)):
            LatencyPredictor.load(path)


def test_other_tensors_are_no_predictor(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(seal({"mean": torch.zeros(3)}, {}))
    with refuses("invalid_file", "weights.safetensors"):
        LatencyPredictor.load(tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    "settings", [None, "{", "3", "{}", '{"seed": []}', '{"seed": "x"}', '{"seed": null}', "[]"]
)
def test_settings_that_are_none_are_a_damaged_file(settings: str | None, fitted: LatencyPredictor) -> None:
    tensors, metadata = unseal(fitted.to_bytes())
    changed = {key: value for key, value in metadata.items() if key not in (DIGEST_KEY, "settings")}
    data = seal(tensors, changed if settings is None else changed | {"settings": settings})
    with refuses("damaged_file", "weights.safetensors"):
        LatencyPredictor.from_bytes(data, "weights.safetensors")


@pytest.mark.parametrize("name", ["mean", "weights.0"])
@pytest.mark.parametrize("tensor", [None, torch.zeros(()), torch.zeros(2, 2)])
def test_tensors_of_another_shape_are_a_damaged_file(
    name: str, tensor: torch.Tensor | None, fitted: LatencyPredictor
) -> None:
    tensors, metadata = unseal(fitted.to_bytes())
    del tensors[name], metadata[DIGEST_KEY]
    data = seal(tensors if tensor is None else tensors | {name: tensor}, metadata)
    with refuses("damaged_file", "weights.safetensors"):
        LatencyPredictor.from_bytes(data, "weights.safetensors")


def test_an_input_that_never_varied_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_module, "_EPOCHS", 20)
    encodings, latency = sampled(60, 6)
    encodings = np.c_[encodings, np.ones(60)]
    predictor = LatencyPredictor().fit(encodings, latency)
    other = encodings.copy()
    other[:, -1] = 7.0
    np.testing.assert_array_equal(predictor.predict(other), predictor.predict(encodings))


@pytest.mark.parametrize(
    ("encodings", "latency", "says"),
    [
        (np.zeros((3, 2)), [1.0, 2.0], r"shapes \[n, d\] and \[n\]"),
        (np.zeros((0, 2)), [], r"shapes \[n, d\]"),
        (np.zeros(3), [1.0, 2.0, 3.0], r"shapes \[n, d\]"),
        (np.zeros((2, 2)), [1.0, float("nan")], "latency 1 is nan ms, not a positive number"),
        (np.zeros((2, 2)), [-1.0, 1.0], "latency 0 is -1 ms"),
        (np.zeros((2, 2)), [0.0, 1.0], "latency 0 is 0 ms"),
        (np.array([[0.0], [np.inf]]), [1.0, 1.0], "encoding 1 is not finite"),
    ],
)
def test_what_is_no_sample_is_refused(encodings: np.ndarray, latency: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LatencyPredictor().fit(encodings, latency)


def test_asking_too_early_or_for_another_space_is_refused(fitted: LatencyPredictor) -> None:
    with pytest.raises(ValueError, match="not fitted; call fit first"):
        LatencyPredictor().predict(np.zeros((1, 3)))
    with pytest.raises(ValueError, match=rf"shape \(1, 3\), expected \[n, {LAYERS * OPS}\]"):
        fitted.predict(np.zeros((1, 3)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=30), st.floats(0.5, 2))
def test_quality_of_a_scaled_truth(latency: list[float], factor: float) -> None:
    found = quality(np.array(latency) * factor, latency)
    assert found.median_error == pytest.approx(abs(factor - 1), abs=1e-9)
    assert found.within_1 <= found.within_5 <= found.within_10
    if len(set(latency)) > 1:
        assert found.spearman == pytest.approx(1)
