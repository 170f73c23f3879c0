from __future__ import annotations

import gzip
import itertools
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lana_ray.config import DataConfig
from lana_ray.data import parquet
from lana_ray.data.open import class_names, open_sources
from lana_ray.data.pixels import decode
from lana_ray.data.sources import Source
from lana_ray.errors import UserError

from .samples import NAMES, encoded, load, picture, pictures, write_folder, write_parquet


def sources(**settings: Any) -> tuple[Source, Source | None]:
    return open_sources(DataConfig(**settings))


def classes_of(**settings: Any) -> tuple[str, ...]:
    return class_names(*sources(**settings))


@pytest.mark.parametrize("column", ["image", "img"])
@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_file(tmp_path: Path, column: str, as_struct: bool) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(9), column=column, as_struct=as_struct)
    train, test = sources(parquet=str(path))
    assert test is None
    assert train.labels.tolist() == [0, 1, 2] * 3
    np.testing.assert_array_equal(train.pixels(7), np.asarray(picture(7)))
    assert class_names(train, None) == ("0", "1", "2")


def test_parquet_class_names(tmp_path: Path) -> None:
    hub = {"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}}
    for metadata in ({"classes": NAMES}, {"huggingface": hub}):
        path = write_parquet(tmp_path / "a.parquet", pictures(9), metadata=metadata)
        assert classes_of(parquet=str(path)) == NAMES


def test_parquet_folder_and_glob_join_their_files(tmp_path: Path) -> None:
    for number in range(3):
        write_parquet(tmp_path / f"part-{number}.parquet", pictures(5, start=5 * number))
    for location in (tmp_path, tmp_path / "part-*.parquet"):
        train, _ = sources(parquet=str(location))
        assert len(train) == 15
        for index in (0, 4, 5, 14):
            np.testing.assert_array_equal(train.pixels(index), np.asarray(picture(index)))
        assert train.where(6).endswith("part-1.parquet row 1")


def test_parquet_test_images_by_setting_or_by_name(tmp_path: Path) -> None:
    train_file = write_parquet(tmp_path / "train-0.parquet", pictures(9))
    test_file = write_parquet(tmp_path / "test-0.parquet", pictures(6, start=50))
    write_parquet(tmp_path / "validation-0.parquet", pictures(3, start=80))
    for settings in ({"parquet": train_file, "test": test_file}, {"parquet": tmp_path}):
        train, test = sources(**{key: str(value) for key, value in settings.items()})
        assert test is not None
        assert (len(train), len(test)) == (9, 6)


def test_parquet_over_a_url(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(9))
    train, _ = sources(parquet=path.as_uri())
    np.testing.assert_array_equal(train.pixels(3), np.asarray(picture(3)))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where copies go; everything is large enough for one."""
    monkeypatch.setattr(parquet, "IN_MEMORY", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lana_ray"


@pytest.mark.parametrize("as_struct", [False, True])
def test_large_parquet_is_mapped_from_one_local_copy(tmp_path: Path, cache: Path, as_struct: bool) -> None:
    for name, start, count in (("a", 0, 40), ("b", 40, 2)):
        write_parquet(tmp_path / f"{name}.parquet", pictures(count, start), as_struct=as_struct)
    source, _ = sources(parquet=str(tmp_path / "*.parquet"))
    assert not cache.exists()  # until an image is asked for
    expected = [decode(image) for image in pictures(42)]
    for index in (41, 0, 17, 40, 39):
        assert np.array_equal(source.pixels(index), expected[index])
    copies = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert {path.suffix for path in copies} == {".arrow"}
    again, _ = sources(parquet=str(tmp_path / "*.parquet"))
    assert np.array_equal(again.pixels(40), expected[40])
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == copies


def test_a_copy_that_fails_leaves_nothing_behind(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, pictures(40))
    source, _ = sources(parquet=str(path))
    content = bytearray(path.read_bytes())
    content[100:2000] = bytes(1900)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read as Parquet"):
        source.pixels(0)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, cache: Path) -> None:
    write_parquet(tmp_path / "a.parquet", pictures(2))
    source, _ = sources(parquet=str(tmp_path / "a.parquet"))
    cache.parent.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"lana_ray: the data cannot be copied there .* set XDG_CACHE_HOME"):
        source.pixels(0)


def test_identity_follows_content_not_place(tmp_path: Path) -> None:
    first = write_parquet(tmp_path / "a.parquet", pictures(9))
    (tmp_path / "elsewhere").mkdir()
    copy = Path(shutil.copy(first, tmp_path / "elsewhere" / "b.parquet"))
    other = write_parquet(tmp_path / "c.parquet", pictures(9, start=1))
    assert sources(parquet=str(first))[0].identity == sources(parquet=str(copy))[0].identity
    assert sources(parquet=str(first))[0].identity != sources(parquet=str(other))[0].identity


def test_missing_and_empty_locations(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.parquet .*gone: no such file or folder"):
        sources(parquet=str(tmp_path / "gone"))
    with pytest.raises(UserError, match="no Parquet files"):
        sources(parquet=str(tmp_path))
    with pytest.raises(UserError, match="no Parquet files"):
        sources(parquet=str(tmp_path / "*.parquet"))
    with pytest.raises(UserError, match=r"data\.test .*gone"):
        sources(parquet=str(write_parquet(tmp_path / "a.parquet", pictures(3))), test=str(tmp_path / "gone"))


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_truncated_parquet_names_the_file(tmp_path: Path, keep: int) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(9))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read as Parquet") as caught:
        sources(parquet=str(path))
    assert "\n" not in str(caught.value)


def test_parquet_damaged_inside_names_the_file(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(40))
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read as Parquet"):
        sources(parquet=str(path))[0].pixels(0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"photo": [b"x"], "label": [0]}, "no image column; expected image or img, found photo, label"),
        ({"image": [b"x"], "fine_label": [0]}, "no column label"),
        ({"image": ["x"], "label": [0]}, "column image is string; expected binary"),
        ({"image": [{"path": "x"}], "label": [0]}, "expected binary or struct"),
        ({"image": [b"x"], "label": ["cat"]}, "column label is string; expected integers"),
        ({"image": [b"x"], "label": [0.5]}, "column label is double; expected integers"),
        ({"image": [b"x"] * 2, "label": [0, None]}, "row 1: has no label"),
    ],
)
def test_parquet_columns_are_checked(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message):
        sources(parquet=str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, -1], None, r"a\.parquet row 2: label -1 is out of range"),
        ([0, 1, 3], NAMES, r"row 2: label 3 is out of range; there are 3 classes, 0 to 2"),
        ([0, 1, 10**12], None, r"row 2: label 1000000000000 is out of range for 3 images"),
        ([0, 0, 0], None, "at least two classes"),
        ([], None, "holds no images"),
    ],
)
def test_labels_out_of_range(tmp_path: Path, labels: list[int], names: Any, message: str) -> None:
    metadata = {"classes": names} if names else None
    column = pa.array(labels, type=pa.int64())
    path = write_parquet(tmp_path / "a.parquet", pictures(len(labels)), column, metadata=metadata)
    with pytest.raises(UserError, match=message):
        classes_of(parquet=str(path))


def test_train_and_test_must_have_the_same_classes(tmp_path: Path) -> None:
    train = write_folder(tmp_path / "a", 2)
    test = write_folder(tmp_path / "b", 2, names=NAMES[:2])
    with pytest.raises(UserError, match=r"2 classes, but .* has 3; only one has eel"):
        classes_of(folder=str(train), test=str(test))
    numbered = write_parquet(tmp_path / "train.parquet", pictures(9))
    more = write_parquet(tmp_path / "more.parquet", pictures(4), [0, 1, 2, 3])
    with pytest.raises(UserError, match=r"more\.parquet row 3: label 3 is out of range"):
        classes_of(parquet=str(numbered), test=str(more))


def test_folder_per_class(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pictures", 3)
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / "cat" / ".hidden.png").write_bytes(b"")
    train, test = sources(folder=str(root))
    assert test is None
    assert train.classes == NAMES
    assert train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    np.testing.assert_array_equal(train.pixels(4), np.asarray(picture(101)))


def test_folder_with_train_and_val_is_already_split(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 3)
    write_folder(tmp_path / "val", 2)
    train, test = sources(folder=str(tmp_path))
    assert test is not None
    assert (len(train), len(test)) == (9, 6)


def test_folder_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        sources(folder=str(tmp_path / "gone"))
    with pytest.raises(UserError, match="is empty"):
        sources(folder=str(tmp_path))
    (tmp_path / "cat").mkdir()
    with pytest.raises(UserError, match="class folder cat holds no images"):
        sources(folder=str(tmp_path))
    with pytest.raises(UserError, match="must be local"):
        sources(folder="s3://bucket/images")


def test_vanished_image_file(tmp_path: Path) -> None:
    train, _ = sources(folder=str(write_folder(tmp_path / "pictures", 2)))
    (tmp_path / "pictures" / "cat" / "0.png").unlink()
    with pytest.raises(UserError, match=r"0\.png: cannot be read"):
        train.pixels(0)


def test_digits() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn carries the digits")
    train, test = sources(source="digits")
    assert test is None
    assert len(train) == 1797
    assert class_names(train, None) == tuple("0123456789")
    image = train.pixels(0)
    assert image.shape == (8, 8, 3)
    assert image.max() > 200


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'lana-ray\[digits\]'"):
        sources(source="digits")


def write_mnist(root: Path, class_name: str) -> None:
    """The files of an MNIST-like set: 12 training and 6 test images."""
    raw = root / class_name / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 12), ("t10k", 6)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, count, 28, 28) + images.tobytes()
        )
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
        for file in list(raw.glob("*ubyte")):
            (raw / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))


@pytest.mark.parametrize("class_name", ["MNIST", "FashionMNIST"])
def test_torchvision_set(tmp_path: Path, class_name: str) -> None:
    write_mnist(tmp_path, class_name)
    train, test = sources(torchvision=class_name, root=str(tmp_path))
    assert test is not None
    assert (len(train), len(test)) == (12, 6)
    assert train.pixels(3).shape == (28, 28, 3)
    assert train.identity != test.identity
    assert len(class_names(train, test)) == 10


def test_torchvision_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such data set; did you mean CIFAR10"):
        sources(torchvision="CIFAR-10", root=str(tmp_path))
    with pytest.raises(UserError, match=r"CIFAR10: cannot be read .*set data\.download: true"):
        sources(torchvision="CIFAR10", root=str(tmp_path))
    with pytest.raises(UserError, match="no labelled train/test split"):
        sources(torchvision="VOCDetection", root=str(tmp_path))
    with pytest.raises(UserError, match=r"data\.test: goes with"):
        sources(torchvision="CIFAR10", root=str(tmp_path), test=str(tmp_path))


def test_undecodable_images_are_skipped_and_counted(tmp_path: Path) -> None:
    images = pictures(100)
    images[10], images[20] = b"no image", encoded(picture(20))[:200]
    path = write_parquet(tmp_path / "a.parquet", images)
    data = load(parquet=str(path), max_undecodable=0.02)
    for split in data.sizes:
        list(data.batches(split, batch_size=16))
    assert data.skipped == 2


def test_too_many_undecodable_images_are_refused(tmp_path: Path) -> None:
    images: list[bytes | None] = [*pictures(100)]
    images[10:13] = [None, b"", b"no image"]
    data = load(parquet=str(write_parquet(tmp_path / "a.parquet", images)), max_undecodable=0.02)
    batches = itertools.chain(*(data.batches(split, batch_size=16) for split in data.sizes))
    with pytest.raises(
        UserError, match=r"3 of 100 images do not decode, more than data\.max_undecodable 0\.02"
    ):
        list(batches)
