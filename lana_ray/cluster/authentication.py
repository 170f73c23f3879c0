"""The token that the processes of a Ray cluster recognise one another by.

Ray reads it from ``RAY_AUTH_TOKEN``, from the file in ``RAY_AUTH_TOKEN_PATH`` or from ``~/.ray/auth_token``.
If none of them has one, a token is written here: Ray would leave its file readable for every user of the
machine, and fails with a traceback if the home directory cannot be written.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
from ray._raylet import Config as RayletConfig  # type: ignore[attr-defined]

from lana_ray.errors import UserError

_MODE, _TOKEN, _PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


@contextmanager
def authenticated(*, create: bool) -> Iterator[None]:
    """Turns token authentication on for this process and for what it starts, unless the user chose otherwise.

    Args:
        create: write a token where there is none, for a cluster that is started here. It goes to the home
            directory; if that cannot be written, to a temporary directory until the end.

    Raises:
        UserError: when ``RAY_AUTH_TOKEN_PATH`` names a file that has no token.
    """
    os.environ[_MODE] = os.environ.get(_MODE) or "token"  # empty, it would switch authentication off
    with ExitStack() as stack:
        if os.environ[_MODE].lower() == "token" and not os.environ.get(_TOKEN):
            given = os.environ.get(_PATH)
            if given and not _has_token(Path(given)):
                raise UserError(
                    f"{_PATH} {given}: no authentication token can be read there; name the file of a token, "
                    f"or unset {_PATH}"
                )
            path = Path(given) if given else _home_token(create)
            if path is None and create:
                path = stack.enter_context(_temporary_token())
            if path is not None:
                stack.enter_context(_named(path))
        _reread()
        yield


def _home_token(create: bool) -> Path | None:
    """The file in the home directory; None if it has no token and none can or should be written."""
    path = Path(os.path.expanduser("~"), ".ray", "auth_token")  # ~ stays as it is where nobody has a home
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
    """Writes a new token that only this user can read; one that another process wrote meanwhile is kept."""
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=".auth_token-")  # mode 0600, whatever the umask
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        os.link(part, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(part)


@contextmanager
def _temporary_token() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lana_ray-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "auth_token")
        _write_token(path)
        yield path


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Has Ray's processes read the token from ``path``: they take the home directory from ``HOME`` alone."""
    before = os.environ.get(_PATH)
    os.environ[_PATH] = str(path)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PATH]
        else:
            os.environ[_PATH] = before
        _reread()


def _reread() -> None:
    """Has Ray look at the variables again, which it read when it was imported."""
    RayletConfig.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
