"""The commands in README.md and in the heads of jobs/ and clusters/ still exist, and their settings load."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import mlflow.cli
import pytest
import ray.scripts.scripts
import typer

from lana_ray import cli
from lana_ray.config import Config, load_config
from lana_ray.config.section import LOCATION, Section
from tests.test_jobs import ENTRIES

ROOT = Path(__file__).parents[1]
JOBS, CLUSTERS = ROOT / "jobs", ROOT / "clusters"
README = (ROOT / "README.md").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

PROGRAMS = ("lana-ray", "python", "pytest", "ray", "mlflow", "pip", "docker", "kubectl")
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]+\b|\$")
"""Marks what the reader fills in: ``PATH/train.parquet``, ``gs://BUCKET/runs``, ``$HOME/runs``."""


def _files() -> list[Path]:
    """Whose heads give commands."""
    files = [*JOBS.glob("*.*"), *CLUSTERS.glob("*.yaml"), *(CLUSTERS / "kuberay").iterdir()]
    return sorted(path for path in files if path.is_file())


def _head(path: Path) -> str:
    """The docstring of a Python file; the leading comment of any other."""
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(path.read_text())) or ""
    comment = re.match(r"(#.*\n)*", path.read_text())
    return re.sub(r"(?m)^# ?", "", comment[0]) if comment else ""


def _scripts(text: str) -> Iterator[str]:
    """The shell text in a document: fenced or indented blocks, and commands within sentences."""
    block = r"(?ms)^```bash\n(.*?)^```" if "```" in text else r"(?m)((?:^ {2,}.*\n?)+)"
    yield from re.findall(block, text)
    rest = re.sub(r"(?ms)^```.*?^```", "", text)
    for _, code in re.findall(r"(`{1,2})([^`]+)\1", rest):
        if re.match(rf"(--set|(\w+=\S+ )*({'|'.join(PROGRAMS)}))(\s|$)", code):
            yield " ".join(code.split())


def _commands(text: str) -> Iterator[tuple[str, ...]]:
    """The words of each command in a document; a lone ``--set …`` counts as one."""
    for script in _scripts(text):
        plain = re.sub(r"\\\n|\s# .*|\[(?=--)|(?<=\w)\](?=\s|$)", " ", script)
        lexer = shlex.shlex(plain, posix=True, punctuation_chars=";&|<>\n")
        lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) - set(";&|<>\n"):
                words.append(word)
                continue
            while words and re.match(r"\w+=", words[0]):
                del words[0]
            if words and words[0] in (*PROGRAMS, "--set") and words != ["--set"]:
                yield tuple(words)
            words = []


def _documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    """By an identifier of the test: the file that gives the command, and its words."""
    texts = {path.name: _head(path) for path in _files()}
    found = [
        (name, words) for name, text in {"README.md": README, **texts}.items() for words in _commands(text)
    ]
    return {f"{name}: {' '.join(words)}": (name, words) for name, words in found}


DOCUMENTED = _documented()


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """README's example of a configuration of one's own."""
    (example,) = re.findall(r"(?ms)^```yaml\n(.*?)^```", README)
    path = tmp_path / "mine.yaml"
    path.write_text(example)
    return path


def test_commands_of_every_program_and_kind_of_file_are_found() -> None:
    assert {words[0] for _, words in DOCUMENTED.values()} == {*PROGRAMS, "--set"}
    names = {name for name, _ in DOCUMENTED.values()}
    own = {path.name for path in JOBS.glob("*.py")} - {"breakable.py", "cp_sat.py"}  # parts of others
    clusters = {path.name for path in (*CLUSTERS.glob("*.yaml"), *(CLUSTERS / "kuberay").iterdir())}
    assert {"README.md", "cifar10.yaml", *own, *clusters} <= names
    several = next(words for _, words in DOCUMENTED.values() if "run.dir=runs/several" in words)
    assert several[-1].startswith("targets=[{name: ort-1t,")
    assert several[-1].endswith("runtime: openvino}]")


@pytest.mark.parametrize(
    "text", [README, *map(_head, _files())], ids=["README.md", *(p.name for p in _files())]
)
def test_files_that_are_named_exist(text: str) -> None:
    for name in re.findall(r"(?<![\w/.])(?:jobs|clusters|tests)/[\w/.-]*\w", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("key", DOCUMENTED)
def test_a_documented_command_can_be_given(key: str, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the root of the checkout, where all of them are given."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(JOBS))
    name, words = DOCUMENTED[key]
    if words[0] == "--set":
        recipe = JOBS / name if name.endswith(".yaml") else JOBS / "quickstart.yaml"
        words = ("lana-ray", "run", str(recipe), *words)
    _check(tuple(str(mine) if word == mine.name else word for word in words))


def _check(words: tuple[str, ...]) -> None:
    for word in words:
        if re.match(r"(jobs|clusters|tests)/", word):
            assert (ROOT / word.partition("::")[0]).exists(), word
        for extras in re.findall(r"^\.\[([\w,]+)\]$", word):
            assert set(extras.split(",")) <= set(EXTRAS), word
    program, *arguments = words
    if program == "lana-ray":
        _check_click(typer.main.get_command(cli.app), arguments)
    elif program == "ray":
        _check_click(ray.scripts.scripts.cli, arguments)
    elif program == "mlflow":
        _check_click(mlflow.cli.cli, arguments)
    elif program == "python" and arguments and arguments[0].startswith("jobs/"):
        script, *arguments = arguments
        if (entry := ENTRIES.get(Path(script).stem)) is not None:
            _check(("lana-ray", entry, *arguments))
        else:
            app = typer.Typer()
            app.command()(runpy.run_path(script)["main"])
            _check_click(typer.main.get_command(app), arguments)


def _check_click(command: Any, arguments: list[str]) -> None:
    """Parses the arguments as the program does, and loads the configuration that they name."""
    while hasattr(command, "commands") and arguments:
        name, *arguments = arguments
        command = command.get_command(click.Context(command), name)
        assert command is not None, f"no such command: {name}"
        if not arguments:  # a sentence names the command
            return
    parameters = command.make_context(command.name, list(arguments)).params
    if entrypoint := parameters.get("entrypoint"):
        _check(tuple(entrypoint))
    given = [parameters.get(name) for name in ("config", "recipe", "file", "folder")]
    for path in filter(None, given):
        if PLACEHOLDER.search(str(path)):
            continue
        overrides = tuple(parameters.get("set") or ())
        _check_paths(load_config(path, overrides), overrides)


def _check_paths(config: Config, overrides: tuple[str, ...]) -> None:
    """A relative path in an override leads into the checkout, where commands are given; inputs are there."""
    typed = [override.partition("=")[0] for override in overrides]
    for key, value in _locations(config):
        is_typed = any(f"{key}.".startswith(f"{one}.") for one in typed)
        if not is_typed or any(value in override for override in overrides):  # as it is: absolute, or a URL
            continue
        assert Path(value).is_relative_to(ROOT), f"{key}: {value}"
        if key != "run.dir" and not PLACEHOLDER.search(value):
            assert Path(re.sub(r"(?<=\.py):.*", "", value)).exists(), f"{key}: {value}"


def _locations(section: Section, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each setting that holds a path, by its key."""
    for name, field in type(section).model_fields.items():
        value, extra = getattr(section, name), field.json_schema_extra
        if isinstance(value, Section):
            yield from _locations(value, f"{prefix}{name}.")
        elif isinstance(value, str) and isinstance(extra, dict) and extra.get(LOCATION):
            yield f"{prefix}{name}", value
