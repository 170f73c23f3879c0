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
import torch
from torch import Tensor

from lana_ray.config import DataConfig
from lana_ray.config.data import IMAGENET_MEAN, IMAGENET_STD
from lana_ray.data import pixels
from lana_ray.data.content import digest
from lana_ray.data.open import class_names, open_sources
from lana_ray.data.sources import Labels, Source, check_preview, invalid_data
from lana_ray.data.splits import SPLITS, divide, missing_classes
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
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    """With antialiasing."""
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


def load_data(config: DataConfig, *, seed: int = 0) -> ImageData:
    """Opens the data that ``config`` names and splits it; images are only read and decoded for their batch.

    They are normalised as for ImageNet. The seed is that of the splits, of shuffling and of augmentation.

    Raises:
        UserError: the data is missing, damaged, wrongly labelled or too small for its splits.
    """
    train, test = open_sources(config)
    classes = class_names(train, test)
    sources = [train] if test is None else [train, test.relabelled(classes)]
    preprocessing = Preprocessing(config.image_size, value_range=config.value_range)
    return ImageData(sources, classes, config, preprocessing, seed)


class ImageData:
    """A data set in four splits.

    Attributes:
        classes: class names, in the order of the labels.
        preprocessing: the steps from images to tensors.
        indices: image indices of each split in a fixed random order, [n]; test images come last.
        sizes: number of images per split.
        notes: lines on what was inferred about the data and on what it lacks.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        classes: tuple[str, ...],
        config: DataConfig,
        preprocessing: Preprocessing,
        seed: int,
    ) -> None:
        """Splits the ``sources``: training images, and the data's own test images if it has any."""
        self.classes = classes
        self.preprocessing = preprocessing
        self._sources = sources
        self._config = config
        self._seed = seed
        self._labels: Labels = np.concatenate([source.labels for source in sources])
        self._undecodable: set[int] = set()
        test_images = len(sources[1]) if len(sources) > 1 else None
        self.indices = divide(sources[0].labels, test_images, config, seed % 2**32)
        self.sizes = {split: len(self.indices[split]) for split in SPLITS}
        self.notes = [note for source in sources for note in source.notes]
        self.notes += missing_classes(self._labels, self.indices, classes)

    @functools.cached_property
    def content(self) -> str:
        """Hash of every image and label, independent of where the files are; see ``data.content``."""
        return fingerprint([(source.content(), digest(source.labels.tobytes())) for source in self._sources])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of content, splits and preprocessing."""
        steps = self.preprocessing.as_dict()
        settings = (self.classes, steps, self.sizes, self._seed, self._config.limit, self._config.augment)
        return fingerprint(self.content, *settings, method_version("data.images"))

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> ImageData:
        """Returns this data with another mean and standard deviation per channel of pixels in 0..1."""
        preprocessing = replace(self.preprocessing, mean=tuple(map(float, mean)), std=tuple(map(float, std)))
        return ImageData(self._sources, self.classes, self._config, preprocessing, self._seed)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def skipped(self) -> int:
        """Number of undecodable images that this object has met so far."""
        return len(self._undecodable)

    def check(self) -> list[str]:
        """Decodes a few images and returns a line per problem; raises UserError if too many fail."""
        decode = functools.partial(pixels.decode, value_range=self._config.value_range)
        return check_preview(self._sources, decode, self._config.max_undecodable)

    def steps(self, split: str, *, batch_size: int) -> int:
        """Returns the number of ``batches`` of a split."""
        return -(-self.sizes[split] // batch_size)

    def batches(
        self,
        split: str,
        *,
        batch_size: int,
        only: Sequence[int] | None = None,
        max_images: int | None = None,
        channels_last: bool = True,
    ) -> Iterator[Batch]:
        """Yields the images of a split in a fixed order, prepared by a thread that ends with the iterator.

        An undecodable image is counted and left out of its batch.

        Args:
            split: one of ``SPLITS``.
            batch_size: images per batch. The last batch may be smaller; a single image is added to another
                batch, since one image has no batch statistics.
            only: numbers of the batches to yield, in order, counting from 0; defaults to all.
            max_images: use this many images of the split, the same ones every time.
            channels_last: memory layout of the images; the shape is [n, 3, size, size] either way.

        Raises:
            UserError: more images are undecodable than ``data.max_undecodable`` allows, or all of them are.
        """
        order = self.indices[split][:max_images]

        def batch(number: int) -> Batch | None:
            return self._batch(list(self._decoded(order[number * batch_size : (number + 1) * batch_size])))

        batches = _prefetch(batch, range(-(-len(order) // batch_size)) if only is None else only, split)
        batches = batches if batch_size == 1 else _merge_single_images(batches)
        return batches if channels_last else ((images.contiguous(), labels) for images, labels in batches)

    def shuffled(
        self,
        split: str,
        *,
        batch_size: int,
        epoch: int = 0,
        only: Sequence[int] | None = None,
        seed: int | None = None,
    ) -> Iterator[Batch]:
        """Yields the full batches of one epoch in a new order, training images augmented by ``data.augment``.

        The content of a batch depends only on its number and these arguments, not on the batches consumed
        before: trainings that resume or share an epoch with other workers set ``only``. An undecodable image
        is counted, and the next image that decodes replaces it, so that batches keep their size.

        Args:
            split, only: as for ``batches``, which raises the same errors.
            batch_size: images per batch; a smaller split is one batch.
            epoch: selects the order and the augmentation.
            seed: seed of order and augmentation; defaults to the data's.
        """
        seed = self._seed if seed is None else seed
        generator = np.random.default_rng([seed % 2**32, SPLITS.index(split), epoch])
        order = generator.permutation(self.indices[split])
        offsets = generator.integers(0, 2 * pixels.margin(self.preprocessing.size) + 1, (len(order), 2))
        flips = generator.random(len(order)) < (0.5 if self._config.augment == "flip" else 0.0)
        is_augmented = split == "train" and self._config.augment != "none"

        def batch(number: int) -> Batch | None:
            part = slice(number * batch_size, (number + 1) * batch_size)
            candidates = (itertools.chain(order[i:], order[:i]) for i in range(len(order))[part])
            decoded = [image for each in candidates for image in itertools.islice(self._decoded(each), 1)]
            return self._batch(decoded, (offsets[part], flips[part]) if is_augmented else None)

        numbers = range(self._full_batches(split, batch_size)) if only is None else only
        return _prefetch(batch, numbers, split)

    def endless(
        self, split: str, *, batch_size: int, start_step: int = 0, seed: int | None = None
    ) -> Iterator[Batch]:
        """Yields the ``shuffled`` batches of a split, epoch after epoch, from number ``start_step``."""
        per_epoch = self._full_batches(split, batch_size)
        first, start = divmod(start_step, per_epoch)
        for epoch in itertools.count(first):
            only = range(start if epoch == first else 0, per_epoch)
            yield from self.shuffled(split, batch_size=batch_size, epoch=epoch, only=only, seed=seed)

    def _full_batches(self, split: str, batch_size: int) -> int:
        return max(1, self.sizes[split] // batch_size)

    def _batch(
        self, decoded: Sequence[tuple[pixels.Pixels, int]], changes: tuple[Any, Any] | None = None
    ) -> Batch | None:
        """Returns images as inputs, changed by crop offsets [n, 2] and flips [n]; None if there are none."""
        if not decoded:
            return None
        images, indices = zip(*decoded, strict=True)
        fitted = pixels.fit(images, self.preprocessing.size)
        if changes is not None:
            fitted = pixels.crop_and_flip(fitted, *changes)
        inputs = pixels.normalise(fitted, self.preprocessing.mean, self.preprocessing.std)
        return inputs, torch.from_numpy(self._labels[list(indices)])

    def _decoded(self, indices: Iterable[int]) -> Iterator[tuple[pixels.Pixels, int]]:
        """Yields the pixels [height, width, 3] and indices of the images that decode; counts the others."""
        for index in map(int, indices):
            if index in self._undecodable:
                continue
            source, local = self._sources[0], index
            if index >= len(source):
                source, local = self._sources[1], index - len(source)
            try:
                yield source.pixels(local), index
            except pixels.UndecodableError as error:
                self._undecodable.add(index)
                allowed, total = self._config.max_undecodable, len(self._labels)
                if self.skipped > allowed * total:
                    raise invalid_data(
                        f"{source.name}: {self.skipped} of {total} images do not decode, more than "
                        f"data.max_undecodable {allowed:g}, the last one {source.where(local)} "
                        f"({error}); fix the files or raise data.max_undecodable"
                    ) from None


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
            raise invalid_data(f"data: no image of split {split} decodes; fix the files or add images")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _merge_single_images(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yields the batches; one of a single image is merged with its predecessor, the first with the next."""
    last: Batch | None = None
    for batch in batches:
        if last is None:
            last = batch
        elif 1 in (len(last[1]), len(batch[1])):
            last = torch.cat((last[0], batch[0])), torch.cat((last[1], batch[1]))
        else:
            yield last
            last = batch
    if last is not None:
        yield last
