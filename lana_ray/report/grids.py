"""The maps of a page with what they say: architectures, costs and scores, layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from lana_ray.report.artifacts import CostRows, Row, read_architecture
from lana_ray.report.html import Picture
from lana_ray.report.maps import architecture_map, cost_map, score_map
from lana_ray.report.numbers import number

_MAP_ROWS = 40


def architectures_picture(results: list[Row]) -> Picture | None:
    if not results:
        return None
    return Picture(
        title="Chosen architectures",
        svg=architecture_map(
            {f"{row['target']}, {row['budget']}": read_architecture(row["architecture"]) for row in results}
        ),
        caption="One row per target and budget, one column per layer in the order they run.",
    )


def costs_picture(costs: CostRows) -> Picture:
    """The cost table of a target; the layers' own operation first, then the others, the cheapest first."""
    values: dict[str, Any] = {}
    saved: dict[str, list[float]] = {}
    for i, (ops, latencies) in enumerate(zip(costs.ops, costs.latency_ms, strict=True)):
        for op, ms in zip(ops, latencies, strict=True):
            values.setdefault(op, np.full(len(costs.layers), np.nan))[i] = ms
            saved.setdefault(op, []).append(latencies[0] - ms)
    ranked = sorted(values, key=lambda op: (op != costs.ops[0][0], -float(np.median(saved[op])), op))
    shown = ranked[:_MAP_ROWS]
    some = f" The first {len(shown)} operations of {len(ranked)}." if ranked != shown else ""
    return Picture(
        title="Cost table",
        svg=cost_map(costs.layers, shown, np.stack([values[op] for op in shown])),
        caption="What each candidate takes in place, by all networks measured; whatever no candidate "
        f"replaces takes {number(costs.rest_ms)} ms more. Above, the teacher's own layers; below, the "
        f"operations that save most come first. Empty: no candidate of that kind at that layer.{some}",
    )


def scores_picture(scores: list[Row]) -> Picture | None:
    if not scores:
        return None
    layers = [name for _, name in sorted({(row["layer"], row["name"]) for row in scores})]
    values: dict[str, Any] = {}
    for row in scores:
        if row["left_out"] in (None, "diverged"):
            line = values.setdefault(row["op"], np.full(len(layers), np.nan))
            line[row["layer"]] = np.inf if row["left_out"] == "diverged" else row["score"]
    ranked = sorted(values, key=lambda op: (float(np.nanmedian(values[op])), op))
    shown = ranked[:_MAP_ROWS]
    some = f" The {len(shown)} operations with the lowest median of {len(ranked)}." if ranked != shown else ""
    return Picture(
        title="Scores",
        svg=score_map(layers, shown, np.stack([values[op] for op in shown])),
        caption="How much farther from the teacher’s answers the network is, on the score split, when one "
        "candidate alone replaces its layer: the change of the divergence, or of the loss if score.by says "
        "so. Lower is better, 0 is the teacher. Grey: no candidate of that kind at that layer, or one "
        f"that was not trained to the end, as it is too slow or behind others.{some}",
    )
