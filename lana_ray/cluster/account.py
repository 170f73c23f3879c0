"""A user whom the system does not know, as containers have it that run under a number without a name."""

from __future__ import annotations

import getpass
import os
import tempfile
from pathlib import Path


def complete_account() -> None:
    """Gives this process, and what it starts, the user's name and home directory that it lacks.

    Ray, torch and MLflow ask for them when they are imported, and fail without.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ["USER"] = f"user-{os.getuid()}"
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = _own_folder()


def _own_folder() -> str:
    """A folder that nobody else can read, the same each time if it is still this user's."""
    folder = Path(tempfile.gettempdir(), f"lana_ray-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    own = folder.lstat()
    if own.st_uid == os.getuid() and own.st_mode & 0o777 == 0o700 and not folder.is_symlink():
        return str(folder)
    return tempfile.mkdtemp(prefix="lana_ray-")
