"""What is known of a run before it begins, as every stage's ``plan`` is given it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from lana_ray.config import Config
from lana_ray.costs import macs
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A run that was checked and not begun."""

    workspace: Workspace
    space: LayerwiseSpace
    """The space of a teacher without its pretrained weights."""
    classes: int
    sizes: Mapping[str, int] | None
    """Images by split; None if the data is not here."""
    notes: Sequence[str]
    """What to know of the teacher's weights."""
    places: Mapping[str, str]
    """By target: where it would be sampled, or why it cannot be."""

    @property
    def config(self) -> Config:
        return self.workspace.config

    @cached_property
    def teacher_macs(self) -> float:
        """Multiply-accumulates of the teacher for one image."""
        size = self.config.data.image_size
        return macs.count(self.space.network, torch.zeros(1, 3, size, size))

    @property
    def is_joint(self) -> bool:
        """Whether one student is also chosen for all targets together."""
        return self.config.select.joint and len(self.config.targets) > 1


def in_words(number: float) -> str:
    """Three digits and a word: ``13.7 billion``."""
    sizes = {1e18: "quintillion", 1e15: "quadrillion", 1e12: "trillion", 1e9: "billion", 1e6: "million"}
    for size, word in sizes.items():
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,.0f}"
