"""The board that hands out work to workers which may die."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from lana_ray.cluster.launch import Board


def test_rounds_are_taken_in_order_and_counted() -> None:
    board = Board(["a", "b", "c"])
    assert board.join("w") is None
    assert [board.take("w"), board.take("v")] == ["a", "b"]
    board.add(3, "w")
    board.add(4, "v")
    assert (board.take("w"), board.take("v")) == ("c", None)
    assert board.news() == (7, [])


def test_a_worker_that_comes_back_does_its_round_again() -> None:
    board = Board(["a", "b"])
    board.take("w")
    board.add(5, "w")
    board.take("w")
    board.add(2, "w")
    assert board.join("w") == "b"
    assert board.news() == (5, ["w"])
    assert board.news() == (5, [])
    board.add(4, "w")
    assert board.take("w") is None
    assert board.join("w") is None
    assert board.news() == (9, [])


def test_what_begins_again_is_counted_once_and_the_furthest_point_stays() -> None:
    board = Board()
    board.add(5, "one a")
    board.add(1, "two a")
    board.begin("one a")
    board.add(3, "one a")
    assert board.news() == (4, [])
    assert (board.furthest("one"), board.furthest("two"), board.furthest("three")) == (5, 1, 0)
    board.begin("one b")
    board.add(4, "one b")
    assert board.furthest("one") == 7


@given(st.integers(0, 20), st.lists(st.tuples(st.sampled_from("uvw"), st.booleans()), max_size=80))
def test_nothing_is_lost_or_done_twice_by_workers_that_come_back(
    count: int, events: list[tuple[str, bool]]
) -> None:
    board, finished, hands = Board(range(count)), Counter[int](), dict[str, int]()
    for worker, dies in [*events, *((w, False) for w in "uvw" for _ in range(count + 1))]:
        if dies:
            assert board.join(worker) == hands.get(worker)
            continue
        if worker in hands:
            finished[hands.pop(worker)] += 1
        work = board.take(worker)
        if work is not None:
            hands[worker] = work
    assert finished == Counter(range(count))
