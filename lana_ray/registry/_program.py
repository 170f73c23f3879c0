"""Reads a registered PyTorch program without running anything that its file brings along.

``torch.export.load`` and ``mlflow.pytorch.load_model`` trust the file: they unpickle some of its records,
evaluate its guards and symbolic expressions, resolve operators by attribute look-up, and load libraries. So
only a copy of the records that a program of plain ATen operators needs, each checked, is given to torch.
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
"""Pickled, and not needed to run a program: it is left out."""
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
"""Numbers, symbols of sizes and their powers, arithmetic, and the functions that torch writes sizes with."""


def load_program(path: Path) -> nn.Module:
    """The program of a ``.pt2`` file.

    Raises:
        UserError: the file is damaged, or holds anything but a program of ATen operators and its tensors: it
            names the record, or the operator.
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
        raise UserError(f"{path}: damaged PyTorch program ({error}); register the model again") from None
    try:
        program = torch.export.load(copied).module(check_guards=False)
    except Exception as error:  # torch.export has no common base for what it cannot read
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: damaged PyTorch program ({reason}); register the model again") from None
    return program


def _refused(path: Path, what: str) -> UserError:
    return UserError(f"{path}: refused, since {what}; a model that lana_ray registered holds nothing like it")


def _records(path: Path, archive: zipfile.ZipFile) -> dict[str, str]:
    """Names in the archive by the records' own names, all of which are known."""
    records = {name.partition("/")[2]: name for name in archive.namelist() if not name.endswith("/")}
    if len(records) < len(archive.namelist()):
        raise _refused(path, "it holds records of the same name")
    for record in records:
        if record not in (_MODEL, _SAMPLES, *_CONFIGS) and not _PLAIN.fullmatch(record):
            raise _refused(path, f"it holds the record {record}")
    return records


def _copy(archive: zipfile.ZipFile, records: dict[str, str], model: Any) -> io.BytesIO:
    for node in model["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}  # where it came from, by names that torch would look up
    instead = {_SAMPLES: b"", _MODEL: json.dumps(model).encode()}
    copied = io.BytesIO()
    with zipfile.ZipFile(copied, "w", zipfile.ZIP_STORED) as trusted:
        for record, name in records.items():
            trusted.writestr(
                f"program/{record}", instead[record] if record in instead else archive.read(name)
            )
    copied.seek(0)
    return copied


def _json(path: Path, archive: zipfile.ZipFile, name: str) -> Any:
    try:
        return json.loads(archive.read(name))
    except ValueError:
        raise UserError(f"{path}: {name} is no JSON; register the model again") from None


def _check_payloads(path: Path, name: str, config: Any, allowed: re.Pattern[str]) -> None:
    for payload in config["config"].values():
        if payload.get("use_pickle") is not False or not allowed.fullmatch(payload["path_name"]):
            raise _refused(path, f"{name} names the pickled record {payload['path_name']}")


def _check_graph(path: Path, model: Any) -> None:
    if model.get("guards_code"):
        raise _refused(path, "it brings guards, which are Python code")
    for key, value in _items(model):
        if key == "target" and isinstance(value, str) and not _is_known(value):
            raise _refused(path, f"it calls {value}")
        if key == "expr_str" and not (isinstance(value, str) and _SIZE.fullmatch(value)):
            raise _refused(path, f"it has the size {value!r}, which is no arithmetic")
        if key in ("in_spec", "out_spec") and not _is_plain(value):
            raise _refused(path, f"its {key} has types beyond tuples, lists and dictionaries")
        if key in ("as_graph", "as_custom_obj", "as_operator"):
            raise _refused(path, f"it has an argument {key}")


def _is_known(target: str) -> bool:
    """Arithmetic on sizes, or an operator of torch itself that opens no file."""
    if _ARITHMETIC.fullmatch(target):
        return True
    match = _ATEN.fullmatch(target)
    overload = getattr(getattr(torch.ops.aten, match[1], None), match[2], None) if match else None
    if not isinstance(overload, torch._ops.OpOverload):
        return False
    return all(argument.name != "filename" for argument in overload._schema.arguments)


def _is_plain(spec: Any) -> bool:
    """Whether inputs or outputs are of built-in types: torch imports the modules of others."""
    try:
        types = {value for key, value in _items(json.loads(spec)) if key == "type"}
        contexts = {value for key, value in _items(json.loads(spec)) if key == "context"}
    except (TypeError, ValueError):
        return spec is None
    known = {None, *(f"builtins.{name}" for name in ("tuple", "list", "dict"))}
    return types <= known and all(c is None or re.fullmatch(r'null|\[[\w", ]*\]', c) for c in contexts)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value in nested JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _items(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _items(inner)
