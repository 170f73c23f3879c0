"""The one exception that is a user's to fix, and how the errors of others are told in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from lana_ray.redact import without_passwords

_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LONGEST = 200
_FAULTS = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "bad_alloc",
    "cuda error",
    "cuda failure",
    "status_alloc_failed",
    "status_execution_failed",
    "status_internal_error",
    "no space left",
)
"""Words by which errors of torch and of the runtimes, which share no class, say that it was the machine."""


class UserError(Exception):
    """A mistake in what the user gave: one line that names the thing and the fix.

    The command line prints it on stderr and exits with status 2; anything else is a bug of ours and
    keeps its traceback. Secrets in URLs are left out.
    """

    def __init__(self, text: str) -> None:
        super().__init__(without_passwords(text))


class Unsupported(UserError):
    """An exporter or a runtime refuses a program: it would on any machine that has them."""


def is_fault(error: BaseException) -> bool:
    """Whether an error, or one that it came from, is the machine's: memory, a device, a disk, a network."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or following.__context__
    said = (str(link).lower() for link in chain)
    return any(isinstance(link, MemoryError | OSError) for link in chain) or any(
        words in text for text in said for words in _FAULTS
    )


@contextmanager
def refusals(who: str) -> Iterator[None]:
    """Makes what a runtime raises of a program ``Unsupported``; faults and UserErrors stay what they are.

    Args:
        who: refuses it, as the line begins.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_fault(error):
            raise
        raise Unsupported(f"{who} refuses the network ({type(error).__name__}: {one_line(error)})") from None


def one_line(error: BaseException | str) -> str:
    """An error's text on one line of at most 200 characters, without terminal escape codes and secrets."""
    text = without_passwords(" ".join(_ESCAPES.sub("", str(error)).split()))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
