"""Completes the account of a user whom the system does not know, as in containers with a bare user id."""

from __future__ import annotations

import getpass
import os
import tempfile
from pathlib import Path


def complete_account() -> None:
    """Sets ``USER`` and ``HOME`` if unknown, since the imports of Ray, torch and MLflow need them."""
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = f"user-{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = _own_folder()


def _own_folder() -> str:
    """Returns a folder that only this user can read: the same every time, if it still belongs to the user."""
    folder = Path(tempfile.gettempdir(), f"lana_ray-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    own = folder.lstat()
    if own.st_uid == os.getuid() and own.st_mode & 0o777 == 0o700 and not folder.is_symlink():
        return str(folder)
    return tempfile.mkdtemp(prefix="lana_ray-")
