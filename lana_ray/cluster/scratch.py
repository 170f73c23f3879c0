"""Chooses the folder in which a local Ray cluster keeps its sockets and logs."""

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
"""Longest usable directory in bytes: the system refuses longer paths of sockets."""


def ray_folder() -> str:
    """The folder in ``RAY_TMPDIR`` or ``TMPDIR``, else another usable one; raises UserError if none is."""
    variable = next((name for name in _VARIABLES if os.environ.get(name)), None)
    first = os.path.abspath(os.environ[variable]) if variable else "/tmp"
    reasons = {place: _useless(place) for place in (first, "/tmp", tempfile.gettempdir())}
    place = next((place for place, reason in reasons.items() if reason is None), None)
    if place is None:
        tried = "; ".join(f"{place} {reason}" for place, reason in reasons.items())
        raise UserError(
            "not_writable", f"no folder for Ray's sockets: {tried}; set TMPDIR to a short, writable folder"
        )
    if place != first:
        named = f"{variable or 'the folder'} {first}"
        say(f"{named} {reasons[first]}; Ray keeps its sockets and logs in {place}/ray")
    return f"{place}/ray"


def _useless(place: str) -> str | None:
    """Returns why Ray cannot use a folder, such as ``cannot be written``; None if it can."""
    if len(os.fsencode(place)) > _LONGEST:
        return f"is longer than the {_LONGEST} bytes that sockets allow"
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return f"cannot be written ({error.strerror})"
