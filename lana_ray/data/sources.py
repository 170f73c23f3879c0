"""Where images come from. Every source answers the same few questions, whatever its files look like."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torchvision
from PIL import Image

from lana_ray.data.pixels import Pixels, UndecodableError, decode, rgb
from lana_ray.errors import UserError

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled images that are decoded one by one, on demand."""

    name: str
    """How the user named it, setting included: ``data.parquet …/train.parquet``."""
    labels: Labels
    """Class of each image, [n]."""
    classes: tuple[str, ...] | None
    """Class names in the order of the labels; None where the files carry none."""
    identity: str
    """Hash of the content as far as it is cheap to know; the same wherever the files lie."""
    pixels: Callable[[int], Pixels]
    """The image at an index as uint8 [height, width, 3]; raises UndecodableError."""
    where: Callable[[int], str]
    """Names the image at an index for an error message."""

    def __len__(self) -> int:
        return len(self.labels)


def digest(*parts: bytes) -> str:
    """Hash of byte strings."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little"))
        whole.update(part)
    return whole.hexdigest()[:16]


IMAGE_SUFFIXES = frozenset(Image.registered_extensions()) - {".pdf"}


def folder_source(setting: str, location: str) -> Source:
    """A local folder with one folder per class, named after it; images may lie at any depth below.

    Files whose suffix Pillow does not know, and hidden ones, are ignored.

    Raises:
        UserError: no such folder, no class folders, or one without an image.
    """
    root, name = Path(location), f"{setting} {location}"
    if "://" in location:
        raise UserError(
            f"{name}: image folders must be local; pack the images into Parquet and set data.parquet"
        )
    if not root.is_dir():
        raise UserError(f"{name}: no such folder")
    classes = sorted(x.name for x in root.iterdir() if x.is_dir() and not x.name.startswith("."))
    if not classes:
        raise UserError(f"{name}: is empty; expected one folder of images per class")
    paths: list[str] = []
    labels: list[int] = []
    sizes: list[int] = []
    for label, class_name in enumerate(classes):
        found = _image_files(root / class_name)
        if not found:
            raise UserError(f"{name}: class folder {class_name} holds no images; fill it or remove it")
        paths += found
        sizes += [os.path.getsize(path) for path in found]
        labels += [label] * len(found)

    def pixels(index: int) -> Pixels:
        try:
            data = Path(paths[index]).read_bytes()
        except OSError as error:
            raise UserError(f"{paths[index]}: cannot be read ({error.strerror})") from None
        return decode(data)

    relative = "\n".join(
        f"{os.path.relpath(path, root)}\t{size}" for path, size in zip(paths, sizes, strict=True)
    )
    return Source(
        name=name,
        labels=np.asarray(labels, dtype=np.int64),
        classes=tuple(classes),
        identity=digest(relative.encode()),
        pixels=pixels,
        where=lambda index: paths[index],
    )


def _image_files(folder: Path) -> list[str]:
    return sorted(
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")
    )


def digits_source() -> Source:
    """scikit-learn's 1,797 handwritten digits, 8×8 grey, ten classes.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("data.source digits: needs scikit-learn; pip install 'lana-ray[digits]'") from None
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
    labels = digits.target.astype(np.int64)
    return Source(
        name="data.source digits",
        labels=labels,
        classes=tuple(str(name) for name in digits.target_names),
        identity=digest(grey.tobytes(), labels.tobytes()),
        pixels=lambda index: np.repeat(grey[index, :, :, None], 3, axis=2),
        where=lambda index: f"digit {index}",
    )


def torchvision_source(class_name: str, root: str, *, train: bool, download: bool) -> Source:
    """One half of a torchvision data set that is split by ``train=`` or ``split=`` and labels each image.

    Raises:
        UserError: unknown name, no such split, files missing or not downloadable.
    """
    name = f"data.torchvision {class_name}"
    factory = _torchvision_class(class_name)
    parameters = inspect.signature(factory).parameters
    half: dict[str, Any] = (
        {"train": train} if "train" in parameters else {"split": "train" if train else "test"}
    )
    unusable = UserError(
        f"{name}: has no labelled train/test split; export it as Parquet and set data.parquet"
    )
    if "download" not in parameters or not half.keys() <= parameters.keys():
        raise unusable
    try:
        dataset = factory(root, download=download, **half)
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        mend = "see data.root" if download else "set data.download: true, or data.root to where it is"
        raise UserError(f"{name}: cannot be read from {root} ({reason}); {mend}") from None
    except (TypeError, ValueError):
        raise unusable from None
    targets = next(
        (getattr(dataset, x) for x in ("targets", "labels", "_labels") if hasattr(dataset, x)), None
    )
    if targets is None:
        raise unusable

    def pixels(index: int) -> Pixels:
        try:
            return rgb(dataset[index][0])
        except (OSError, SyntaxError) as error:
            raise UndecodableError(str(error)) from None

    labels = np.asarray(targets, dtype=np.int64)
    classes = getattr(dataset, "classes", None)
    return Source(
        name=name,
        labels=labels,
        classes=tuple(str(x) for x in classes) if classes else None,
        identity=digest(class_name.encode(), labels.tobytes()),
        pixels=pixels,
        where=lambda index: f"{class_name} {'train' if train else 'test'} image {index}",
    )


def _torchvision_class(class_name: str) -> Any:
    known: Sequence[str] = torchvision.datasets.__all__
    if class_name in known:
        return getattr(torchvision.datasets, class_name)
    near = difflib.get_close_matches(class_name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "see torchvision's list of data sets"
    raise UserError(f"data.torchvision {class_name}: torchvision has no such data set; {hint}")
