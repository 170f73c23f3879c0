"""Defines sources of labelled images, and opens those of scikit-learn and torchvision."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torchvision

from lana_ray.data.content import content_of_object, digest
from lana_ray.data.pixels import Pixels, UndecodableError, rgb
from lana_ray.errors import UserError

Labels = npt.NDArray[np.int64]
Decode = Callable[[bytes | None], Pixels]
"""Function from encoded bytes to pixels, such as ``pixels.decode``."""
UNLABELLED = -1


class MissingDataError(UserError):
    """The data is not on this machine, but it may be on the machines of the run."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled images that are decoded one by one, on demand."""

    name: str
    """The setting and its value, for messages: ``data.parquet …/train.parquet``."""
    labels: Labels
    """Class of each image, shape [n]; ``UNLABELLED`` for all of them if the files have no labels."""
    classes: tuple[str, ...] | None
    """Class names in the order of the labels; None if the files have none."""
    by_name: bool = False
    """Whether the labels in the files are names, in the order of ``classes``, instead of numbers."""
    identity: str
    """Hash of what is cheap to read: it distinguishes data sets, but does not show every change of one."""
    content: Callable[[], str]
    """Returns a hash of all images, independent of where the files are; may have to read them all."""
    pixels: Callable[[int], Pixels]
    """Returns the image at an index as uint8 [height, width, 3]; raises UndecodableError."""
    where: Callable[[int], str]
    """Returns the name of the image at an index, for messages."""
    preview: Callable[[], Iterator[tuple[str, bytes | None]]] = lambda: iter(())
    """Yields name and encoded bytes of a few images that are cheap to read; nothing if all surely decode."""
    notes: tuple[str, ...] = ()
    """Lines for the user on how the files were interpreted."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_labelled(self) -> bool:
        return len(self) == 0 or bool((self.labels != UNLABELLED).any())


def digits_source() -> Source:
    """The 1,797 grey 8 × 8 digits of scikit-learn, ten classes; raises UserError if it is not installed."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingDataError(
            "missing_package", "data.source digits: needs scikit-learn; pip install 'lana-ray[digits]'"
        ) from None
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # the stored values are 0..16
    labels = digits.target.astype(np.int64)
    return Source(
        name="data.source digits",
        labels=labels,
        classes=tuple(str(name) for name in digits.target_names),
        identity=digest(grey.tobytes(), labels.tobytes()),
        content=lambda: digest(grey.tobytes()),
        pixels=lambda index: np.repeat(grey[index, :, :, None], 3, axis=2),
        where=lambda index: f"digit {index}",
    )


def torchvision_source(class_name: str, root: str, *, train: bool, download: bool) -> Source:
    """Returns the training or test images of a torchvision data set that takes ``train=`` or ``split=``.

    Raises:
        UserError: the name is unknown, the data set has no such splits or labels, or its files are missing
            or cannot be downloaded.
    """
    name = f"data.torchvision {class_name}"
    factory = _torchvision_class(class_name)
    parameters = inspect.signature(factory).parameters
    half: dict[str, Any] = (
        {"train": train} if "train" in parameters else {"split": "train" if train else "test"}
    )
    unusable = UserError(
        "invalid_data",
        f"{name}: has no labelled train/test split; export it as Parquet and set data.parquet",
    )
    if "download" not in parameters or not half.keys() <= parameters.keys():
        raise unusable
    try:
        dataset = factory(root, download=download, **half)
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        fix = "check data.root" if download else "set data.download: true, or data.root to its folder"
        raise MissingDataError(
            "missing_file", f"{name}: cannot be read from {root} ({reason}); {fix}"
        ) from None
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
    if labels.ndim != 1:
        raise unusable
    classes = getattr(dataset, "classes", None)
    return Source(
        name=name,
        labels=labels,
        classes=tuple(str(x) for x in classes) if classes else None,
        identity=digest(class_name.encode(), labels.tobytes()),
        content=functools.cache(lambda: content_of_object(dataset)),
        pixels=pixels,
        where=lambda index: f"{class_name} {'train' if train else 'test'} image {index}",
    )


def _torchvision_class(class_name: str) -> Any:
    names: Sequence[str] = torchvision.datasets.__all__
    if class_name in names:
        return getattr(torchvision.datasets, class_name)
    near = difflib.get_close_matches(class_name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "see torchvision's list of data sets"
    raise UserError(
        "unknown_name", f"data.torchvision {class_name}: torchvision has no such data set; {hint}"
    )
