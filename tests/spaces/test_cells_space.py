"""Cell spaces of both presets: how many architectures, how they are drawn, encoded, derived and written."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lana_ray.spaces import DartsSpace, NasBench201Space
from lana_ray.spaces.cells import CellSpace
from lana_ray.spaces.cells.wiring import Wiring

SPACES: list[CellSpace] = [NasBench201Space(width=4, cells=1), DartsSpace(width=4, cells=3)]
both = pytest.mark.parametrize("space", SPACES, ids=["nasbench201", "darts"])
seeds = st.integers(0, 2**32)


def wiring(*, kept: int | None) -> Wiring:
    """Five edges to two nodes, so few cells that they can be counted."""
    return Wiring(
        kinds=("cell",),
        operations=("none", "skip_connect", "max_pool_3x3"),
        inputs=2,
        nodes=2,
        kept=kept,
        preprocessed=True,
        concatenated=True,
    )


@both
@given(seed=seeds)
def test_what_is_drawn_is_encoded_decoded_derived_and_written(space: CellSpace, seed: int) -> None:
    drawn = space.random(np.random.default_rng(seed))
    live = space.live(drawn)
    code = space.encode(drawn)
    assert code.shape == (space.dimension,) == (sum(space.sizes),)
    assert (code.reshape(len(space.sizes), -1).sum(1) == 1).all()
    assert space.decode(code) == live
    assert space.decode(space.encode(drawn, live=False)) == drawn
    assert space.discretise(np.split(space.encode(drawn, live=False), len(space.sizes))) == live
    assert space.parse(space.format(drawn)) == drawn
    np.testing.assert_array_equal(space.encode_string(space.format(drawn)), code)


@both
@given(seed=seeds)
def test_any_scores_stand_for_an_architecture(space: CellSpace, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=(len(space.sizes), space.sizes[0]))
    found = space.discretise(list(scores))
    assert space.live(found) == found
    assert space.encode(found).sum() == len(space.sizes)
    used = np.flatnonzero(found)
    assert all(
        found[i] == (scores[i].argmax() if space is SPACES[0] else scores[i, 1:].argmax() + 1) for i in used
    )


@both
def test_scores_that_are_not_numbers_are_refused(space: CellSpace) -> None:
    scores = [np.zeros(size) for size in space.sizes]
    scores[1][2] = np.nan
    with pytest.raises(ValueError, match="not numbers"):
        space.discretise(scores)


@both
def test_what_is_no_architecture_is_refused(space: CellSpace) -> None:
    right = space.random(np.random.default_rng(0))
    for wrong in (right[1:], (*right, 0), (*right[:-1], space.sizes[-1]), (-1, *right[1:])):
        with pytest.raises(ValueError, match="choices"):
            space.encode(wrong)


def test_every_node_of_darts_keeps_two_edges() -> None:
    space = SPACES[1]
    for wrong in ((0,) * 28, (1,) * 28):
        with pytest.raises(ValueError, match=r"node \d uses \d of its \d edges, not 2"):
            space.build(wrong)


def test_cells_of_darts_are_drawn_uniformly() -> None:
    """Each pair of incoming edges of a node, and each operation on an edge that is kept."""
    rng = np.random.default_rng(0)
    drawn = np.array([SPACES[1].random(rng) for _ in range(4000)]).reshape(-1, 14)
    assert len(np.unique(drawn, axis=0)) > 7900
    operations = np.bincount(drawn[drawn > 0], minlength=8)[1:]
    assert operations / operations.sum() == pytest.approx(1 / 7, abs=0.01)
    for start, sources in ((0, 2), (2, 3), (5, 4), (9, 5)):
        used = drawn[:, start : start + sources] > 0
        pairs = [used[:, a] & used[:, b] for a, b in combinations(range(sources), 2)]
        assert np.mean(pairs, axis=1) == pytest.approx(1 / len(pairs), abs=0.02)


@pytest.mark.parametrize("kept", [None, 1, 2])
def test_the_size_is_what_counting_finds(kept: int | None) -> None:
    small = wiring(kept=kept)
    found = 0
    for cell in product(range(3), repeat=len(small.edges)):
        nodes = [sum(op > 0 for op in cell[:2]), sum(op > 0 for op in cell[2:])]
        if kept is None or nodes == [kept, kept]:
            small.check(cell)
            found += 1
        else:
            with pytest.raises(ValueError, match="edges, not"):
                small.check(cell)
    assert small.size == found


def test_sizes_are_the_papers() -> None:
    """DARTS, section 3.2.1: for one cell the product over nodes of (n choose 2) · 7², about 10^9."""
    assert SPACES[0].size == 15_625
    assert SPACES[1].size == (1 * 3 * 6 * 10 * 7**8) ** 2 == 1_037_664_180**2
    assert (SPACES[1].dimension, len(SPACES[1].sizes)) == (224, 28)


def test_the_two_edges_whose_best_operation_scores_highest_are_kept() -> None:
    small = wiring(kept=2)
    scores = [
        np.array(score)
        for score in (
            [9.0, 1.0, 0.0],  # none is never chosen
            [0.0, 0.0, 5.0],
            [0.0, 3.0, 1.0],
            [0.0, 2.0, 1.0],
            [0.0, 0.0, 4.0],
        )
    ]
    assert small.strongest(scores) == (1, 2, 1, 0, 2)
