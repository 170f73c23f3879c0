"""NAS-Bench-201's cells: strings, live edges, encodings and the network itself."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lana_ray.spaces import NasBench201Space
from lana_ray.spaces.cells.nasbench201 import EDGES, OPERATIONS

from ..errors import refuses

SPACE = NasBench201Space(width=4, cells=1)
cells = st.tuples(*(st.integers(0, len(OPERATIONS) - 1) for _ in EDGES))


@given(cells)
def test_a_string_is_read_as_it_was_written(cell: tuple[int, ...]) -> None:
    assert SPACE.parse(SPACE.format(cell)) == cell


@given(cells)
def test_an_encoding_is_one_hot_and_decodes_to_the_live_cell(cell: tuple[int, ...]) -> None:
    code = SPACE.encode(cell)
    assert code.shape == (SPACE.dimension,) == (30,)
    assert (code.reshape(6, 5).sum(1) == 1).all()
    assert SPACE.decode(code) == SPACE.live(cell)
    assert SPACE.decode(SPACE.encode(cell, live=False)) == cell
    np.testing.assert_array_equal(SPACE.encode_string(SPACE.format(cell)), code)


@given(cells)
def test_live_edges_are_those_on_a_path_from_input_to_output(cell: tuple[int, ...]) -> None:
    """Against every path, enumerated."""
    index = {edge: i for i, edge in enumerate(EDGES)}
    paths = [[(0, 3)], [(0, 1), (1, 3)], [(0, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)]]
    used = {index[e] for path in paths if all(cell[index[e]] for e in path) for e in path}
    assert SPACE.live(cell) == tuple(op if i in used else 0 for i, op in enumerate(cell))


def test_a_known_string() -> None:
    text = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|none~2|"
    assert SPACE.parse(text) == (3, 0, 4, 1, 2, 0)
    assert SPACE.live(SPACE.parse(text)) == (3, 0, 0, 1, 2, 0)  # node 2 leads nowhere


@pytest.mark.parametrize(
    "text",
    [
        "",
        "|nor_conv_3x3~0|",
        "|conv~0|+|none~0|none~1|+|none~0|none~1|none~2|",
        "|none~1|+|none~0|none~1|+|none~0|none~1|none~2|",
        "|none~0|+|none~0|+|none~0|none~1|none~2|",
    ],
)
def test_what_is_no_cell_is_refused(text: str) -> None:
    with refuses("invalid_setting", "NAS-Bench-201"):
        SPACE.parse(text)


def test_random_cells_are_spread_evenly() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([SPACE.random(rng) for _ in range(2000)])
    shares = np.stack([(drawn == op).mean(0) for op in range(len(OPERATIONS))])
    assert SPACE.size == 15_625
    assert np.abs(shares - 0.2).max() < 0.04


def test_networks_of_cells_run_and_dead_edges_are_not_built() -> None:
    images = torch.randn(2, 3, 16, 16)
    for cell in [(0, 0, 0, 0, 0, 0), (1, 1, 1, 1, 1, 1), (3, 2, 4, 1, 2, 3), (3, 0, 4, 1, 2, 0)]:
        network = SPACE.build(cell)
        assert network(images).shape == (2, 10)
        assert torch.isfinite(network(images)).all()
        live = SPACE.build(SPACE.live(cell))
        assert [p.shape for p in live.parameters()] == [p.shape for p in network.parameters()]


def test_parameters_are_the_benchmarks() -> None:
    """1.531546 M, as the benchmark gives for the cell of 3x3 convolutions alone."""
    network = NasBench201Space().build((3, 3, 3, 3, 3, 3))
    assert sum(p.numel() for p in network.parameters()) == 1_531_546


def test_every_published_string_is_a_cell() -> None:
    path = Path(__file__).parents[3] / "shared/data/latency/nb201/archs.txt"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    cells = {SPACE.parse(line) for line in path.read_text().splitlines()}
    assert cells == set(product(range(5), repeat=6))
