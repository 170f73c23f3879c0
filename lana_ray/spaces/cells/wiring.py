"""What a cell is: its nodes, its edges and the operations they choose from."""

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
"""From node to node."""
Cell = tuple[int, ...]
"""The operation of each edge of one cell, as its index."""
NONE = 0
"""The index of the operation ``none``."""


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """Nodes in a row and an edge from each to every later one, but not from input to input.

    The inputs are the first nodes, numbered from 0. Any other is the sum of what its incoming edges make.
    """

    kinds: tuple[str, ...]
    """Names of the different cells of a network; each has its own choices."""
    operations: tuple[str, ...]
    """What an edge chooses from; the first is ``none``."""
    inputs: int
    nodes: int
    """Beside the inputs."""
    kept: int | None
    """Incoming edges of a node that are not ``none``; any number where None."""
    preprocessed: bool
    """ReLU, convolution and batch-norm bring the inputs to the channels of the nodes."""
    concatenated: bool
    """The output is all nodes but the inputs, one behind another in the channels; else the last node."""

    @cached_property
    def incoming(self) -> tuple[tuple[Edge, ...], ...]:
        """The edges to each node, node after node."""
        computed = range(self.inputs, self.inputs + self.nodes)
        return tuple(tuple((source, node) for source in range(node)) for node in computed)

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """All edges, in the order of a cell's choices."""
        return sum(self.incoming, ())

    @property
    def outputs(self) -> range:
        """The nodes that make the output."""
        last = self.inputs + self.nodes
        return range(self.inputs if self.concatenated else last - 1, last)

    @property
    def size(self) -> int:
        """How many cells there are.

        Where every node n keeps k edges: the product over nodes of ``(n choose k) · (operations − 1)^k``, n
        being the number of nodes before it, inputs included. Else ``operations ^ edges``.
        """
        if self.kept is None:
            return len(self.operations) ** len(self.edges)
        edges = math.prod(math.comb(len(incoming), self.kept) for incoming in self.incoming)
        return edges * (len(self.operations) - 1) ** (self.kept * self.nodes)

    def random(self, rng: np.random.Generator) -> Cell:
        """Drawn uniformly from all cells."""
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
        """ValueError for what is no cell, saying why."""
        if len(cell) != len(self.edges) or not all(0 <= op < len(self.operations) for op in cell):
            raise ValueError(f"{cell} is not {len(self.edges)} choices of {len(self.operations)} operations")
        for node, incoming in enumerate(self.incoming, self.inputs):
            used = sum(op != NONE for (_, to), op in zip(self.edges, cell, strict=True) if to == node)
            if self.kept not in (None, used):
                raise ValueError(
                    f"{cell}: node {node} uses {used} of its {len(incoming)} edges, not {self.kept}"
                )

    def strongest(self, scores: Sequence[NDArray[np.floating]]) -> Cell:
        """The cell that scores, [operations] for each edge, stand for; of equals the first.

        Where nodes keep k edges these are the k whose best operation other than ``none`` scores highest, as
        DARTS derives its cells (arXiv 1806.09055, section 2.4).
        """
        if self.kept is None:
            return tuple(int(score.argmax()) for score in scores)
        best = {edge: 1 + int(s[1:].argmax()) for edge, s in zip(self.edges, scores, strict=True)}
        height = {edge: s[best[edge]] for edge, s in zip(self.edges, scores, strict=True)}
        kept = {e for edges in self.incoming for e in sorted(edges, key=lambda e: -height[e])[: self.kept]}
        return tuple(best[edge] if edge in kept else NONE for edge in self.edges)

    def live(self, cell: Cell) -> Cell:
        """The same cell with ``none`` on every edge that no path from an input to the output takes."""
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
        """The output of a cell.

        Args:
            inputs: of the nodes' channels, [n, c, h, w] each.
            stride: of the edges from the inputs; each node is [n, c, ⌈h/stride⌉, ⌈w/stride⌉].
            operate: what an edge makes of its source, None where it is not used.

        Returns:
            [n, c, …], or [n, nodes · c, …] where nodes are concatenated; zeros where nothing reaches a node.
        """
        nodes: list[Tensor | None] = list(inputs)
        for incoming in self.incoming:
            sources = [(edge, nodes[edge[0]]) for edge in incoming]
            made = [operate(edge, source) for edge, source in sources if source is not None]
            arrived = [result for result in made if result is not None]
            nodes.append(reduce(torch.add, arrived) if arrived else None)
        # Zeros are made of an input: the program of a network of dead cells must still take images.
        outputs = [
            0 * inputs[0][:, :, ::stride, ::stride] if (node := nodes[i]) is None else node
            for i in self.outputs
        ]
        return torch.cat(outputs, 1) if self.concatenated else outputs[0]


def edge_name(edge: Edge) -> str:
    """Of the edge's module: ``0_2``."""
    return "{}_{}".format(*edge)
