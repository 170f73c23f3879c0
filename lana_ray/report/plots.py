"""Trade-offs and predictions as pictures; every function returns SVG. Latencies in milliseconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from lana_ray.costs.registry import METERS
from lana_ray.predictors.fits import Fit
from lana_ray.report.artifacts import MeasuredStudent
from lana_ray.report.canvas import BLUE, GREEN, GREY, INK, VERMILION, picture, plain_log
from lana_ray.report.numbers import count, number, standard_error
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.summary import Result
from lana_ray.run_dir.tables import ProxyRow

BAND = 0.03
"""Relative error of a prediction that the design allows."""
_LATENCY = "measured latency (ms per batch)"
_PREDICTED = "predicted latency (ms per batch)"
_DOT, _SMALL = 46.0, 18.0
_SMOOTHED = 20  # parts of a curve, each as long as the mean that smooths it
_MANY = 100_000
_FRONT_ABOVE = 1.5  # how far above the worst student's score the front is still shown


@picture
def accuracy_plot(axes: Axes, results: Sequence[Result], test_images: int) -> None:
    """Test accuracy against measured latency: the fine-tuned students and their teacher.

    Bars are one standard error of the accuracy and half the interquartile range of the latency.
    """
    first = results[0]
    teacher = (first.teacher_ms, first.teacher_accuracy)
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
        teacher[0],
        100 * teacher[1],
        yerr=100 * standard_error(teacher[1], test_images),
        fmt="*",
        color=INK,
        markersize=13,
        elinewidth=1.2,
        label="teacher",
    )
    axes.set(xlabel=_LATENCY, ylabel="test accuracy (%)")
    _budgets(axes, _limits(results), [teacher[0], *(row.measured_ms for row in results)])


@picture
def loss_plot(axes: Axes, students: Sequence[MeasuredStudent], budgets: Mapping[str, float]) -> None:
    """Loss on the score split against measured latency, of distilled students before fine-tuning."""
    rated = [row for row in students if row.loss is not None]
    for chosen in (False, True):
        mine = [row for row in rated if row.chosen == chosen]
        losses = [row.loss for row in mine if row.loss is not None]
        _marks(axes, [row.measured for row in mine], losses, chosen)
    axes.set(xlabel=_LATENCY, ylabel="loss on the score split (nats)")
    _budgets(axes, budgets, [row.measured for row in rated])


@picture
def front_plot(
    axes: Axes,
    front: Sequence[tuple[float, float]],
    teacher_ms: float,
    students: Sequence[tuple[float, float, bool]],
    budgets: Mapping[str, float],
) -> None:
    """The exact front of the cost table, and where the students considered lie.

    Args:
        front: (predicted ms, summed score), cheapest first.
        teacher_ms: what the same table predicts for the teacher, whose score is 0.
        students: (predicted ms by the same table, summed score, chosen).
    """
    top = max([score for _, score, _ in students], default=float("inf"))
    shown = [point for point in front if point[1] <= top * _FRONT_ABOVE] or list(front)
    axes.step(*zip(*shown, strict=True), where="post", color=GREEN, linewidth=1.6, label="exact front")
    for chosen in (False, True):
        mine = [(ms, score) for ms, score, is_chosen in students if is_chosen == chosen]
        _marks(axes, [ms for ms, _ in mine], [score for _, score in mine], chosen)
    axes.plot(teacher_ms, 0, "*", color=INK, markersize=13, linestyle="none", label="teacher")
    axes.set(xlabel=_PREDICTED, ylabel="summed score (nats)")
    _budgets(axes, budgets, [teacher_ms, *(ms for ms, _ in shown), *(ms for ms, _, _ in students)])


@picture
def proxy_plot(axes: Axes, students: Sequence[ProxyRow]) -> None:
    """True loss of random students against the sum of their candidates' scores."""
    axes.scatter(
        [row.score for row in students],
        [row.loss for row in students],
        _SMALL,
        BLUE,
        alpha=0.75,
        linewidth=0,
        label="random student",
    )
    axes.set(xlabel="summed score (nats)", ylabel="loss on the score split (nats)")


@picture
def curves_plot(axes: Axes, families: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Error by step of distillation: the median over each family's candidates, as far as most of them went.

    Args:
        families: name to the curves of its candidates, ‖t − s‖² / ‖t‖² of every step.
    """
    colours = (BLUE, VERMILION, GREEN, INK, "#cc79a7", "#e69f00")
    dashes = ("-", "--", ":", "-.", (0, (6, 1, 1, 1)))  # another number, so that both come together late
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
    """Predicted against measured latency of whole students, each as predicted when it was proposed."""
    ends = [value for row in students for value in (row.predicted, row.measured)]
    pad = 0.06 * (max(ends) - min(ends)) or 0.06 * max(ends)
    line = np.array([min(ends) - pad, max(ends) + pad])
    axes.fill_between(
        line, line * (1 - BAND), line * (1 + BAND), color="#d9e8f2", linewidth=0, label=f"±{100 * BAND:g} %"
    )
    axes.plot(line, line, color=GREY, linewidth=1, label="prediction = measurement")
    for chosen in (False, True):
        mine = [row for row in students if row.chosen == chosen]
        _marks(axes, [row.predicted for row in mine], [row.measured for row in mine], chosen)
    axes.set(xlabel=_PREDICTED, ylabel=_LATENCY, xlim=tuple(line), ylim=tuple(line))


@picture
def fit_plot(axes: Axes, fit: Fit) -> None:
    """Predicted against measured latency of the test architectures of a predictor."""
    line = np.array([min(fit.measured.min(), fit.predicted.min()), fit.measured.max()])
    for share, colour in ((0.1, "#ecf3f8"), (0.05, "#d9e8f2")):
        axes.fill_between(
            line,
            line * (1 - share),
            line * (1 + share),
            color=colour,
            linewidth=0,
            label=f"±{100 * share:g} %",
        )
    axes.plot(line, line, color=GREY, linewidth=1, label="prediction = measurement")
    axes.scatter(
        fit.predicted,
        fit.measured,
        _SMALL,
        BLUE,
        alpha=0.75,
        linewidth=0,
        label="network not trained on",
    )
    axes.set(
        xlabel=f"predicted {METERS[fit.id.cost].axis}",
        ylabel=f"measured {METERS[fit.id.cost].axis}",
        title=f"{fit.id.target}, {fit.curve[-1][0]} networks trained on",
    )


@picture
def learning_plot(axes: Axes, fit: Fit) -> None:
    """Errors on the test architectures against the number of networks trained on."""
    sizes = [size for size, _ in fit.curve]
    for name, colour, look, errors in (
        ("mean error", GREY, "s--", [found.mean_error for _, found in fit.curve]),
        ("median error", BLUE, "o-", [found.median_error for _, found in fit.curve]),
    ):
        axes.plot(sizes, [100 * e for e in errors], look, color=colour, linewidth=1.4, label=name)
    axes.set(
        xlabel="networks trained on",
        ylabel="relative error (%)",
        xscale="log",
        title=f"{fit.id.target}, {len(fit.measured)} networks not trained on",
    )
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)


def write_fit_plots(storage: Storage, fits: Iterable[Fit]) -> list[str]:
    """Writes two pictures beside every predictor, ``<target>.svg`` and ``<target>-learning.svg``; where."""
    names = []
    for fit in fits:
        for ending, svg in (("", fit_plot(fit)), ("-learning", learning_plot(fit))):
            name = layout.predictor_plot(fit.space, fit.id, ending)
            storage.write_text(name, svg)
            names.append(storage.url(name))
    return names


def of_space(space: str) -> str:
    """What the networks of a space are called."""
    return "cells" if space == "cells" else "students"


def sampling_notes(fits: Iterable[Fit]) -> list[str]:
    """How long as many networks would take as the paper of LA-DNAS samples (arXiv 2001.06392)."""
    return [
        f"{fit.id.target}: {number(fit.sample_s)} s from one sample to the next; {count(_MANY)} "
        f"{of_space(fit.space)}: "
        f"{number(_MANY * fit.sample_s / 3600)} hours on one sampler, "
        f"{number(_MANY * fit.sample_s / 3600 / 8)} on eight"
        for fit in fits
        if fit.sample_s is not None
    ]


def median_error(students: Sequence[MeasuredStudent]) -> float:
    """Median absolute relative error of the predictions."""
    return float(np.median([abs(row.predicted / row.measured - 1) for row in students]))


def _marks(axes: Axes, x: Sequence[float], y: Sequence[float], chosen: bool) -> None:
    if not x:
        return
    if chosen:
        axes.scatter(x, y, _DOT, VERMILION, marker="D", edgecolor=INK, zorder=4, label="chosen student")
    else:
        axes.scatter(x, y, _SMALL, BLUE, alpha=0.75, linewidth=0, zorder=3, label="other student")


def _limits(results: Sequence[Result]) -> dict[str, float]:
    return {row.budget: row.budget_ms for row in results}


def _budgets(axes: Axes, budgets: Mapping[str, float], values: Sequence[float]) -> None:
    """Vertical lines at the budgets, named above the axes; names that would touch stand at two heights."""
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
