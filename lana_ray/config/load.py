"""Reads a configuration: YAML, overrides, relative paths, and errors that name the key and the mend."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from lana_ray.config.config import Config
from lana_ray.config.section import LOCATION, Section
from lana_ray.errors import UserError

_URL = re.compile(r"^[a-z0-9+]+://")


def load_config(source: Config | str | Path | dict[str, Any], overrides: tuple[str, ...] = ()) -> Config:
    """Reads and checks a configuration.

    Args:
        source: a YAML file, the same content as a dictionary, or a finished ``Config``.
        overrides: ``key.path=value`` items; the value is read as YAML.

    Relative paths in a file are relative to the file; those in a dictionary or an override, which are typed
    where one stands, to the working directory.

    Raises:
        UserError: with the file, the key and the nearest known key.
    """
    data: dict[str, Any]
    if isinstance(source, Config):
        where, base, data = "configuration", Path.cwd(), yaml.safe_load(source.to_yaml())
    elif isinstance(source, dict):
        where, base, data = "configuration", Path.cwd(), copy.deepcopy(source)
    else:
        path = Path(source)
        where, base, data = str(path), path.resolve().parent, _read_yaml(path)
    typed = tuple(_apply_override(data, override) for override in overrides)
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise UserError(_explain(where, error)) from None

    def relative_to(key: str) -> Path:
        overridden = any(f"{key}.".startswith(f"{override}.") for override in typed)
        return Path.cwd() if overridden else base

    return _resolve_locations(config, relative_to)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected keys such as teacher, data, targets and budgets")
    return data


def _apply_override(data: dict[str, Any], override: str) -> str:
    """Sets what the override says; returns its key, with places in lists counted from their start."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set {override}: expected key.path=value")
    *parents, last = path.split(".")
    node: Any = data
    keys: list[Any] = []
    try:
        for part in parents:
            keys.append(range(len(node))[int(part)] if isinstance(node, list) else part)
            node = node[keys[-1]] if isinstance(node, list) else node.setdefault(part, {})
        keys.append(range(len(node))[int(last)] if isinstance(node, list) else last)
        node[keys[-1]] = yaml.safe_load(text)
    except (ValueError, IndexError, TypeError, AttributeError):
        raise UserError(f"--set {override}: {path} does not lead to a setting") from None
    except yaml.YAMLError:
        raise UserError(f"--set {override}: the value is not valid YAML") from None
    return ".".join(map(str, keys))


def _explain(where: str, error: ValidationError) -> str:
    # A misspelt key is the cause of the key that is missing, so it is told first.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key {key}; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {key}: {message}" if key else f"{where}: {message}"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    node: Any = Config
    for part in location:
        if isinstance(part, str):
            node = next(_sections(node.model_fields[part].annotation))
    return sorted(node.model_fields)


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """The sections in an annotation such as ``tuple[Annotated[Budget, ...], ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


def _resolve_locations(section: Any, base: Callable[[str], Path], prefix: str = "") -> Any:
    """The section with absolute paths; ``base`` gives the folder that the path of a key is relative to."""
    changes: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), f"{prefix}{name}"
        extra = field.json_schema_extra
        if isinstance(value, Section):
            resolved = _resolve_locations(value, base, f"{key}.")
            if resolved != value:  # what is by default stays so
                changes[name] = resolved
        elif isinstance(extra, dict) and extra.get(LOCATION) and value:
            if isinstance(value, tuple):
                changes[name] = tuple(_absolute(v, base(f"{key}.{i}")) for i, v in enumerate(value))
            else:
                changes[name] = _absolute(value, base(key))
    return section.model_copy(update=changes)


def _absolute(value: str, base: Path) -> str:
    """A path made absolute; a URL or ``package.module:function`` as it is."""
    if _URL.match(value) or (":" in value and ".py:" not in value):
        return value
    return str((base / Path(value).expanduser()).resolve())
