"""Loads a registered PyTorch program without executing any code that its file contains.

``torch.export.load`` and ``mlflow.pytorch.load_model`` trust the file: they unpickle some of its records,
evaluate its guards and symbolic expressions, resolve operators by attribute look-up, and load libraries. So
torch gets only a copy of the records that a program of plain ATen operators needs, after each is checked.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lana_ray.errors import UserError

_MODEL = "models/model.json"
_WEIGHTS = "data/weights/"
_CONSTANTS = "data/constants/"
_CONFIGS = {
    f"{_WEIGHTS}model_weights_config.json": re.compile(r"weight_\d+"),
    f"{_CONSTANTS}model_constants_config.json": re.compile(r"tensor_\d+"),
}
_SAMPLES = "data/sample_inputs/model.pt"
"""A pickled record that running the program does not need; it is not copied."""
_PLAIN = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/version|\.data/serialization_id"
    rf"|{_WEIGHTS}weight_\d+|{_CONSTANTS}tensor_\d+"
)
_ARITHMETIC = re.compile(
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc)|torch\.sym_(max|min|float|int|not|ite|sum)"
)
_ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
_FUNCTIONS = (
    "Add Mul Pow Integer Rational Max Min Mod PythonMod FloorDiv CeilDiv CleanDiv IntTrueDiv FloatTrueDiv "
    "ModularIndexing Where ToFloat FloorToInt CeilToInt TruncToInt Eq Ne Lt Le Gt Ge"
)
_SIZE = re.compile(
    r"(?:(?:[su]\d+|Symbol\('[su]\d+'(?:, \w+=(?:True|False))*\))(?:\*\*\d\b)?"
    rf"|\b(?:{_FUNCTIONS.replace(' ', '|')})(?=\()"
    r"|\b(?:True|False|oo|int_oo|\d+(?:\.\d+)?)\b|(?<!\*)\*(?!\*)|[-+/%(),<>=&|~ ]){1,1000}"
)
"""Numbers, symbols of sizes and their powers, arithmetic, and the functions in torch's size expressions."""


def load_program(path: Path) -> nn.Module:
    """Loads the program of a ``.pt2`` file.

    Raises:
        UserError: the file is damaged, or holds anything but a program of ATen operators and its tensors;
            names the record or the operator.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = _records(path, archive)
            model = _json(path, archive, records[_MODEL])
            _check_graph(path, model)
            for name, payload in _CONFIGS.items():
                _check_payloads(path, name, _json(path, archive, records[name]), payload)
            copied = _copy(archive, records, model)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise _damaged(path, f"damaged PyTorch program ({error})") from None
    try:
        return torch.export.load(copied).module(check_guards=False)
    except Exception as error:  # torch.export has no common base class for its errors
        reason = " ".join(str(error).split())[:200]
        raise _damaged(path, f"damaged PyTorch program ({reason})") from None


def _damaged(path: Path, problem: str) -> UserError:
    return UserError("damaged_file", f"{path}: {problem}; register the model again")


def _refused(path: Path, reason: str) -> UserError:
    return _damaged(path, f"refused because {reason}, unlike any model that lana_ray registers")


def _records(path: Path, archive: zipfile.ZipFile) -> dict[str, str]:
    """Returns record name -> full name in the archive; raises UserError if a record is not allowed."""
    records = {name.partition("/")[2]: name for name in archive.namelist() if not name.endswith("/")}
    if len(records) < len(archive.namelist()):
        raise _refused(path, "it holds records of the same name")
    for record in records:
        if record not in (_MODEL, _SAMPLES, *_CONFIGS) and not _PLAIN.fullmatch(record):
            raise _refused(path, f"it holds the record {record}")
    return records


def _copy(archive: zipfile.ZipFile, records: dict[str, str], model: Any) -> io.BytesIO:
    for node in model["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}  # it names the node's origin, which torch would look up
    replaced = {_SAMPLES: b"", _MODEL: json.dumps(model).encode()}
    copied = io.BytesIO()
    with zipfile.ZipFile(copied, "w", zipfile.ZIP_STORED) as trusted:
        for record, name in records.items():
            trusted.writestr(
                f"program/{record}", replaced[record] if record in replaced else archive.read(name)
            )
    copied.seek(0)
    return copied


def _json(path: Path, archive: zipfile.ZipFile, name: str) -> Any:
    try:
        return json.loads(archive.read(name))
    except ValueError:
        raise _damaged(path, f"{name} is not valid JSON") from None


def _check_payloads(path: Path, name: str, config: Any, allowed: re.Pattern[str]) -> None:
    for payload in config["config"].values():
        if payload.get("use_pickle") is not False or not allowed.fullmatch(payload["path_name"]):
            raise _refused(path, f"its {name} names the pickled record {payload['path_name']}")


def _check_graph(path: Path, model: Any) -> None:
    if model.get("guards_code"):
        raise _refused(path, "it has guards, which are Python code")
    for key, value in _items(model):
        if key == "target" and isinstance(value, str) and not _is_known(value):
            raise _refused(path, f"it calls {value}")
        if key == "expr_str" and not (isinstance(value, str) and _SIZE.fullmatch(value)):
            raise _refused(path, f"its size {value!r} is more than arithmetic")
        if key in ("in_spec", "out_spec") and not _is_plain(value):
            raise _refused(path, f"its {key} has types beyond tuples, lists and dictionaries")
        if key in ("as_graph", "as_custom_obj", "as_operator"):
            raise _refused(path, f"it has an argument {key}")


def _is_known(target: str) -> bool:
    """Whether a call is arithmetic on sizes, or one of torch's own operators that opens no file."""
    if _ARITHMETIC.fullmatch(target):
        return True
    match = _ATEN.fullmatch(target)
    overload = getattr(getattr(torch.ops.aten, match[1], None), match[2], None) if match else None
    if not isinstance(overload, torch._ops.OpOverload):
        return False
    return all(argument.name != "filename" for argument in overload._schema.arguments)


def _is_plain(spec: Any) -> bool:
    """Whether inputs or outputs have only built-in types; torch imports the modules of others."""
    try:
        types = {value for key, value in _items(json.loads(spec)) if key == "type"}
        contexts = {value for key, value in _items(json.loads(spec)) if key == "context"}
    except (TypeError, ValueError):
        return spec is None
    allowed = {None, *(f"builtins.{name}" for name in ("tuple", "list", "dict"))}
    return types <= allowed and all(c is None or re.fullmatch(r'null|\[[\w", ]*\]', c) for c in contexts)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields every key and value in nested JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _items(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _items(inner)
