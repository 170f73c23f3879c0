"""Reads folders of images with one folder per class, perhaps inside one per split; refuses other layouts."""

from __future__ import annotations

import functools
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lana_ray.data.content import content_of_files, digest, reading
from lana_ray.data.names import class_name, counted, listed, printable, split_named
from lana_ray.data.pixels import FORMATS
from lana_ray.data.sources import UNLABELLED, Decode, MissingDataError, Source, invalid_data
from lana_ray.errors import UserError

_IMAGES = {
    *(suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")),
    # These count as undecodable, so that they are not left out silently.
    *(".heic", ".heif", ".jxl", ".svg", ".eps", ".psd", ".tga"),
    *(".ico", ".exr", ".dcm", ".dng", ".cr2", ".nef"),
}
_SYSTEM = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__"}
_ANNOTATIONS = {".csv", ".tsv", ".json", ".xml", ".txt", ".yaml", ".yml"}
_IMAGE_FOLDERS = {"images", "image", "imgs", "img", "jpegimages"}
_LABEL_FOLDERS = {"labels", "annotations", "annotation", "masks", "mask"}
_LABEL_FOLDERS |= {"segmentationclass", "groundtruth", "gt"}
_PREVIEW = 32
"""Images in a preview."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """The content of a folder, without hidden files and those of operating systems."""

    path: str
    images: tuple[tuple[str, int], ...]
    """Path and size in bytes of each image directly in it, sorted."""
    others: tuple[str, ...]
    """Names of the other files directly in it."""
    folders: Mapping[str, Folder]
    """Subfolders by name, sorted."""

    def walk(self) -> Iterator[Folder]:
        """Yields this folder and all folders below it."""
        yield self
        for folder in self.folders.values():
            yield from folder.walk()

    def all_images(self) -> list[tuple[str, int]]:
        """Returns the images at any depth."""
        return [image for folder in self.walk() for image in folder.images]

    def all_others(self) -> list[str]:
        """Returns the names of the other files at any depth."""
        return [name for folder in self.walk() for name in folder.others]

    @functools.cached_property
    def has_images(self) -> bool:
        return any(folder.images for folder in self.walk())

    @functools.cached_property
    def filled(self) -> dict[str, Folder]:
        """Subfolders that contain images at any depth."""
        return {name: folder for name, folder in self.folders.items() if folder.has_images}

    @functools.cached_property
    def has_classes(self) -> bool:
        """Whether most of its images are in subfolders."""
        return len(self.all_images()) > 2 * len(self.images)


def scan(setting: str, location: str) -> Folder:
    """Reads the names and sizes of the files in a local folder.

    Raises:
        MissingDataError: there is no such folder.
        UserError: it is not a local folder, or a folder or link in it cannot be followed.
    """
    name = f"{setting} {printable(location)}"
    if "://" in location:
        raise UserError(
            "invalid_setting",
            f"{name}: image folders must be local; pack the images into Parquet and set data.parquet",
        )
    if not Path(location).exists():
        raise MissingDataError("missing_file", f"{name}: no such folder")
    if not Path(location).is_dir():
        raise UserError(
            "invalid_file", f"{name}: is a file; expected a folder with one folder of images per class"
        )
    try:
        return _scan(location, frozenset())
    except OSError as error:
        where = printable(str(error.filename))
        fix = "make it readable" if isinstance(error, PermissionError) else "remove or replace it"
        raise UserError("invalid_file", f"{name}: {where} cannot be read ({error.strerror}); {fix}") from None


def _scan(path: str, above: frozenset[tuple[int, int]]) -> Folder:
    """Reads a folder recursively; links back to one of the folders ``above`` it are not followed."""
    status = os.stat(path)
    above |= {(status.st_dev, status.st_ino)}
    images, others, folders = [], [], {}
    for name in sorted(os.listdir(path)):
        if name.startswith(".") or name in _SYSTEM:
            continue
        inner = os.path.join(path, name)
        is_image = _suffix(name) in _IMAGES
        try:
            status = os.stat(inner)
        except OSError:
            if is_image or not os.path.islink(inner):
                raise
            others.append(name)
            continue
        if stat.S_ISDIR(status.st_mode):
            if (status.st_dev, status.st_ino) not in above:
                folders[name] = _scan(inner, above)
        elif stat.S_ISREG(status.st_mode) and (is_image or _begins_like_image(inner)):
            images.append((inner, status.st_size))
        else:
            others.append(name)
    return Folder(path=path, images=tuple(images), others=tuple(others), folders=folders)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _begins_like_image(path: str) -> bool:
    """Returns whether a file without a known suffix begins like an image."""
    try:
        with open(path, "rb") as file:
            start = file.read(12)
    except PermissionError:
        return False
    return start.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")) or (
        start[:4] == b"RIFF" and start[8:] == b"WEBP"
    )


def unwrapped(folder: Folder) -> Folder:
    """Returns the folder that contains the class or split folders; archives often add a folder around it."""
    while not folder.images and len(folder.filled) == 1:
        ((name, inner),) = folder.filled.items()
        siblings = [other for key, other in folder.folders.items() if key != name]
        if not inner.has_classes or not all(other.all_others() for other in siblings):
            break
        folder = inner
    return folder


def split_folders(name: str, root: Folder) -> dict[str, Folder]:
    """Returns the split folders of ``root`` by ``train``, ``validation`` and ``test``; {} if it has classes.

    A folder ``train`` with images directly in it, next to others such as ``bus`` and ``tram``, is a class.

    Raises:
        UserError: the folders of the splits are ambiguous, or the training images have no class folders.
    """
    named = {inner: split_named(inner) for inner in root.filled}
    splits = {inner: split for inner, split in named.items() if split}
    rest = [inner for inner, split in named.items() if not split]
    are_classes = len(splits) == 1 and not root.folders[next(iter(splits))].has_classes
    if not splits or (rest and are_classes):
        return {}
    fix = "set data.folder to the training folder and data.test to the test folder"
    if rest:
        raise invalid_data(
            f"{name}: folders {listed(list(splits))} look like splits, {listed(rest)} do not; {fix}"
        )
    twice = [split for split, count in Counter(splits.values()).items() if count > 1]
    if twice or "train" not in splits.values():
        what = f"several folders for {twice[0]}" if twice else "no training folder"
        raise invalid_data(f"{name}: {what} among {listed(list(splits))}; {fix}")
    by_split = {split: root.folders[inner] for inner, split in splits.items()}
    if not by_split["train"].has_classes:
        raise _without_classes(name, root, list(splits))
    return {split: unwrapped(folder) for split, folder in by_split.items()}


def class_folders(name: str, root: Folder, *, may_be_empty: bool = False) -> dict[str, Folder]:
    """Returns folders by class name; empty ones are refused, or left out if they ``may_be_empty``.

    Raises:
        UserError: these are not class folders; the message says what they seem to be, and the fix.
    """
    lower = {inner.lower() for inner in root.folders}
    if lower & _IMAGE_FOLDERS and lower & _LABEL_FOLDERS:
        raise invalid_data(
            f"{name}: folders {listed(list(root.folders))} look like data for detection or segmentation; "
            "lana-ray classifies images and needs one folder per class"
        )
    filled = root.filled
    if len(filled) < 2 and (_labels_in(root) or all(inner.lower() in _IMAGE_FOLDERS for inner in filled)):
        raise _without_classes(name, root, list(filled))
    _refuse_splits(name, filled)
    classes: dict[str, Folder] = {}
    for raw, folder in (filled if may_be_empty else root.folders).items():
        clean = class_name(raw)
        if not folder.has_images:
            raise invalid_data(f"{name}: class folder {clean} contains no images; fill it or remove it")
        if clean in classes:
            other = os.path.basename(classes[clean].path)
            raise invalid_data(f"{name}: folders {other!a} and {raw!a} are both class {clean}; merge them")
        classes[clean] = folder
    return classes


def _refuse_splits(name: str, filled: Mapping[str, Folder]) -> None:
    """Raises UserError if all folders contain the same folders: then these or those may be splits."""
    inner = [set(folder.filled) for folder in filled.values() if folder.has_classes]
    if len(filled) < 2 or len(inner) < len(filled):
        return
    common = sorted(set.intersection(*inner))
    if all(map(split_named, common)) and common:
        fix = f"put the classes inside the splits, as in {common[0]}/{next(iter(filled))}"
    elif len(common) > 1:
        fix = (
            "set data.folder and data.test to one each if they are splits; otherwise put the images of each "
            "class directly into its folder"
        )
    else:
        return
    raise invalid_data(f"{name}: folders {listed(list(filled))} all contain {listed(common)}; {fix}")


def _labels_in(root: Folder) -> list[str]:
    """Returns the names of files and folders directly in ``root`` that may contain labels."""
    files = [file for file in root.others if _suffix(file) in _ANNOTATIONS]
    return files + [inner for inner in root.folders if inner.lower() in _LABEL_FOLDERS]


def _without_classes(name: str, root: Folder, flat: list[str]) -> UserError:
    """Returns the error for a folder without class folders; ``flat`` names its folders that have images."""
    if flat:
        content = f"images in {listed(flat)} are in no class folder"
    elif root.images:
        content = f"{counted(len(root.images), 'image')} directly in it"
    else:
        others = root.all_others()
        content = f"contains no images, only {listed(others, 3)}" if others else "is empty"
    unread = f"; {listed(_labels_in(root))} is not read" if _labels_in(root) and root.has_images else ""
    return invalid_data(
        f"{name}: {content}{unread}; expected one folder of images per class, named after it "
        "(labels in CSV, YOLO, COCO or Pascal VOC files are not supported)"
    )


def folder_source(setting: str, root: Folder, classes: Mapping[str, Folder] | None, decode: Decode) -> Source:
    """Returns the images at any depth of class folders, or of ``root``, unlabelled, without ``classes``."""
    parts = [root] if classes is None else list(classes.values())
    numbers = [UNLABELLED] if classes is None else np.arange(len(parts))
    images = [image for part in parts for image in part.all_images()]
    paths = [path for path, _ in images]

    def read(path: str) -> bytes:
        with reading(path):
            return Path(path).read_bytes()

    shown = [paths[i] for i in np.linspace(0, len(paths) - 1, min(len(paths), _PREVIEW)).round().astype(int)]

    names = [os.path.relpath(path, root.path) for path in paths]
    listing = "\n".join(names).encode(errors="surrogateescape")
    sized = "\n".join(f"{name}\t{size}" for name, (_, size) in zip(names, images, strict=True))
    return Source(
        name=f"{setting} {printable(root.path)}",
        labels=np.repeat(np.asarray(numbers, dtype=np.int64), [len(part.all_images()) for part in parts]),
        classes=None if classes is None else tuple(classes),
        by_name=classes is not None,
        # Uncompressed files all have one size, so only the content of some of them tells data sets apart.
        identity=digest(sized.encode(errors="surrogateescape"), *map(read, shown)),
        content=functools.cache(lambda: digest(listing, content_of_files(paths).encode())),
        pixels=lambda index: decode(read(paths[index])),
        where=lambda index: printable(paths[index]),
        preview=lambda: ((printable(path), read(path)) for path in shown),
        notes=() if classes is None else tuple(_notes(root)),
    )


def _notes(root: Folder) -> Iterator[str]:
    """Yields a line for each kind of file that is not used in a folder of classes."""
    where = printable(root.path)
    if root.images:
        yield f"not used: {counted(len(root.images), 'image')} directly in {where} instead of a class folder"
    if others := root.all_others():
        kinds = Counter(_suffix(name) or "no suffix" for name in others)
        shown = listed([f"{count} {kind}" for kind, count in kinds.most_common()])
        yield f"not used: {counted(len(others), 'file')} in {where}, not images ({shown})"
