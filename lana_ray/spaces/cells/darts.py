"""The space of DARTS (Liu, Simonyan & Yang, arXiv 1806.09055): two cells of 14 edges, 8 operations."""

from __future__ import annotations

import ast
from typing import Any

from lana_ray.errors import UserError
from lana_ray.ids import Architecture
from lana_ray.spaces.cells.blocks import Place, Skeleton, StemName
from lana_ray.spaces.cells.space import CellSpace
from lana_ray.spaces.cells.wiring import NONE, Cell, Wiring

OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
WIRING = Wiring(
    kinds=("normal", "reduce"),
    operations=OPERATIONS,
    inputs=2,
    nodes=4,
    kept=2,
    preprocessed=True,
    concatenated=True,
)
EDGES = WIRING.edges
"""Pairs (from node, to node); nodes 0 and 1 are the inputs, the older one first."""


class DartsSpace(CellSpace):
    """The space of all 1,037,664,180² genotypes.

    An architecture is the operation of each edge of the normal cell, then of the reduction cell: ``none`` on
    all but two edges to each node. Genotypes count as different even if their graphs are the same. Reduction
    cells are at a third and two thirds of the depth and double the channels.

    Args:
        classes: outputs of the networks that ``build`` makes.
        width: channels of the first cell's nodes. The published networks have a width of 36 and 20 cells for
            CIFAR, 48 and 14 for ImageNet; searches ran with 16 and 8.
        cells: at least 3, so that both kinds occur.
        stem: as in the paper's networks for CIFAR or for ImageNet.
    """

    name = "darts"

    def __init__(
        self, *, classes: int = 10, width: int = 36, cells: int = 20, stem: StemName = "cifar"
    ) -> None:
        if cells < 3:
            raise UserError(
                "invalid_setting",
                f"the space {self.name} needs 3 cells or more, not {cells}: fewer have no normal cell",
            )
        stem_channels = 3 * width if stem == "cifar" else width
        before, channels, older_is_larger = (stem_channels, stem_channels), width, stem == "imagenet"
        places = []
        for position in range(cells):
            reduces = position in (cells // 3, 2 * cells // 3)
            channels *= 1 + reduces
            places.append(
                Place(
                    kind=int(reduces),
                    before=before,
                    channels=channels,
                    stride=1 + reduces,
                    older_is_larger=older_is_larger,
                )
            )
            before, older_is_larger = (before[1], WIRING.nodes * channels), reduces
        skeleton = Skeleton(
            classes=classes,
            stem=stem,
            stem_channels=stem_channels,
            places=tuple(places),
            channels=before[1],
            normalised=False,
        )
        super().__init__(WIRING, skeleton)

    def parse(self, text: str) -> Architecture:
        """Returns the architecture of a published genotype, ``Genotype(normal=[('sep_conv_3x3', 1), …], …)``.

        Each node in turn has two entries: an operation and the node it reads. Nothing is executed. Raises
        UserError for other text.
        """
        fields = _fields(text)
        for kind in WIRING.kinds:
            if list(fields[f"{kind}_concat"]) != list(WIRING.outputs):
                raise UserError(
                    "invalid_setting", f"genotype: {kind}_concat must be range(2, 6), all nodes of the cell"
                )
        return sum((_cell(kind, fields[kind]) for kind in WIRING.kinds), ())

    def format(self, architecture: Architecture) -> str:
        concat = f"range({WIRING.outputs.start}, {WIRING.outputs.stop})"
        fields = []
        for kind, cell in zip(WIRING.kinds, self.cells(architecture), strict=True):
            used = [(edge, op) for edge, op in zip(EDGES, cell, strict=True) if op != NONE]
            genes = [(OPERATIONS[op], source) for (source, _), op in used]
            fields.append(f"{kind}={genes}, {kind}_concat={concat}")
        return f"Genotype({', '.join(fields)})"


def _fields(text: str) -> dict[str, Any]:
    """Parses the arguments of ``Genotype(…)``, each a list."""
    names = [name for kind in WIRING.kinds for name in (kind, f"{kind}_concat")]
    usage = f"genotype: write Genotype({', '.join(f'{name}=…' for name in names)})"
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or ast.unparse(call.func) != "Genotype" or call.args:
            raise UserError("invalid_setting", usage)
        fields = {keyword.arg or "**": _list(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise UserError(
            "invalid_setting", f"{usage}; {text[:80]!r} cannot be parsed: {' '.join(str(error).split())}"
        ) from None
    if sorted(keyword.arg or "**" for keyword in call.keywords) != sorted(names):
        raise UserError("invalid_setting", f"{usage}, not {', '.join(fields)}")
    return fields


def _list(node: ast.expr) -> list[Any]:
    """Returns the entries of a literal list, tuple or ``range(start, end)``."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "range" and not node.keywords:
        start, end = (ast.literal_eval(argument) for argument in node.args)
        if end - start > len(OPERATIONS):
            raise ValueError(f"range({start}, {end}) is too long")
        return list(range(start, end))
    return list(ast.literal_eval(node))


def _cell(kind: str, genes: list[Any]) -> Cell:
    assert WIRING.kept is not None
    if len(genes) != WIRING.kept * WIRING.nodes:
        raise UserError(
            "invalid_setting", f"genotype: {kind} has {len(genes)} entries, not two for each node"
        )
    cell: Cell = ()
    for node, incoming in enumerate(WIRING.incoming):
        entries = genes[WIRING.kept * node : WIRING.kept * (node + 1)]
        chosen = {
            source: OPERATIONS.index(name)
            for name, source in (entry for entry in entries if _is_gene(entry))
            if source < len(incoming)
        }
        if len(chosen) != WIRING.kept:
            raise UserError(
                "invalid_setting",
                f"genotype: {kind} gives node {WIRING.inputs + node} the entries {entries}; it needs two, "
                f"(operation, node) with different nodes before it, of {', '.join(OPERATIONS[1:])}",
            )
        cell += tuple(chosen.get(source, NONE) for source, _ in incoming)
    return cell


def _is_gene(entry: Any) -> bool:
    match entry:
        case (str(name), int(source)):
            return name in OPERATIONS[1:] and source >= 0
    return False
