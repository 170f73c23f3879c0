"""Assertions on errors that all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lana_ray.errors import UserError


@contextmanager
def refuses(code: str, *named: str) -> Iterator[pytest.ExceptionInfo[UserError]]:
    """Asserts that the block raises a ``UserError`` with this code, on one line with each of ``named``."""
    with pytest.raises(UserError) as error:
        yield error
    text = str(error.value)
    assert error.value.code == code, f"{error.value.code} instead of {code}: {text}"
    assert "\n" not in text
    for name in named:
        assert name in text, f"{name!r} is not named: {text}"
