"""Where a Ray that is started here keeps its sockets and logs."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from lana_ray.errors import UserError
from lana_ray.monitoring.progress import say

_VARIABLES = ("RAY_TMPDIR", "TMPDIR")
_SOCKET = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
_LONGEST = (103 if sys.platform == "darwin" else 107) - _SOCKET
"""Bytes of a directory that sockets fit in: a system refuses longer paths."""


def ray_folder() -> str:
    """The folder in ``RAY_TMPDIR`` or ``TMPDIR``, as Ray takes it, or another one if that is of no use.

    Raises:
        UserError: when no folder can be used.
    """
    given = next((name for name in _VARIABLES if os.environ.get(name)), None)
    first = os.path.abspath(os.environ[given]) if given else "/tmp"
    reasons = {place: _useless(place) for place in (first, "/tmp", tempfile.gettempdir())}
    place = next((place for place, reason in reasons.items() if reason is None), None)
    if place is None:
        told = "; ".join(f"{place} {reason}" for place, reason in reasons.items())
        raise UserError(f"no folder for Ray's sockets: {told}; set TMPDIR to another one")
    if place != first:
        say(
            f"{given or 'the folder'} {first} {reasons[first]}; Ray keeps its sockets and logs in {place}/ray"
        )
    return f"{place}/ray"


def _useless(place: str) -> str | None:
    """Why Ray cannot use a folder, as the end of a sentence that begins with it."""
    if len(os.fsencode(place)) > _LONGEST:
        return f"is longer than the {_LONGEST} bytes that sockets allow"
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"cannot be written ({error.strerror})"
