"""The command line: exit statuses, one-line errors, and the recipes of jobs/ through ``plan``."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.models import CommandInfo

from lana_ray import cli, pipeline
from lana_ray.config import load_config

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "jobs").glob("*.yaml"))
LARGE = {"imagenet_efficientnet_b4", "imagenet_efficientnet_b6", "imagenet_efficientnetv2_b3"}
"""Recipes of thousands of candidates, which take half a minute each to plan; another has all their kinds."""


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit status of ``lana-ray`` called with these arguments."""
    monkeypatch.setattr(sys, "argv", ["lana-ray", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_help_lists_every_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    commands = [name for name, _ in re.findall(r"^│ ([a-z]+) +([A-Z])", shown, re.MULTILINE)]
    assert {"run", "plan", "fit", "search", "doctor", "models", "verify"} < set(commands)
    stages = [name for name in commands if name in pipeline.STAGES]
    assert stages == [stage for stage in pipeline.STAGES if stage != "teacher"]
    for stage in stages[:-1]:
        assert f"Run the stages up to and including {stage}" in shown


@pytest.mark.parametrize("command", cli.app.registered_commands, ids=lambda c: c.name or c.callback.__name__)
def test_every_command_says_what_it_needs_and_gives_an_example(command: CommandInfo) -> None:
    assert command.callback is not None
    help_text = command.callback.__doc__ or ""
    assert "Needs" in help_text
    assert f"Example: lana-ray {command.name or command.callback.__name__}" in help_text


def test_without_a_command_the_help_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch) == 0
    assert "Usage: lana-ray" in capsys.readouterr().out


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"lana-ray {importlib.metadata.version('lana-ray')}\n"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["pln", "a.yaml"], ["pln", "did you mean plan?"]),
        (["frobnicate"], ["frobnicate", "use one of run, plan"]),
        (["--verison"], ["--verison", "did you mean --version?"]),
        (["plan"], ["plan: ", "missing argument CONFIG.yaml"]),
        (["verify"], ["verify: ", "missing argument MODEL_URI"]),
        (["plan", "a.yaml", "--sett", "b=c"], ["plan: ", "--sett", "did you mean --set?"]),
        (["doctor", "--adress", "x"], ["doctor: ", "--adress", "did you mean --address?"]),
        (["run", "a.yaml", "run.seed=3"], ["run: ", "run.seed=3", "--set KEY.PATH=VALUE"]),
        (["run", "a.yaml", "b.yaml"], ["run: ", "b.yaml", "lana-ray run --help"]),
        (["plan", "a.yaml", "--set"], ["plan: ", "--set requires an argument"]),
        (["models", "-x"], ["models: ", "-x"]),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: list[str],
    names: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, *arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("lana-ray: ")
    assert shown.err.count("\n") == 1
    for words in names:
        assert words in shown.err


def test_an_interrupted_command_exits_as_shells_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_load", interrupted)
    assert call(monkeypatch, "plan", "a.yaml") == 130


def test_an_empty_tracking_uri_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert call(monkeypatch, "models") == 2
    assert "set MLFLOW_TRACKING_URI" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such configuration file"),
        ("teacher: [", "not valid YAML"),
        ("techer: {timm: resnet18}", "unknown key techer; did you mean teacher?"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_status_2(
    content: str | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_text(content)
    assert call(monkeypatch, "plan", str(file)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(file) in error
    assert message in error


@pytest.mark.parametrize("command", ["plan", "run"])
def test_what_a_runtime_cannot_do_is_refused_before_anything_runs(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "run: {dir: made}\nteacher: {timm: resnet18}\ndata: {source: digits}\n"
        "targets: [{name: edge, runtime: openvino, device: cuda}]\nbudgets: {latency_ms: 50%}\n"
    )
    assert call(monkeypatch, command, str(file)) == 2
    assert capsys.readouterr().err.count("target 'edge': runtime openvino does not run on cuda; set its") == 1
    assert not (tmp_path / "made").exists()


def test_without_a_registry_the_mend_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert call(monkeypatch, "models") == 2
    assert "MLFLOW_TRACKING_URI" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid(recipe: Path) -> None:
    assert load_config(recipe).targets


@pytest.mark.parametrize(
    "recipe", [path for path in RECIPES if path.stem not in LARGE], ids=lambda path: path.stem
)
def test_a_recipe_can_be_planned(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(recipe)
    assert call(monkeypatch, "plan", str(recipe), "--set", f"run.dir={tmp_path}/run") == 0
    shown = capsys.readouterr().out
    for target in config.targets:
        assert target.name in shown
    assert ("│ search " in shown) == ("search" in config.model_fields_set)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("search", "says"),
    [
        (
            "{grid: [0, 0.5, 2], seeds: 3, steps: 205}",
            [
                "9 trials of the differentiable search, λ of 0, 0.5, 2 with 3 seeds each, 200 steps",
                "12 trials of the integer program, each with a drawn budget",
            ],
        ),
        (
            "{aim: budget, methods: [differentiable]}",
            ["12 trials of the differentiable search, each with a drawn budget"],
        ),
        (
            "{trials: 4, cells: {space: nasbench201, width: 8, cells: 1, samples: 99999, active: 5}}",
            [
                "cells of nasbench201: 1.6e+04 architectures",
                "edge: 15625 random and 5 chosen cells, at most 130 minutes",
                "4 trials, each with a drawn λ from 0.003 to 3",
                "each trial's network is trained for 2 epochs, the best for each budget for 2",
            ],
        ),
    ],
)
def test_a_search_is_planned(
    search: str,
    says: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "teacher: {timm: resnet18}\ndata: {source: digits}\ntargets: [{name: edge}]\n"
        f"budgets: {{latency_ms: 50%}}\nsearch: {search}\n"
    )
    assert call(monkeypatch, "plan", str(file)) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in says:
        assert words in shown


def test_help_is_shown_on_a_terminal_of_ascii_alone() -> None:
    command = [sys.executable, "-m", "lana_ray.cli", "search", "--help"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "sweep both searches" in done.stdout
    assert done.stdout.isascii()


def test_a_working_directory_that_was_deleted_is_told(tmp_path: Path) -> None:
    command = f'cd "{tmp_path}" && rmdir "{tmp_path}" && "{sys.executable}" -m lana_ray.cli plan /x.yaml'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "working directory" in done.stderr


def test_a_notebooks_backend_that_is_missing_here_does_no_harm() -> None:
    code = """if True:
        import contextlib, os
        with contextlib.suppress(ValueError):  # as other packages try
            import matplotlib
        import lana_ray.report
        import matplotlib
        print(os.environ["MPLBACKEND"], matplotlib.__name__)
    """
    environment = {**os.environ, "MPLBACKEND": "module://absent.backend"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["module://absent.backend", "matplotlib"], done.stderr
