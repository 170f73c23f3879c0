"""The differentiable search and the integer program side by side: a table and two pictures a target."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from rich.table import Table

from lana_ray.report.artifacts import Row
from lana_ray.report.canvas import BLUE, GREY, VERMILION, picture
from lana_ray.report.numbers import number, percent
from lana_ray.report.table import add_row, empty_table
from lana_ray.search.front import front, hypervolume
from lana_ray.storage import Storage

NAMES = {"differentiable": "differentiable search", "program": "integer program"}
SEARCH_CAPTIONS = {
    "fronts": (
        "Searches",
        "Every trial of lana-ray search, measured on the target; accuracy on validation images. The steps "
        "are the most accurate within each cost.",
    ),
    "lambdas": (
        "What λ comes to",
        "λ is by how much the loss may rise for saving all that the reference network costs.",
    ),
}
"""Title and caption of each picture."""
_LOOKS = {"differentiable": (BLUE, "o"), "program": (VERMILION, "s")}
_AXES = {
    "latency_ms": "latency (ms per batch)",
    "peak_memory_mb": "peak memory (MB)",
    "energy_mj": "energy (mJ per batch)",
    "params": "parameters",
    "macs": "multiply-accumulates per input",
}
"""What a cost is called, with its unit."""


def searches_table(rows: Sequence[Row]) -> Table:
    """One row per target and method of ``search.parquet``."""
    table = empty_table(
        f"Searches: accuracy on validation images against {_axis(rows)}",
        text=("target", "method"),
        numbers=(
            "trials",
            "on the\nfront",
            "best accuracy\nover budgets",
            "accuracy\nat 70 %",
            "accuracy\nat 50 %",
            "seconds\na search",
        ),
        long="collapsed",
    )
    for target, method in dict.fromkeys((row["target"], row["method"]) for row in rows):
        mine = _of(rows, target, method)
        points, most = _points(mine), mine[0]["teacher_cost"]
        at = [
            max((accuracy for cost, accuracy in points if cost <= share * most), default=None)
            for share in (0.7, 0.5)
        ]
        add_row(
            table,
            target,
            NAMES[method],
            str(len(mine)),
            str(len(front(points))),
            percent(hypervolume(points, most=most)),
            *(percent(accuracy) for accuracy in at),
            number(sum(row["search_s"] for row in mine) / len(mine)),
            str(sum(row["collapsed"] for row in mine)),
        )
    return table


@picture
def fronts_plot(axes: Axes, rows: Sequence[Row]) -> None:
    """Accuracy against the measured cost of every trial of a target, and each method's front."""
    teacher_cost = rows[0]["teacher_cost"]
    for method in dict.fromkeys(row["method"] for row in rows):
        points = _points([row for row in rows if row["method"] == method])
        colour, marker = _LOOKS[method]
        axes.scatter(
            [cost for cost, _ in points],
            [100 * accuracy for _, accuracy in points],
            28,
            colour,
            marker=marker,
            alpha=0.7,
            linewidth=0,
            label=NAMES[method],
        )
        best = front(points)
        ends = [*(cost for cost, _ in best), max(teacher_cost, best[-1][0])]
        levels = [100 * accuracy for _, accuracy in best]
        axes.step(ends, [*levels, levels[-1]], where="post", color=colour, linewidth=1.2)
    axes.axvline(teacher_cost, color=GREY, linestyle=(0, (4, 3)), linewidth=1, label="teacher")
    axes.set(xlabel=f"measured {_axis(rows)}", ylabel="validation accuracy, not fine-tuned (%)")


@picture
def lambdas_plot(axes: Axes, rows: Sequence[Row]) -> None:
    """Which cost each λ of the differentiable search came to."""
    known = sorted((row["lambda"], row["predicted_cost"], row["measured_cost"]) for row in rows)
    lambdas, predicted, measured = zip(*known, strict=True)
    axes.plot(lambdas, predicted, color=GREY, linewidth=1, label="predicted")
    axes.scatter(lambdas, measured, 28, BLUE, linewidth=0, zorder=3, label="measured")
    axes.axhline(rows[0]["teacher_cost"], color=GREY, linestyle=(0, (4, 3)), linewidth=1, label="teacher")
    axes.set(xscale="log", xlabel="λ", ylabel=_axis(rows))


def search_pictures(rows: Sequence[Row], target: str) -> dict[str, str]:
    """The pictures of a target by name: ``fronts``, and ``lambdas`` where λ was swept."""
    mine = [row for row in rows if row["target"] == target]
    pictures = {"fronts": fronts_plot(mine)} if mine else {}
    with_lambda = [row for row in mine if row["lambda"] is not None]
    return pictures | ({"lambdas": lambdas_plot(with_lambda)} if with_lambda else {})


def write_search_plots(storage: Storage, rows: Sequence[Row]) -> list[str]:
    """Writes ``search/<target>-<picture>.svg``; where they are."""
    names = []
    for target in dict.fromkeys(row["target"] for row in rows):
        for name, svg in search_pictures(rows, target).items():
            file = f"search/{target}-{name}.svg"
            storage.write_text(file, svg)
            names.append(storage.url(file))
    return names


def _of(rows: Sequence[Row], target: str, method: str) -> list[Row]:
    return [row for row in rows if (row["target"], row["method"]) == (target, method)]


def _axis(rows: Sequence[Row]) -> str:
    return _AXES[rows[0]["cost"]]


def _points(rows: Sequence[Row]) -> list[tuple[float, float]]:
    return [(row["measured_cost"], row["accuracy"]) for row in rows]
