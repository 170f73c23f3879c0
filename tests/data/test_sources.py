from __future__ import annotations

import gzip
import itertools
import struct
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torchvision
from PIL import Image

from lana_ray.config import DataConfig
from lana_ray.data.open import class_names, open_sources
from lana_ray.data.sources import MissingDataError, Source

from ..errors import refuses
from .samples import NAMES, encoded, load, picture, pictures, write_folder, write_parquet


def sources(**settings: Any) -> tuple[Source, Source | None]:
    return open_sources(DataConfig(**settings))


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
    with refuses("missing_package", "data.source", "pip install 'lana-ray[digits]'") as error:
        sources(source="digits")
    assert isinstance(error.value, MissingDataError)


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
    with refuses("unknown_name", "data.torchvision CIFAR-10", "did you mean CIFAR10?"):
        sources(torchvision="CIFAR-10", root=str(tmp_path))
    with refuses("missing_file", "CIFAR10", str(tmp_path), "data.download: true", "data.root") as error:
        sources(torchvision="CIFAR10", root=str(tmp_path))
    assert isinstance(error.value, MissingDataError)
    with refuses("invalid_data", "VOCDetection", "data.parquet"):
        sources(torchvision="VOCDetection", root=str(tmp_path))
    with refuses("invalid_setting", "data.test", "data.parquet", "data.folder"):
        sources(torchvision="CIFAR10", root=str(tmp_path), test=str(tmp_path))


@pytest.mark.parametrize(
    ("error", "code", "named"),
    [
        (URLError("no such host"), "unreachable", ("no such host", "network", "data.root")),
        (RuntimeError(), "missing_file", ("(RuntimeError)", "data.root")),
        (OSError("\nfirst\nsecond"), "missing_file", ("(first)", "data.root")),
    ],
)
def test_a_download_that_fails_is_told_from_files_that_are_missing(
    error: Exception, code: str, named: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(root: str, train: bool = True, download: bool = False) -> None:
        raise error

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fails)
    with refuses(code, "data.torchvision CIFAR10", str(tmp_path), *named) as refused:
        sources(torchvision="CIFAR10", root=str(tmp_path), download=True)
    assert isinstance(refused.value, MissingDataError)


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
    with refuses("invalid_data", "a.parquet", "3 of 100", "data.max_undecodable 0.02"):
        list(batches)


def fill(root: Path, image: Image.Image, count: int = 10) -> str:
    for name in NAMES:
        (root / name).mkdir(parents=True)
        for number in range(count):
            image.save(root / name / f"{number}.tiff")
    return str(root)


def test_sound_images_pass_without_a_remark(tmp_path: Path) -> None:
    assert load(folder=str(write_folder(tmp_path / "pictures", 10))).check() == []


def test_images_without_a_range_are_refused_until_it_is_set(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((12, 12)).astype(np.float32)
    root = fill(tmp_path / "pictures", Image.fromarray(values))
    with refuses("invalid_data", "30 of 30", "0.tiff", "data.value_range"):
        load(folder=root).check()
    assert load(folder=root, value_range=(0, 1)).check() == []


def test_images_that_hardly_show_anything_are_remarked(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (12, 12)).astype(np.uint16)
    root = fill(tmp_path / "pictures", Image.fromarray(values))
    (dark,) = load(folder=root).check()
    assert "brightest value is 16" in dark
    assert "data.value_range" in dark
    (bright,) = load(folder=root, value_range=(-2, -1)).check()
    assert "darkest value is 255" in bright
    assert load(folder=root, value_range=(0, 4095)).check() == []


def test_long_images_are_remarked(tmp_path: Path) -> None:
    (remark,) = load(folder=fill(tmp_path / "pictures", picture(1, width=60, height=12))).check()
    assert "5.0 times as long as wide" in remark


@pytest.mark.parametrize(("damaged", "is_refused"), [(2, False), (3, True)])
def test_damage_counts_against_all_images(tmp_path: Path, damaged: int, is_refused: bool) -> None:
    images = [b"no image"] * damaged + pictures(200 - damaged)
    data = load(parquet=str(write_parquet(tmp_path / "a.parquet", images)))
    if is_refused:
        with refuses("invalid_data", "3 of 8", "a.parquet row 0", "data.max_undecodable"):
            data.check()
    else:
        assert data.check() == []


def test_every_class_of_a_folder_is_looked_at(tmp_path: Path) -> None:
    root = write_folder(tmp_path, 40)
    for file in (root / "eel").iterdir():
        file.write_bytes(encoded(picture(1))[:60])
    with refuses("invalid_data", " of 32 ", "eel", "data.max_undecodable") as error:
        load(folder=str(root)).check()
    assert any(f" {count} of 32 " in str(error.value) for count in (10, 11))
