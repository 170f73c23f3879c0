"""Where images come from. Every source answers the same few questions, whatever its files look like."""

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
"""Encoded bytes to pixels, see ``pixels.decode``."""
UNLABELLED = -1


class MissingDataError(UserError):
    """The data is not on this machine, though it may be where the run takes place."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Labelled images that are decoded one by one, on demand."""

    name: str
    """How the user named it, setting included: ``data.parquet …/train.parquet``."""
    labels: Labels
    """Class of each image, [n]; ``UNLABELLED`` for all of them if the files carry no labels."""
    classes: tuple[str, ...] | None
    """Class names in the order of the labels; None where the files carry none."""
    by_name: bool = False
    """The files label images with names, which ``classes`` numbers; otherwise with numbers."""
    identity: str
    """Hash of what is cheap to read: tells data sets apart, not what was changed in one."""
    content: Callable[[], str]
    """Hash of all images, the same wherever their files lie; may have to read them."""
    pixels: Callable[[int], Pixels]
    """The image at an index as uint8 [height, width, 3]; raises UndecodableError."""
    where: Callable[[int], str]
    """Names the image at an index for an error message."""
    preview: Callable[[], Iterator[tuple[str, bytes | None]]] = lambda: iter(())
    """Name and encoded bytes of a few images that are cheap to read; none if all are known to decode."""
    notes: tuple[str, ...] = ()
    """What a user should know about how the files were read, one line each."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_labelled(self) -> bool:
        return len(self) == 0 or bool((self.labels != UNLABELLED).any())


def digits_source() -> Source:
    """scikit-learn's 1,797 handwritten digits, 8×8 grey, ten classes.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingDataError(
            "data.source digits: needs scikit-learn; pip install 'lana-ray[digits]'"
        ) from None
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
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
        fix = "see data.root" if download else "set data.download: true, or data.root to where it is"
        raise MissingDataError(f"{name}: cannot be read from {root} ({reason}); {fix}") from None
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
    known: Sequence[str] = torchvision.datasets.__all__
    if class_name in known:
        return getattr(torchvision.datasets, class_name)
    near = difflib.get_close_matches(class_name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "see torchvision's list of data sets"
    raise UserError(f"data.torchvision {class_name}: torchvision has no such data set; {hint}")
