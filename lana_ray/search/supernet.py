"""Interfaces of a search space and of a supernet over it, as the differentiable search uses them."""

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
        """Number of choices of every decision."""

    @property
    def operations(self) -> Sequence[Sequence[str]]:
        """Names of every decision's choices; ``none`` is no operation."""

    def discretise(self, scores: Sequence[NDArray[np.floating]]) -> Architecture:
        """Returns the architecture of scores, ``[sizes[i]]`` per decision, comparable and on a log scale.

        A decision that plays no part in the architecture gets a choice that says so, such as ``none``.
        """

    def encode(self, architecture: Architecture) -> NDArray[np.float32]:
        """Returns the one-hot choices of all decisions, concatenated: [sum(sizes)]."""


class Supernet(Protocol):
    """A module that has all choices of all decisions, and the architecture parameters that weight them.

    It manages its training and evaluation modes itself.
    """

    @property
    def space(self) -> SearchSpace: ...

    def logits(self) -> list[Tensor]:
        """Returns the logarithms of the relaxed mixture's weights, per decision [sizes[i]].

        They are differentiable in the architecture parameters and comparable between decisions; −∞ for
        choices that must not be taken.
        """

    def architecture_parameters(self) -> list[nn.Parameter]: ...

    def weight_parameters(self) -> list[nn.Parameter]:
        """Returns the weights to train; none if the choices are already trained."""

    def __call__(self, images: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Returns the classes' logits [n, classes].

        Weights, [sizes[i]] per decision, multiply the choices' outputs; those of exactly 0 are not computed.
        """

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool) -> Any: ...
