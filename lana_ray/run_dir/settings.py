"""Ties a run directory to a configuration: ``run.yaml`` records the settings behind its results."""

from __future__ import annotations

from typing import Any

import yaml

from lana_ray.config import Config
from lana_ray.errors import UserError
from lana_ray.monitoring.progress import say
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import Storage

# These settings change neither the teacher nor the data.
_NO_IDENTITY = ("adapt", "root", "download")


def claim(storage: Storage, config: Config) -> None:
    """Writes ``run.yaml``; refuses a directory that holds another teacher, or one trained on other data."""
    written = config.to_public_yaml()  # without secrets: anyone with access to the directory can read it
    earlier, now = _earlier(storage), yaml.safe_load(written)
    if earlier is not None:
        if storage.exists(layout.TEACHER):
            _refuse_others(storage, earlier, now)
        changed = [
            _changes(section, earlier.get(section), now[section]) for section in now if section != "run"
        ]
        for change in filter(None, changed):
            say(f"changed since the last run: {change}; dependent results are recomputed")
    storage.write_text(layout.SETTINGS, written)


def _earlier(storage: Storage) -> dict[str, Any] | None:
    """The settings of the last run; None if there was none, or after a message if the file is damaged."""
    if not storage.exists(layout.SETTINGS):
        return None
    try:
        settings = yaml.safe_load(storage.read_text(layout.SETTINGS))
    except (yaml.YAMLError, UnicodeDecodeError):
        settings = None
    if isinstance(settings, dict) and all(isinstance(settings.get(p), dict) for p in ("teacher", "data")):
        return settings
    say(f"{storage.url(layout.SETTINGS)}: damaged; it is rewritten")
    return None


def _refuse_others(storage: Storage, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    for section in ("teacher", "data"):
        for key, value in now[section].items():
            before = earlier[section].get(key)
            if key not in _NO_IDENTITY and before != value:
                raise UserError(
                    "changed",
                    f"run.dir {storage.root}: holds a run with {section}.{key} {before!r}, now it is "
                    f"{value!r}; choose another run.dir",
                )


def _changes(section: str, before: Any, now: Any) -> str:
    if before == now:
        return ""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in now if before.get(key) != now[key]]
        return ", ".join(f"{section}.{key} {before.get(key)!r} → {now[key]!r}" for key in keys)
    return section
