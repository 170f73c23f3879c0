"""Users without a name or a home, in the environment of a process of their own."""

from __future__ import annotations

import getpass
import os
import tempfile
from pathlib import Path

import pytest

from lana_ray.cluster.account import complete_account

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="users have no numbers here")


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A number that the system has no entry for; the folder is the temporary one."""
    import pwd

    def unknown(number: int) -> object:
        raise KeyError(number)

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_user_without_an_entry_gets_a_name_and_a_home_of_its_own(nobody: Path) -> None:
    complete_account()
    assert getpass.getuser() == f"user-{os.getuid()}"
    home = Path.home()
    assert home.parent == nobody
    assert home.stat().st_mode & 0o777 == 0o700
    del os.environ["HOME"]
    complete_account()
    assert Path.home() == home


@pytest.mark.parametrize("kind", ["open to others", "a link"])
def test_a_folder_that_others_may_have_made_is_not_taken(nobody: Path, kind: str) -> None:
    folder = nobody / f"lana_ray-{os.getuid()}"
    if kind == "a link":
        folder.symlink_to(nobody)
    else:
        folder.mkdir()
        folder.chmod(0o777)
    complete_account()
    assert Path.home() not in (folder, nobody)
    assert Path.home().stat().st_mode & 0o777 == 0o700


def test_what_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ada")
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.setenv("HOME", "/")
    complete_account()
    assert (getpass.getuser(), os.environ["HOME"]) == ("ada", "/")
