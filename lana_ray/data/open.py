"""Opens the training images and any test images of the ``data`` settings, and checks their labels."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np

from lana_ray.config import DataConfig
from lana_ray.data.columns import Columns
from lana_ray.data.folders import Folder, class_folders, folder_source, scan, split_folders, unwrapped
from lana_ray.data.names import listed, printable
from lana_ray.data.parquet import list_files, parquet_source, split_files
from lana_ray.data.pixels import decode
from lana_ray.data.sources import Decode, Source, digits_source, invalid_data, torchvision_source
from lana_ray.errors import UserError


def open_sources(config: DataConfig) -> tuple[Source, Source | None]:
    """Returns the training images and the data's own test images, or None if it has none.

    Without ``data.test``, Parquet files or image folders that are named after splits (``train``, ``test``,
    ``validation`` and the like) are already split. The test images are those of ``test``, or those of
    ``validation`` if ``test`` is missing or has no labels.

    Raises:
        UserError: the data is missing, damaged or not labelled as expected.
    """
    if config.test and not (config.parquet or config.folder):
        raise UserError(
            "invalid_setting",
            "data.test: goes with data.parquet and data.folder; remove it, this data has its own test images",
        )
    decoder = functools.partial(decode, value_range=config.value_range)
    if config.parquet:
        columns = Columns(image=config.image_column, label=config.label_column)
        return _open_parquet(config.parquet, config.test, columns, decoder)
    if config.folder:
        return _open_folder(config.folder, config.test, decoder)
    if config.torchvision:
        open_half = functools.partial(torchvision_source, config.torchvision, config.root, config.download)
        return open_half(train=True), open_half(train=False)
    return digits_source(), None


def _open_parquet(
    location: str, test: str | None, columns: Columns, decoder: Decode
) -> tuple[Source, Source | None]:
    name, files = f"data.parquet {printable(location)}", list_files("data.parquet", location)
    test_files = list_files("data.test", test) if test else []
    files = [file for file in files if file not in test_files] or files
    splits, rest = split_files(name, files)

    def open_split(split: str) -> Source:
        part = splits[split]
        return parquet_source(f"{name} ({split})", part, columns, decoder, needs_labels=split == "train")

    if "train" in splits and not test:
        shown = {split: listed([PurePosixPath(x).name for x in part], 2) for split, part in splits.items()}
        return _open_splits(shown, open_split, [PurePosixPath(file).name for file in rest])
    source = open_split("train") if "train" in splits else parquet_source(name, files, columns, decoder)
    if not test:
        return source, None
    return source, parquet_source(f"data.test {printable(test)}", test_files, columns, decoder)


def _open_folder(location: str, test: str | None, decoder: Decode) -> tuple[Source, Source | None]:
    root = unwrapped(scan("data.folder", location))
    splits = split_folders(f"data.folder {printable(root.path)}", root)

    def open_split(split: str) -> Source:
        folder = splits[split]
        is_train = split == "train"
        if not is_train and not folder.has_classes:
            return folder_source("data.folder", folder, None, decoder)
        return _open_classes("data.folder", folder, decoder, is_train=is_train)

    if splits and not test:
        return _open_splits({split: printable(part.path) for split, part in splits.items()}, open_split, [])
    train = _open_classes("data.folder", splits.get("train", root), decoder, is_train=True)
    if train.name != f"data.folder {printable(location)}":
        note = f"its class folders are those of {train.name.removeprefix('data.folder ')}"
        train = dataclasses.replace(train, notes=(note, *train.notes))
    if not test:
        return train, None
    return train, _open_classes("data.test", unwrapped(scan("data.test", test)), decoder, is_train=False)


def _open_classes(setting: str, root: Folder, decoder: Decode, *, is_train: bool) -> Source:
    name = f"{setting} {printable(root.path)}"
    return folder_source(setting, root, class_folders(name, root, may_be_empty=not is_train), decoder)


def _open_splits(
    shown: Mapping[str, str], open_split: Callable[[str], Source], rest: Sequence[str]
) -> tuple[Source, Source | None]:
    """Opens the splits, with notes on which files or folders they are (``shown``) and on the ``rest``."""
    train, test = open_split("train"), None
    notes = [f"training images are {shown['train']}"]
    for split in (name for name in ("test", "validation") if name in shown):
        if test is not None:
            notes.append(f"{shown[split]} is not used")
        elif (source := open_split(split)).is_labelled:
            test = source
            notes.append(f"test images are {shown[split]}")
        else:
            notes.append(f"{shown[split]} is not used: its images have no labels")
    if test is None:
        notes.append("test images are set aside from the training images (data.test_fraction)")
    if rest:
        notes.append(f"{listed(rest)}: not used, as named after no split")
    return dataclasses.replace(train, notes=(*notes, *train.notes)), test


def class_names(train: Source, test: Source | None) -> tuple[str, ...]:
    """Returns the class names in the order of the training labels; ``0``, ``1``, … if the files have none.

    Raises:
        UserError: images without labels, a label out of range, a class that only the test images have, fewer
            than two classes, or the same images for training and testing.
    """
    sources = [train] if test is None else [train, test]
    for source in sources:
        if len(source) == 0:
            raise invalid_data(f"{source.name}: contains no images")
        if not source.is_labelled:
            raise invalid_data(f"{source.name}: its images have no labels; choose labelled images")
    if test is not None:
        _check_pair(train, test)
    classes = train.classes or (test.classes if test is not None else None)
    if classes is None:
        highest = int(train.labels.max())
        if highest >= len(train):
            raise invalid_data(
                f"{train.where(int(train.labels.argmax()))}: label {highest} is out of range for "
                f"{len(train)} images; labels must count from 0 without gaps"
            )
        classes = tuple(str(label) for label in range(highest + 1))
    for source in sources:
        count = len(source.classes or classes)
        wrong = np.flatnonzero((source.labels < 0) | (source.labels >= count))
        if len(wrong):
            raise invalid_data(
                f"{source.where(int(wrong[0]))}: label {source.labels[wrong[0]]} is out of range; "
                f"there are {count} classes, 0 to {count - 1}"
            )
    if len(np.unique(train.labels)) < 2:
        raise invalid_data(f"{train.name}: {len(train)} images of one class; at least two classes are needed")
    return classes


def _check_pair(train: Source, test: Source) -> None:
    if train.identity == test.identity:
        raise invalid_data(
            f"{test.name}: contains the training images; choose other images or remove data.test"
        )
    if train.by_name != test.by_name and not (train.classes and test.classes):
        by_name, by_number = (train, test) if train.by_name else (test, train)
        raise invalid_data(
            f"{by_number.name}: labels are numbers, but those of {by_name.name} are names; "
            "label both with names or both with numbers"
        )
