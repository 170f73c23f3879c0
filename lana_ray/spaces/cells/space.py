"""What can be chosen in a cell space."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from lana_ray.ids import Architecture
from lana_ray.spaces.cells.network import CellNetwork
from lana_ray.spaces.cells.skeleton import Skeleton
from lana_ray.spaces.cells.wiring import Cell, Wiring
from lana_ray.spaces.space import Space

_T = TypeVar("_T")


class CellSpace(Space):
    """All networks of a skeleton; an architecture is the operation of each edge, cell kind after cell kind.

    A preset adds how its architectures are written.
    """

    name: ClassVar[str]
    """As in ``search.cells.space``."""

    def __init__(self, wiring: Wiring, skeleton: Skeleton) -> None:
        self.wiring, self.skeleton = wiring, skeleton

    @abstractmethod
    def parse(self, text: str) -> Architecture:
        """The architecture that a text says; UserError where it says none."""

    @abstractmethod
    def format(self, architecture: Architecture) -> str:
        """One line of text; ``parse`` reads it."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many operations each edge chooses from."""
        return (len(self.wiring.operations),) * (len(self.wiring.edges) * len(self.wiring.kinds))

    @property
    def size(self) -> int:
        """How many architectures there are: ``wiring.size`` to the power of the kinds of cells."""
        return self.wiring.size ** len(self.wiring.kinds)

    def random(self, rng: np.random.Generator) -> Architecture:
        """Drawn uniformly from all architectures."""
        return sum((self.wiring.random(rng) for _ in self.wiring.kinds), ())

    def live(self, architecture: Architecture) -> Architecture:
        """The same cells with ``none`` on every edge that no path from input to output takes."""
        return sum((self.wiring.live(cell) for cell in self.cells(architecture)), ())

    def encode(self, architecture: Architecture, *, live: bool = True) -> NDArray[np.float32]:
        """One-hot operation of every edge, concatenated: shape [dimension].

        ValueError where it is no architecture of the space.

        Args:
            live: encode edges that cannot reach the output as ``none``: they cost nothing where the runtime
                drops them, as graph compilers do. An eager runtime runs them all the same.
        """
        cells = self.cells(architecture)
        chosen = [op for cell in cells for op in (self.wiring.live(cell) if live else cell)]
        return np.eye(len(self.wiring.operations), dtype=np.float32)[chosen].reshape(-1)

    def encode_string(self, text: str, *, live: bool = True) -> NDArray[np.float32]:
        """``encode`` of what ``parse`` reads."""
        return self.encode(self.parse(text), live=live)

    def decode(self, encoding: NDArray[np.floating]) -> Architecture:
        """The nearest architecture; the inverse of ``encode`` on live cells."""
        return self._strongest(np.split(np.asarray(encoding), len(self.sizes)))

    def discretise(self, scores: Sequence[NDArray[np.floating]]) -> Architecture:
        """The live architecture that scores stand for, as ``Wiring.strongest`` tells.

        ValueError for scores that are not numbers, as of a search that diverged.

        Args:
            scores: [operations] for each edge, higher is better, comparable between edges.
        """
        if np.isnan(np.stack(scores)).any():
            raise ValueError("some scores are not numbers")
        return self.live(self._strongest(scores))

    def build(
        self, architecture: Architecture, *, drop_path: float = 0.0, auxiliary: bool = False
    ) -> CellNetwork:
        """The network, untrained and without dead edges: images [n, 3, h, w] to logits [n, classes].

        Its weights are drawn from torch's global generator.

        Args:
            drop_path: see ``CellNetwork``; the same for ``auxiliary``.
        """
        cells = self.cells(self.live(architecture))
        return CellNetwork(self.wiring, self.skeleton, cells, drop_path=drop_path, auxiliary=auxiliary)

    def cells(self, architecture: Architecture) -> list[Cell]:
        """The choices of each kind of cell; ValueError where it is no architecture of the space."""
        cells = [tuple(cell) for cell in self.by_kind(architecture)]
        for cell in cells:
            self.wiring.check(cell)
        return cells

    def by_kind(self, decisions: Sequence[_T]) -> list[Sequence[_T]]:
        """What there is for every decision, cell kind by cell kind; ValueError for more or fewer."""
        if len(decisions) != len(self.sizes):
            raise ValueError(f"{len(decisions)} choices were given, the space has {len(self.sizes)}")
        edges = len(self.wiring.edges)
        return [decisions[start : start + edges] for start in range(0, len(decisions), edges)]

    def _strongest(self, scores: Sequence[NDArray[np.floating]]) -> Architecture:
        return sum((self.wiring.strongest(cell) for cell in self.by_kind(scores)), ())
