"""The interfaces of search spaces, and of spaces whose networks may replace a teacher."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lana_ray.ids import Architecture
from lana_ray.networks.layers import Layer


class Space(ABC):
    """A set of architectures, which are sequences of choices: drawn, encoded for predictors, and built."""

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """Number of options of each decision."""

    @property
    def size(self) -> int:
        """Number of architectures."""
        return math.prod(self.sizes)

    @property
    def dimension(self) -> int:
        """Length of an encoding."""
        return sum(self.sizes)

    @abstractmethod
    def random(self, rng: np.random.Generator) -> Architecture:
        """An architecture whose decisions are drawn uniformly."""

    def encode(self, architecture: Architecture) -> NDArray[np.float32]:
        """One-hot choices, concatenated: shape [dimension]; ValueError for what is no architecture."""
        sizes = self.sizes
        within = (0 <= choice < size for choice, size in zip(architecture, sizes, strict=False))
        if len(architecture) != len(sizes) or not all(within):
            raise ValueError(f"{architecture} is not {len(sizes)} choices among {sizes} options")
        code = np.zeros(sum(sizes), dtype=np.float32)
        code[np.cumsum((0, *sizes[:-1])) + architecture] = 1
        return code

    def decode(self, encoding: NDArray[np.floating]) -> Architecture:
        """The nearest architecture; the inverse of ``encode`` on one-hot codes."""
        parts = np.split(np.asarray(encoding), np.cumsum(self.sizes)[:-1])
        return tuple(int(part.argmax()) for part in parts)

    @abstractmethod
    def build(self, architecture: Architecture) -> nn.Module:
        """The network: images [n, 3, h, w] to logits [n, classes]."""


class StudentSpace(Space):
    """Networks that may replace a teacher, the reference of their measurements."""

    name: ClassVar[str]
    """Name by which a process on another node builds the same space."""
    keeps_layers: ClassVar[bool]
    """Whether students differ from the teacher only in their layers."""

    network: nn.Module
    """The teacher."""
    layers: tuple[Layer, ...]
    """The teacher's replaceable layers, in the order they run."""
    fingerprint: str
    """Identity of the teacher's structure and of its layers, without weights."""

    @abstractmethod
    def network_structure(self, architecture: Architecture) -> str:
        """Identity of a network's structure, without its weights."""

    @abstractmethod
    def label(self, architecture: Architecture) -> str:
        """One line of text, which ``parse`` reads."""

    @abstractmethod
    def parse(self, label: str) -> Architecture:
        """The architecture with a label; raises ValueError for other text."""
