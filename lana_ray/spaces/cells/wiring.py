"""The graph of a cell: its nodes, its edges and the operations they choose from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Edge = tuple[int, int]
"""A pair (from node, to node)."""
Cell = tuple[int, ...]
"""The index of each edge's operation in one cell."""
NONE = 0
"""The index of the operation ``none``."""


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """Nodes in a row with an edge from each to every later one, except between inputs.

    The inputs are the first nodes, numbered from 0. Every other node is the sum of its incoming edges.
    """

    kinds: tuple[str, ...]
    """Names of the different cells of a network; each has its own choices."""
    operations: tuple[str, ...]
    """Names of the operations that an edge chooses from; the first is ``none``."""
    inputs: int
    nodes: int
    """Number of nodes, not counting the inputs."""
    kept: int | None = None
    """Number of a node's incoming edges that are not ``none``; None for any number."""
    preprocessed: bool = False
    """Whether ReLU, convolution and batch-norm bring the inputs to the channels of the nodes."""
    concatenated: bool = False
    """Whether the output concatenates the channels of all nodes but the inputs; else it is the last node."""

    @cached_property
    def incoming(self) -> tuple[tuple[Edge, ...], ...]:
        """The edges to each node, by node."""
        computed = range(self.inputs, self.inputs + self.nodes)
        return tuple(tuple((source, node) for source in range(node)) for node in computed)

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """All edges, in the order of a cell's choices."""
        return sum(self.incoming, ())

    @property
    def outputs(self) -> range:
        last = self.inputs + self.nodes
        return range(self.inputs if self.concatenated else last - 1, last)

    @property
    def size(self) -> int:
        """Number of possible cells.

        If nodes keep k edges, it is the product over nodes of ``(n choose k) · (operations − 1)^k``, with n
        the number of nodes before the node, including inputs. Else it is ``operations ^ edges``.
        """
        if self.kept is None:
            return len(self.operations) ** len(self.edges)
        edges = math.prod(math.comb(len(incoming), self.kept) for incoming in self.incoming)
        return edges * (len(self.operations) - 1) ** (self.kept * self.nodes)

    def random(self, rng: np.random.Generator) -> Cell:
        if self.kept is None:
            return tuple(int(rng.integers(len(self.operations))) for _ in self.edges)
        cell: Cell = ()
        for incoming in self.incoming:
            kept = set(rng.choice(len(incoming), self.kept, replace=False).tolist())
            cell += tuple(
                int(rng.integers(1, len(self.operations))) if source in kept else NONE
                for source, _ in incoming
            )
        return cell

    def check(self, cell: Cell) -> None:
        """Raises ValueError with the reason if these choices, one for each edge, are not a cell."""
        if not all(0 <= op < len(self.operations) for op in cell):
            raise ValueError(f"{cell} is not {len(self.edges)} choices of {len(self.operations)} operations")
        for node, incoming in enumerate(self.incoming, self.inputs):
            used = sum(op != NONE for (_, to), op in zip(self.edges, cell, strict=True) if to == node)
            if self.kept not in (None, used):
                raise ValueError(
                    f"{cell}: node {node} uses {used} of its {len(incoming)} edges, not {self.kept}"
                )

    def strongest(self, scores: Sequence[NDArray[np.floating]]) -> Cell:
        """Returns the cell that scores, [operations] for each edge, stand for; ties go to the first.

        If nodes keep k edges, these are the k whose best operation other than ``none`` scores highest, as
        in DARTS (arXiv 1806.09055, section 2.4).
        """
        if self.kept is None:
            return tuple(int(score.argmax()) for score in scores)
        best = {edge: 1 + int(s[1:].argmax()) for edge, s in zip(self.edges, scores, strict=True)}
        height = {edge: s[best[edge]] for edge, s in zip(self.edges, scores, strict=True)}
        kept = {e for edges in self.incoming for e in sorted(edges, key=lambda e: -height[e])[: self.kept]}
        return tuple(best[edge] if edge in kept else NONE for edge in self.edges)

    def live(self, cell: Cell) -> Cell:
        """Returns the cell with ``none`` on every edge that is on no path from an input to the output."""
        used = [edge for edge, op in zip(self.edges, cell, strict=True) if op != NONE]
        fed, needed = set(range(self.inputs)), set(self.outputs)
        for source, to in used:
            if source in fed:
                fed.add(to)
        for source, to in reversed(used):
            if to in needed:
                needed.add(source)
        return tuple(
            op if source in fed and to in needed else NONE
            for (source, to), op in zip(self.edges, cell, strict=True)
        )

    def run(
        self, inputs: Sequence[Tensor], stride: int, operate: Callable[[Edge, Tensor], Tensor | None]
    ) -> Tensor:
        """Computes the output of a cell.

        Args:
            inputs: with the nodes' channels, [n, c, h, w] each.
            stride: stride of the edges from the inputs; each node is [n, c, ⌈h/stride⌉, ⌈w/stride⌉].
            operate: returns an edge's output for its source; None if the edge is not used.

        Returns:
            [n, c, …], or [n, nodes · c, …] if nodes are concatenated; zeros for nodes without any input.
        """
        nodes: list[Tensor | None] = list(inputs)
        for incoming in self.incoming:
            sources = [(edge, nodes[edge[0]]) for edge in incoming]
            made = [operate(edge, source) for edge, source in sources if source is not None]
            arrived = [result for result in made if result is not None]
            nodes.append(reduce(torch.add, arrived) if arrived else None)
        # Zeros are computed from an input: the program of a network of dead cells must still take images.
        outputs = [
            0 * inputs[0][:, :, ::stride, ::stride] if (node := nodes[i]) is None else node
            for i in self.outputs
        ]
        return torch.cat(outputs, 1) if self.concatenated else outputs[0]


def edge_name(edge: Edge) -> str:
    """Returns the name of the edge's module, such as ``0_2``."""
    return "{}_{}".format(*edge)
