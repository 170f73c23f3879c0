"""What a differentiable search needs of a space and of a supernet over it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lana_ray.ids import Architecture


class SearchSpace(Protocol):
    """Decisions with a number of choices each."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Choices of every decision."""

    def discretise(self, scores: Sequence[NDArray[np.floating]]) -> Architecture:
        """The architecture that scores stand for: per decision ``[sizes[i]]``, on a log scale, comparable
        between decisions. Decisions that play no part in it are told by their choice, such as ``none``."""

    def encode(self, architecture: Architecture) -> NDArray[np.float32]:
        """One-hot choice of every decision, concatenated: [sum(sizes)]."""


class Supernet(Protocol):
    """A module that holds all choices of all decisions, and the architecture parameters that weigh them.

    Its modes in training and evaluation are its own affair.
    """

    @property
    def space(self) -> SearchSpace: ...

    def logits(self) -> list[Tensor]:
        """Per decision [sizes[i]], differentiable in the architecture parameters: logarithms of the weights
        of the relaxed mixture, comparable between decisions; −∞ for what must not be chosen."""

    def architecture_parameters(self) -> list[nn.Parameter]: ...

    def weight_parameters(self) -> list[nn.Parameter]:
        """What learns from the training images; nothing where the choices come trained."""

    def __call__(self, images: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """The classes' scores [n, classes].

        Args:
            weights: per decision [sizes[i]], multiplied with what its choices make; a choice whose weight is
                exactly 0 is not computed.
        """

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool) -> Any: ...
