from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lana_ray.config import DataConfig
from lana_ray.data.splits import SPLITS, divide, missing_classes

from ..errors import refuses


def parts(labels: list[int], *, test: int | None = None, seed: int = 0, **settings: Any) -> dict[str, Any]:
    config = DataConfig(source="digits", **settings)
    return divide(np.asarray(labels), test, config, seed)


@pytest.mark.parametrize("seed", range(5))
def test_each_class_has_its_share_in_every_split(seed: int) -> None:
    labels = np.asarray([0] * 600 + [1] * 300 + [2] * 100)
    splits = divide(labels, None, DataConfig(source="digits"), seed)
    for indices in splits.values():
        shares = np.bincount(labels[indices], minlength=3) / len(indices)
        np.testing.assert_allclose(shares, [0.6, 0.3, 0.1], atol=0.03)
    assert sorted(np.concatenate(list(splits.values()))) == list(range(1000))


@pytest.mark.parametrize(("classes", "each"), [(2, 12), (3, 10), (5, 30), (10, 179)])
def test_small_splits_hold_classes_of_equal_size_equally(classes: int, each: int) -> None:
    labels = [index % classes for index in range(classes * each)]
    for indices in parts(labels, score_images=classes, validation_images=classes).values():
        counts = np.bincount(np.asarray(labels)[indices], minlength=classes)
        assert counts.max() - counts.min() <= 1


def test_order_within_a_split_is_random_and_follows_the_seed() -> None:
    labels = [index % 4 for index in range(200)]
    first, again, other = parts(labels), parts(labels), parts(labels, seed=1)
    for split in SPLITS:
        np.testing.assert_array_equal(first[split], again[split])
        assert list(first[split]) != sorted(first[split])
    assert set(first["test"]) != set(other["test"])


def test_splits_do_not_depend_on_the_numbers_of_classes() -> None:
    labels = [index % 3 for index in range(60)]
    for split, indices in parts([(label + 1) % 3 for label in labels]).items():
        np.testing.assert_array_equal(indices, parts(labels)[split])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("limit", [None, 12])
def test_rare_classes_are_in_train_first(seed: int, limit: int | None) -> None:
    labels = [0] * 200 + list(range(1, 11))  # ten classes of one image
    train = parts(labels, seed=seed, limit=limit)["train"]
    assert set(np.asarray(labels)[train]) == set(range(11))


def test_test_images_of_their_own_are_numbered_after_the_training_images() -> None:
    splits = parts([0, 1] * 20, test=7)
    assert sorted(splits["test"]) == list(range(40, 47))
    assert sum(len(splits[split]) for split in ("train", "score", "validation")) == 40


def test_ten_images_are_enough() -> None:
    sizes = {split: len(indices) for split, indices in parts([0, 1] * 5).items()}
    assert sizes == {"train": 4, "score": 2, "validation": 2, "test": 2}


@pytest.mark.parametrize(
    ("count", "test", "settings", "named"),
    [
        (9, None, {}, ("7 training images", "2 of 9", "8", "data.test_fraction")),
        (100, None, {"test_fraction": 0.99}, ("1 training image ", "99 of 100", "data.test_fraction")),
        (2, None, {}, ("0 training images", "2 of 2", "data.test_fraction")),
        (5, 10, {}, ("5 training images", "8", "add images")),
        (100, 1, {}, ("1 test image",)),
        (
            50,
            10,
            {"score_images": 20, "validation_images": 20},
            ("data.score_images 20", "data.validation_images 20", "50 training images", "25"),
        ),
    ],
)
def test_too_few_images_are_refused(
    count: int, test: int | None, settings: Any, named: tuple[str, ...]
) -> None:
    with refuses("invalid_data", *named) as error:
        parts([index % 2 for index in range(count)], test=test, **settings)
    assert ("data.test_fraction" in named) == ("data.test_fraction" in str(error.value))


def test_splits_without_a_class_are_named() -> None:
    labels = np.asarray([0, 1, 2, 0, 1, 0])
    splits = {"train": np.asarray([0, 1, 2]), "score": np.asarray([3, 4]), "test": np.asarray([5])}
    assert missing_classes(labels, splits, ("cat", "dog", "eel")) == [
        "no images of 1 of 3 classes in score: eel",
        "no images of 2 of 3 classes in test: dog, eel",
    ]
    assert missing_classes(labels, {"train": splits["train"]}, ("cat", "dog", "eel")) == []
