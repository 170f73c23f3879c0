from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from lana_ray.config import DataConfig
from lana_ray.data.open import open_sources
from lana_ray.data.sources import MissingDataError, Source

from ..errors import refuses
from .samples import NAMES, encoded, load, picture, write_folder


def sources(root: Path, test: Path | None = None) -> tuple[Source, Source | None]:
    return open_sources(DataConfig(folder=str(root), test=None if test is None else str(test)))


def refusal(root: Path, test: Path | None = None) -> str:
    """The message about data that cannot be used."""
    with refuses("invalid_data", str(root)) as error:
        sources(root, test)
    assert not isinstance(error.value, MissingDataError)
    return str(error.value)


def flat(folder: Path, count: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number).save(folder / f"{number}.png")


def test_a_class_per_folder(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pictures", 3)
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / "readme").write_text("neither")
    train, test = sources(root)
    assert test is None
    assert train.classes == NAMES
    assert train.by_name
    assert train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    np.testing.assert_array_equal(train.pixels(4), np.asarray(picture(101)))
    assert [note for note in train.notes if "1 .txt" in note and "1 no suffix" in note]


def test_images_of_one_size_are_told_apart_by_their_content(tmp_path: Path) -> None:
    """Files without compression are all as large, and other tools number them alike in every folder."""
    for start, split in ((0, "train"), (50, "test")):
        for shift, name in enumerate(NAMES):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                picture(start + 10 * shift + number).save(tmp_path / split / name / f"{number}.bmp")
    train, test = sources(tmp_path)
    assert test is not None
    assert (len(train), len(test)) == (9, 9)
    assert train.identity != test.identity
    copied, _ = sources(Path(shutil.copytree(tmp_path, tmp_path.parent / "elsewhere")))
    assert copied.identity == train.identity


def test_images_at_any_depth_of_a_class(tmp_path: Path) -> None:
    write_folder(tmp_path, 2)
    flat(tmp_path / "cat" / "2024" / "may", 3)
    assert sources(tmp_path)[0].labels.tolist() == [0] * 5 + [1] * 2 + [2] * 2


@pytest.mark.parametrize(
    "name",
    ["._0.png", ".hidden.png", ".ipynb_checkpoints/0.png", "__MACOSX/0.png", "@eaDir/0.jpg/THUMB.jpg"],
)
def test_hidden_and_system_files_are_no_images(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path, 2)
    for place in (tmp_path, tmp_path / "cat"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(encoded(picture(9)))
    train, _ = sources(tmp_path)
    assert (train.classes, len(train), train.notes) == (NAMES, 6, ())


@pytest.mark.parametrize("name", ["a.JPG", "a.Jpeg", "a", "a.jpg_large", "a.1", "a.tmp", "a.webp"])
def test_images_are_known_by_suffix_or_by_their_first_bytes(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path, 2)
    (tmp_path / "cat" / name).write_bytes(encoded(picture(9), "JPEG"))
    train, _ = sources(tmp_path)
    assert len(train) == 7
    assert {train.pixels(index).shape for index in range(7)} == {(12, 12, 3)}


def test_images_of_unread_kinds_count_as_undecodable(tmp_path: Path) -> None:
    write_folder(tmp_path, 8)
    for name in NAMES:
        (tmp_path / name / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    data = load(folder=str(tmp_path))
    with refuses("invalid_data", "3 of 27", "phone.HEIC", "supported"):
        data.check()


def test_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    write_folder(tmp_path, 8)
    os.rename(os.fsencode(tmp_path / "cat/0.png"), os.fsencode(tmp_path) + b"/cat/caf\xe9.png")
    os.rename(os.fsencode(tmp_path / "dog"), os.fsencode(tmp_path) + b"/ch\xe4t")
    data = load(folder=str(tmp_path))
    assert sum(data.sizes.values()) == 24
    assert sum(len(labels) for split in data.sizes for _, labels in data.batches(split, batch_size=8)) == 24
    shown = [sources(tmp_path)[0].where(index) for index in range(24)]
    assert "".join((*shown, *data.classes)).encode()


def test_links(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pictures", 2)
    (root / "cat" / "again").symlink_to(root / "cat")
    (root / "dog" / "all").symlink_to(root)
    (root / "eel" / "self").symlink_to("self")
    flat(tmp_path / "elsewhere", 3)
    (root / "eel" / "more").symlink_to(tmp_path / "elsewhere")
    assert sources(root)[0].labels.tolist() == [0] * 2 + [1] * 2 + [2] * 5
    (root / "cat" / "gone.png").symlink_to(tmp_path / "gone.png")
    with refuses("invalid_file", "data.folder", "cat/gone.png"):
        sources(root)


def test_what_is_no_file_is_no_image(tmp_path: Path) -> None:
    write_folder(tmp_path, 2)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    assert len(sources(tmp_path)[0]) == 6


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    write_folder(tmp_path, 2)
    (tmp_path / "dog").chmod(0)
    with refuses("invalid_file", str(tmp_path / "dog")):
        sources(tmp_path)
    (tmp_path / "dog").chmod(0o700)


def test_an_image_that_vanished(tmp_path: Path) -> None:
    train, _ = sources(write_folder(tmp_path / "pictures", 2))
    (tmp_path / "pictures" / "cat" / "0.png").unlink()
    with refuses("missing_file", "cat/0.png"):
        train.pixels(0)


def test_missing_folders_and_files_in_their_place(tmp_path: Path) -> None:
    with refuses("missing_file", f"data.folder {tmp_path / 'gone'}") as error:
        sources(tmp_path / "gone")
    assert isinstance(error.value, MissingDataError)
    write_folder(tmp_path / "pictures", 2)
    with refuses("missing_file", f"data.test {tmp_path / 'gone'}") as error:
        sources(tmp_path / "pictures", tmp_path / "gone")
    assert isinstance(error.value, MissingDataError)
    (tmp_path / "a.zip").write_bytes(b"")
    with refuses("invalid_file", f"data.folder {tmp_path / 'a.zip'}") as error:
        sources(tmp_path / "a.zip")
    assert not isinstance(error.value, MissingDataError)
    with refuses("invalid_setting", "s3://bucket/images", "data.parquet"):
        open_sources(DataConfig(folder="s3://bucket/images"))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("train", "val"),
        ("train", "valid"),
        ("Train", "Test"),
        ("training", "testing"),
        ("TRAIN", "validation"),
        ("seg_train", "seg_test"),
        ("training_set", "test_set"),
        ("train", "dev"),
    ],
)
def test_split_folders(tmp_path: Path, train: str, test: str) -> None:
    write_folder(tmp_path / train, 3)
    write_folder(tmp_path / test, 2)
    first, second = sources(tmp_path)
    assert second is not None
    assert (first.classes, len(first), len(second)) == (NAMES, 9, 6)
    assert f"training images are {tmp_path / train}" in first.notes
    assert f"test images are {tmp_path / test}" in first.notes


def test_test_comes_before_validation_which_is_named(tmp_path: Path) -> None:
    for name, count in (("train", 4), ("val", 3), ("test", 2)):
        write_folder(tmp_path / name, count)
    train, test = sources(tmp_path)
    assert test is not None
    assert (len(train), len(test)) == (12, 6)
    assert f"{tmp_path / 'val'} is not used" in train.notes


def test_a_stray_image_beside_class_folders_of_a_split_is_named(tmp_path: Path) -> None:
    for name, count in (("train", 4), ("test", 2)):
        flat(write_folder(tmp_path / name, count), 1)
    train, test = sources(tmp_path)
    assert test is not None
    assert (len(train), len(test)) == (12, 6)
    for source in (train, test):
        assert any("1 image directly in" in note for note in source.notes)


def test_validation_where_test_has_no_classes(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 4)
    flat(tmp_path / "test", 5)
    train, test = sources(tmp_path)
    assert test is None
    assert any("test is not used: its images have no labels" in note for note in train.notes)
    assert any("set aside" in note for note in train.notes)
    write_folder(tmp_path / "valid", 3)
    train, test = sources(tmp_path)
    assert test is not None
    assert len(test) == 9


def test_one_more_folder_around(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "images" / "images", 3)
    train, _ = sources(tmp_path / "a")
    assert train.classes == NAMES
    assert train.notes == (f"its class folders are those of {tmp_path / 'a' / 'images' / 'images'}",)
    for split in ("training_set", "test_set"):
        write_folder(tmp_path / "b" / split / split, 2)
    train, test = sources(tmp_path / "b")
    assert test is not None
    assert train.classes == test.classes == NAMES
    write_folder(tmp_path / "c" / "train", 2)
    assert sources(tmp_path / "c")[0].classes == NAMES
    write_folder(tmp_path / "d" / "images", 2)
    (tmp_path / "d" / "parts").mkdir()
    (tmp_path / "d" / "parts" / "parts.txt").write_text("")
    assert sources(tmp_path / "d")[0].classes == NAMES


def test_a_class_named_like_a_split(tmp_path: Path) -> None:
    write_folder(tmp_path, 2, names=("bicycle", "bus", "train"))
    assert sources(tmp_path)[0].classes == ("bicycle", "bus", "train")


@pytest.mark.parametrize(
    "names",
    [("train", "test", "other"), ("train", "Train", "test"), ("test", "val"), ("train", "val", "valid")],
)
def test_unclear_splits_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        write_folder(tmp_path / name, 2)
    message = refusal(tmp_path)
    assert all(name in message for name in names)
    assert "data.test" in message


def test_flat_splits_beside_other_images_are_no_classes(tmp_path: Path) -> None:
    for name in ("train", "test", "unlabelled"):
        flat(tmp_path / name)
    message = refusal(tmp_path)
    assert "test, train look like splits" in message
    assert "unlabelled" in message


def test_splits_of_unknown_names_and_splits_below_classes_are_refused(tmp_path: Path) -> None:
    for name in ("lernen", "pruefen"):
        write_folder(tmp_path / "a" / name, 2)
    message = refusal(tmp_path / "a")
    assert "lernen, pruefen" in message
    assert "cat, dog, eel" in message
    for name in NAMES:
        write_folder(tmp_path / "b" / name, 2, names=("train", "test"))
    assert "train/cat" in refusal(tmp_path / "b") or "test/cat" in refusal(tmp_path / "b")


@pytest.mark.parametrize(
    ("files", "named"),
    [
        (["0.png", "1.png"], "2 images"),
        (["0.png", "labels.csv"], "labels.csv"),
        (["images/0.png", "labels.csv"], "labels.csv"),
        (["train/0.png", "valid/1.png"], "train, valid"),
        (["train/0.png", "test/1.png", "train.csv"], "train.csv"),
        (["images/train/0.png", "labels/train/0.txt"], "images in train "),
        (["train/images/0.png", "train/labels/0.txt", "valid/images/0.png"], "detection"),
        (["images/0.png", "masks/0.png"], "segmentation"),
        (["JPEGImages/0.png", "Annotations/0.xml", "ImageSets/a.txt"], "detection"),
        (["annotations/a.json", "train2017/0.png", "val2017/0.png"], "annotations"),
        (["data.txt", "more/a.json"], "data.txt, a.json"),
        ([], "empty"),
    ],
)
def test_other_layouts_are_named(tmp_path: Path, files: list[str], named: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(picture(1)) if name.endswith(".png") else b"")
    message = refusal(tmp_path)
    assert named in message
    assert "folder per class" in message or "folder of images per class" in message


def test_an_empty_class_folder_is_refused_in_train_and_left_out_of_test(tmp_path: Path) -> None:
    train, test = write_folder(tmp_path / "a", 10), write_folder(tmp_path / "b", 2)
    for file in (test / "dog").iterdir():
        file.unlink()
    data = load(folder=str(train), test=str(test))
    labels = [label for _, batch in data.batches("test", batch_size=4) for label in batch.tolist()]
    assert sorted(labels) == [0, 0, 2, 2]
    assert "no images of 1 of 3 classes in test: dog" in data.notes
    for file in (train / "dog").iterdir():
        file.unlink()
    assert "class folder dog " in refusal(train)


def test_spellings_of_a_class(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "a", 4, names=("cafe\u0301", "dog ", "10", "2"))
    test = write_folder(tmp_path / "b", 2, names=("10", "caf\u00e9", "dog", "2"))
    data = load(folder=str(train), test=str(test))
    assert data.classes == ("10", "2", "caf\u00e9", "dog")
    seen = {}
    for _, labels in data.batches("test", batch_size=8):
        seen = {data.classes[label]: labels.tolist().count(label) for label in labels.tolist()}
    assert seen == dict.fromkeys(data.classes, 2)
    write_folder(tmp_path / "a", 1, names=("caf\u00e9",))
    message = refusal(train)
    assert "class caf\u00e9" in message
    assert ascii("cafe\u0301") in message


def test_images_directly_in_the_folder_are_named(tmp_path: Path) -> None:
    write_folder(tmp_path, 2)
    flat(tmp_path, 3)
    train, _ = sources(tmp_path)
    assert len(train) == 6
    assert any("3 images directly in" in note for note in train.notes)


def test_identity_follows_names_and_sizes(tmp_path: Path) -> None:
    first, second = write_folder(tmp_path / "a", 2), write_folder(tmp_path / "b", 2)
    assert sources(first)[0].identity == sources(second)[0].identity
    (second / "cat" / "0.png").rename(second / "dog" / "x.png")
    assert sources(first)[0].identity != sources(second)[0].identity
