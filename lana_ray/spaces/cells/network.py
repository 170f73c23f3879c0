"""The network of one architecture of a cell space, for training and deployment."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from lana_ray.spaces.cells.blocks import (
    Place,
    ResidualReduction,
    Skeleton,
    Stem,
    head,
    operation,
    preprocessing,
)
from lana_ray.spaces.cells.wiring import NONE, Cell, Edge, Wiring, edge_name

AUXILIARY = "auxiliary."
"""Prefix of the weights that are used in training only."""


class DiscreteCell(nn.Module):
    """A cell with one operation on each edge in use."""

    def __init__(self, wiring: Wiring, place: Place, cell: Cell) -> None:
        super().__init__()
        self._wiring, self._stride = wiring, place.stride
        self.preprocessing = preprocessing(wiring, place)
        self.operations = nn.ModuleDict()
        for edge, choice in zip(wiring.edges, cell, strict=True):
            if choice != NONE:
                stride = place.stride if edge[0] < wiring.inputs else 1
                made = operation(wiring.operations[choice], place.channels, stride)
                self.operations[edge_name(edge)] = made
        # Imported here since it takes seconds and only cells need it.
        from timm.layers import DropPath

        self.drop_path = DropPath()

    def forward(self, *states: Tensor) -> Tensor:
        inputs = [prepare(x) for prepare, x in zip(self.preprocessing, states, strict=True)]
        return self._wiring.run(inputs, self._stride, self._operate)

    def _operate(self, edge: Edge, x: Tensor) -> Tensor | None:
        if edge_name(edge) not in self.operations:
            return None
        chosen = self.operations[edge_name(edge)]
        # Identities are never dropped, so that every node gets some input.
        return chosen(x) if isinstance(chosen, nn.Identity) else self.drop_path(chosen(x))


class CellNetwork(nn.Module):
    """Maps images [n, 3, h, w] to logits [n, classes], for h and w from 16.

    Args:
        cells: the choices of each kind of cell.
        drop_path: probability, from 0 to below 1, with which training drops an edge's output for an image;
            the others are scaled up (FractalNet, arXiv 1605.07648).
        auxiliary: adds a second classifier after the last reduction. In training mode the network then
            returns its logits and those of that classifier, for the loss.
    """

    def __init__(
        self,
        wiring: Wiring,
        skeleton: Skeleton,
        cells: Sequence[Cell],
        *,
        drop_path: float = 0.0,
        auxiliary: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path is {drop_path}; it must be from 0 to below 1")
        self._inputs, self._branch = wiring.inputs, skeleton.last_reduction + 1
        self._drop_path = drop_path
        self.stem = Stem(skeleton)
        self.cells = nn.ModuleList(
            ResidualReduction(place) if place.kind is None else DiscreteCell(wiring, place, cells[place.kind])
            for place in skeleton.places
        )
        self.head = head(skeleton)
        self.auxiliary = _auxiliary_head(skeleton) if auxiliary else None
        self.ramp_drop_path(1.0)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        middle = _last(self.cells[: self._branch], self.stem(images)[-self._inputs :])
        logits: Tensor = self.head(_last(self.cells[self._branch :], middle)[-1])
        if self.auxiliary is None or not self.training:
            return logits
        return logits, self.auxiliary(middle[-1])

    def ramp_drop_path(self, progress: float) -> None:
        """Sets the probability to ``progress``, from 0 to 1, times the constructor's.

        DARTS raises it linearly: call this before each epoch with the share of the training that is done.
        """
        for module in self.modules():
            if isinstance(module, DiscreteCell):
                module.drop_path.drop_prob = progress * self._drop_path

    def folded(self) -> nn.Module:
        """Returns the network to deploy, without the auxiliary head (``deploy.deployed``)."""
        if self.auxiliary is None:
            return self
        deployed = copy.deepcopy(self)
        deployed.auxiliary = None
        return deployed


def _last(cells: Iterable[nn.Module], states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Runs the cells one after another and returns the latest states, as many as there were."""
    for cell in cells:
        states = (*states[1:], cell(*states))
    return states


def _auxiliary_head(skeleton: Skeleton) -> nn.Sequential:
    """Returns the classifier published for CIFAR, except that it pools any size to 2x2, not only 8x8."""
    return nn.Sequential(
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Conv2d(skeleton.auxiliary_channels, 128, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(),
        nn.Conv2d(128, 768, 2, bias=False),
        nn.BatchNorm2d(768),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(768, skeleton.classes),
    )
