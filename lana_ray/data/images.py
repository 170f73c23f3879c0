"""Splits a data set four ways and yields deterministic batches of tensors.

The splits never share an image: ``train`` is for training, ``score`` for scoring candidates and choosing
students, ``validation`` for picking a training's best epoch, and ``test`` only for the reported accuracy.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lana_ray.config import DataConfig
from lana_ray.config.data import IMAGENET_MEAN, IMAGENET_STD
from lana_ray.data import pixels
from lana_ray.data.content import digest
from lana_ray.data.open import class_names, open_sources, relabelled
from lana_ray.data.preview import check_preview
from lana_ray.data.sources import Labels, Source
from lana_ray.data.splits import SPLITS, divide, missing_classes
from lana_ray.errors import UserError
from lana_ray.run_dir.code_version import method_version
from lana_ray.run_dir.fingerprint import fingerprint

_AHEAD = 2
"""Batches prepared in advance while the consumer works on another one."""

Batch = tuple[Tensor, Tensor]
"""Images [n, 3, size, size] float32, normalised, and labels [n] int64."""


@dataclass(frozen=True)
class Preprocessing:
    """The steps from an image file to an input: decode, centre square, resize, (pixel / 255 - mean) / std."""

    size: int
    """Height and width of the input, pixels."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    """Always ``bilinear``, antialiased."""
    value_range: tuple[float, float] | None = None
    """Values that become black and white in grey images of more than 8 bits; None for 0 to 65535."""
    orientation: str = "exif"
    """Images are rotated according to their EXIF orientation."""
    transparency: str = "white"
    """Colour of transparent parts."""
    frame: str = "first"
    """Frame that is read from animations and from files with several pages."""

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return {key: list(x) if isinstance(x, tuple) else x for key, x in asdict(self).items()}


def load_data(
    config: DataConfig,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    seed: int = 0,
) -> ImageData:
    """Opens the data that ``config`` names and splits it; images are only read and decoded for their batch.

    Args:
        config: location of the images, and how many to set aside.
        mean: mean per channel of pixels in 0..1; use the teacher's.
        std: standard deviation per channel of pixels in 0..1; use the teacher's.
        seed: seed of the splits, of shuffling and of augmentation.

    Raises:
        UserError: the data is missing, damaged, wrongly labelled or too small for its splits.
    """
    train, test = open_sources(config)
    classes = class_names(train, test)
    if test is not None:
        test = relabelled(test, classes)
    preprocessing = Preprocessing(
        config.image_size, _triple(mean), _triple(std), "bilinear", value_range=config.value_range
    )
    return ImageData(train, test, classes, config, preprocessing, seed)


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


class ImageData:
    """A data set in four splits.

    Attributes:
        classes: class names, in the order of the labels.
        preprocessing: the steps from images to tensors.
        sizes: number of images per split.
        notes: lines on what was inferred about the data and on what it lacks.
    """

    def __init__(
        self,
        train: Source,
        test: Source | None,
        classes: tuple[str, ...],
        config: DataConfig,
        preprocessing: Preprocessing,
        seed: int,
    ) -> None:
        self._parts = (train, test, classes, config)
        self._unreduced_seed = seed
        self.classes = classes
        self.preprocessing = preprocessing
        self._sources = [train] if test is None else [train, test]
        self._seed = seed % 2**32
        self._augment = config.augment
        self._max_undecodable = config.max_undecodable
        self._labels: Labels = np.concatenate([source.labels for source in self._sources])
        self._undecodable: set[int] = set()
        self._indices = divide(train.labels, None if test is None else len(test), config, self._seed)
        self.sizes = {split: len(self._indices[split]) for split in SPLITS}
        self.notes = [note for source in self._sources for note in source.notes]
        self.notes += missing_classes(self._labels, self._indices, classes)
        self._settings = (classes, preprocessing.as_dict(), self.sizes, seed, config.limit, config.augment)

    @functools.cached_property
    def content(self) -> str:
        """Hash of every image and label, independent of where the files are.

        Local images are all read for it the first time, and later only if they changed.
        """
        return fingerprint([(source.content(), digest(source.labels.tobytes())) for source in self._sources])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of content, splits and preprocessing."""
        return fingerprint(self.content, *self._settings, method_version("data.images"))

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> ImageData:
        """Returns this data with another mean and standard deviation per channel."""
        preprocessing = replace(self.preprocessing, mean=_triple(mean), std=_triple(std))
        return ImageData(*self._parts, preprocessing, self._unreduced_seed)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def skipped(self) -> int:
        """Number of undecodable images that this object has met so far."""
        return len(self._undecodable)

    def check(self) -> list[str]:
        """Decodes a few images and returns a line per problem; raises UserError if too many fail."""
        decode = functools.partial(pixels.decode, value_range=self.preprocessing.value_range)
        return check_preview(self._sources, decode, self._max_undecodable)

    def indices(self, split: str) -> npt.NDArray[np.int64]:
        """The image indices of a split in a fixed random order [n]; test images follow training images."""
        return self._indices[split]

    def steps(
        self,
        split: str,
        *,
        batch_size: int,
        max_images: int | None = None,
        drop_last: bool = False,
    ) -> int:
        """Returns the number of batches per epoch for the same arguments of ``batches``; at least 1."""
        count = len(self._indices[split][:max_images])
        return max(1, count // batch_size if drop_last else -(-count // batch_size))

    def batches(
        self,
        split: str,
        *,
        batch_size: int,
        epoch: int = 0,
        shuffle: bool = False,
        augment: bool = False,
        only: Sequence[int] | None = None,
        max_images: int | None = None,
        drop_last: bool = False,
        channels_last: bool = True,
        seed: int | None = None,
    ) -> Iterator[Batch]:
        """Yields the batches of one epoch, prepared by one background thread that ends with the iterator.

        The content of a batch depends only on its number, the seed and these arguments, not on the batches
        consumed before: trainings that resume or share an epoch with other workers set ``only``.

        An undecodable image is counted and left out of its batch. With ``shuffle``, the next image that
        decodes replaces it, so that training batches keep their size.

        Args:
            split: one of ``SPLITS``.
            batch_size: images per batch. Without ``drop_last`` the last batch may be smaller; without
                ``shuffle`` a single image is added to another batch, since one image has no batch statistics.
            epoch: selects the order and the augmentation.
            shuffle: draw a new order for this epoch.
            augment: augment the images according to ``data.augment``.
            only: numbers of the batches to yield, in order, counting from 0; defaults to all.
            max_images: use this many images of the split, the same ones in every epoch.
            channels_last: memory layout of the images; the shape is [n, 3, size, size] either way.
            seed: seed of order and augmentation; defaults to the data's.

        Raises:
            UserError: more images are undecodable than ``data.max_undecodable`` allows, or all of them are.
        """
        steps = self.steps(split, batch_size=batch_size, max_images=max_images, drop_last=drop_last)
        order = self._indices[split][:max_images]
        chosen = self._seed if seed is None else seed % 2**32
        generator = np.random.default_rng([chosen, SPLITS.index(split), epoch])
        if shuffle:
            order = generator.permutation(order)
        changes = self._changes(generator, len(order)) if augment and self._augment != "none" else None
        all_places = np.arange(len(order))

        def batch(number: int) -> Batch | None:
            last = number == steps - 1 and not (drop_last and len(order) >= batch_size)
            places = all_places[number * batch_size : None if last else (number + 1) * batch_size]
            images, labels, kept = self._decode(order, places, replace=shuffle)
            if not images:
                return None
            tensor = self._tensor(images, None if changes is None else [x[kept] for x in changes])
            return tensor if channels_last else tensor.contiguous(), torch.from_numpy(self._labels[labels])

        batches = _prefetch(batch, range(steps) if only is None else only, split)
        return batches if shuffle or batch_size == 1 else _merge_single_images(batches)

    def endless(
        self, split: str, *, batch_size: int, start_step: int = 0, seed: int | None = None
    ) -> Iterator[Batch]:
        """Yields shuffled batches of a split, epoch after epoch; training images are augmented.

        Args:
            start_step: number of the first batch to yield.
            seed: seed of order and augmentation; defaults to the data's.
        """
        batch_size = min(batch_size, self.sizes[split])
        per_epoch = self.steps(split, batch_size=batch_size, drop_last=True)
        first, start = divmod(start_step, per_epoch)
        for epoch in itertools.count(first):
            yield from self.batches(
                split,
                batch_size=batch_size,
                epoch=epoch,
                shuffle=True,
                augment=split == "train",
                only=range(start if epoch == first else 0, per_epoch),
                drop_last=True,
                seed=seed,
            )

    def _tensor(self, images: Sequence[pixels.Pixels], changes: Sequence[Any] | None) -> Tensor:
        """Returns normalised inputs [n, 3, size, size], cropped and flipped if there are ``changes``."""
        fitted = pixels.fit(images, self.preprocessing.size)
        if changes is not None:
            fitted = pixels.crop_and_flip(fitted, *changes)
        return pixels.normalise(fitted, self.preprocessing.mean, self.preprocessing.std)

    def _changes(
        self, generator: np.random.Generator, count: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Draws the crop offsets [count, 2] and flips [count] of one epoch."""
        offsets = generator.integers(0, 2 * pixels.margin(self.preprocessing.size) + 1, (count, 2))
        flips = generator.random(count) < (0.5 if self._augment == "flip" else 0.0)
        return offsets, flips

    def _decode(
        self, order: npt.NDArray[np.int64], places: npt.NDArray[np.int64], *, replace: bool
    ) -> tuple[list[pixels.Pixels], list[int], list[int]]:
        """Returns the pixels, image indices and places of the images among ``order[places]`` that decode."""
        images, indices, kept = [], [], []
        for place in places.tolist():
            candidates = (
                itertools.chain(order[place:], order[:place]) if replace else order[place : place + 1]
            )
            for index in map(int, candidates):
                image = self._pixels(index)
                if image is not None:
                    images.append(image)
                    indices.append(index)
                    kept.append(place)
                    break
        return images, indices, kept

    def _pixels(self, index: int) -> pixels.Pixels | None:
        """Returns an image as uint8 [height, width, 3]; counts it and returns None if it does not decode."""
        if index in self._undecodable:
            return None
        source, local = self._sources[0], index
        if index >= len(source):
            source, local = self._sources[1], index - len(source)
        try:
            return source.pixels(local)
        except pixels.UndecodableError as error:
            self._undecodable.add(index)
            if self.skipped > self._max_undecodable * len(self._labels):
                raise UserError(
                    "invalid_data",
                    f"{source.name}: {self.skipped} of {len(self._labels)} images do not decode, more than "
                    f"data.max_undecodable {self._max_undecodable:g}, the last one {source.where(local)} "
                    f"({error}); fix the files or raise data.max_undecodable",
                ) from None
            return None


def _prefetch(batch: Callable[[int], Batch | None], steps: Sequence[int], split: str) -> Iterator[Batch]:
    """Yields batches in order, prepared in one background thread; closing the iterator ends the thread."""
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lana-ray-data")
    remaining = iter(steps)
    pending: deque[Future[Batch | None]] = deque(
        pool.submit(batch, s) for s in itertools.islice(remaining, _AHEAD)
    )
    is_empty = bool(steps)
    try:
        while pending:
            ready = pending.popleft().result()
            pending.extend(pool.submit(batch, s) for s in itertools.islice(remaining, 1))
            if ready is not None:
                is_empty = False
                yield ready
        if is_empty:
            raise UserError(
                "invalid_data", f"data: no image of split {split} decodes; fix the files or add images"
            )
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _merge_single_images(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yields the batches; one of a single image is merged with its predecessor, the first with the next."""
    last: Batch | None = None
    for batch in batches:
        if last is not None and 1 in (len(last[1]), len(batch[1])):
            images = torch.cat((last[0], batch[0]))
            last = (images, torch.cat((last[1], batch[1])))
            continue
        if last is not None:
            yield last
        last = batch
    if last is not None:
        yield last
