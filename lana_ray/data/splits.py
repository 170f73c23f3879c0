"""Splits images at random, with the same shares of the classes in every split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lana_ray.config import DataConfig
from lana_ray.data.names import counted, listed
from lana_ray.data.sources import invalid_data

SPLITS = ("train", "score", "validation", "test")
Indices = npt.NDArray[np.int64]

_SET_ASIDE = 1024
"""Most images to score with, and to validate with, by default."""
_LEAST = 2
"""Images that a split needs at least: batch statistics of one image are not defined."""


def divide(
    labels: npt.NDArray[np.int64], test: int | None, config: DataConfig, seed: int
) -> dict[str, Indices]:
    """Returns the image indices of random splits with equal shares of each class, if it has enough images.

    Every class gets an image in ``train`` before other splits do, and before ``config.limit`` cuts ``train``.

    Args:
        labels: labels of the training images, shape [n], counting from 0.
        test: number of the data's own test images, which are numbered from n on; None to set a share aside.

    Raises:
        UserError: there are too few images for the splits.
    """
    count = len(labels)
    order = _spread(labels, np.random.default_rng([seed, len(SPLITS)]))
    if test is None:
        set_aside = max(_LEAST, round(count * config.test_fraction))
        order, held_out = order[:-set_aside], order[-set_aside:]
    else:
        held_out = count + np.random.default_rng([seed, len(SPLITS), 1]).permutation(test)
    if len(held_out) < _LEAST:
        raise invalid_data(f"data: only {counted(len(held_out), 'test image')}; needs {_LEAST}: add images")
    if len(order) < 4 * _LEAST:
        aside = f" after {len(held_out)} of {count} are set aside to test" if test is None else ""
        fix = "add images" + (" or lower data.test_fraction" if test is None else "")
        raise invalid_data(
            f"data: only {counted(len(order), 'training image')}{aside}; needs {4 * _LEAST}: {fix}"
        )
    default = min(_SET_ASIDE, max(_LEAST, len(order) // 8))
    score = config.score_images or default
    both = score + (config.validation_images or default)
    if both > len(order) // 2:
        raise invalid_data(
            f"data.score_images {score} and data.validation_images {both - score} would take more than "
            f"half of {len(order)} training images; lower them to {len(order) // 2} together"
        )
    return {
        "train": order[:-both][: config.limit],
        "score": order[-score:],
        "validation": order[-both:-score],
        "test": held_out,
    }


def _spread(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> Indices:
    """Returns a random order with one image of each class first, and equal class shares in every part after.

    The order does not depend on the numbering of the classes.
    """
    order = generator.permutation(len(labels))
    _, first, inverse, counts = np.unique(
        labels[order], return_index=True, return_inverse=True, return_counts=True
    )
    order = order[np.argsort(first[inverse], kind="stable")]
    sizes = counts[np.argsort(first)]
    ranks = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # With one offset per class, classes of equal size take turns, so that even short parts contain them all.
    places = (ranks + np.repeat(generator.random(len(sizes)), sizes)) / np.repeat(sizes, sizes)
    places[ranks == 0] -= 1
    return order[np.argsort(places, kind="stable")]


def missing_classes(
    labels: npt.NDArray[np.int64], splits: dict[str, Indices], classes: Sequence[str]
) -> list[str]:
    """Returns a line for each group of splits that lack images of the same classes."""
    lacking: dict[tuple[int, ...], list[str]] = {}
    for split, indices in splits.items():
        absent = np.setdiff1d(np.arange(len(classes)), labels[indices])
        if len(absent):
            lacking.setdefault(tuple(absent.tolist()), []).append(split)
    return [
        f"no images of {len(absent)} of {len(classes)} classes in {' and '.join(names)}: "
        f"{listed([classes[label] for label in absent])}"
        for absent, names in lacking.items()
    ]
