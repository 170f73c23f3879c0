"""Identity of the code that computes a result, which is part of the result's key."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import lana_ray
from lana_ray.errors import UserError
from lana_ray.run_dir.fingerprint import fingerprint

_COMPUTING = {"torch": "torch", "timm": "timm", "PIL": "pillow", "onnx": "onnx", "onnxscript": "onnxscript"}
"""Packages whose version may change a number, by import name. Runtimes are part of a target's identity."""
_CARRYING = (
    "config",
    "costs.samples",
    "errors",
    "ids",
    "monitoring.progress",
    "networks.factories",
    "redact",
    "run_dir.code_version",
    "run_dir.layout",
    "run_dir.resumable",
    "run_dir.storage",
    "run_dir.tables",
    "workspace",
)
"""Modules that store, print or pass on results of others; their code changes no number."""

_PACKAGE = "__init__.py"


@functools.cache
def method_version(*modules: str) -> str:
    """Identity of a computation, part of the keys of its results.

    It covers the code of ``modules`` and of all they import from this package except ``_CARRYING``, and the
    versions of the ``_COMPUTING`` packages that this code imports. Comments and docstrings do not count.

    Args:
        modules: names below ``lana_ray``, such as ``distill.step``.
    """
    return code_version(method_files(*modules), Path(lana_ray.__file__).parent)


def method_files(*modules: str) -> list[Path]:
    """The files that ``method_version`` covers."""
    root = Path(lana_ray.__file__).parent

    def file_of(module: str) -> Path:
        file = _python_file(root.joinpath(*module.split(".")))
        assert file is not None, f"no such module: {module}"
        return file

    return closure(map(file_of, modules), root.parent, top=root.name, without=list(map(file_of, _CARRYING)))


@functools.cache
def installed_code() -> dict[str, str]:
    """Versions of this package and of those it computes with, which must be equal on all nodes that train."""
    root = Path(lana_ray.__file__).parent
    files = {file.relative_to(root).as_posix(): file.read_text() for file in root.rglob("*.py")}
    packages = ("torch", "timm", "pillow")
    return {"lana_ray": fingerprint(files), **{name: public_version(name) for name in packages}}


def check_code(expected: Mapping[str, str]) -> None:
    """Raises UserError if this node's ``installed_code`` differs from the driver's."""
    other = [name for name, version in installed_code().items() if version != expected[name]]
    if other:
        raise UserError(
            "changed",
            f"node {platform.node()}: {', '.join(other)} differs from the driver's; install the same "
            "versions on every node, and do not change them during a run",
        )


def code_version(files: Sequence[Path], root: Path) -> str:
    """Identity of what Python files compute, see ``method_version``.

    Args:
        root: the folder that file names are relative to, so that it may lie elsewhere on another machine.
    """
    trees = {_relative(file, root): _tree(file) for file in files}
    imported = {name.partition(".")[0] for tree in trees.values() for name, _ in _imports(tree)}
    packages = {name: public_version(_COMPUTING[name]) for name in sorted(imported & _COMPUTING.keys())}
    return fingerprint({name: ast.unparse(tree) for name, tree in trees.items()}, packages)


def source_version(file: Path) -> str:
    """Identity of one file's code alone."""
    return fingerprint(ast.unparse(_tree(file)))


def public_version(package: str) -> str:
    """The installed version without its build, which differs between nodes: 2.14.1+cu130, 2.14.1+cpu."""
    try:
        return importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return ""


def closure(
    starts: Iterable[Path], folder: Path, *, top: str | None = None, without: Sequence[Path] = ()
) -> list[Path]:
    """Python files and everything they import from one folder, sorted; no code is executed.

    Args:
        folder: the folder in which absolute imports are resolved.
        top: if given, absolute imports of other packages are ignored.
        without: files to leave out, with what only they import; ``__init__.py`` stands for its package.
    """
    left_out = {file.parent if file.name == _PACKAGE else file for file in without}
    files: set[Path] = set()
    pending = list(starts)
    while pending:
        file = pending.pop()
        if file in files:
            continue
        files.add(file)
        for name, level in _imports(_tree(file)):
            if not level and top is not None and name.partition(".")[0] != top:
                continue
            base = file.parents[level - 1] if level else folder
            inner = _python_file(base.joinpath(*filter(None, name.split("."))))
            if inner is not None and left_out.isdisjoint((inner, *inner.parents)):
                pending.append(inner)
    return sorted(files)


def _relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


def _python_file(path: Path) -> Path | None:
    """The file of a module or package at a path without suffix."""
    options = (path / _PACKAGE, path.parent / f"{path.name}.py")
    return next((file for file in options if file.is_file()), None)


def _imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that may be modules, with the number of dots before each."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = node.module or ""
            yield name, node.level
            yield from ((f"{name}.{alias.name}", node.level) for alias in node.names)


def _tree(file: Path) -> ast.Module:
    status = file.stat()
    return _parsed(file, status.st_mtime_ns, status.st_size)


@functools.cache
def _parsed(file: Path, *_: int) -> ast.Module:
    """The syntax tree of a file without its docstrings."""
    content = file.read_bytes()
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # for another version of Python; imported only there
        return ast.Module([ast.Expr(ast.Constant(content))], [])
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)] or [ast.Pass()]
    return tree


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
