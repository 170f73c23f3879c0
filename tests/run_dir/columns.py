"""Values of every type that a column can have."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from hypothesis import strategies as st

_FLOATS, _INTS = st.floats(allow_nan=False), st.integers(-(2**63), 2**63 - 1)
_VALUES: dict[Any, st.SearchStrategy[Any]] = {
    float: _FLOATS,
    int: _INTS,
    bool: st.booleans(),
    str: st.text(st.characters(codec="utf-8")),
    bytes: st.binary(),
    tuple[float, ...]: st.lists(_FLOATS, max_size=4).map(tuple),
    tuple[int, ...]: st.lists(_INTS, max_size=4).map(tuple),
}
_OLD_STYLE: Any = Union.__getitem__((float, NoneType))
TYPES: list[Any] = [*_VALUES, *(kind | None for kind in _VALUES), _OLD_STYLE]
"""Of fields."""


def is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType)


def present(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field but None."""
    if is_optional(kind):
        (inner,) = (option for option in get_args(kind) if option is not NoneType)
        return _VALUES[inner]
    return _VALUES[kind]


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field; None is one of an optional field."""
    return st.none() | present(kind) if is_optional(kind) else present(kind)
