"""What is changed in place in data is seen, and what is not is not read again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from lana_ray.data import content, parquet
from lana_ray.data.content import content_of, content_of_files, content_of_object

from .samples import encoded, load, picture, write_folder, write_parquet


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of this machine; the hash of a file is cached as soon as it is written."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "_SETTLED_NS", -(10**18))
    return tmp_path / "cache" / "lana_ray"


def replace_in_place(path: Path, old: bytes, new: bytes) -> None:
    """Changes bytes that the file has once; its size stays."""
    data = path.read_bytes()
    assert data.count(old) == 1
    assert len(old) == len(new)
    with path.open("r+b") as file:
        file.seek(data.index(old))
        file.write(new)
        file.flush()
        os.fsync(file.fileno())


def bitmaps(count: int) -> list[bytes]:
    """Images whose bytes are pixels."""
    return [encoded(picture(number), "BMP") for number in range(count)]


def changed_pixel(path: Path, image: bytes) -> bytes:
    """Changes the last pixel of an image in a file in place; returns the image as it is now."""
    other = image[:-1] + bytes([image[-1] ^ 255])
    replace_in_place(path, image[-64:], other[-64:])
    return other


def write_plain(path: Path, images: list[bytes], labels: list[int]) -> None:
    table = pq.read_table(write_parquet(path, list(images), labels))
    pq.write_table(table, path, compression="none", use_dictionary=False)


def test_one_label_of_parquet_is_seen(tmp_path: Path) -> None:
    path, labels = tmp_path / "a.parquet", [index % 3 for index in range(40)]
    write_plain(path, bitmaps(40), [*labels[:20], 5, *labels[21:39], 9])
    before = load(parquet=str(path))
    replace_in_place(path, (5).to_bytes(8, "little"), (4).to_bytes(8, "little"))
    after = load(parquet=str(path))
    assert after._labels[20] == 4
    assert after.fingerprint != before.fingerprint


def test_one_image_of_parquet_is_seen_and_no_copy_serves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(parquet, "IN_MEMORY", 0)
    path, images = tmp_path / "a.parquet", bitmaps(40)
    write_plain(path, images, [index % 3 for index in range(40)])
    before = load(parquet=str(path))
    ((old, _),), fingerprint = list(before._decoded([25])), before.fingerprint
    changed_pixel(path, images[25])
    after = load(parquet=str(path))
    ((new, _),) = after._decoded([25])
    assert (old != new).any(axis=2).sum() == 1
    assert after.fingerprint != fingerprint
    assert len(list(cache.glob("*.arrow"))) == 1  # the outdated copy is gone


def test_one_image_of_a_folder_is_seen(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "images", 20)
    images = bitmaps(60)
    for file, image in zip(sorted(root.rglob("*.png")), images, strict=True):
        file.write_bytes(image)
    before = load(folder=str(root)).fingerprint
    changed_pixel(sorted(root.rglob("*.png"))[33], images[33])
    assert load(folder=str(root)).fingerprint != before


def test_copied_and_touched_data_is_the_same(tmp_path: Path) -> None:
    first, second = (write_folder(tmp_path / name, 20) for name in ("a", "b"))
    expected = load(folder=str(first)).fingerprint
    assert load(folder=str(second)).fingerprint == expected
    for file in first.rglob("*.png"):
        os.utime(file)
    assert load(folder=str(first)).fingerprint == expected


def test_only_folders_that_changed_are_read_again(tmp_path: Path, cache: Path) -> None:
    root = write_folder(tmp_path / "images", 3)
    files = [str(file) for file in sorted(root.rglob("*.png"))]
    content_of_files(files)
    cached = {file: file.stat().st_mtime_ns for file in (cache / "content").iterdir()}
    assert len(cached) == 3
    Path(files[4]).write_bytes(b"other")
    content_of_files(files)
    assert {file: file.stat().st_mtime_ns for file in cached} == cached
    assert len(list((cache / "content").iterdir())) == 4


def test_what_is_known_of_a_file_is_taken(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "x").write_bytes(b"content")
    first = content_of(str(tmp_path / "x"))
    (note,) = (cache / "content").iterdir()
    note.write_text("cached")
    assert content_of(str(tmp_path / "x")) != first


def test_a_file_that_was_written_just_now_is_read_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "_SETTLED_NS", 10**18)
    (tmp_path / "x").write_bytes(b"content")
    content_of(str(tmp_path / "x"))
    assert not cache.exists()


def test_an_object_without_a_tag_is_read() -> None:
    hashes = []
    for data in (b"one", b"two", b"one"):
        with fsspec.open("memory://content/x", "wb") as file:
            file.write(data)
        hashes.append(content_of("memory://content/x"))
    assert hashes[0] == hashes[2] != hashes[1]


class Arrays:
    def __init__(self, data: Any) -> None:
        self.data = data


def of_paths(path: Path) -> Any:
    return Arrays([(str(path), 3)])


@pytest.mark.parametrize("hold", [of_paths, lambda path: Arrays([path])])
def test_files_that_an_object_names_are_its_content(tmp_path: Path, hold: Callable[[Path], Any]) -> None:
    hashes = []
    for data in (b"one", b"two"):
        (tmp_path / "x").write_bytes(data)
        hashes.append(content_of_object(hold(tmp_path / "x")))
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize("make", [np.zeros, torch.zeros])
def test_arrays_that_an_object_holds_are_its_content(make: Callable[[int], Any]) -> None:
    first, second = make(8), make(8)
    second[3] = 1
    assert content_of_object(Arrays(first)) == content_of_object(Arrays(make(8)))
    assert content_of_object(Arrays(first)) != content_of_object(Arrays(second))
