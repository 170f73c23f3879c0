from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lana_ray.config import DataConfig
from lana_ray.data.open import class_names, open_sources
from lana_ray.data.sources import Source

from ..errors import refuses
from .samples import NAMES, pictures, write_folder, write_parquet


def sources(**settings: Any) -> tuple[Source, Source | None]:
    return open_sources(DataConfig(**settings))


def classes_of(**settings: Any) -> tuple[str, ...]:
    return class_names(*sources(**settings))


@pytest.mark.parametrize(
    ("labels", "names", "named"),
    [
        ([0, 1, -1], None, ("a.parquet row 2:", "label -1")),
        ([0, 1, 3], NAMES, ("a.parquet row 2:", "label 3", "3 classes", "0 to 2")),
        ([0, 1, 10**12], None, ("a.parquet row 2:", "label 1000000000000", "3 images")),
        ([0, 0, 0], None, ("a.parquet:", "3 images of one class")),
        ([], None, ("a.parquet:", "no images")),
    ],
)
def test_labels_out_of_range(tmp_path: Path, labels: list[int], names: Any, named: tuple[str, ...]) -> None:
    metadata = {"classes": names} if names else None
    column = pa.array(labels, type=pa.int64())
    path = write_parquet(tmp_path / "a.parquet", pictures(len(labels)), column, metadata=metadata)
    with refuses("invalid_data", *named):
        classes_of(parquet=str(path))


@pytest.mark.parametrize("column", [[-1] * 9, [None] * 9])
def test_images_without_labels_are_refused(tmp_path: Path, column: list[int | None]) -> None:
    labelled = write_parquet(tmp_path / "a.parquet", pictures(9))
    path = write_parquet(tmp_path / "b.parquet", pictures(9, 9), pa.array(column, type=pa.int64()))
    for settings in ({"parquet": path}, {"parquet": labelled, "test": path}):
        with refuses("invalid_data", "b.parquet: its images have no labels"):
            classes_of(**{key: str(value) for key, value in settings.items()})


def labels_of_test(**settings: Any) -> list[str]:
    """Class names of the test images, in the order of their files."""
    train, test = sources(**settings)
    classes = class_names(train, test)
    assert test is not None
    return [classes[label] for label in test.relabelled(classes).labels]


def test_classes_of_test_folders_go_by_name(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "a", 2, names=("ant", "bee", "cat", "dog"))
    test = write_folder(tmp_path / "b", 1, names=("dog", "bee"))
    assert labels_of_test(folder=str(train), test=str(test)) == ["bee", "dog"]


@pytest.mark.parametrize("names", [("cat", "yak"), ("Cat", "dog")])
def test_classes_that_only_test_folders_have_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    train, test = write_folder(tmp_path / "a", 2), write_folder(tmp_path / "b", 2, names=names)
    named = ("yak not among", "cat, dog") if "yak" in names else ("Cat is cat there",)
    with refuses("invalid_data", "data.test", *named):
        labels_of_test(folder=str(train), test=str(test))


def test_classes_of_parquet_go_by_the_names_in_its_metadata(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "a.parquet", pictures(9), metadata={"classes": NAMES})
    turned = write_parquet(tmp_path / "b.parquet", pictures(3, 9), metadata={"classes": NAMES[::-1]})
    assert labels_of_test(parquet=str(train), test=str(turned)) == ["eel", "dog", "cat"]
    unnamed = write_parquet(tmp_path / "c.parquet", pictures(3, 19))
    assert labels_of_test(parquet=str(train), test=str(unnamed)) == ["cat", "dog", "eel"]
    assert labels_of_test(parquet=str(unnamed), test=str(turned)) == ["eel", "dog", "cat"]


def test_names_and_numbers_for_labels_do_not_mix(tmp_path: Path) -> None:
    numbers = write_parquet(tmp_path / "a.parquet", pictures(9))
    names = write_parquet(tmp_path / "b.parquet", pictures(3, 9), list(NAMES))
    for train, test in ((numbers, names), (names, numbers)):
        with refuses("invalid_data", "a.parquet: labels are numbers", "b.parquet"):
            labels_of_test(parquet=str(train), test=str(test))


def test_labels_of_test_images_are_checked(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "train.parquet", pictures(9))
    more = write_parquet(tmp_path / "more.parquet", pictures(4), [0, 1, 2, 3])
    with refuses("invalid_data", "more.parquet row 3:", "label 3"):
        labels_of_test(parquet=str(train), test=str(more))


def test_training_images_do_not_test(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(9))
    copy = shutil.copy(path, tmp_path / "b.parquet")
    folder = str(write_folder(tmp_path / "pictures", 2))
    for settings in ({"parquet": str(path), "test": str(copy)}, {"folder": folder, "test": folder}):
        with refuses("invalid_data", f"data.test {settings['test']}", "the training images"):
            classes_of(**settings)


def test_named_test_images_are_taken_out_of_the_training_images(tmp_path: Path) -> None:
    for name, count, start in (("train", 9, 0), ("test", 6, 20)):
        write_parquet(tmp_path / f"{name}.parquet", pictures(count, start))
    train, test = sources(parquet=str(tmp_path), test=str(tmp_path / "test.parquet"))
    assert test is not None
    assert (len(train), len(test)) == (9, 6)
    for name in ("train", "val"):
        write_folder(tmp_path / "pictures" / name, 2 + (name == "train"))
    train, test = sources(folder=str(tmp_path / "pictures"), test=str(tmp_path / "pictures" / "val"))
    assert test is not None
    assert (len(train), len(test)) == (9, 6)


def test_a_validation_split_stands_in_for_an_unlabelled_test_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00001.parquet", pictures(9))
    write_parquet(tmp_path / "test-00000-of-00001.parquet", pictures(6, 20), [-1] * 6)
    train, test = sources(parquet=str(tmp_path))
    assert test is None
    assert "test-00000-of-00001.parquet is not used: its images have no labels" in train.notes
    write_parquet(tmp_path / "validation-00000-of-00001.parquet", pictures(3, 40))
    train, test = sources(parquet=str(tmp_path))
    assert test is not None
    assert len(test) == 3
    assert "test images are validation-00000-of-00001.parquet" in train.notes
    pq.write_table(pa.table({"image": pictures(6, 20)}), tmp_path / "test-00000-of-00001.parquet")
    _, test = sources(parquet=str(tmp_path))
    assert test is not None
    assert len(test) == 3
