"""From the configuration's ``data`` block to checked sources: training images and, if any, test images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from lana_ray.config import DataConfig
from lana_ray.data.parquet import list_files, parquet_source
from lana_ray.data.sources import Source, digits_source, folder_source, torchvision_source
from lana_ray.errors import UserError

_TEST_PARTS = ("test", "validation", "val")


def open_sources(config: DataConfig) -> tuple[Source, Source | None]:
    """The training images and the test images that the data comes with, None where it has none.

    Without ``data.test``, a folder holding Parquet files ``train*`` and ``test*`` (or ``validation*``,
    ``val*``), or image folders of such names, is taken as already split.

    Raises:
        UserError: what is named is missing, damaged or not labelled as expected.
    """
    if config.test and not (config.parquet or config.folder):
        raise UserError(
            "data.test: goes with data.parquet and data.folder; this data has its own test images"
        )
    if config.parquet:
        return _open_parquet(config.parquet, config.test)
    if config.folder:
        return _open_folder(config.folder, config.test)
    if config.torchvision:
        name, root, download = config.torchvision, config.root, config.download
        return (
            torchvision_source(name, root, train=True, download=download),
            torchvision_source(name, root, train=False, download=download),
        )
    return digits_source(), None


def _open_parquet(location: str, test: str | None) -> tuple[Source, Source | None]:
    files = list_files("data.parquet", location)
    if test:
        test_source = parquet_source("data.test", test, list_files("data.test", test))
        return parquet_source("data.parquet", location, files), test_source
    train_files = _part(files, ("train",))
    test_files = _part(files, _TEST_PARTS)
    if train_files and test_files:
        return (
            parquet_source("data.parquet", location, train_files),
            parquet_source("data.parquet", location, test_files),
        )
    return parquet_source("data.parquet", location, files), None


def _part(files: Sequence[str], prefixes: Sequence[str]) -> list[str]:
    """Files named after the first of the ``prefixes`` that any file has."""
    for prefix in prefixes:
        found = [file for file in files if PurePosixPath(file).name.startswith(prefix)]
        if found:
            return found
    return []


def _open_folder(location: str, test: str | None) -> tuple[Source, Source | None]:
    parts = [Path(location, part) for part in _TEST_PARTS]
    if test is None and Path(location, "train").is_dir():
        found = next((str(part) for part in parts if part.is_dir()), None)
        if found:
            return folder_source("data.folder", f"{location}/train"), folder_source("data.folder", found)
    return folder_source("data.folder", location), folder_source("data.test", test) if test else None


def class_names(train: Source, test: Source | None) -> tuple[str, ...]:
    """The class names both sources agree on; ``0``, ``1``, … where the files carry none.

    Raises:
        UserError: the sources name different classes, a label is out of range, or there are fewer than two.
    """
    if test is not None and train.classes and test.classes and train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        which = f"only one has {', '.join(odd[:5])}" if odd else "their order differs"
        raise UserError(
            f"{test.name}: {len(test.classes)} classes, but {train.name} has {len(train.classes)}; {which}"
        )
    for source in (train, test):
        if source is not None and len(source) == 0:
            raise UserError(f"{source.name}: holds no images")
    classes = train.classes or (test.classes if test is not None else None)
    if classes is None:
        highest = int(train.labels.max())
        if highest >= len(train):
            raise UserError(
                f"{train.where(int(train.labels.argmax()))}: label {highest} is out of range for "
                f"{len(train)} images; labels count from 0 without gaps"
            )
        classes = tuple(str(label) for label in range(highest + 1))
    for source in (train, test):
        if source is not None:
            _check_labels(source, len(classes))
    if len(classes) < 2:
        raise UserError(
            f"{train.name}: {len(train)} images of {len(classes)} class; at least two classes are needed"
        )
    return classes


def _check_labels(source: Source, count: int) -> None:
    wrong = np.flatnonzero((source.labels < 0) | (source.labels >= count))
    if len(wrong):
        first = int(wrong[0])
        raise UserError(
            f"{source.where(first)}: label {source.labels[first]} is out of range; "
            f"there are {count} classes, 0 to {count - 1}"
        )
