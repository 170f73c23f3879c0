"""Random students that tell what the scores are worth."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lana_ray.stages.score import random_students

_SCORES = st.lists(
    st.lists(st.floats(0, 5) | st.just(np.inf), max_size=6).map(lambda rest: np.array([0.0, *rest])),
    min_size=1,
    max_size=8,
)


@given(_SCORES, st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_students_differ_and_use_what_has_a_score(scores: list[np.ndarray], count: int, seed: int) -> None:
    students = random_students(scores, count, np.random.default_rng(seed))
    assert len(set(students)) == len(students) <= count
    for student in students:
        assert any(student)
        assert all(np.isfinite(of_layer[j]) for of_layer, j in zip(scores, student, strict=True))
        assert all(type(choice) is int for choice in student)
    assert students == random_students(scores, count, np.random.default_rng(seed))


def test_students_span_the_way_from_the_teacher_to_everything_replaced() -> None:
    scores = [np.zeros(9)] * 16
    students = random_students(scores, 200, np.random.default_rng(0))
    assert len(students) == 200
    replaced = np.array([np.count_nonzero(student) for student in students])
    assert np.histogram(replaced, bins=[1, 5, 9, 13, 17])[0].min() > 25
