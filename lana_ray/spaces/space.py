"""What every search space offers, and what the students of a teacher offer beside it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lana_ray.ids import Architecture
from lana_ray.networks.layers import Layer


class Space(ABC):
    """Architectures as sequences of choices: drawn, encoded for predictors, and built."""

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, ...]:
        """How many options each decision has."""

    @property
    def size(self) -> int:
        """How many architectures there are."""
        return math.prod(self.sizes)

    @property
    def dimension(self) -> int:
        """Length of an encoding."""
        return sum(self.sizes)

    @abstractmethod
    def random(self, rng: np.random.Generator) -> Architecture:
        """Every decision drawn uniformly, of what may be chosen."""

    @abstractmethod
    def encode(self, architecture: Architecture) -> NDArray[np.float32]:
        """One-hot choices, concatenated: shape [dimension]."""

    @abstractmethod
    def decode(self, encoding: NDArray[np.floating]) -> Architecture:
        """The nearest architecture; the inverse of ``encode`` on one-hot codes."""

    @abstractmethod
    def build(self, architecture: Architecture) -> nn.Module:
        """The network: images [n, 3, h, w] to logits [n, classes]."""


class StudentSpace(Space):
    """Networks that may replace a teacher, which is the reference of all that is measured of them."""

    name: ClassVar[str]
    """By which a process on another node finds the same space."""
    keeps_layers: ClassVar[bool]
    """Whether students differ from the teacher in its layers alone."""

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The teacher."""

    @property
    @abstractmethod
    def layers(self) -> tuple[Layer, ...]:
        """The teacher's replaceable layers, in the order they run."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identity of the teacher's structure, whatever its weights."""

    @abstractmethod
    def network_structure(self, architecture: Architecture) -> str:
        """Identity of a whole network, whatever its weights."""

    @abstractmethod
    def discretise(self, scores: Sequence[NDArray[np.floating]]) -> Architecture:
        """The architecture that scores of every decision's options stand for, higher is better."""

    @abstractmethod
    def label(self, architecture: Architecture) -> str:
        """One line of text that ``parse`` reads."""

    @abstractmethod
    def parse(self, label: str) -> Architecture:
        """The architecture that ``label`` writes so.

        Raises:
            ValueError: for text that says none.
        """
