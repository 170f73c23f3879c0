"""The cell space of NAS-Bench-201 (Dong & Yang, arXiv 2001.00326): 4 nodes, 6 edges, 5 operations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lana_ray.errors import UserError
from lana_ray.spaces.layerwise import Architecture

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""From node to node, in the order of the benchmark's strings; node 0 is the input, node 3 the output."""


class NasBench201Space:
    """All cells; an architecture is the operation of each edge, in the order of ``EDGES``.

    Args:
        classes: outputs of the networks that ``build`` makes.
        width: channels of the first stage; the second and third have twice and four times as many.
        cells: per stage.
    """

    def __init__(self, *, classes: int = 10, width: int = 16, cells: int = 5) -> None:
        self._classes, self._width, self._cells = classes, width, cells

    @property
    def size(self) -> int:
        """How many architectures there are, 15,625."""
        return len(OPERATIONS) ** len(EDGES)

    @property
    def dimension(self) -> int:
        """Length of an encoding, 30."""
        return len(OPERATIONS) * len(EDGES)

    def random(self, rng: np.random.Generator) -> Architecture:
        """Every edge's operation drawn uniformly."""
        return tuple(int(rng.integers(len(OPERATIONS))) for _ in EDGES)

    def parse(self, text: str) -> Architecture:
        """The architecture of a string such as ``|nor_conv_3x3~0|+|none~0|none~1|+|…|``.

        Raises:
            UserError: for a string that is not one of the benchmark's.
        """
        nodes = text.strip().split("+")
        found: dict[tuple[int, int], int] = {}
        for node, part in enumerate(nodes, 1):
            for edge in part.strip("|").split("|"):
                name, _, source = edge.partition("~")
                if name not in OPERATIONS or not source.isdigit() or (int(source), node) not in EDGES:
                    raise UserError(f"{text!r} is no cell of NAS-Bench-201: {edge!r} at node {node}")
                found[int(source), node] = OPERATIONS.index(name)
        if len(nodes) != 3 or len(found) != len(EDGES):
            raise UserError(f"{text!r} is no cell of NAS-Bench-201: it needs {len(EDGES)} edges to 3 nodes")
        return tuple(found[edge] for edge in EDGES)

    def format(self, architecture: Architecture) -> str:
        """The benchmark's string; the inverse of ``parse``."""
        return "+".join(
            "|"
            + "".join(
                f"{OPERATIONS[op]}~{source}|"
                for (source, to), op in zip(EDGES, architecture, strict=True)
                if to == node
            )
            for node in (1, 2, 3)
        )

    def live(self, architecture: Architecture) -> Architecture:
        """The same cell with ``none`` on every edge that no path from input to output takes."""
        used = [edge for edge, op in zip(EDGES, architecture, strict=True) if op]
        fed, needed = {0}, {3}
        for node in (1, 2, 3):
            if any(to == node and source in fed for source, to in used):
                fed.add(node)
        for node in (2, 1, 0):
            if any(source == node and to in needed for source, to in used):
                needed.add(node)
        return tuple(
            op if source in fed and to in needed else 0
            for (source, to), op in zip(EDGES, architecture, strict=True)
        )

    def encode(self, architecture: Architecture, *, live: bool = True) -> NDArray[np.float32]:
        """One-hot operation of every edge, concatenated: shape [30].

        Args:
            live: encode edges that cannot reach the output as ``none``: they cost nothing where the runtime
                drops them, as graph compilers do. An eager runtime runs them all the same.
        """
        chosen = self.live(architecture) if live else architecture
        return np.eye(len(OPERATIONS), dtype=np.float32)[list(chosen)].reshape(-1)

    def encode_string(self, text: str, *, live: bool = True) -> NDArray[np.float32]:
        """``encode`` of what ``parse`` reads."""
        return self.encode(self.parse(text), live=live)

    def decode(self, encoding: NDArray[np.floating]) -> Architecture:
        """The strongest operation of every edge; the inverse of ``encode`` on live cells."""
        edges = np.asarray(encoding).reshape(len(EDGES), len(OPERATIONS))
        return tuple(int(edge.argmax()) for edge in edges)

    def build(self, architecture: Architecture) -> nn.Module:
        """The benchmark's network of this cell, new weights: images [n, 3, h, w] → logits [n, classes]."""
        chosen = self.live(architecture)
        width = self._width
        stages: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        for stage in range(3):
            if stage:
                stages.append(_Reduction(width, 2 * width))
                width *= 2
            stages += [_Cell(chosen, width) for _ in range(self._cells)]
        head = (nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(*stages, *head, nn.Linear(width, self._classes))


class _Cell(nn.Module):
    """Each node is the sum of what its incoming edges make of the nodes before."""

    def __init__(self, architecture: Architecture, width: int) -> None:
        super().__init__()
        self._edges = [edge for edge, op in zip(EDGES, architecture, strict=True) if op]
        self.operations = nn.ModuleList(_operation(OPERATIONS[op], width) for op in architecture if op)

    def forward(self, x: Tensor) -> Tensor:
        nodes: dict[int, Tensor] = {0: x}
        for (source, to), operation in zip(self._edges, self.operations, strict=True):
            result = operation(nodes[source])
            nodes[to] = nodes[to] + result if to in nodes else result
        return nodes.get(3, torch.zeros_like(x))


class _Reduction(nn.Module):
    """The residual block of stride 2 between stages."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(inside, outside, 3, 2), *_convolution(outside, outside, 3, 1))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(inside, outside, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.shortcut(x) + self.body(x)
        return result


def _convolution(inside: int, outside: int, kernel: int, stride: int) -> Sequence[nn.Module]:
    convolution = nn.Conv2d(inside, outside, kernel, stride, padding=kernel // 2, bias=False)
    return nn.ReLU(), convolution, nn.BatchNorm2d(outside)


def _operation(name: str, width: int) -> nn.Module:
    match name:
        case "skip_connect":
            return nn.Identity()
        case "nor_conv_1x1":
            return nn.Sequential(*_convolution(width, width, 1, 1))
        case "nor_conv_3x3":
            return nn.Sequential(*_convolution(width, width, 3, 1))
        case "avg_pool_3x3":
            return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    raise ValueError(f"unknown operation {name!r}")
