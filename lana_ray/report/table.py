"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text

from lana_ray.predictors.fits import Fit
from lana_ray.registry import Version
from lana_ray.report.numbers import number, percent, spread
from lana_ray.run_dir.summary import Result

MEASURED = "measured\nms ± IQR"


def results_table(teacher: str, results: Iterable[Result]) -> Table:
    """A row per target and budget; latencies are in milliseconds per batch."""
    table = empty_table(
        f"Students of {teacher}",
        text=("target", "budget"),
        numbers=(
            "budget\nms",
            MEASURED,
            "teacher\nms",
            "speed-up",
            "accuracy",
            "teacher\naccuracy",
        ),
        long="registered model",
    )
    for row in results:
        uri = row.model_uri
        add_row(
            table,
            row.target,
            row.budget,
            number(row.budget_ms),
            spread(row.measured_ms, row.iqr_ms),
            number(row.teacher_ms),
            f"{row.speedup:.2f}×",
            percent(row.accuracy),
            percent(row.teacher_accuracy),
            Text(uri) if uri else Text(row.problem or "not registered", style="yellow"),
        )
    return table


def models_table(versions: Iterable[Version]) -> Table:
    """A row per version in the registry."""
    table = empty_table(
        "Registered models",
        text=("target", "budget"),
        numbers=("latency\nms", "speed-up", "accuracy", "teacher\naccuracy"),
        long="model",
    )
    table.add_column("aliases", overflow="fold")
    for version in versions:
        tags = version.tags
        add_row(
            table,
            tags["target"],
            tags["budget"],
            number(float(tags["latency_ms"])),
            f"{float(tags['speedup']):.2f}×",
            percent(float(tags["accuracy"])),
            percent(float(tags["teacher_accuracy"])),
            version.model_uri,
            ", ".join(version.aliases),
        )
    return table


def fits_table(fits: Iterable[Fit]) -> Table:
    """The learning curves of predictors; errors are those on test networks."""
    table = empty_table(
        "Predictors: errors on test networks",
        text=("target",),
        numbers=("training\nnetworks", "median\nerror", "within\n±5 %", "within\n±10 %", "Spearman"),
        long="predictor",
    )
    for fit in fits:
        for count, quality in fit.curve:
            add_row(
                table,
                str(fit.id.target),
                str(count),
                percent(quality.median_error),
                percent(quality.within_5),
                percent(quality.within_10),
                f"{quality.spearman:.3f}",
                fit.file if quality is fit.quality else "",
            )
    return table


def empty_table(title: str, *, text: Iterable[str], numbers: Iterable[str], long: str) -> Table:
    """An empty table; on a narrow terminal its texts and spreads may wrap, its numbers never do."""
    table = Table(
        title=Text(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=0,
    )
    for heading in text:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=heading != MEASURED)
    table.add_column(long, overflow="fold")
    return table


def add_row(table: Table, *cells: str | Text) -> None:
    """Adds a row of literal texts: brackets are not markup."""
    table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in cells))
