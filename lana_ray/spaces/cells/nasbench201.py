"""NAS-Bench-201 (Dong & Yang, arXiv 2001.00326): one cell of 4 nodes, 6 edges, 5 operations."""

from __future__ import annotations

import re

from lana_ray.errors import UserError
from lana_ray.ids import Architecture
from lana_ray.spaces.cells.blocks import Place, Skeleton, StemName
from lana_ray.spaces.cells.space import CellSpace
from lana_ray.spaces.cells.wiring import Wiring

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
WIRING = Wiring(kinds=("cell",), operations=OPERATIONS, inputs=1, nodes=3)
EDGES = WIRING.edges
"""Pairs (from node, to node) in the order of the benchmark's strings; node 0 is the input, 3 the output."""

_NAMES = "|".join(OPERATIONS)
_STRING = re.compile(
    r"\+".join(
        r"\|" + "".join(rf"({_NAMES})~{source}\|" for source, _ in incoming) for incoming in WIRING.incoming
    )
)


class NasBench201Space(CellSpace):
    """The space of all cells; an architecture is the operation of each edge, in the order of ``EDGES``.

    Args:
        classes: outputs of the networks that ``build`` makes.
        width: channels of the first stage; the second and third have twice and four times as many.
        cells: number of cells per stage.
        stem: ``cifar`` in the benchmark.
    """

    name = "nasbench201"

    def __init__(
        self, *, classes: int = 10, width: int = 16, cells: int = 5, stem: StemName = "cifar"
    ) -> None:
        places: list[Place] = []
        for stage in range(3):
            channels = width * 2**stage
            if stage:
                places.append(Place(kind=None, before=(channels // 2,), channels=channels, stride=2))
            places += [Place(kind=0, before=(channels,), channels=channels, stride=1)] * cells
        skeleton = Skeleton(
            classes=classes,
            stem=stem,
            stem_channels=width,
            places=tuple(places),
            channels=4 * width,
            normalised=True,
        )
        super().__init__(WIRING, skeleton)

    def parse(self, text: str) -> Architecture:
        """Returns the architecture of ``|nor_conv_3x3~0|+|none~0|…|``; raises UserError for other text."""
        if (match := _STRING.fullmatch(text.strip())) is None:
            raise UserError(
                "invalid_setting",
                f"{text!r} is not a cell of NAS-Bench-201; write |A~0|+|B~0|C~1|+|D~0|E~1|F~2| "
                f"with operations of {', '.join(OPERATIONS)}",
            )
        return tuple(OPERATIONS.index(name) for name in match.groups())

    def format(self, architecture: Architecture) -> str:
        (cell,) = self.cells(architecture)
        names = dict(zip(EDGES, (OPERATIONS[op] for op in cell), strict=True))
        return "+".join(
            "|" + "".join(f"{names[edge]}~{edge[0]}|" for edge in incoming) for incoming in WIRING.incoming
        )
