"""The settings of ``run.yaml`` that a page shows: those that define the run or are not defaults."""

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
"""Settings that are always shown."""
_FIRST = ("teacher", "data", "targets", "budgets", "pool")
_NEVER = {"run.dir", "data.root"}  # paths, which always differ from their relative defaults


@dataclass(frozen=True, kw_only=True)
class Setting:
    key: str
    """Key within its section, such as ``measure.architectures``."""
    value: str
    default: str | None
    """The default, if the value differs from it and is not always shown."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings by section; every target has its own section."""

    sections: dict[str, list[Setting]]
    text: str
    """The complete configuration as YAML, without passwords."""


def read_settings(storage: Storage) -> Settings | None:
    """The settings of the last run, None if there was none; raises UserError if ``run.yaml`` is damaged."""
    if not storage.exists(layout.SETTINGS):
        return None
    text = without_passwords(storage.read_text(layout.SETTINGS), instead="")
    try:
        settings: dict[str, Any] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(
            "damaged_file", f"{storage.url(layout.SETTINGS)}: damaged ({' '.join(str(error).split())})"
        ) from None
    defaults = Config.model_construct().model_dump(mode="json")
    defaults["teacher"] = TeacherConfig.model_construct().model_dump(mode="json")
    defaults["data"] = DataConfig.model_construct().model_dump(mode="json")
    of_target = Target.model_construct().model_dump(mode="json")
    sections = {}
    for section in [*_FIRST, *(name for name in settings if name not in _FIRST)]:
        values = settings[section]
        if section == "targets":
            for target in values:
                rest = {key: value for key, value in target.items() if key != "name"}
                sections[f"target {target['name']}"] = list(_settings("target", rest, of_target))
        else:
            sections[section] = list(_settings(section, values, defaults.get(section, {})))
    return Settings(sections={name: some for name, some in sections.items() if some}, text=text)


def _settings(section: str, values: dict[str, Any], defaults: dict[str, Any]) -> Iterator[Setting]:
    usual, always = dict(_flat("", defaults)), _ALWAYS.get(section, set())
    if values.get("ops"):
        always = always - {"preset"}  # operations replace the preset
    for key, value in _flat("", values):
        default = usual.get(key)
        if f"{section}.{key}" not in _NEVER and (key in always or value != default):
            named = default is not None and key not in always
            yield Setting(key=key, value=_written(value), default=_written(default) if named else None)


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted keys with values; a list is one value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else key, inner)
    else:
        yield prefix, value


def _written(value: Any) -> str:
    """A value as it is written in a configuration."""
    if isinstance(value, list):
        return ", ".join(map(_written, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
