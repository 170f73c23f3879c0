"""Where the token of a cluster that is started here comes from, and who may read it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

from lana_ray.cluster.authentication import authenticated
from lana_ray.cluster.ray_internals import reread_authentication

from ..errors import refuses


def found() -> bool:
    """Whether Ray finds a token."""
    return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


@pytest.fixture(autouse=True)
def the_process_s_own_token() -> Iterator[None]:
    """Has Ray look again once all variables are as before: other tests of this process use a cluster."""
    yield
    reread_authentication()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory, and no token elsewhere."""
    for variable in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_new_token_is_read_by_its_user_alone_and_kept(home: Path, mask: int) -> None:
    token, before = home / ".ray" / "auth_token", os.umask(mask)
    try:
        with authenticated(create=True):
            assert found()
            written = token.read_text()
    finally:
        os.umask(before)
    assert (token.stat().st_mode & 0o777, len(written)) == (0o600, 64)
    with authenticated(create=True):
        assert token.read_text() == written
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]


@pytest.mark.parametrize("kind", ["absent", "a file", "empty"])
def test_without_a_home_directory_the_token_lies_elsewhere_meanwhile(
    home: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").touch()
    place = {"absent": "/proc/nobody", "a file": str(home / "file"), "empty": ""}[kind]
    monkeypatch.setenv("HOME", place)
    monkeypatch.setattr(os.path, "expanduser", lambda path: place or path)  # as for a user without an entry
    with authenticated(create=True):
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert found()
        assert token.stat().st_mode & 0o777 == 0o600
    assert not token.parent.exists()
    assert "RAY_AUTH_TOKEN_PATH" not in os.environ


def test_for_a_cluster_of_others_no_token_is_made_up(home: Path) -> None:
    with authenticated(create=False):
        assert not found()
    assert not (home / ".ray").exists()


def test_a_token_that_cannot_be_read_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "absent"))
    with refuses("missing_file", f"RAY_AUTH_TOKEN_PATH {home}/absent"), authenticated(create=True):
        pass


@pytest.mark.parametrize(("mode", "meant"), [("", "token"), ("disabled", "disabled")])
def test_authentication_is_on_unless_the_user_chose(
    home: Path, mode: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with authenticated(create=True):
        assert os.environ["RAY_AUTH_MODE"] == meant
    assert (home / ".ray").exists() == (meant == "token")
