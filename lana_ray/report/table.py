"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
    return make_table(
        f"Students of {teacher}",
        text=("target", "budget"),
        numbers=("budget\nms", MEASURED, "teacher\nms", "speed-up", "accuracy", "teacher\naccuracy"),
        long=("registered model",),
        rows=(
            (
                row.target,
                row.budget,
                number(row.budget_ms),
                spread(row.measured_ms, row.iqr_ms),
                number(row.teacher_ms),
                f"{row.speedup:.2f}×",
                percent(row.accuracy),
                percent(row.teacher_accuracy),
                row.model_uri or Text(row.problem or "not registered", style="yellow"),
            )
            for row in results
        ),
    )


def models_table(versions: Iterable[Version]) -> Table:
    """A row per version in the registry."""
    return make_table(
        "Registered models",
        text=("target", "budget"),
        numbers=("latency\nms", "speed-up", "accuracy", "teacher\naccuracy"),
        long=("model", "aliases"),
        rows=(
            (
                version.tags["target"],
                version.tags["budget"],
                number(float(version.tags["latency_ms"])),
                f"{float(version.tags['speedup']):.2f}×",
                percent(float(version.tags["accuracy"])),
                percent(float(version.tags["teacher_accuracy"])),
                version.model_uri,
                ", ".join(version.aliases),
            )
            for version in versions
        ),
    )


def fits_table(fits: Iterable[Fit]) -> Table:
    """The learning curves of predictors; errors are those on test networks."""
    return make_table(
        "Predictors: errors on test networks",
        text=("target",),
        numbers=("training\nnetworks", "median\nerror", "within\n±5 %", "within\n±10 %", "Spearman"),
        long=("predictor",),
        rows=(
            (
                str(fit.id.target),
                str(count),
                percent(quality.median_error),
                percent(quality.within_5),
                percent(quality.within_10),
                f"{quality.spearman:.3f}",
                fit.file if quality is fit.quality else "",
            )
            for fit in fits
            for count, quality in fit.curve
        ),
    )


def make_table(
    title: str,
    *,
    text: Iterable[str],
    numbers: Iterable[str],
    long: Iterable[str],
    rows: Iterable[Sequence[str | Text]],
) -> Table:
    """A table of literal texts: brackets are not markup.

    On a narrow terminal its texts and spreads may wrap, its numbers never do.

    Args:
        text, numbers, long: headings of the first columns, of those to align right, and of the last ones.
    """
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
    for heading in long:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table
