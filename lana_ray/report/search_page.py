"""The page of searches, which needs no finished run, and their part of a run's page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import yaml
from rich.table import Table

from lana_ray.costs.registry import METERS
from lana_ray.errors import UserError
from lana_ray.ids import CostId
from lana_ray.predictors.fits import Fit, read_fit
from lana_ray.report.artifacts import LATENCY, grouped
from lana_ray.report.numbers import number, percent
from lana_ray.report.parts import Picture, Sheet, read_settings, render, sheet, spending
from lana_ray.report.plots import fit_plot, learning_plot, networks_of, sampling_notes
from lana_ray.report.searches import lambda_table, repeated, search_pictures, searches_table
from lana_ray.report.table import fits_table, make_table, results_table
from lana_ray.run_dir import layout
from lana_ray.run_dir.hours import read_hours
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.summary import SearchSummary
from lana_ray.run_dir.tables import TRIALS, TrialRow
from lana_ray.trials.methods import METHODS

_SPACES = ("layers", "cells")


@dataclass(frozen=True, kw_only=True)
class SearchPart:
    """The results of searches on a target, and the quality of its predictors."""

    pictures: list[Picture]
    sheets: list[Sheet]
    sentences: list[str]


def search_part(storage: Storage, trials: Sequence[TrialRow], target: str) -> SearchPart:
    """Pictures and tables of a target's trials and predictors; raises UserError if a file is damaged."""
    pictures = list(search_pictures(trials).values())
    sheets = [sheet(lambda_table(trials))] if repeated(trials) else []
    costs = {row.cost for row in trials}
    ids = [(space, CostId(cost, target)) for space in _SPACES for cost in sorted({LATENCY, *costs})]
    fits = [fit for space, of in ids if (fit := read_fit(storage, space, of)) is not None]
    for fit in fits:
        pictures += _fit_pictures(fit)
    if fits:
        sheets.append(sheet(fits_table(fits)))
    return SearchPart(pictures=pictures, sheets=sheets, sentences=sampling_notes(fits))


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
        summary=sheet(searches_table(rows)),
        results=sheet(results_table(trained.teacher, trained.results)) if trained else None,
        targets=[
            {
                "facts": target,
                "teacher_ms": trials[0].teacher_ms,
                "part": search_part(storage, trials, target["name"]),
                "trials": sheet(_trials_table(trials)),
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
