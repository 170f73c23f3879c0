"""Defines sources of labelled images, and opens those of scikit-learn and torchvision."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.error import URLError

import numpy as np
import numpy.typing as npt

from lana_ray.data.content import content_of_object, digest
from lana_ray.data.names import listed
from lana_ray.data.pixels import Pixels, UndecodableError, rgb
from lana_ray.errors import UserError, first_line

Labels = npt.NDArray[np.int64]
Decode = Callable[[bytes | None], Pixels]
"""Function from encoded bytes to pixels, such as ``pixels.decode``."""
UNLABELLED = -1

_MANY = 0.25
"""Share of undecodable images among those tried that cannot be chance."""
_DARK, _BRIGHT = 31, 224
"""Highest and lowest values, of 255, of images that are all dark or all bright."""
_OBLONG = 3.0
"""Longer to shorter side from which images count as oblong."""


class MissingDataError(UserError):
    """The data is not on this machine, but it may be on the machines of the run."""


def invalid_data(text: str) -> UserError:
    """Returns the error to raise for images, labels or splits that cannot be used."""
    return UserError("invalid_data", text)


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

    def relabelled(self, classes: Sequence[str]) -> Source:
        """Returns this source with labels that index ``classes``; raises UserError for another class."""
        if self.classes is None or self.classes == tuple(classes):
            return self
        labels = positions(self.classes, classes)[self.labels]
        if unknown := [self.classes[label] for label in np.unique(self.labels[labels == UNLABELLED])]:
            lower = {name.casefold(): name for name in classes}
            near = [f"{x} is {lower[x.casefold()]} there" for x in unknown if x.casefold() in lower]
            raise invalid_data(
                f"{self.name}: {listed(unknown)} not among the classes of the training images "
                f"({listed(near or classes)}); rename or remove them"
            )
        return replace(self, labels=labels, classes=tuple(classes))


def positions(texts: Sequence[str], names: Sequence[str]) -> Labels:
    """Returns the position of each text in ``names``, ``UNLABELLED`` if it is not there."""
    number = {name: index for index, name in enumerate(names)}
    return np.asarray([number.get(text, UNLABELLED) for text in texts], dtype=np.int64)


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
        classes=tuple(map(str, digits.target_names)),
        identity=digest(grey.tobytes(), labels.tobytes()),
        content=lambda: digest(grey.tobytes()),
        pixels=lambda index: np.repeat(grey[index, :, :, None], 3, axis=2),
        where=lambda index: f"digit {index}",
    )


def torchvision_source(class_name: str, root: str, download: bool, *, train: bool) -> Source:
    """Returns the training or test images of a torchvision data set that takes ``train=`` or ``split=``.

    Raises:
        UserError: the name is unknown, the data set has no such splits or labels, or its files are missing
            or cannot be downloaded.
    """
    name, split = f"data.torchvision {class_name}", "train" if train else "test"
    unusable = invalid_data(
        f"{name}: has no labelled train/test split; export it as Parquet and set data.parquet"
    )
    factory = _torchvision_class(class_name)
    parameters = inspect.signature(factory).parameters
    half: dict[str, Any] = {"train": train} if "train" in parameters else {"split": split}
    if not {"download", *half} <= parameters.keys():
        raise unusable
    try:
        dataset = factory(root, download=download, **half)
    except URLError as error:
        raise MissingDataError(
            "unreachable",
            f"{name}: cannot be downloaded ({first_line(error)}); check the network, or put its files into "
            f"data.root {root}",
        ) from None
    except (RuntimeError, OSError) as error:
        fix = "check data.root" if download else "set data.download: true, or data.root to its folder"
        raise MissingDataError(
            "missing_file", f"{name}: cannot be read from {root} ({first_line(error)}); {fix}"
        ) from None
    except (TypeError, ValueError):
        raise unusable from None
    attributes = (getattr(dataset, key, None) for key in ("targets", "labels", "_labels"))
    targets = next((value for value in attributes if value is not None), None)
    if targets is None or np.ndim(targets) != 1:
        raise unusable
    labels = np.asarray(targets, dtype=np.int64)
    classes = getattr(dataset, "classes", None)

    def pixels(index: int) -> Pixels:
        try:
            return rgb(dataset[index][0])
        except (OSError, SyntaxError) as error:
            raise UndecodableError(str(error)) from None

    return Source(
        name=name,
        labels=labels,
        classes=tuple(map(str, classes)) if classes else None,
        identity=digest(class_name.encode(), labels.tobytes()),
        content=functools.cache(lambda: content_of_object(dataset)),
        pixels=pixels,
        where=lambda index: f"{class_name} {split} image {index}",
    )


def _torchvision_class(class_name: str) -> Any:
    import torchvision  # takes seconds, and only its data sets need it

    if class_name in torchvision.datasets.__all__:
        return getattr(torchvision.datasets, class_name)
    near = difflib.get_close_matches(class_name, torchvision.datasets.__all__, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "see torchvision's list of data sets"
    raise UserError(
        "unknown_name", f"data.torchvision {class_name}: torchvision has no such data set; {hint}"
    )


def check_preview(sources: Sequence[Source], decode: Decode, max_undecodable: float) -> list[str]:
    """Decodes a few images of each source; returns a line for each thing that looks wrong about them.

    Raises:
        UserError: more of them do not decode than ``max_undecodable`` allows for all images, or a share of
            them that cannot be chance.
    """
    allowed = max_undecodable * sum(map(len, sources))
    remarks = []
    for source in sources:
        images: list[Pixels] = []
        damaged: list[str] = []
        for where, data in source.preview():
            try:
                images.append(decode(data))
            except UndecodableError as error:
                damaged.append(f"{where} ({error})")
        tried = len(images) + len(damaged)
        if len(damaged) > min(allowed, max(10 * max_undecodable, _MANY) * tried):
            raise invalid_data(
                f"{source.name}: {len(damaged)} of {tried} images tried do not decode, the first one "
                f"{damaged[0]}; fix the files or raise data.max_undecodable {max_undecodable:g}"
            )
        if images:
            remarks += [f"{source.name}: {remark}" for remark in _remarks(images)]
    return remarks


def _remarks(images: Sequence[Pixels]) -> Iterator[str]:
    darkest, brightest = min(int(image.min()) for image in images), max(int(image.max()) for image in images)
    if brightest <= _DARK or darkest >= _BRIGHT:
        extreme = f"brightest value is {brightest}" if brightest <= _DARK else f"darkest value is {darkest}"
        yield (
            f"images hardly show anything: the {extreme} of 255; set data.value_range if they are grey "
            "images of more than 8 bits"
        )
    oblong = float(np.median([max(image.shape[:2]) / min(image.shape[:2]) for image in images]))
    if oblong > _OBLONG:
        yield (
            f"images are {oblong:.1f} times as long as wide, and only their centre square is used; crop or "
            "pad them to squares"
        )
