"""Reads a configuration from a file and overrides, resolves its paths, and reports mistakes in it."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lana_ray.config import reader
from lana_ray.config.config import Config
from lana_ray.config.messages import Location, explain, place
from lana_ray.config.section import LOCATION, Section, format_value
from lana_ray.errors import UserError

_URL = re.compile(r"^[a-z0-9+]+://")


def load_config(source: Config | str | Path | dict[str, Any], overrides: tuple[str, ...] = ()) -> Config:
    """Returns a configuration after checking it.

    Relative paths in a file are relative to the file; those in a dictionary or an override are relative to
    the working directory.

    Args:
        source: a YAML file, its content as a dictionary, or a ``Config``.
        overrides: ``key.path=value`` items, whose values are read as YAML. Items of lists are named by their
            position from 0, or from the end with -1: ``targets.0.threads=2``.

    Raises:
        UserError: the message names the file or override, the key, its value, and what is allowed.
    """
    data: dict[str, Any]
    if isinstance(source, Config):
        where, base, data = "configuration", Path.cwd(), reader.read(source.to_yaml(only_set=True))
    elif isinstance(source, dict):
        where, base, data = "configuration", Path.cwd(), copy.deepcopy(source)
    else:
        path = Path(source)
        where, base, data = str(path), path.resolve().parent, _read_file(path)
    overridden = {_apply_override(data, override): f"--set {override}" for override in overrides}
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        mistake = explain(Config, data, error.errors())
        guilty = (override for key, override in reversed(overridden.items()) if _overlap(key, mistake.at))
        raise UserError(mistake.code, f"{next(guilty, where)}: {mistake.text}") from None

    def relative_to(at: Location) -> Path:
        return Path.cwd() if any(at[: len(key)] == key for key in overridden) else base

    return _resolve_locations(config, relative_to)


def _overlap(key: Location, at: Location) -> bool:
    """Returns whether an override of ``key`` set the value at ``at``, or something in it."""
    return bool(at) and (at[: len(key)] == key or key[: len(at)] == at)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        data = reader.read(path.read_bytes())
    except FileNotFoundError:
        raise UserError("missing_file", f"{path}: no such configuration file") from None
    except IsADirectoryError:
        raise UserError(
            "invalid_file", f"{path}: cannot be read: it is a folder; give the YAML file itself"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError("invalid_file", f"{path}: cannot be read: {reason}") from None
    except reader.NotYaml as error:
        raise UserError("invalid_file", f"{path}: {error}") from None
    if not isinstance(data, dict):
        content = f"contains {'a list' if isinstance(data, list) else format_value(data)}"
        raise UserError(
            "invalid_file",
            f"{path}: {'is empty' if data is None else content}; "
            "expected keys such as teacher, data, targets and budgets",
        )
    return data


def _apply_override(data: dict[str, Any], override: str) -> Location:
    """Sets the value of an override in ``data``; returns the location of its key."""
    path, equals, text = override.partition("=")
    parts = re.sub(r"\[(-?\d+)\]", r".\1", path.strip()).split(".")
    if not equals or not all(part.strip() for part in parts):
        raise UserError(
            "invalid_setting", f"--set {override}: expected KEY.PATH=VALUE, e.g. finetune.epochs=10"
        )
    try:
        value = reader.read(text)
    except reader.NotYaml as error:
        quotes = "; quote the entire override in the shell" if text[:1] in ("[", "{") else ""
        raise UserError("invalid_setting", f"--set {override}: the value is {error}{quotes}") from None
    node: Any = data
    at: Location = ()
    for number, part in enumerate(parts):
        try:
            key = _key(node, part)
        except LookupError as error:
            raise UserError("unknown_name", f"--set {override}: {place(at, data)} {error}") from None
        at = (*at, key)
        if number == len(parts) - 1:
            node[key] = value
        elif isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]
    return at


def _key(node: Any, part: str) -> int | str:
    """Returns the key or position that a part of a path names; raises LookupError if there is none."""
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise LookupError(f"is {format_value(node)}, which has no key {part}")
    try:
        position = int(part)
    except ValueError:
        raise LookupError(f"is a list; name an item by its position, 0 to {len(node) - 1}") from None
    if not -len(node) <= position < len(node):
        raise LookupError(f"has no item {part}; it has {len(node)}, from 0 to {len(node) - 1}")
    return position % len(node)


def _resolve_locations(section: Any, base: Callable[[Location], Path], prefix: Location = ()) -> Any:
    """Returns the section with absolute paths; ``base`` maps a key to the folder its path is relative to."""
    changes: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value, at = getattr(section, name), (*prefix, name)
        extra = field.json_schema_extra
        if isinstance(value, Section):
            resolved = _resolve_locations(value, base, at)
            if resolved != value:  # unchanged defaults must not count as set
                changes[name] = resolved
        elif isinstance(extra, dict) and extra.get(LOCATION) and value:
            if isinstance(value, tuple):
                changes[name] = tuple(_absolute(v, base((*at, i))) for i, v in enumerate(value))
            else:
                changes[name] = _absolute(value, base(at))
    return section.model_copy(update=changes)


def _absolute(value: str, base: Path) -> str:
    """Returns an absolute path; returns a URL or ``package.module:function`` unchanged."""
    if _URL.match(value) or (":" in value and ".py:" not in value):
        return value
    return str((base / Path(value).expanduser()).resolve())
