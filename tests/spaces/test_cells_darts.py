"""The space of DARTS against what was published: genotypes and parameter counts."""

from __future__ import annotations

import pytest

from lana_ray.spaces import DartsSpace
from lana_ray.spaces.cells.darts import EDGES, OPERATIONS

from ..errors import refuses

SPACE = DartsSpace(width=4, cells=3)
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], "
    "normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), "
    "('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), "
    "('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)
PC_DARTS = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0), ('dil_conv_3x3', 1), "
    "('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('avg_pool_3x3', 0), ('dil_conv_3x3', 1)], "
    "normal_concat=range(2, 6), reduce=[('sep_conv_5x5', 1), ('max_pool_3x3', 0), ('sep_conv_5x5', 1), "
    "('sep_conv_5x5', 2), ('sep_conv_3x3', 0), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 2)], reduce_concat=range(2, 6))"
)


def test_a_published_genotype_is_read_edge_by_edge() -> None:
    found = SPACE.parse(DARTS_V2)
    normal = {e: OPERATIONS[op] for e, op in zip(EDGES, found[:14], strict=True) if op}
    assert normal == {
        (0, 2): "sep_conv_3x3",
        (1, 2): "sep_conv_3x3",
        (0, 3): "sep_conv_3x3",
        (1, 3): "sep_conv_3x3",
        (0, 4): "skip_connect",
        (1, 4): "sep_conv_3x3",
        (0, 5): "skip_connect",
        (2, 5): "dil_conv_3x3",
    }
    assert [OPERATIONS[op] for op in found[14:16]] == ["max_pool_3x3", "max_pool_3x3"]


@pytest.mark.parametrize("text", [DARTS_V2, PC_DARTS])
def test_published_genotypes_round_trip(text: str) -> None:
    """As architectures; as text from the second time on, when the entries of a node are in order."""
    written = SPACE.format(SPACE.parse(text))
    assert SPACE.parse(written) == SPACE.parse(text)
    assert SPACE.format(SPACE.parse(written)) == written
    assert sorted(written.replace("range(2, 6)", "[2, 3, 4, 5]")) == sorted(
        text.replace("range(2, 6)", "[2, 3, 4, 5]")
    )


def test_genotypes_are_written_as_they_are_published() -> None:
    ordered = (
        "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('skip_connect', 0), "
        "('skip_connect', 2), ('max_pool_3x3', 1), ('avg_pool_3x3', 3), ('dil_conv_5x5', 3), "
        "('sep_conv_5x5', 4)], "
        "normal_concat=range(2, 6), reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('max_pool_3x3', 1), "
        "('skip_connect', 2), ('max_pool_3x3', 0), ('skip_connect', 2), ('max_pool_3x3', 1), "
        "('dil_conv_3x3', 2)], reduce_concat=range(2, 6))"
    )
    assert SPACE.format(SPACE.parse(ordered)) == ordered
    in_lines = ordered.replace(", (", ",  # a comment\n  (")
    assert SPACE.parse(f"\n{in_lines}\n") == SPACE.parse(ordered)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Genotype(", "Other("),
        ("Genotype(", "__import__('os').system("),
        ("range(2, 6)", "range(3, 6)"),
        ("range(2, 6)", "range(2, 10**9)"),
        ("range(2, 6)", "range(2, 1000000000)"),
        ("range(2, 6)", "range('2', 6)"),
        ("range(2, 6)", "exit()"),
        ("reduce=", "other="),
        ("reduce=", "normal="),
        ("normal=[", "normal=[('sep_conv_3x3', 0), "),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', 0)"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', 2)"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', -1)"),
        ("('sep_conv_3x3', 1)", "('sep_conv_3x3', '1')"),
        ("('sep_conv_3x3', 1)", "('sep_conv_7x7', 1)"),
        ("('sep_conv_3x3', 1)", "('none', 1)"),
        ("('sep_conv_3x3', 1)", "1"),
        ("('sep_conv_3x3', 1)", "{[]: 1}"),
        (
            "normal=[('sep_conv_3x3', 1), ('skip_connect', 0)",
            "normal=[('sep_conv_3x3', 0), ('skip_connect', 0)",
        ),
        (")", ""),
        ("=", "=" + "(" * 3000),
    ],
)
def test_what_is_no_genotype_is_refused_and_not_run(old: str, new: str) -> None:
    with refuses("invalid_setting", "genotype: "):
        SPACE.parse(PC_DARTS.replace(old, new, 1))


@pytest.mark.parametrize(
    ("text", "parameters"), [(DARTS_V2, 3_349_342), (PC_DARTS, 3_634_678)], ids=["darts_v2", "pc_darts"]
)
def test_parameters_are_the_published(text: str, parameters: int) -> None:
    """3.35 M and 3.63 M, as the authors' networks for CIFAR-10 have without the auxiliary head."""
    space = DartsSpace()
    network = space.build(space.parse(text))
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_parameters_for_imagenet_are_the_published() -> None:
    """4.7 M (DARTS, table 3)."""
    space = DartsSpace(classes=1000, width=48, cells=14, stem="imagenet")
    network = space.build(space.parse(DARTS_V2))
    assert sum(p.numel() for p in network.parameters()) == 4_718_752


def test_a_network_needs_normal_cells() -> None:
    with refuses("invalid_setting", "darts", "3 cells"):
        DartsSpace(cells=2)
