"""Designs: balanced, nested, and the same for a seed."""

from __future__ import annotations

import collections

from hypothesis import given, settings
from hypothesis import strategies as st

from lana_ray.ids import Choices
from lana_ray.spaces.design import balanced

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def spaces(draw: st.DrawFn) -> Choices:
    """Some candidates of every layer, which need not be the first ones."""
    layer = st.sets(st.integers(0, 30), min_size=1, max_size=9)
    return tuple(tuple(sorted(some)) for some in draw(st.lists(layer, min_size=1, max_size=5)))


@settings(deadline=None)
@given(spaces(), st.integers(1, 60), SEEDS)
def test_a_design_uses_the_candidates_of_each_layer_equally_often(
    among: Choices, count: int, seed: int
) -> None:
    design = balanced(count, among, seed)
    assert len(design) == count
    assert all(type(choice) is int for architecture in design for choice in architecture)
    for column, choices in zip(zip(*design, strict=True), among, strict=True):
        uses = collections.Counter(column)
        times = [uses[choice] for choice in choices]
        assert sum(times) == count
        assert max(times) - min(times) <= 1


@settings(deadline=None)
@given(spaces(), st.integers(1, 60), st.integers(1, 60), SEEDS)
def test_a_larger_design_begins_with_the_smaller_one(
    among: Choices, count: int, more: int, seed: int
) -> None:
    assert balanced(count + more, among, seed)[:count] == balanced(count, among, seed)


def test_seeds_and_layers_have_designs_of_their_own() -> None:
    among = (tuple(range(8)),) * 3
    first, second = balanced(200, among, 0), balanced(200, among, 1)
    assert first != second
    columns = list(zip(*first, strict=True))
    assert len(set(columns)) == 3
    # All pairs of candidates of two layers meet.
    assert len(set(zip(*columns[:2], strict=True))) > 55
