from __future__ import annotations

import pytest

from lana_ray.data.names import class_name, counted, listed, printable, split_named


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Train", "train"),
        ("TRAINING", "train"),
        ("train-00000-of-00041", "train"),
        ("train2017", "train"),
        ("seg_train", "train"),
        ("training_set", "train"),
        ("TrainingImages", "train"),
        ("trainset", "train"),
        ("test", "test"),
        ("Testing Data", "test"),
        ("testdata", "test"),
        ("val", "validation"),
        ("valid", "validation"),
        ("dev", "validation"),
        ("eval", "validation"),
        ("my-validation-data", "validation"),
        ("latest", None),
        ("trainer", None),
        ("strain", None),
        ("value", None),
        ("trainval_test", "test"),
        ("train_val", None),
        ("cat", None),
        ("0", None),
        ("", None),
    ],
)
def test_names_of_splits(name: str, split: str | None) -> None:
    assert split_named(name) == split


def test_class_names_are_composed_trimmed_and_printable() -> None:
    assert class_name("cafe\u0301 ") == "caf\u00e9"
    assert class_name("caf\udce9") == "caf\\udce9"
    assert class_name("naïve 猫") == "naïve 猫"


def test_what_is_shown_is_one_line_that_can_be_encoded() -> None:
    shown = printable("a\nb\x1b[1m\udce9.png")
    assert shown == "a\\nb\\x1b[1m\\udce9.png"
    assert shown.encode()


def test_counts_of_things() -> None:
    assert [counted(count, "image") for count in (0, 1, 2)] == ["0 images", "1 image", "2 images"]


def test_long_lists_are_cut() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcdefg"), 5) == "a, b, c, d, e and 2 more"
