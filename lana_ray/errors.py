"""The one exception that is a user's to fix, and how the errors of others are told in it."""

from __future__ import annotations

import re

_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LONGEST = 200


class UserError(Exception):
    """A mistake in what the user gave: one line that names the thing and the fix.

    The command line prints it on stderr and exits with status 2; anything else is a bug of ours and
    keeps its traceback.
    """


def one_line(error: BaseException | str) -> str:
    """An error's text on one line of at most 200 characters, without a terminal's escape codes."""
    text = " ".join(_ESCAPES.sub("", str(error)).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
