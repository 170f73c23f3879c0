"""Plots of trade-offs and predictions; every function returns SVG. Latencies are in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from lana_ray.costs.registry import METERS
from lana_ray.predictors.fits import Fit
from lana_ray.report.artifacts import MeasuredStudent
from lana_ray.report.canvas import BLUE, GREEN, GREY, INK, VERMILION, picture, plain_log
from lana_ray.report.numbers import count, number, standard_error
from lana_ray.report.parts import write_svgs
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.summary import Result
from lana_ray.run_dir.tables import ProxyRow

BAND = 0.03
"""Acceptable relative error of a prediction."""
_LATENCY = "measured latency (ms per batch)"
_PREDICTED = "predicted latency (ms per batch)"
_DOT, _SMALL = 46.0, 18.0
_PALE, _PALER = "#d9e8f2", "#ecf3f8"
_SMOOTHED = 20  # a curve is smoothed by a moving mean over 1/20 of its length
_MANY = 100_000
_FRONT_ABOVE = 1.5  # the front is shown up to this multiple of the worst student's score


@picture
def accuracy_plot(axes: Axes, results: Sequence[Result], test_images: int) -> None:
    """Test accuracy against measured latency of fine-tuned students and their teacher.

    Error bars: one standard error of the accuracy, half the interquartile range of the latency on each side.
    """
    teacher_ms, teacher_accuracy = results[0].teacher_ms, results[0].teacher_accuracy
    axes.errorbar(
        [row.measured_ms for row in results],
        [100 * row.accuracy for row in results],
        xerr=[row.iqr_ms / 2 for row in results],
        yerr=[100 * standard_error(row.accuracy, test_images) for row in results],
        fmt="D",
        color=VERMILION,
        markeredgecolor=INK,
        markersize=6.5,
        elinewidth=1.2,
        label="fine-tuned student",
    )
    axes.errorbar(
        teacher_ms,
        100 * teacher_accuracy,
        yerr=100 * standard_error(teacher_accuracy, test_images),
        fmt="*",
        color=INK,
        markersize=13,
        elinewidth=1.2,
        label="teacher",
    )
    axes.set(xlabel=_LATENCY, ylabel="test accuracy (%)")
    budgets = {row.budget: row.budget_ms for row in results}
    _budgets(axes, budgets, [teacher_ms, *(row.measured_ms for row in results)])


@picture
def loss_plot(axes: Axes, students: Sequence[MeasuredStudent], budgets: Mapping[str, float]) -> None:
    """Loss on the score split against measured latency of distilled students before fine-tuning."""
    rated = [(row.measured, row.loss, row.chosen) for row in students if row.loss is not None]
    _marks(axes, rated)
    axes.set(xlabel=_LATENCY, ylabel="loss on the score split (nats)")
    _budgets(axes, budgets, [ms for ms, _, _ in rated])


@picture
def front_plot(
    axes: Axes,
    front: Sequence[tuple[float, float]],
    teacher_ms: float,
    students: Sequence[tuple[float, float, bool]],
    budgets: Mapping[str, float],
) -> None:
    """The exact Pareto front of the cost table, and the measured students.

    Args:
        front: (predicted ms, summed score), cheapest first.
        teacher_ms: the same table's prediction for the teacher, whose score is 0.
        students: (predicted ms by the same table, summed score, whether chosen).
    """
    top = max([score for _, score, _ in students], default=float("inf"))
    shown = [point for point in front if point[1] <= top * _FRONT_ABOVE] or list(front)
    axes.step(*zip(*shown, strict=True), where="post", color=GREEN, linewidth=1.6, label="exact front")
    _marks(axes, students)
    axes.plot(teacher_ms, 0, "*", color=INK, markersize=13, linestyle="none", label="teacher")
    axes.set(xlabel=_PREDICTED, ylabel="summed score (nats)")
    _budgets(axes, budgets, [teacher_ms, *(ms for ms, _ in shown), *(ms for ms, _, _ in students)])


@picture
def proxy_plot(axes: Axes, students: Sequence[ProxyRow]) -> None:
    """True loss of random students against the sum of their candidates' scores."""
    x, y = [row.score for row in students], [row.loss for row in students]
    axes.scatter(x, y, _SMALL, BLUE, alpha=0.75, linewidth=0, label="random student")
    axes.set(xlabel="summed score (nats)", ylabel="loss on the score split (nats)")


@picture
def curves_plot(axes: Axes, families: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Median distillation error by step of each family's candidates, up to the length of most curves.

    Args:
        families: the curves of candidates by family, ‖t − s‖² / ‖t‖² of every step.
    """
    colours = (BLUE, VERMILION, GREEN, INK, "#cc79a7", "#e69f00")
    dashes = ("-", "--", ":", "-.", (0, (6, 1, 1, 1)))  # 5 dashes with 6 colours repeat after 30 families
    for i, (name, curves) in enumerate(sorted(families.items())):
        length = int(np.median([len(curve) for curve in curves]))
        middle = np.median([curve[:length] for curve in curves if len(curve) >= length], axis=0)
        width = max(1, length // _SMOOTHED)
        smooth = np.convolve(middle, np.ones(width) / width, mode="valid")
        steps = np.arange(len(smooth)) + (width + 1) / 2
        colour, dash = colours[i % len(colours)], dashes[i % len(dashes)]
        axes.plot(steps, smooth, color=colour, linestyle=dash, linewidth=1.6, label=name)
    axes.set(xlabel="step", ylabel="normalised error", yscale="log")
    plain_log(axes.yaxis)


@picture
def prediction_plot(axes: Axes, students: Sequence[MeasuredStudent]) -> None:
    """Measured latency of students against the prediction when each was proposed."""
    ends = [value for row in students for value in (row.predicted, row.measured)]
    pad = 0.06 * (max(ends) - min(ends)) or 0.06 * max(ends)
    line = np.array([min(ends) - pad, max(ends) + pad])
    _diagonal(axes, line, {BAND: _PALE})
    _marks(axes, [(row.predicted, row.measured, row.chosen) for row in students])
    axes.set(xlabel=_PREDICTED, ylabel=_LATENCY, xlim=tuple(line), ylim=tuple(line))


@picture
def fit_plot(axes: Axes, fit: Fit) -> None:
    """Measured against predicted cost of a predictor's test networks."""
    line = np.array([min(fit.measured.min(), fit.predicted.min()), fit.measured.max()])
    _diagonal(axes, line, {0.1: _PALER, 0.05: _PALE})
    axes.scatter(fit.predicted, fit.measured, _SMALL, BLUE, alpha=0.75, linewidth=0, label="test network")
    axes.set(
        xlabel=f"predicted {METERS[fit.id.cost].axis}",
        ylabel=f"measured {METERS[fit.id.cost].axis}",
        title=f"{fit.id.target}, {fit.curve[-1][0]} training networks",
    )


@picture
def learning_plot(axes: Axes, fit: Fit) -> None:
    """Errors on the test networks against the number of training networks."""
    sizes = [size for size, _ in fit.curve]
    for name, colour, look, errors in (
        ("mean error", GREY, "s--", [quality.mean_error for _, quality in fit.curve]),
        ("median error", BLUE, "o-", [quality.median_error for _, quality in fit.curve]),
    ):
        axes.plot(sizes, [100 * e for e in errors], look, color=colour, linewidth=1.4, label=name)
    axes.set(
        xlabel="training networks",
        ylabel="relative error (%)",
        xscale="log",
        title=f"{fit.id.target}, {len(fit.measured)} test networks",
    )
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)


def write_fit_plots(storage: Storage, fits: Iterable[Fit]) -> list[str]:
    """Writes ``<target>.svg`` and ``<target>-learning.svg`` next to every predictor; returns their paths."""
    plots = (("", fit_plot), ("-learning", learning_plot))
    svgs = {
        layout.predictor_plot(fit.space, fit.id, ending): plot(fit) for fit in fits for ending, plot in plots
    }
    return write_svgs(storage, svgs)


def networks_of(space: str) -> str:
    """The plural that names the networks of a space."""
    return "cells" if space == "cells" else "students"


def sampling_notes(fits: Iterable[Fit]) -> list[str]:
    """The time to sample as many networks as the paper of LA-DNAS (arXiv 2001.06392)."""
    return [
        f"{fit.id.target}: {number(fit.sample_s)} s from one sample to the next; {count(_MANY)} "
        f"{networks_of(fit.space)}: {number(_MANY * fit.sample_s / 3600)} hours on one sampler, "
        f"{number(_MANY * fit.sample_s / 3600 / 8)} on eight"
        for fit in fits
        if fit.sample_s is not None
    ]


def median_error(students: Sequence[MeasuredStudent]) -> float:
    """Median absolute relative error of the predictions."""
    return float(np.median([abs(row.predicted / row.measured - 1) for row in students]))


def _marks(axes: Axes, students: Sequence[tuple[float, float, bool]]) -> None:
    """Draws students (x, y, whether chosen)."""
    if others := [(x, y) for x, y, is_chosen in students if not is_chosen]:
        x, y = zip(*others, strict=True)
        axes.scatter(x, y, _SMALL, BLUE, alpha=0.75, linewidth=0, zorder=3, label="other student")
    if chosen := [(x, y) for x, y, is_chosen in students if is_chosen]:
        x, y = zip(*chosen, strict=True)
        axes.scatter(x, y, _DOT, VERMILION, marker="D", edgecolor=INK, zorder=4, label="chosen student")


def _diagonal(axes: Axes, line: NDArray[np.float64], bands: Mapping[float, str]) -> None:
    """Draws the line of exact predictions along ``line``, on bands by relative error, the widest first."""
    for share, colour in bands.items():
        low, high, label = line * (1 - share), line * (1 + share), f"±{100 * share:g} %"
        axes.fill_between(line, low, high, color=colour, linewidth=0, label=label)
    axes.plot(line, line, color=GREY, linewidth=1, label="prediction = measurement")


def _budgets(axes: Axes, budgets: Mapping[str, float], values: Sequence[float]) -> None:
    """Draws vertical lines at the budgets with names above; names that would touch are staggered."""
    ends = [*values, *budgets.values()]
    pad = 0.06 * (max(ends) - min(ends)) or 0.06 * max(ends)
    axes.set_xlim(min(ends) - pad, max(ends) + pad)
    before, level = -np.inf, 0
    for i, (name, ms) in enumerate(sorted(budgets.items(), key=lambda item: item[1])):
        level = level + 1 if ms - before < 1.2 * pad * (1 + len(name) / 6) else 0
        before = ms
        label = "budget" if i == 0 else None
        axes.axvline(ms, color=GREY, linestyle=(0, (4, 3)), linewidth=1, zorder=1, label=label)
        axes.annotate(
            name,
            (ms, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(0, 3 + 11 * level),
            textcoords="offset points",
            ha="center",
            color="#555555",
        )
