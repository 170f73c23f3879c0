"""Imports functions that the configuration names, and calls the factory of the teacher."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import random
import re
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from lana_ray.errors import Code, UserError, one_line
from lana_ray.run_dir.code_version import closure
from lana_ray.run_dir.fingerprint import fingerprint

_FAILURES = (Exception, SystemExit)
"""Exceptions that a user's file may raise; a script without ``if __name__ == "__main__"`` may exit."""
_FOLDERS = re.compile(r"_folder_[0-9a-f]{16}\.")
"""Matches the module names that ``import_file`` gives to folders."""


def import_object(path: str, key: str) -> Callable[..., Any]:
    """Imports ``package.module:name`` or ``file.py:name`` and returns the function.

    A file is imported once, under a unique module name, so that ``timm.py`` hides no package. It may import
    its neighbours with ``from .blocks import Block`` or ``from blocks import Block``; in the second form an
    installed package of that name has precedence.

    Raises:
        UserError: it cannot be imported or is not callable; ``key`` names the setting in the message.
    """
    module_name, colon, attribute = path.rpartition(":")
    if not (module_name and colon and attribute):
        raise UserError(
            "invalid_setting",
            f"{key}: {path!r} is not of the form package.module:function or file.py:function",
        )
    try:
        is_file = module_name.endswith(".py")
        module = import_file(Path(module_name)) if is_file else importlib.import_module(module_name)
    except (ImportError, FileNotFoundError, SyntaxError) as error:
        code: Code = "missing_file" if isinstance(error, FileNotFoundError) else "invalid_extension"
        raise UserError(code, f"{key}: {path}: {_FOLDERS.sub('', one_line(error))}") from None
    except _FAILURES as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError("invalid_extension", f"{key}: {path}: {reason}") from error
    if not hasattr(module, attribute):
        raise UserError("unknown_name", f"{key}: {path}: {module_name} has no attribute {attribute!r}")
    value = getattr(module, attribute)
    if not callable(value):
        raise UserError("invalid_extension", f"{key}: {path} is {type(value).__name__}, not a function")
    return value


def import_file(file: Path) -> ModuleType:
    """Executes a file as a module of a package that represents its folder; once unless the file changes.

    Raises:
        ImportError: it is not a Python file.
        Exception: any exception that the file raises.
    """
    file = file.resolve()
    if file.suffix != ".py":
        raise ImportError("not a Python file")
    files = closure([file], file.parent)
    content = fingerprint(str(file.parent), *(each.read_bytes().hex() for each in files))
    package = f"_folder_{content}"
    name = f"{package}.{file.stem}_{content}"
    if name in sys.modules:
        return sys.modules[name]
    _forget(files, file.parent)
    parent = ModuleType(package)
    parent.__path__ = [str(file.parent)]
    sys.modules[package] = parent
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # at the end, so that installed packages have precedence
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name], sys.modules[package]
        raise
    return module


def _forget(files: Sequence[Path], folder: Path) -> None:
    """Makes Python import the files again, which may have changed since they were imported."""
    for file in files:
        name = ".".join(file.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
        if getattr(sys.modules.get(name), "__file__", None) == str(file):
            del sys.modules[name]


def factory_files(factory: str) -> tuple[list[Path], Path]:
    """Returns the Python file of ``teacher.factory`` with the files that it imports, and their root folder.

    Imports are followed within an installed package, or within the folder of a user's own file or package.
    There are no files if the factory is not Python code.
    """
    name = factory.rpartition(":")[0]
    if name.endswith(".py"):
        file = Path(name).resolve()
        return closure([file], file.parent), file.parent
    file = Path(getattr(importlib.import_module(name), "__file__", None) or "")
    if file.suffix != ".py":
        return [], file
    root = file.parents[name.count(".") + (file.name == "__init__.py")]
    is_installed = str(root) in sysconfig.get_paths().values()
    return closure([file], root, top=name.partition(".")[0] if is_installed else None), root


def call_factory(factory: str, num_classes: int) -> nn.Module:
    """Returns the network that ``teacher.factory`` builds.

    A factory that takes no arguments is called without ``num_classes``.

    Raises:
        UserError: the factory cannot be imported, takes other arguments, raises, or returns no module.
    """
    function, key = import_object(factory, "teacher.factory"), f"teacher.factory: {factory}"
    arguments = {"num_classes": num_classes}
    try:
        inspect.signature(function).bind(**arguments)
    except ValueError:
        pass  # a builtin may have no signature; the call itself shows whether it takes the argument
    except TypeError as error:
        if not _takes_nothing(inspect.signature(function)):
            raise UserError("invalid_extension", f"{key} must take num_classes ({one_line(error)})") from None
        arguments = {}
    try:
        network = function(**arguments)
    except _FAILURES as error:
        call = ", ".join(f"{name}={value}" for name, value in arguments.items())
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError("invalid_extension", f"{key}({call}) raised {reason}") from error
    if not isinstance(network, nn.Module):
        raise UserError("invalid_extension", f"{key} returned {type(network).__name__}, not a torch Module")
    return network


def _takes_nothing(signature: inspect.Signature) -> bool:
    """Returns whether a function can be called without arguments and has no parameter ``num_classes``."""
    optional = (p.default is not p.empty or p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
    return all(optional) and "num_classes" not in signature.parameters


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the random generators of torch, NumPy and Python; restores their states afterwards."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
