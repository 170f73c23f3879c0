"""Shares of the candidates for the workers."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from lana_ray.distill.partition import Candidate, partition

_COSTS = st.dictionaries(
    st.tuples(st.integers(0, 20), st.integers(1, 20)), st.floats(0.001, 1000.0), max_size=60
)


@settings(deadline=None)
@given(_COSTS, st.integers(1, 9))
def test_every_candidate_once_and_loads_within_the_dearest(
    costs: dict[Candidate, float], workers: int
) -> None:
    shares = partition(costs, workers)
    assert len(shares) == workers
    assert sorted(c for share in shares for c in share) == sorted(costs)
    assert all(share == sorted(share) for share in shares)
    loads = [sum(costs[c] for c in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs.values(), default=0.0) * (1 + 1e-9)


@settings(deadline=None)
@given(_COSTS, st.integers(1, 9), st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_does_not_matter(
    costs: dict[Candidate, float], workers: int, random: Random
) -> None:
    shuffled = list(costs.items())
    random.shuffle(shuffled)
    assert partition(dict(shuffled), workers) == partition(costs, workers)


def test_the_dearest_go_first() -> None:
    assert partition({(0, 1): 5.0, (0, 2): 3.0, (1, 1): 3.0, (2, 1): 1.0}, 2) == [
        [(0, 1), (2, 1)],
        [(0, 2), (1, 1)],
    ]


def test_more_workers_than_candidates() -> None:
    assert partition({(0, 1): 1.0}, 3) == [[(0, 1)], [], []]
