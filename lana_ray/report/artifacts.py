"""What the report reads of a run directory, and the small questions it asks of it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lana_ray.costs.samples import Sample, SampleStore
from lana_ray.errors import UserError
from lana_ray.run_dir.storage import Storage
from lana_ray.selection import pareto

Row = dict[str, Any]

SUMMARY = "summary.json"
_FRONT_POINTS = 1000


@dataclass(frozen=True, kw_only=True)
class CostRows:
    """The last table of ``costs/<target>.parquet``, by layer and choice."""

    layers: tuple[str, ...]
    ops: tuple[tuple[str, ...], ...]
    latency_ms: tuple[tuple[float, ...], ...]
    rest_ms: float
    errors: tuple[str, ...]
    """``layer operation: reason`` of the candidates that do not run on the target."""

    def predict(self, choices: Sequence[int]) -> float:
        """Latency in milliseconds of a whole network."""
        return self.rest_ms + math.fsum(row[j] for row, j in zip(self.latency_ms, choices, strict=True))


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """A run directory as far as it got."""

    summary: Row
    costs: dict[str, CostRows]
    """By target; those that were sampled."""
    scores: list[Row] | None
    """Of every candidate; one without a score says in ``left_out`` why."""
    curves: list[Row] | None
    """Of every candidate trained: the error of each step."""
    proxy: list[Row] | None
    """Random students: summed score and true loss."""
    selections: list[Row] | None
    search: list[Row] | None
    """Trials of the sweeps."""
    samples: list[Sample]
    damaged: list[str]
    """Why files of samples were left out."""

    @classmethod
    def read(cls, storage: Storage) -> RunFiles:
        """Reads everything but weights.

        Raises:
            UserError: without a readable ``summary.json``, naming the command that makes it, or for a
                damaged Parquet file.
        """
        summary = _summary(storage)
        names = [target["name"] for target in summary["targets"]]
        files = {name: f"costs/{name}.parquet" for name in names}
        costs = {name: _costs(storage, file) for name, file in files.items() if storage.exists(file)}
        store = SampleStore(storage)
        return cls(
            summary=summary,
            costs=costs,
            scores=_rows(storage, "scores.parquet"),
            curves=_rows(storage, "curves.parquet"),
            proxy=_rows(storage, "proxy.parquet"),
            selections=_rows(storage, "selections.parquet"),
            search=_rows(storage, "search.parquet"),
            samples=store.read(),
            damaged=store.damaged,
        )

    def results_of(self, target: str) -> list[Row]:
        return [row for row in self.summary["results"] if row["target"] == target]

    def measured_of(self, target: str) -> list[Row]:
        """The target's students measured during selection, each architecture once, the chosen ones marked."""
        found: dict[str, Row] = {}
        for row in self.selections or []:
            if (
                row["target"] == target
                and row["measured_ms"] is not None
                and math.isfinite(row["measured_ms"])
            ):
                known = found.setdefault(row["architecture"], dict(row))
                known["chosen"] = known["chosen"] or row["chosen"]
                known["loss"] = row["loss"] if known["loss"] is None else known["loss"]
        return list(found.values())

    def samples_of(self, target: Row) -> list[Sample]:
        """The latest sample of every structure on the hardware that the summary names."""
        mine = {
            (sample.kind == "reference", sample.key): sample
            for sample in self.samples
            if sample.target == target["name"] and sample.processor == target["processor"]
        }
        return list(mine.values())

    def front_of(self, target: str) -> list[tuple[float, float]]:
        """Every exact trade-off of the target's cost table: (predicted ms, summed score), cheapest first.

        Empty where costs or scores are missing, or a layer has no candidate with both.
        """
        costs = self.costs.get(target)
        if costs is None or self.scores is None:
            return []
        known = {(row["name"], row["op"]): row["score"] for row in self.scores}
        scores = [
            np.array([_finite(known.get((layer, op))) for op in ops])
            for layer, ops in zip(costs.layers, costs.ops, strict=True)
        ]
        latencies = [np.array([_finite(ms) for ms in row]) for row in costs.latency_ms]
        if any(not np.isfinite(s + c).any() for s, c in zip(scores, latencies, strict=True)):
            return []
        front = pareto(scores, latencies, max_points=_FRONT_POINTS)
        return [(costs.rest_ms + point.costs["cost"], point.score) for point in front]


def family(op: str) -> str:
    """The part of an operation's name before its parameters: ``mbconv`` of ``mbconv_e3_k3``."""
    return re.sub(r"(_[a-z]+[\d.]+)+$", "", op)


def read_architecture(label: str) -> dict[str, str]:
    """Layer name to operation name of ``layer=operation|…``."""
    return dict(part.split("=", 1) for part in label.split("|"))


def _finite(value: float | None) -> float:
    return math.inf if value is None or not math.isfinite(value) else value


def _summary(storage: Storage) -> Row:
    if not storage.exists(SUMMARY):
        raise UserError(f"{storage.url(SUMMARY)}: not there yet; `lana-ray run CONFIG.yaml` makes it")
    try:
        found = storage.read_json(SUMMARY)
    except ValueError as error:
        raise UserError(
            f"{storage.url(SUMMARY)}: damaged ({error}); `lana-ray run CONFIG.yaml` makes it anew"
        ) from None
    return dict(found)


def _rows(storage: Storage, name: str) -> list[Row] | None:
    return list(storage.read_table(name).to_pylist()) if storage.exists(name) else None


def _costs(storage: Storage, name: str) -> CostRows:
    rows = storage.read_table(name).to_pylist()
    last = max(row["calibration"] for row in rows)
    mine = [row for row in rows if row["calibration"] == last]
    layers: dict[str, list[Row]] = {}
    for row in sorted(mine, key=lambda row: (row["layer"], row["choice"])):
        layers.setdefault(row["name"], []).append(row)
    return CostRows(
        layers=tuple(layers),
        ops=tuple(tuple(row["op"] for row in rows) for rows in layers.values()),
        latency_ms=tuple(tuple(row["latency_ms"] for row in rows) for rows in layers.values()),
        rest_ms=mine[0]["rest_ms"],
        errors=tuple(
            f"{layer} {row['op']}: {row['error']}"
            for layer, rows in layers.items()
            for row in rows
            if row["error"]
        ),
    )
