"""Which networks to measure, so that a regression on their costs tells what each candidate costs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lana_ray.ids import Architecture, Choices


def balanced(count: int, among: Choices, seed: int) -> list[Architecture]:
    """``count`` random architectures that use the candidates of each layer equally often.

    A regression on this design estimates every candidate's cost from ``count / candidates`` networks at
    once, whereas changing one layer at a time would estimate each from a single difference. The first n of
    a design are the design for n, so that a larger one measures only what is new.
    """
    generators = np.random.default_rng(seed).spawn(len(among))
    columns = [_column(count, choices, own) for choices, own in zip(among, generators, strict=True)]
    return [tuple(int(choice) for choice in row) for row in np.stack(columns, axis=1)]


def _column(count: int, choices: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.int64]:
    """One layer's candidates: all of them in random order, then again in another order, and so on."""
    rounds = -(-count // len(choices))
    return np.concatenate([rng.permutation(choices) for _ in range(rounds)])[:count]
