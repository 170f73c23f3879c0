from __future__ import annotations

import gc
import itertools
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lana_ray.data import SPLITS, Batch, ImageData

from ..errors import refuses
from .samples import load, pictures, write_folder, write_parquet


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """100 images; the label of image i is i, so that a batch tells which images it holds."""
    path = tmp_path_factory.mktemp("data") / "a.parquet"
    return str(write_parquet(path, pictures(100), list(range(100))))


def held(batches: Any) -> list[int]:
    return [int(label) for _, labels in batches for label in labels]


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_splits_are_disjoint_and_cover(parquet: str) -> None:
    data = load(parquet=parquet, score_images=10, validation_images=15)
    assert data.sizes == {"train": 55, "score": 10, "validation": 15, "test": 20}
    everything = np.concatenate([data.indices[split] for split in SPLITS])
    assert sorted(everything) == list(range(100))


def test_given_test_images_are_the_test_split(parquet: str, tmp_path: Path) -> None:
    test = write_parquet(tmp_path / "test.parquet", pictures(7, start=200), list(range(7)))
    data = load(parquet=parquet, test=str(test), limit=50)
    assert data.sizes == {"train": 50, "score": 4, "validation": 4, "test": 7}
    assert sorted(data.indices["test"]) == list(range(100, 107))
    assert sorted(held(data.batches("test", batch_size=3))) == list(range(7))


def test_the_same_data_may_be_normalised_otherwise(parquet: str) -> None:
    data = load(parquet=parquet)
    again = data.normalised(data.preprocessing.mean, data.preprocessing.std)
    assert again.fingerprint == data.fingerprint
    raw = data.normalised((0, 0, 0), (1, 1, 1))
    assert raw.fingerprint != data.fingerprint
    (images, labels), (pixels, same) = (next(d.batches("train", batch_size=4)) for d in (data, raw))
    assert torch.equal(labels, same)
    mean, std = (torch.tensor(x)[:, None, None] for x in (data.preprocessing.mean, data.preprocessing.std))
    assert torch.allclose(images, (pixels - mean) / std, atol=1e-5)


def test_splits_follow_the_seed_alone(parquet: str) -> None:
    first, again, other = load(parquet=parquet), load(parquet=parquet), load(parquet=parquet, seed=1)
    for split in SPLITS:
        np.testing.assert_array_equal(first.indices[split], again.indices[split])
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert set(first.indices["test"]) != set(other.indices["test"])


@pytest.mark.parametrize(
    "change",
    [
        {"limit": 10},
        {"image_size": 16},
        {"score_images": 5},
        {"augment": "none"},
        {"value_range": (0, 4095)},
    ],
)
def test_fingerprint_follows_what_a_network_sees(parquet: str, change: dict[str, Any]) -> None:
    assert load(parquet=parquet).fingerprint != load(parquet=parquet, **change).fingerprint


def test_too_little_to_train_names_the_settings(parquet: str) -> None:
    with refuses("invalid_data", "data.score_images 30", "data.validation_images 30", "40"):
        load(parquet=parquet, score_images=30, validation_images=30)


def test_batches_are_normalised_images(tmp_path: Path) -> None:
    data = load(folder=str(write_folder(tmp_path / "pictures", 10)), image_size=24)
    images, labels = next(iter(data.batches("train", batch_size=8)))
    assert images.shape == (8, 3, 24, 24)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.is_contiguous(memory_format=torch.channels_last)
    plain, _ = next(iter(data.batches("train", batch_size=8, channels_last=False)))
    assert plain.is_contiguous()
    assert torch.equal(plain, images)
    assert data.preprocessing.as_dict() == {
        "size": 24,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bilinear",
        "value_range": None,
        "orientation": "exif",
        "transparency": "white",
        "frame": "first",
    }


@pytest.mark.parametrize("augment", ["none", "crop", "flip"])
def test_a_resumed_epoch_continues_with_the_same_batches(parquet: str, augment: str) -> None:
    options: dict[str, Any] = {"batch_size": 16, "epoch": 3}
    batches = list(load(parquet=parquet, augment=augment).shuffled("train", **options))
    resumed = load(parquet=parquet, augment=augment)
    list(resumed.batches("score", batch_size=2))
    assert_same(list(resumed.shuffled("train", **options, only=range(2, len(batches)))), batches[2:])
    assert not list(resumed.shuffled("train", **options, only=[]))


def test_epochs_shuffle_differently_and_hold_the_same_images(parquet: str) -> None:
    data = load(parquet=parquet)
    first, second = (held(data.shuffled("train", batch_size=18, epoch=e)) for e in (0, 1))
    assert first != second
    assert sorted(first) == sorted(second) == sorted(data.indices["train"])


def test_a_split_may_be_cut_and_keeps_its_order(parquet: str) -> None:
    data = load(parquet=parquet)
    capped = [held(data.batches("train", batch_size=16, max_images=20)) for _ in range(2)]
    assert capped[0] == capped[1] == data.indices["train"][:20].tolist()


@pytest.mark.parametrize(("split", "batch_size"), [("train", 20), ("score", 4), ("score", 64)])
def test_endless_batches_begin_at_any_step(parquet: str, split: str, batch_size: int) -> None:
    data = load(parquet=parquet, score_images=10, validation_images=15)  # two steps an epoch, or one
    batches = list(itertools.islice(data.endless(split, batch_size=batch_size), 7))
    assert {len(labels) for _, labels in batches} == {min(batch_size, data.sizes[split])}
    assert not torch.equal(batches[0][0], batches[2][0])  # another epoch, another order
    for start in (1, 2, 5):
        resumed = data.endless(split, batch_size=batch_size, start_step=start)
        assert_same(list(itertools.islice(resumed, 7 - start)), batches[start:])


def test_a_seed_changes_the_order_and_the_data_s_own_is_the_default(parquet: str) -> None:
    data = load(parquet=parquet, seed=3)
    default, same, other = (
        held(itertools.islice(data.endless("train", batch_size=72, seed=seed), 1)) for seed in (None, 3, 4)
    )
    assert default == same
    assert default != other
    assert sorted(default) == sorted(other)


def test_augmentation_changes_training_images_only_when_asked(parquet: str) -> None:
    data, off = load(parquet=parquet), load(parquet=parquet, augment="none")
    unshuffled, again, without = (list(d.batches("train", batch_size=72)) for d in (data, data, off))
    assert_same(unshuffled, again)
    assert_same(unshuffled, without)
    augmented, plain = (list(d.shuffled("train", batch_size=72)) for d in (data, off))
    assert torch.equal(augmented[0][1], plain[0][1])
    assert not torch.equal(augmented[0][0], plain[0][0])
    order = torch.argsort(plain[0][1]), torch.argsort(unshuffled[0][1])
    assert torch.equal(plain[0][0][order[0]], unshuffled[0][0][order[1]])
    assert_same(*(list(d.shuffled("score", batch_size=4)) for d in (data, off)))


@pytest.mark.parametrize("is_shuffled", [False, True])
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 18, 200])
def test_workers_that_share_an_epoch_see_its_batches(
    parquet: str, workers: int, batch_size: int, is_shuffled: bool
) -> None:
    data = load(parquet=parquet)  # 72 training images
    read = data.shuffled if is_shuffled else data.batches
    batches = list(read("train", batch_size=batch_size))
    steps = max(1, 72 // batch_size) if is_shuffled else data.steps("train", batch_size=batch_size)
    assert len(batches) == steps
    for worker in range(workers):
        share = range(worker, len(batches), workers)
        assert_same(list(read("train", batch_size=batch_size, only=share)), batches[worker::workers])
    seen = held(batches)
    assert len(seen) == len(set(seen))
    if not is_shuffled:
        assert sorted(seen) == sorted(data.indices["train"])
    elif batch_size <= 72:
        assert {len(labels) for _, labels in batches} == {batch_size}


@pytest.mark.parametrize(("images", "batch_size"), [(9, 4), (8, 7), (5, 2), (3, 2)])
def test_no_batch_of_one_image_is_left_for_batch_statistics(
    parquet: str, images: int, batch_size: int
) -> None:
    data = load(parquet=parquet, score_images=images)
    batches = list(data.batches("score", batch_size=batch_size))
    sizes = [len(labels) for _, labels in batches]
    assert min(sizes) >= 2
    assert sum(sizes) == images
    assert all(len(labels) == len(pixels) for pixels, labels in batches)
    assert all(pixels.is_contiguous(memory_format=torch.channels_last) for pixels, _ in batches)
    assert held(batches) == data.indices["score"].tolist()
    assert [len(labels) for _, labels in data.batches("score", batch_size=1)] == [1] * images


def with_damage(tmp_path: Path, damaged: set[int]) -> ImageData:
    images = [b"no image" if i in damaged else data for i, data in enumerate(pictures(100))]
    path = write_parquet(tmp_path / "a.parquet", images, list(range(100)))
    return load(parquet=str(path), max_undecodable=0.1)


def test_training_replaces_undecodable_images_and_evaluation_leaves_them_out(tmp_path: Path) -> None:
    damaged = set(range(0, 100, 12))
    data = with_damage(tmp_path, damaged)
    trained = list(data.shuffled("train", batch_size=16))
    assert {len(labels) for _, labels in trained} == {16}
    assert not damaged & set(held(trained))
    later = range(1, len(trained))
    assert_same(list(data.shuffled("train", batch_size=16, only=later)), trained[1:])
    evaluated = held(data.batches("train", batch_size=16))
    assert sorted(evaluated) == sorted(set(data.indices["train"].tolist()) - damaged)
    assert data.skipped == len(damaged & set(data.indices["train"].tolist()))


def test_a_split_of_which_nothing_decodes(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(100), list(range(100)))
    damaged = set(load(parquet=str(path)).indices["score"].tolist())
    data = with_damage(tmp_path, damaged)
    for read in (data.batches, data.shuffled):
        with refuses("invalid_data", "split score"):
            list(read("score", batch_size=4))


def test_classes_without_images_are_noted(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(100), [1, 3] * 50)
    (note,) = load(parquet=str(path)).notes
    assert note == "no images of 2 of 4 classes in train and score and validation and test: 0, 2"


def test_identical_images_are_data(tmp_path: Path) -> None:
    data = load(parquet=str(write_parquet(tmp_path / "a.parquet", pictures(1) * 40)))
    images, _ = next(iter(data.batches("train", batch_size=64)))
    assert len(images) == data.sizes["train"] == 24
    assert torch.equal(images[0], images[-1])


def data_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("lana-ray-data")]


def test_the_background_thread_ends_with_the_iterator(parquet: str) -> None:
    data = load(parquet=parquet)
    exhausted = data.batches("train", batch_size=4)
    list(exhausted)
    abandoned = data.batches("train", batch_size=4)
    next(abandoned)
    assert len(data_threads()) == 1
    del abandoned
    gc.collect()
    assert not data_threads()


def test_the_background_thread_forwards_errors(tmp_path: Path) -> None:
    data = load(folder=str(write_folder(tmp_path / "pictures", 10)))
    for file in (tmp_path / "pictures").rglob("*.png"):
        file.unlink()
    with refuses("missing_file", ".png"):
        next(iter(data.batches("train", batch_size=4)))
    assert not data_threads()


def test_cifar10_as_the_hub_lays_it_out() -> None:
    shared = Path(os.environ.get("LANA_RAY_SHARED") or Path(__file__).parents[3] / "shared")
    folder = shared / "data" / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"no CIFAR-10 at {folder}; set LANA_RAY_SHARED")
    data = load(parquet=str(folder), image_size=64, score_images=1024, validation_images=1024)
    assert data.sizes == {"train": 47952, "score": 1024, "validation": 1024, "test": 10000}
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    images, labels = next(iter(data.batches("test", batch_size=256)))
    assert images.shape == (256, 3, 64, 64)
    assert set(labels.tolist()) == set(range(10))
    assert abs(float(images.mean())) < 0.3
    assert 0.8 < float(images.std()) < 1.4
    assert data.skipped == 0
