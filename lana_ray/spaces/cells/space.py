"""Base class of cell spaces: their architectures, encodings and networks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from lana_ray.ids import Architecture
from lana_ray.spaces.cells.blocks import Skeleton
from lana_ray.spaces.cells.network import CellNetwork
from lana_ray.spaces.cells.wiring import Cell, Wiring
from lana_ray.spaces.space import Space

_T = TypeVar("_T")


class CellSpace(Space):
    """All networks of a skeleton; an architecture is the operation of each edge, by kind of cell.

    A preset adds a text format for its architectures.
    """

    name: ClassVar[str]
    """Name of the space in the setting ``search.cells.space``."""

    def __init__(self, wiring: Wiring, skeleton: Skeleton) -> None:
        self.wiring, self.skeleton = wiring, skeleton

    @abstractmethod
    def parse(self, text: str) -> Architecture:
        """Returns the architecture that a text describes; raises UserError if it describes none."""

    @abstractmethod
    def format(self, architecture: Architecture) -> str:
        """Returns one line of text that ``parse`` reads."""

    @property
    def sizes(self) -> tuple[int, ...]:
        return (len(self.wiring.operations),) * (len(self.wiring.edges) * len(self.wiring.kinds))

    @property
    def operations(self) -> Sequence[Sequence[str]]:
        return [self.wiring.operations] * len(self.sizes)

    @property
    def size(self) -> int:
        return self.wiring.size ** len(self.wiring.kinds)

    def random(self, rng: np.random.Generator) -> Architecture:
        return sum((self.wiring.random(rng) for _ in self.wiring.kinds), ())

    def live(self, architecture: Architecture) -> Architecture:
        """Returns the same cells with ``none`` on every edge that is on no path from input to output."""
        return sum((self.wiring.live(cell) for cell in self.cells(architecture)), ())

    def encode(self, architecture: Architecture, *, live: bool = True) -> NDArray[np.float32]:
        """Returns the one-hot operations of all edges, [dimension]; ValueError if it is of another space.

        Args:
            live: encode edges that cannot reach the output as ``none``: they cost nothing if the runtime
                drops them, as graph compilers do. An eager runtime runs them anyway.
        """
        cells = self.cells(architecture)
        return super().encode(sum(map(self.wiring.live, cells) if live else cells, ()))

    def encode_string(self, text: str, *, live: bool = True) -> NDArray[np.float32]:
        return self.encode(self.parse(text), live=live)

    def decode(self, encoding: NDArray[np.floating]) -> Architecture:
        """Returns the nearest architecture; the inverse of ``encode`` on live cells."""
        return self._strongest(np.split(np.asarray(encoding), len(self.sizes)))

    def discretise(self, scores: Sequence[NDArray[np.floating]]) -> Architecture:
        """Returns the live architecture that scores, [operations] for each edge, stand for.

        They must be comparable between edges, see ``Wiring.strongest``. Raises ValueError if some are not
        numbers, for instance after a search diverged.
        """
        if np.isnan(np.stack(scores)).any():
            raise ValueError("some scores are not numbers")
        return self.live(self._strongest(scores))

    def build(
        self, architecture: Architecture, *, drop_path: float = 0.0, auxiliary: bool = False
    ) -> CellNetwork:
        """Returns the untrained network without dead edges: images [n, 3, h, w] to logits [n, classes].

        Its weights are drawn from torch's global generator; ``CellNetwork`` explains the other arguments.
        """
        cells = self.cells(self.live(architecture))
        return CellNetwork(self.wiring, self.skeleton, cells, drop_path=drop_path, auxiliary=auxiliary)

    def cells(self, architecture: Architecture) -> list[Cell]:
        """Returns the choices of each kind of cell; ValueError if it is not an architecture of the space."""
        cells = [tuple(cell) for cell in self.by_kind(architecture)]
        for cell in cells:
            self.wiring.check(cell)
        return cells

    def by_kind(self, decisions: Sequence[_T]) -> list[Sequence[_T]]:
        """Splits one item per decision by kind of cell; ValueError if there are more or fewer items."""
        if len(decisions) != len(self.sizes):
            raise ValueError(f"{len(decisions)} choices for a space of {len(self.sizes)} decisions")
        edges = len(self.wiring.edges)
        return [decisions[start : start + edges] for start in range(0, len(decisions), edges)]

    def _strongest(self, scores: Sequence[NDArray[np.floating]]) -> Architecture:
        return sum((self.wiring.strongest(cell) for cell in self.by_kind(scores)), ())
