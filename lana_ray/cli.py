"""The command line: ``lana-ray …``."""

from __future__ import annotations

import difflib
import importlib.metadata
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lana_ray.config import Config, load_config
from lana_ray.errors import UserError
from lana_ray.monitoring.progress import console, say, simplify
from lana_ray.monitoring.signals import SHELL, end_as_exceptions_do, ended_by
from lana_ray.redact import without_passwords

if TYPE_CHECKING:  # commands import only what they need, so that they start fast
    from lana_ray.predictors.fits import Fit
    from lana_ray.run_dir.storage import Storage

UsageError: type[Any] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")
"""The exception that typer raises for a wrong option, argument or command: click's, or typer's copy of it."""

app = typer.Typer(
    name="lana-ray",
    help="Latency-aware network acceleration: a trained network in, a faster one for every target out.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The run's configuration.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a setting; may be repeated."),
]
Registry = Annotated[
    str | None,
    typer.Option(help="MLflow's tracking URI, or a run directory; MLFLOW_TRACKING_URI by default."),
]


def _load(config: Path, overrides: list[str] | None) -> Config:
    return load_config(config, tuple(overrides or ()))


@app.callback()
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"lana-ray {importlib.metadata.version('lana-ray')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def run(config: ConfigFile, set: Overrides = None) -> None:
    """Run every stage and print a table of the registered models.

    Needs a configuration, its teacher and its data. All results are kept in run.dir, so the same command
    resumes a killed run. Writes summary.json and report.html there, and one registered model per target
    to MLflow.

    Example: lana-ray run jobs/quickstart.yaml --set run.dir=runs/quickstart
    """
    loaded = _load(config, set)
    _until(loaded, "report")
    say(f"report: {loaded.run.dir}/report.html")


def _until(config: Config, stage: str) -> None:
    from lana_ray import pipeline
    from lana_ray.report.table import results_table

    summary = pipeline.run(config, until=stage)
    if summary is not None:
        console.print(results_table(summary.teacher.name, summary.results))
        for unmet in summary.unmet:
            say(f"no student: {unmet}")


def _stage(name: str, result: str, written: str, override: str = "") -> None:
    """Adds a command that runs the stages up to and including one."""

    def command(config: ConfigFile, set: Overrides = None) -> None:
        _until(_load(config, set), name)

    command.__doc__ = f"""Run the stages up to and including {name}: {result}.

    Needs the same as run. Writes {written} in run.dir.

    Example: lana-ray {name} jobs/quickstart.yaml{override}
    """
    app.command(name)(command)


@app.command()
def plan(config: ConfigFile, set: Overrides = None) -> None:
    """Print what would run, how much and on which nodes.

    Needs a configuration; loads its teacher and, if present, its data. Runs and writes nothing.

    Example: lana-ray plan jobs/quickstart.yaml
    """
    from lana_ray.commands.plan import plan as make

    console.print(make(_load(config, set)), markup=False)


_stage("sample", "the cost table of every target", "samples/ and costs/")


@app.command()
def fit(config: ConfigFile, set: Overrides = None) -> None:
    """Run the stages up to and including sample, then fit latency predictors and print their errors.

    Needs the same as run. Writes the predictors and their plots in run.dir.

    Example: lana-ray fit jobs/quickstart.yaml --set targets.0.measure.architectures=200
    """
    from lana_ray import pipeline
    from lana_ray.run_dir.storage import Storage

    loaded = _load(config, set)
    _show_fits(Storage(loaded.run.dir), pipeline.fit_predictors(loaded))


def _show_fits(storage: Storage, fits: Sequence[Fit]) -> None:
    from lana_ray.report.plots import sampling_notes, write_fit_plots
    from lana_ray.report.table import fits_table

    console.print(fits_table(fits))
    for note in sampling_notes(fits):
        say(note)
    _show_plots(write_fit_plots(storage, fits))


def _show_plots(paths: Sequence[str]) -> None:
    for path in paths:
        say(f"plot: {path}")


_stage("distill", "the trained candidates of every layer", "candidates/")
_stage("score", "how much each candidate alone changes the network's outputs", "scores.parquet")
_stage(
    "select",
    "one measured architecture for every target and budget",
    "selections.parquet",
    " --set 'budgets.latency_ms=[60%]'",
)


@app.command()
def search(config: ConfigFile, set: Overrides = None) -> None:
    """Run the stages up to and including score, then sweep both searches on every target.

    Needs the same as run. Writes search.parquet, plots and search.html in run.dir, and every trial to
    MLflow. With search.cells, trains the best cells for each budget in full and registers them.

    Example: lana-ray search jobs/quickstart.yaml --set search.trials=10
    """
    from lana_ray import pipeline
    from lana_ray.ids import CostId
    from lana_ray.predictors.fits import read_fit
    from lana_ray.report.searches import (
        lambda_table,
        repeated,
        searches_table,
        write_search_page,
        write_search_plots,
    )
    from lana_ray.report.table import results_table
    from lana_ray.run_dir import layout
    from lana_ray.run_dir.storage import Storage
    from lana_ray.run_dir.summary import SearchSummary

    loaded = _load(config, set)
    rows, storage = pipeline.search_architectures(loaded), Storage(loaded.run.dir)
    if loaded.search.cells is not None:  # costs of layers are a table
        costs = [CostId(loaded.search.cost, target.name) for target in loaded.targets]
        fits = [read_fit(storage, rows[0].space, of) for of in costs]
        _show_fits(storage, [fit for fit in fits if fit is not None])
    console.print(searches_table(rows))
    if repeated(rows):
        console.print(lambda_table(rows))
    if loaded.search.cells is not None:
        summary = SearchSummary.read(storage)
        console.print(results_table(summary.teacher, summary.results))
    _show_plots(write_search_plots(storage, rows))
    write_search_page(storage, loaded.ray.node_price_per_hour)
    say(f"report: {storage.url(layout.SEARCH_PAGE)}")


_stage(
    "finetune", "students trained as a whole, tested and measured", "students/", " --set finetune.epochs=10"
)
_stage("profile", "what each layer of teacher and students takes", "profiles/")
_stage(
    "register",
    "models in the registry, and summary.json",
    "one registered model per target to MLflow, and summary.json",
)


@app.command()
def report(config: ConfigFile, set: Overrides = None) -> None:
    """Write report.html of a finished run again, and search.html of finished searches.

    Needs the run directory. Runs no other stage.

    Example: lana-ray report jobs/quickstart.yaml
    """
    from lana_ray.report.page import write_page
    from lana_ray.report.searches import has_searches, write_search_page
    from lana_ray.report.table import results_table
    from lana_ray.run_dir import layout
    from lana_ray.run_dir.storage import Storage
    from lana_ray.run_dir.summary import Summary

    loaded = _load(config, set)
    storage, price = Storage(loaded.run.dir), loaded.ray.node_price_per_hour
    if has_searches(storage):
        write_search_page(storage, price)
        say(f"report: {storage.url(layout.SEARCH_PAGE)}")
        if not storage.exists(layout.SUMMARY):
            return
    write_page(storage, price)
    summary = Summary.read(storage)
    console.print(results_table(summary.teacher.name, summary.results))
    say(f"report: {storage.url(layout.REPORT)}")


@app.command("config")
def show_config() -> None:
    """Print every setting with its meaning and default, as a YAML file to start from.

    Needs and writes nothing.

    Example: lana-ray config > mine.yaml
    """
    from lana_ray.config.document import documented

    print(documented(), end="")


@app.command()
def doctor(address: Annotated[str | None, typer.Option(help="Address of a cluster.")] = None) -> None:
    """Print the nodes of this machine or a cluster, the targets they can serve, and what is missing.

    Needs nothing, or the address of a running cluster. Writes nothing.

    Example: lana-ray doctor --address 10.0.0.1:6379
    """
    from lana_ray.commands.doctor import diagnose, render

    console.print(render(diagnose(address)))


@app.command()
def models(
    target: Annotated[str | None, typer.Option(help="Print only the models of this target.")] = None,
    registry: Registry = None,
) -> None:
    """Print the registered models as a table.

    Needs a registry. Writes nothing.

    Example: lana-ray models --registry runs/quickstart --target ort-1t
    """
    from lana_ray.registry import list_models
    from lana_ray.report.table import models_table

    console.print(models_table(list_models(_tracking_uri(registry), target)))


@app.command()
def verify(
    model_uri: Annotated[str, typer.Argument(metavar="MODEL_URI", help="models:/NAME/VERSION or @ALIAS")],
    target: Annotated[
        str | None, typer.Option(help="Target that this machine serves; the model must be registered for it.")
    ] = None,
    registry: Registry = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration with the command line of a target with the runtime command."),
    ] = None,
) -> None:
    """Check a registered model's outputs and accuracy, and measure its latency again.

    Needs the registry and a machine like the target. Writes nothing. Exits with status 1 if a check fails.

    Example: lana-ray verify models:/NAME@champion --registry runs/quickstart
    """
    from lana_ray.commands.verify import render
    from lana_ray.commands.verify import verify as check

    settings = None if config is None else _load(config, None)
    verification = check(model_uri, tracking_uri=_tracking_uri(registry), target=target, config=settings)
    console.print(render(verification))
    if not verification.ok:
        raise typer.Exit(1)


def _tracking_uri(option: str | None) -> str:
    uri = option or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise UserError(
            "invalid_setting",
            "no registry: set MLFLOW_TRACKING_URI, or --registry to a run directory or a tracking URI",
        )
    if "://" in uri:
        return uri
    database = Path(uri) / "mlflow.db"
    if not database.is_file():
        raise UserError(
            "missing_file", f"--registry {uri}: has no mlflow.db; name the run directory of a registered run"
        )
    return f"sqlite:///{database.resolve()}"


def _check_folder() -> None:
    """Raises UserError if the working directory is gone; torch's import would fail with an obscure line."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("missing_file", "the working directory was deleted; change to another one") from None


def _explain(error: Any) -> str:
    """Returns a line with the command, what is wrong with it, and the nearest option or command."""
    context = error.ctx
    command = context.command_path if context else " ".join(("lana-ray", *sys.argv[1:2]))
    words = [option for parameter in context.command.params for option in parameter.opts] if context else []
    names = list(getattr(context.command, "commands", {})) if context else []
    if hasattr(error, "possibilities"):
        what, hint = f"no option {error.option_name}", _nearest(error.option_name, [*words, "--help"])
    elif names and error.message.startswith("No such command"):
        word = error.message.split("'")[1]
        what, hint = f"no command {word}", _nearest(word, names)
    else:
        text = " ".join(error.format_message().split()).rstrip(".").replace("'", "")
        text = text.replace("argument(s)", "argument").replace("Got unexpected", "unexpected")
        what, hint = text[:1].lower() + text[1:], ""
        if "extra argument" in text and "=" in text:
            hint = "; override settings with --set KEY.PATH=VALUE"
    return f"{command}: {what}{hint or f'; see {command} --help'}"


def _nearest(word: str, names: list[str]) -> str:
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; use one of {', '.join(names)}"


def main() -> None:
    """Runs the command line; a user's mistake ends it with one line on stderr and exit status 2.

    A signal ends it with one line too, and with 128 plus the signal's number as exit status.
    """
    # Typer prints the help on stdout itself.
    simplify(sys.stdout)
    end_as_exceptions_do()
    line: str | None = None
    status: str | int | None = 0
    try:
        _check_folder()
        status = app(prog_name="lana-ray", standalone_mode=False)
    except UserError as error:
        line, status = str(error), 2
    except UsageError as error:
        line, status = _explain(error).removeprefix("lana-ray: ").removeprefix("lana-ray "), 2
    except typer.Abort:
        status = SHELL + signal.SIGINT
    except SystemExit as end:
        status = end.code
    except Exception:  # a bug of lana_ray
        line, status = None, 1
        print(without_passwords(traceback.format_exc()), end="", file=sys.stderr)
    if (number := ended_by(status)) is not None:
        line = f"ended by {number.name}; rerun the same command to resume; finished work is kept"
        status = SHELL + number
    if line is not None:
        print(f"lana-ray: {line}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
