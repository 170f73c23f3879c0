"""Comparison of the differentiable search and the integer program: tables, plots, and their page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isnan, nan, sqrt
from statistics import fmean, stdev
from typing import Any

import yaml
from matplotlib.axes import Axes
from rich.table import Table

from lana_ray.costs.registry import METERS
from lana_ray.errors import UserError
from lana_ray.ids import CostId
from lana_ray.predictors.fits import Fit, read_fit
from lana_ray.report.artifacts import LATENCY, grouped
from lana_ray.report.canvas import BLUE, GREEN, GREY, VERMILION, picture, plain_log
from lana_ray.report.numbers import duration, number, percent, spread
from lana_ray.report.parts import Picture, read_settings, render, spending, write_svgs
from lana_ray.report.plots import fit_plot, learning_plot, networks_of, sampling_notes
from lana_ray.report.table import fits_table, make_table, results_table
from lana_ray.run_dir import layout
from lana_ray.run_dir.hours import read_hours
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.summary import SearchSummary
from lana_ray.run_dir.tables import TRIALS, TrialRow
from lana_ray.trials.choose import front, hypervolume
from lana_ray.trials.methods import METHODS

_SPACES = ("layers", "cells")
_MOST_TICKS = 10
_LOOKS = ((BLUE, "o", "-"), (VERMILION, "s", "--"), (GREEN, "^", "-."))
"""Colour, marker and line of each method, in the order of the registry."""


def searches_table(rows: Sequence[TrialRow]) -> Table:
    """A row per target and method."""
    return make_table(
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
        long=("collapsed",),
        rows=(
            _summarised(target, METHODS[method].title, trials)
            for (target, method), trials in grouped(rows, lambda row: (row.target, row.method)).items()
        ),
    )


def _summarised(target: str, method: str, trials: Sequence[TrialRow]) -> Sequence[str]:
    points, most = _points(trials), trials[0].teacher_cost
    at = [
        max((accuracy for cost, accuracy in points if cost <= share * most), default=None)
        for share in (0.7, 0.5)
    ]
    return (
        target,
        method,
        str(len(trials)),
        str(len(front(points))),
        percent(hypervolume(points, most=most)),
        *map(percent, at),
        number(fmean(row.search_s for row in trials)),
        str(sum(row.collapsed for row in trials)),
    )


def repeated(rows: Sequence[TrialRow]) -> bool:
    """Whether some λ was tried more than once on a target."""
    tried = [(row.target, row.multiplier) for row in rows if row.multiplier is not None]
    return len(set(tried)) < len(tried)


def lambda_table(rows: Sequence[TrialRow]) -> Table:
    """Results of each λ on each target, compared with the smallest λ; spreads are standard deviations.

    Differences in accuracy have Welch's standard error for two means of independent trials. It covers the
    variation between seeds, not the error of the test images, which all trials share.
    """
    return make_table(
        f"Results of each λ: measured {_axis(rows)}",
        text=("target",),
        numbers=(
            "λ",
            "trials",
            "measured\n± sd",
            "of the\nfirst λ’s",
            "accuracy\n± sd",
            "points to\nfirst ± se",
        ),
        long=("collapsed",),
        rows=(
            (target, *cells)
            for target, trials in grouped(rows, lambda row: row.target).items()
            for cells in _compared(_by_lambda(trials))
        ),
    )


def _compared(by_lambda: Mapping[float, Sequence[TrialRow]]) -> Iterator[Sequence[str]]:
    """Yields the cells of each λ of a target, compared with the first one."""
    for value, trials in by_lambda.items():
        first = next(iter(by_lambda.values()))
        cost, accuracy = _column(trials, "measured_cost"), _column(trials, "accuracy")
        cost_0, accuracy_0 = _column(first, "measured_cost"), _column(first, "accuracy")
        error = sqrt(_deviation(accuracy) ** 2 / len(trials) + _deviation(accuracy_0) ** 2 / len(first))
        points = 100 * (fmean(accuracy) - fmean(accuracy_0))
        yield (
            f"{value:.3g}",
            str(len(trials)),
            spread(fmean(cost), _deviation(cost)),
            percent(fmean(cost) / fmean(cost_0)),
            percent(fmean(accuracy)) + _plus_minus(100 * _deviation(accuracy)),
            "–" if trials is first else f"{points:+.1f}" + _plus_minus(100 * error),
            str(sum(row.collapsed for row in trials)),
        )


@picture
def fronts_plot(axes: Axes, rows: Sequence[TrialRow]) -> None:
    """Accuracy against measured cost of every trial of a target, and each method's Pareto front."""
    teacher_cost = rows[0].teacher_cost
    for method, trials in grouped(rows, lambda row: row.method).items():
        points, took = _points(trials), duration(sum(row.search_s for row in trials))
        colour, marker, dash = _LOOKS[list(METHODS).index(method) % len(_LOOKS)]
        axes.scatter(
            [cost for cost, _ in points],
            [100 * accuracy for _, accuracy in points],
            28,
            colour,
            marker=marker,
            alpha=0.7,
            linewidth=0,
            label=f"{METHODS[method].title}: hypervolume {percent(hypervolume(points, most=teacher_cost))} "
            f"({len(trials)} trial{'s'[: len(trials) > 1]}, {took})",
        )
        best = front(points)
        ends = [*(cost for cost, _ in best), max(teacher_cost, best[-1][0])]
        levels = [100 * accuracy for _, accuracy in best]
        axes.step(ends, [*levels, levels[-1]], dash, where="post", color=colour, linewidth=1.4)
    axes.axvline(teacher_cost, color=GREY, linestyle=(0, (4, 3)), linewidth=1, label="teacher")
    axes.set(xlabel=f"measured {_axis(rows)}", ylabel="validation accuracy (%)")


@picture
def lambdas_plot(axes: Axes, rows: Sequence[TrialRow]) -> None:
    """Cost against λ of the differentiable search; λ = 0 has its own place on the left."""
    by_lambda = _by_lambda(rows)
    lambdas = list(by_lambda)
    predicted, measured = (
        [fmean(_column(trials, name)) for trials in by_lambda.values()]
        for name in ("predicted_cost", "measured_cost")
    )
    axes.plot(lambdas, predicted, ":", color=GREY, linewidth=1.6, label="predicted")
    x, y = zip(*((row.multiplier, row.measured_cost) for row in rows), strict=True)
    axes.scatter(x, y, 28, BLUE, linewidth=0, alpha=0.7, zorder=3, label="measured")
    if repeated(rows):
        axes.plot(lambdas, measured, color=BLUE, linewidth=1.4, label="mean of the measured")
    axes.axhline(rows[0].teacher_cost, color=GREY, linestyle=(0, (4, 3)), linewidth=1, label="teacher")
    axes.set(xlabel="λ", ylabel=_axis(rows))
    if lambdas[0] > 0:
        axes.set_xscale("log")
    else:
        smallest = min(lambdas[1:], default=1.0)
        axes.set_xscale("symlog", linthresh=smallest, linscale=0.5)
        axes.set_xlim(-0.3 * smallest, 1.2 * max(lambdas[-1], smallest))
    plain_log(axes.xaxis)
    if (lambdas[0] == 0 or repeated(rows)) and len(lambdas) <= _MOST_TICKS:  # a grid of round numbers
        axes.set_xticks(lambdas, [f"{value:.3g}" for value in lambdas])
        axes.minorticks_off()


def search_pictures(trials: Sequence[TrialRow]) -> dict[str, Picture]:
    """The plots of a target's trials by name: ``fronts``, and ``lambdas`` if λ was swept."""
    pictures = {}
    if trials:
        pictures["fronts"] = Picture(
            title="Pareto fronts of the searches",
            svg=fronts_plot(trials),
            caption="Every trial of lana-ray search, measured on the target. Accuracies are on validation "
            "images: of distilled students before fine-tuning, or of trained networks of cells. Steps: the "
            "Pareto front of each method. Its hypervolume is the best accuracy within a budget, averaged "
            "over all budgets up to the teacher’s cost. The time is the sum over all searches of the method.",
        )
    if with_lambda := [row for row in trials if row.multiplier is not None]:
        pictures["lambdas"] = Picture(
            title="Cost by λ",
            svg=lambdas_plot(with_lambda),
            caption="λ is the rise of the loss that is accepted for saving the whole cost of the reference "
            "network. If a λ was tried several times, lines are means.",
        )
    return pictures


def write_search_plots(storage: Storage, rows: Sequence[TrialRow]) -> list[str]:
    """Writes ``search/<target>-<name>.svg``; returns the paths."""
    svgs = {
        layout.search_plot(target, name): plot.svg
        for target, trials in grouped(rows, lambda row: row.target).items()
        for name, plot in search_pictures(trials).items()
    }
    return write_svgs(storage, svgs)


def search_part(storage: Storage, trials: Sequence[TrialRow], target: str) -> dict[str, Any]:
    """Pictures and tables of a target's trials and predictors; raises UserError if a file is damaged."""
    pictures = list(search_pictures(trials).values())
    tables = [lambda_table(trials)] if repeated(trials) else []
    costs = {row.cost for row in trials}
    ids = [(space, CostId(cost, target)) for space in _SPACES for cost in sorted({LATENCY, *costs})]
    fits = [fit for space, of in ids if (fit := read_fit(storage, space, of)) is not None]
    for fit in fits:
        pictures += _fit_pictures(fit)
    if fits:
        tables.append(fits_table(fits))
    return {"pictures": pictures, "tables": tables, "sentences": sampling_notes(fits)}


def write_search_page(storage: Storage, node_price: float | None = None) -> None:
    """Writes ``search.html``; raises UserError if ``search.parquet`` is missing or an artifact is damaged."""
    if not has_searches(storage):
        raise UserError(
            "not_run_yet", f"{storage.url(layout.TRIALS)}: missing; run `lana-ray search CONFIG.yaml` first"
        )
    rows = TRIALS.read(storage, layout.TRIALS)
    by_target = grouped(rows, lambda row: row.target)
    config = yaml.safe_load(storage.read_text(layout.SETTINGS))
    trained = None
    if config["search"]["cells"] is not None and storage.exists(layout.SEARCH_SUMMARY):
        trained = SearchSummary.read(storage)
    page = render(
        "search.html",
        teacher=config["teacher"]["timm"] or config["teacher"]["factory"].rpartition(":")[2],
        settings=read_settings(storage),
        spending=spending(read_hours(storage), node_price),
        summary=searches_table(rows),
        results=results_table(trained.teacher, trained.results) if trained else None,
        targets=[
            {
                "facts": target,
                "teacher_ms": trials[0].teacher_ms,
                "part": search_part(storage, trials, target["name"]),
                "trials": _trials_table(trials),
            }
            for target in config["targets"]
            if (trials := by_target.get(target["name"]))
        ],
    )
    storage.write_text(layout.SEARCH_PAGE, page)


def has_searches(storage: Storage) -> bool:
    """Whether ``lana-ray search`` has finished in this run directory."""
    return storage.exists(layout.TRIALS)


def _fit_pictures(fit: Fit) -> list[Picture]:
    what, best = networks_of(fit.space), fit.quality
    title = f"{METERS[fit.id.cost].axis.partition(' (')[0].capitalize()} of {what}"
    return [
        Picture(
            title=f"{title}, predicted and measured",
            svg=fit_plot(fit),
            caption=f"{len(fit.measured)} {what} that were not used in training: median error "
            f"{percent(best.median_error)}, {percent(best.within_10)} within ±10 %, rank correlation "
            f"{best.spearman:.3f}.",
        ),
        Picture(
            title=f"{title}: learning curve",
            svg=learning_plot(fit),
            caption=f"Errors on the same {what} of predictors trained on growing parts of the samples.",
        ),
    ]


def _trials_table(rows: Sequence[TrialRow]) -> Table:
    """A row per trial, in order of start."""
    return make_table(
        f"Trials: {METERS[rows[0].cost].axis}",
        text=("method", "setting"),
        numbers=("predicted", "measured", "ms", "accuracy", "seconds", "collapsed"),
        long=("architecture",),
        rows=(
            (
                METHODS[row.method].title,
                _setting(row),
                number(row.predicted_cost),
                number(row.measured_cost),
                number(row.measured_ms),
                percent(row.accuracy),
                number(row.search_s),
                "yes" if row.collapsed else "",
                row.architecture,
            )
            for row in rows
        ),
    )


def _setting(row: TrialRow) -> str:
    if row.multiplier is None:
        return f"at most {number(row.budget)}"
    return f"λ = {row.multiplier:.3g}" + ("" if row.seed is None else f", seed {row.seed}")


def _axis(rows: Sequence[TrialRow]) -> str:
    return METERS[rows[0].cost].axis


def _by_lambda(rows: Sequence[TrialRow]) -> dict[float, list[TrialRow]]:
    """The trials with each λ, the smallest λ first."""
    tried = grouped(rows, lambda row: row.multiplier)
    return {value: tried[value] for value in sorted(value for value in tried if value is not None)}


def _column(rows: Sequence[TrialRow], name: str) -> list[float]:
    return [getattr(row, name) for row in rows]


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else nan


def _plus_minus(width: float) -> str:
    return "" if isnan(width) else f" ± {width:.1f}"


def _points(rows: Sequence[TrialRow]) -> list[tuple[float, float]]:
    return [(row.measured_cost, row.accuracy) for row in rows]
