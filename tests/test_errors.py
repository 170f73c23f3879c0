"""How the errors of others are told on one line."""

from __future__ import annotations

import pytest

from lana_ray.errors import first_line


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  \x1b[31mred\x1b[0m  words \ntwo"), "red words"),
        (ValueError(), "ValueError"),
        (TimeoutError(" \n"), "TimeoutError"),
        (OSError("http://user:secret@host/x"), "http://***@host/x"),
        (ValueError("x" * 300), f"{'x' * 199}…"),
    ],
)
def test_the_first_line_of_an_error(error: Exception, expected: str) -> None:
    assert first_line(error) == expected
