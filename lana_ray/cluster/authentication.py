"""Token authentication between the processes of a Ray cluster.

Ray reads the token from ``RAY_AUTH_TOKEN``, from the file in ``RAY_AUTH_TOKEN_PATH`` or from
``~/.ray/auth_token``. If none of them has one, this module writes a token: Ray's own file would be readable
by every user of the machine, and Ray fails with a traceback if the home directory cannot be written.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lana_ray.cluster.ray_internals import reread_authentication
from lana_ray.errors import UserError

_MODE, _TOKEN, _PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


@contextmanager
def authenticated(*, create: bool) -> Iterator[None]:
    """Turns token authentication on for this process and its children, unless the user chose otherwise.

    Args:
        create: write a token if there is none, for a cluster that is started here. It goes to the home
            directory, or to a temporary directory until the end if the home directory cannot be written.

    Raises:
        UserError: ``RAY_AUTH_TOKEN_PATH`` names a file without a token.
    """
    # An empty variable would switch authentication off.
    os.environ[_MODE] = os.environ.get(_MODE) or "token"
    with ExitStack() as stack:
        if os.environ[_MODE].lower() == "token" and not os.environ.get(_TOKEN):
            variable = os.environ.get(_PATH)
            if variable and not _has_token(Path(variable)):
                raise UserError(
                    "missing_file",
                    f"{_PATH} {variable}: cannot read an authentication token there; name a file that has "
                    f"one, or unset {_PATH}",
                )
            path = Path(variable) if variable else _home_token(create)
            if path is None and create:
                folder = tempfile.TemporaryDirectory(prefix="lana_ray-", ignore_cleanup_errors=True)
                path = Path(stack.enter_context(folder), "auth_token")
                _write_token(path)
            if path is not None:
                # Ray's processes find the home directory by HOME only.
                os.environ[_PATH] = str(path)
                stack.callback(_restore, variable)
        reread_authentication()
        yield


def _home_token(create: bool) -> Path | None:
    """Returns the token's file in the home directory; None if it has no token and none is written."""
    # Without a home directory, ~ is not expanded, and the path is not absolute.
    path = Path(os.path.expanduser("~"), ".ray", "auth_token")
    if _has_token(path):
        return path
    if not create or not path.is_absolute():
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_token(path)
    except OSError:
        return None
    return path if _has_token(path) else None


def _has_token(path: Path) -> bool:
    try:
        return bool(path.read_bytes().strip())
    except OSError:
        return False


def _write_token(path: Path) -> None:
    """Writes a new token that only this user can read, unless another process has written one meanwhile."""
    # mkstemp gives the file mode 0600, whatever the umask.
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=".auth_token-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        os.link(part, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(part)


def _restore(variable: str | None) -> None:
    if variable is None:
        del os.environ[_PATH]
    else:
        os.environ[_PATH] = variable
    reread_authentication()
