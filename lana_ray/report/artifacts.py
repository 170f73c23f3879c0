"""The run directory as the report reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from lana_ray.costs.samples import Sample, SampleStore
from lana_ray.costs.table import CostTable
from lana_ray.ids import Architecture, CandidateId, CostId
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.summary import Result, Summary, TargetFacts
from lana_ray.run_dir.tables import (
    COSTS,
    CURVES,
    PROFILES,
    PROXY,
    SCORES,
    SELECTIONS,
    TRIALS,
    CostRow,
    CurveRow,
    ProfileRow,
    ProxyRow,
    ScoreRow,
    SelectionRow,
    TrialRow,
)
from lana_ray.selection import pareto

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
LATENCY = "latency_ms"
_FRONT_POINTS = 1000


@dataclass(frozen=True, kw_only=True)
class LabelledTable:
    """The last table of a cost on a target, with the ids of its candidates."""

    ids: tuple[tuple[CandidateId, ...], ...]
    """The ids of every layer's candidates."""
    table: CostTable
    errors: tuple[str, ...]
    """``layer=operation: reason`` for every candidate that does not run on the target."""

    @property
    def layers(self) -> list[str]:
        return [of_layer[0].layer for of_layer in self.ids]


@dataclass(frozen=True, kw_only=True)
class MeasuredStudent:
    """A student whose latency was measured during selection, in milliseconds."""

    choices: Architecture
    score: float
    predicted: float
    """Prediction when the student was first proposed."""
    measured: float
    loss: float | None
    """Loss on the score split, in nats; None for a student that kept no budget."""
    chosen: bool
    """Whether it was chosen for any budget."""


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """The contents of a run directory; tables that do not exist yet are empty."""

    summary: Summary
    tables: dict[CostId, LabelledTable]
    """The last cost tables of the sampled targets."""
    scores: list[ScoreRow]
    curves: list[CurveRow]
    proxy: list[ProxyRow]
    selections: list[SelectionRow]
    trials: list[TrialRow]
    profiles: dict[str, list[ProfileRow]]
    """By target; without those that have none."""
    samples: list[Sample]
    damaged: list[str]
    """The reasons why samples were left out."""

    @classmethod
    def read(cls, storage: Storage) -> RunFiles:
        """Reads everything but weights; raises UserError if ``summary.json`` is missing or a file damaged."""
        summary, store = Summary.read(storage), SampleStore(storage)
        costs = [
            row
            for target in summary.targets
            for row in COSTS.read_if_there(storage, layout.costs(target.name)) or []
        ]
        by_id = grouped(costs, lambda row: (row.cost, row.target))
        return cls(
            summary=summary,
            tables={CostId(*of): _last_table(rows) for of, rows in by_id.items()},
            scores=SCORES.read_if_there(storage, layout.SCORES) or [],
            curves=CURVES.read_if_there(storage, layout.CURVES) or [],
            proxy=PROXY.read_if_there(storage, layout.PROXY) or [],
            selections=SELECTIONS.read_if_there(storage, layout.SELECTIONS) or [],
            trials=TRIALS.read_if_there(storage, layout.TRIALS) or [],
            profiles={
                target.name: rows
                for target in summary.targets
                if (rows := PROFILES.read_if_there(storage, layout.profile(target.name)))
            },
            samples=store.read(),
            damaged=store.damaged,
        )

    def latency_of(self, target: str) -> LabelledTable | None:
        """The target's last latency table; None before sampling."""
        return self.tables.get(CostId(LATENCY, target))

    def results_of(self, target: str) -> list[Result]:
        return [row for row in self.summary.results if row.target == target]

    def measured_of(self, target: str) -> list[MeasuredStudent]:
        """The target's students that were measured during selection, each architecture once."""
        measured = [
            row
            for row in self.selections
            if (row.target, row.cost) == (target, LATENCY) and math.isfinite(row.measured or math.nan)
        ]
        return [
            MeasuredStudent(
                choices=choices,
                score=rows[0].score,
                predicted=rows[0].predicted,
                measured=rows[0].measured or math.nan,
                loss=next((row.loss for row in rows if row.loss is not None), None),
                chosen=any(row.chosen for row in rows),
            )
            for choices, rows in grouped(measured, lambda row: row.choices).items()
        ]

    def samples_of(self, target: TargetFacts) -> list[Sample]:
        """The latest sample of every structure on the hardware named in the summary."""
        latest = {
            (sample.kind == "reference", sample.key): sample
            for sample in self.samples
            if sample.target == target.name and sample.processor == target.processor
        }
        return list(latest.values())

    def front_of(self, target: str) -> list[tuple[float, float]]:
        """The exact Pareto front of the target's latency table: (predicted ms, summed score), cheapest first.

        It is empty if costs or scores are missing, or if a layer has no candidate with both.
        """
        labelled = self.latency_of(target)
        if labelled is None or not self.scores:
            return []
        score_of = {row.candidate: row.score for row in self.scores}
        scores = [np.array([_finite(score_of.get(one)) for one in of_layer]) for of_layer in labelled.ids]
        costs = labelled.table.costs
        if any(not np.isfinite(s + c).any() for s, c in zip(scores, costs, strict=True)):
            return []
        front = pareto(scores, costs, max_points=_FRONT_POINTS)
        return [(labelled.table.rest + point.costs["cost"], point.score) for point in front]


def grouped(rows: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Rows by a key, in the order in which the keys first appear."""
    groups: dict[K, list[T]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _finite(value: float | None) -> float:
    return math.inf if value is None or not math.isfinite(value) else value


def _last_table(rows: Sequence[CostRow]) -> LabelledTable:
    calibration = max(row.calibration for row in rows)
    last = sorted(
        (row for row in rows if row.calibration == calibration), key=lambda row: (row.layer, row.choice)
    )
    layers = list(grouped(last, lambda row: row.name).values())
    table = CostTable(
        rest=last[0].rest,
        costs=tuple(np.array([row.value for row in of_layer]) for of_layer in layers),
        error=last[0].table_error,
        error_isolated=last[0].table_error_isolated,
        networks=last[0].networks,
    )
    return LabelledTable(
        ids=tuple(tuple(row.candidate for row in of_layer) for of_layer in layers),
        table=table,
        errors=tuple(f"{row.candidate}: {row.error}" for row in last if row.error),
    )
