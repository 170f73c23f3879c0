"""Which candidates are worth their time on the targets."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lana_ray.stages.sample import considered, worth

_TIMES = st.lists(st.floats(0, 10) | st.just(np.inf), min_size=0, max_size=8)


def on_targets(*choices: tuple[tuple[int, ...], ...]) -> Any:
    return cast(Any, {f"t{k}": SimpleNamespace(considered=c) for k, c in enumerate(choices)})


def test_what_is_slower_than_its_layer_is_not_worth_its_time() -> None:
    alone = [np.array([2.0, 1.9, 2.0, 2.1, np.inf, 0.0])]
    assert worth(alone, 1.0) == ((0, 1, 2, 5),)
    assert worth(alone, 0.5) == ((0, 5),)
    assert worth(alone, 1.1) == ((0, 1, 2, 3, 5),)
    assert worth(alone, None) == ((0, 1, 2, 3, 5),)


@given(st.floats(0.01, 10), _TIMES, st.none() | st.floats(0.01, 3))
def test_the_layer_itself_comes_first_whatever_it_takes(
    own: float, times: list[float], most: float | None
) -> None:
    ((first, *others),) = worth([np.array([own, *times])], most)
    assert first == 0
    assert others == sorted(set(others) - {0})


def test_a_candidate_that_one_target_wants_is_kept_for_all() -> None:
    one, other = ((0, 1), (0,)), ((0, 3), (0, 2))
    assert considered(on_targets(one)) == one
    assert considered(on_targets(one, other)) == ((0, 1, 3), (0, 2))
