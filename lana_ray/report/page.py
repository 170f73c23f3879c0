"""The page of a run: one self-contained HTML file, made from the run directory alone."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from scipy.stats import kendalltau

from lana_ray.ids import family_of
from lana_ray.report import numbers
from lana_ray.report.artifacts import LATENCY, RunFiles, grouped
from lana_ray.report.maps import architectures_picture, costs_picture, profile_picture, scores_picture
from lana_ray.report.notes import SPLITS, notes
from lana_ray.report.parts import Picture, read_settings, render, spending
from lana_ray.report.plots import (
    BAND,
    accuracy_plot,
    curves_plot,
    front_plot,
    loss_plot,
    median_error,
    prediction_plot,
    proxy_plot,
)
from lana_ray.report.searches import search_part, searches_table
from lana_ray.run_dir import layout
from lana_ray.run_dir.hours import read_hours
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.summary import TargetFacts
from lana_ray.run_dir.tables import CurveRow, ProxyRow, ScoreRow


def write_page(storage: Storage, node_price: float | None = None) -> dict[str, dict[str, str]]:
    """Writes ``report.html`` and returns its pictures: SVG by target and file name.

    A sentence replaces each part whose files do not exist yet. Raises UserError if ``summary.json`` is
    missing or an artifact is damaged.
    """
    run = RunFiles.read(storage)
    targets = [_target(storage, run, target) for target in run.summary.targets]
    page = render(
        "page.html",
        summary=run.summary,
        spread=numbers.spread,
        notes=notes(run),
        splits=SPLITS,
        targets=targets,
        settings=read_settings(storage),
        spending=spending(read_hours(storage), node_price),
        architectures=architectures_picture(run.summary.results),
        operations=_operations(run.scores),
        score_map=scores_picture(run.scores),
        proxy=_proxy(run.proxy),
        curves=_curves(run.curves),
    )
    storage.write_text(layout.REPORT, page)
    return {
        part["facts"].name: {picture.file: picture.svg for picture in part["pictures"] + part["maps"]}
        for part in targets
    }


def _target(storage: Storage, run: RunFiles, facts: TargetFacts) -> dict[str, Any]:
    """Pictures of one target, and the reasons why others are missing."""
    trials = [row for row in run.trials if row.target == facts.name]
    searches = search_part(storage, trials, facts.name)
    if trials:
        searches["tables"].insert(0, searches_table(trials))
    plots = {
        "Accuracy and latency": _accuracy(run, facts),
        "Choice among measured students": _loss(run, facts),
        "Pareto front as predicted": _front(run, facts),
        "Predicted and measured latency": _prediction(run, facts),
    }
    missing = [f"{title}: {reason}" for title, reason in plots.items() if isinstance(reason, str)]
    rows = run.profiles.get(facts.name)
    if not rows:
        missing.append(
            "Where the time goes: the target's runtime has no profile, or stage profile has not run."
        )
    return {
        "facts": facts,
        "searches": searches,
        "pictures": [
            Picture(title=title, svg=plot[0], caption=plot[1])
            for title, plot in plots.items()
            if isinstance(plot, tuple)
        ],
        "maps": ([profile_picture(rows)] if rows else [])
        + [costs_picture(of, labelled) for of, labelled in run.tables.items() if of.target == facts.name],
        "missing": missing,
    }


CaptionedPlot = tuple[str, str] | str
"""SVG and its caption, or the reason why there is no plot."""


def _accuracy(run: RunFiles, facts: TargetFacts) -> CaptionedPlot:
    results = run.results_of(facts.name)
    if not results:
        return "no student was finished for this target."
    images = run.summary.data.sizes["test"]
    return (
        accuracy_plot(results, images),
        "Students with their final weights, measured alternately with the teacher. Vertical bars: ± one "
        "standard error of the accuracy; horizontal bars: the interquartile range of the rounds.",
    )


def _loss(run: RunFiles, facts: TargetFacts) -> CaptionedPlot:
    students = run.measured_of(facts.name)
    rated = [row for row in students if row.loss is not None]
    if not rated:
        return "no student of this target has been measured and rated (stage select)."
    over = len(students) - len(rated)
    left_out = f" {over} more ran over their limit (the budget less select.margin)." if over else ""
    return (
        loss_plot(rated, _budgets(run, facts)),
        f"{len(rated)} students that kept a budget, before fine-tuning, with batch statistics. The student "
        f"with the lowest loss within each budget was chosen.{left_out}",
    )


def _front(run: RunFiles, facts: TargetFacts) -> CaptionedPlot:
    labelled, front = run.latency_of(facts.name), run.front_of(facts.name)
    if labelled is None:
        return f"costs/{facts.name}.parquet is missing (stage sample)."
    if not front:
        return "scores.parquet is missing, or has no candidate for some layer (stage score)."
    students = [
        (ms, row.score, row.chosen)
        for row in run.measured_of(facts.name)
        if math.isfinite(ms := labelled.table.predict(row.choices))
    ]
    return (
        front_plot(front, labelled.table.predict([0] * len(labelled.ids)), students, _budgets(run, facts)),
        "The exact Pareto front of cost table and scores (no selection lies below the line), and the "
        "measured students. All latencies are predictions of the last table, calibrated with all students; "
        "the students were chosen with earlier tables, and to differ from each other.",
    )


def _prediction(run: RunFiles, facts: TargetFacts) -> CaptionedPlot:
    students = run.measured_of(facts.name)
    if not students:
        return "no student of this target has been measured (stage select)."
    return (
        prediction_plot(students),
        f"{len(students)} students, with the predictions when they were proposed: median absolute error "
        f"{numbers.percent(median_error(students))} (band: ±{100 * BAND:g} %).",
    )


def _budgets(run: RunFiles, facts: TargetFacts) -> dict[str, float]:
    if results := run.results_of(facts.name):
        return {row.budget: row.budget_ms for row in results}
    rows = [row for row in run.selections if (row.target, row.cost) == (facts.name, LATENCY)]
    return {row.budget: row.limit for row in rows}


def _proxy(students: list[ProxyRow]) -> Picture | None:
    if not students:
        return None
    tau = kendalltau([row.score for row in students], [row.loss for row in students]).statistic
    return Picture(
        title="How well scores predict the loss",
        svg=proxy_plot(students),
        caption=f"{len(students)} random students between the teacher and one with every layer replaced, "
        f"before fine-tuning: Kendall’s τ between summed score and true loss is {tau:.2f} (1: the same "
        "order; 0: unrelated). The integer program ranks students by summed score.",
    )


def _curves(candidates: list[CurveRow]) -> Picture | None:
    if not candidates:
        return None
    families = grouped(candidates, lambda row: family_of(row.op))
    stopped = sum(row.stopped is not None for row in candidates)
    some = f" {stopped} were stopped early." if stopped else ""
    return Picture(
        title="Learning curves",
        svg=curves_plot({name: [row.error for row in rows] for name, rows in families.items()}),
        caption=f"Normalised training error of {len(candidates)} candidates: the smoothed median of each "
        f"family.{some} The curve of every candidate is in curves.parquet.",
    )


def _operations(scores: list[ScoreRow]) -> list[dict[str, Any]]:
    """Distillation by operation, the best first; errors are the final ‖t − s‖² / ‖t‖²."""
    distilled = [
        row
        for row in scores
        if family_of(row.op) not in ("teacher", "identity") and row.left_out in (None, "diverged")
    ]
    entries = []
    for op, rows in grouped(distilled, lambda row: row.op).items():
        sound = [row for row in rows if row.left_out is None]
        sound.sort(key=lambda row: row.distill_error or 0.0)
        errors = [row.distill_error for row in sound if row.distill_error is not None]
        scores_of_op = [row.score for row in sound if row.score is not None]
        entries.append(
            {
                "op": op,
                "layers": len(rows),
                "diverged": len(rows) - len(sound),
                "best": sound[0] if sound else None,
                "median": median(errors) if errors else math.inf,
                "worst": sound[-1] if sound else None,
                "score": median(scores_of_op) if scores_of_op else None,
            }
        )
    return sorted(entries, key=lambda entry: (entry["median"], entry["op"]))
