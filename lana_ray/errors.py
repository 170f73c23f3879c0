"""The one exception that is a user's to fix, and how the errors of others are told in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from lana_ray.redact import without_passwords

Code = Literal[
    "invalid_setting",  # a setting, an argument or a name cannot have this value
    "unknown_name",  # nothing has this name (a key, layer, operation, target, meter, model)
    "missing_file",  # a file or folder is not there
    "invalid_file",  # a file or folder is there, but is not of the kind it is used as
    "damaged_file",  # a file of a run directory or registry is not what was written there
    "not_writable",  # something cannot be written, for lack of space or rights
    "invalid_data",  # images, labels or their splits cannot be used
    "unsupported_network",  # a network cannot be accelerated, exported or trained as it is
    "invalid_extension",  # the user's own Python file (a factory, an operation) breaks its contract
    "missing_package",  # a package must be installed first
    "unavailable",  # this node lacks a runtime, a device or a meter
    "no_node",  # no node of the cluster can do the work
    "busy",  # what is needed is held by others, and the wait is over
    "changed",  # code, weights or settings are not those that the rest was made with
    "infeasible",  # no student keeps a budget
    "not_run_yet",  # an earlier stage or command comes first
    "unreachable",  # a cluster, registry or server does not answer, or refuses us
    "refused",  # an exporter or a runtime refuses a program, on any machine (``Unsupported``)
    "failed",  # a process, a training or a measurement ended without a result
]
"""What kind of mistake a ``UserError`` is, for programs."""

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

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(without_passwords(text))
        self.code: Code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, str(self))


class Unsupported(UserError):
    """An exporter or a runtime refuses a program: it would on any machine that has them."""


class DeviceError(UserError):
    """A command failed that measures on another device: because of its program, or the device is away."""


def is_fault(error: BaseException) -> bool:
    """Whether an error, or one that it came from, is the machine's: memory, a device, a disk, a network."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or following.__context__
    return any(
        isinstance(link, MemoryError | OSError) or any(words in str(link).lower() for words in _FAULTS)
        for link in chain
    )


@contextmanager
def refusals(who: str) -> Iterator[None]:
    """Turns what runtime ``who`` raises about a program into ``Unsupported``; keeps faults and UserErrors."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_fault(error):
            raise
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise Unsupported("refused", f"{who} refuses the network ({reason})") from None


def first_line(error: BaseException) -> str:
    """The first line of an error's text, as by ``one_line``; the name of its type if it has no text."""
    return one_line(next(iter(str(error).strip().splitlines()), type(error).__name__))


def one_line(error: BaseException | str) -> str:
    """An error's text on one line of at most 200 characters, without terminal escape codes and secrets."""
    text = without_passwords(" ".join(_ESCAPES.sub("", str(error)).split()))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
