"""What was asked: the settings of ``run.yaml`` that say what the run is, and those somebody chose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from lana_ray.config import Config, DataConfig, Target, TeacherConfig
from lana_ray.errors import UserError
from lana_ray.redact import without_passwords
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import Storage

_ALWAYS = {
    "data": {"image_size"},
    "pool": {"preset"},
    "target": {"runtime", "device", "threads", "batch_size", "precision"},
}
"""Shown whether or not they are the defaults."""
_FIRST = ("teacher", "data", "targets", "budgets", "pool")
_NEVER = {"run.dir", "data.root"}  # where files lie; the defaults are relative and never what stands there


@dataclass(frozen=True, kw_only=True)
class Setting:
    key: str
    """Within its section: ``measure.architectures``."""
    value: str
    default: str | None
    """Where another value was chosen than one that is there by default."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Settings by section, a section for each target."""

    sections: dict[str, list[Setting]]
    whole: str
    """The configuration as YAML, without passwords."""


def read_asked(storage: Storage) -> Asked | None:
    """None where no run has begun in the directory.

    Raises:
        UserError: where ``run.yaml`` is not YAML any more.
    """
    if not storage.exists(layout.SETTINGS):
        return None
    whole = without_passwords(storage.read_text(layout.SETTINGS), instead="")
    try:
        settings: dict[str, Any] = yaml.safe_load(whole)
    except yaml.YAMLError as error:
        raise UserError(
            "damaged_file", f"{storage.url(layout.SETTINGS)}: damaged ({' '.join(str(error).split())})"
        ) from None
    defaults = Config.model_construct().model_dump(mode="json")
    defaults["teacher"] = TeacherConfig.model_construct().model_dump(mode="json")
    defaults["data"] = DataConfig.model_construct().model_dump(mode="json")
    of_target = Target.model_construct().model_dump(mode="json")
    found = {}
    for section in [*_FIRST, *(name for name in settings if name not in _FIRST)]:
        values = settings[section]
        if section == "targets":
            for target in values:
                rest = {key: value for key, value in target.items() if key != "name"}
                found[f"target {target['name']}"] = list(_settings("target", rest, of_target))
        else:
            found[section] = list(_settings(section, values, defaults.get(section, {})))
    return Asked(sections={name: those for name, those in found.items() if those}, whole=whole)


def _settings(section: str, values: dict[str, Any], defaults: dict[str, Any]) -> Iterator[Setting]:
    usual, always = dict(_flat("", defaults)), _ALWAYS.get(section, set())
    if values.get("ops"):
        always = always - {"preset"}  # they take its place
    for key, value in _flat("", values):
        default = usual.get(key)
        if f"{section}.{key}" not in _NEVER and (key in always or value != default):
            named = default is not None and key not in always
            yield Setting(key=key, value=_said(value), default=_said(default) if named else None)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted keys; lists are one value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, inner)
    else:
        yield prefix, value


def _said(value: Any) -> str:
    """As it stands in a configuration."""
    if isinstance(value, list):
        return ", ".join(map(_said, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
