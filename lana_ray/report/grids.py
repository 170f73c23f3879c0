"""The maps of a page with captions: architectures, costs and scores by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lana_ray.ids import CostId, read_label
from lana_ray.report.artifacts import LATENCY, LabelledTable
from lana_ray.report.html import Picture
from lana_ray.report.maps import architecture_map, cost_map, score_map
from lana_ray.run_dir.summary import Result
from lana_ray.run_dir.tables import ScoreRow

_MAP_ROWS = 40


def architectures_picture(results: Sequence[Result]) -> Picture | None:
    if not results:
        return None
    return Picture(
        title="Chosen architectures",
        svg=architecture_map(
            {
                f"{row.target}, {row.budget}": {one.layer: one.op for one in read_label(row.architecture)}
                for row in results
            }
        ),
        caption="One row per target and budget, one column per layer in the order they run.",
    )


def costs_picture(of: CostId, labelled: LabelledTable) -> Picture:
    """A cost table of a target; the layers' own operation first, then the operations that save most."""
    values: dict[str, Any] = {}
    saved: dict[str, list[float]] = {}
    for i, (ids, costs) in enumerate(zip(labelled.ids, labelled.table.costs, strict=True)):
        for one, cost in zip(ids, costs, strict=True):
            values.setdefault(one.op, np.full(len(labelled.ids), np.nan))[i] = cost
            saved.setdefault(one.op, []).append(costs[0] - cost)
    own = labelled.ids[0][0].op
    ranked = sorted(values, key=lambda op: (op != own, -float(np.median(saved[op])), op))
    shown = ranked[:_MAP_ROWS]
    some = f" The first {len(shown)} operations of {len(ranked)}." if ranked != shown else ""
    return Picture(
        title="Cost table" if of.cost == LATENCY else f"Cost table of {of.cost}",
        svg=cost_map(labelled.layers, shown, np.stack([values[op] for op in shown]), of),
        caption=f"{of.cost} of each candidate in the network, fitted to all measured networks; the rest of "
        f"it adds {of.written(labelled.table.rest)}. The first row shows the teacher's own layers; the "
        f"operations that save most follow. Empty: the layer has no such candidate.{some}",
    )


def scores_picture(scores: list[ScoreRow]) -> Picture | None:
    if not scores:
        return None
    layers = [name for _, name in sorted({(row.layer, row.name) for row in scores})]
    values: dict[str, Any] = {}
    for row in scores:
        if row.left_out in (None, "diverged"):
            line = values.setdefault(row.op, np.full(len(layers), np.nan))
            line[row.layer] = np.inf if row.left_out == "diverged" else row.score
    ranked = sorted(values, key=lambda op: (float(np.nanmedian(values[op])), op))
    shown = ranked[:_MAP_ROWS]
    some = f" The {len(shown)} operations with the lowest median of {len(ranked)}." if ranked != shown else ""
    return Picture(
        title="Scores",
        svg=score_map(layers, shown, np.stack([values[op] for op in shown])),
        caption="The change of the divergence from the teacher’s outputs (or of the loss, see score.by) on "
        "the score split when one candidate alone replaces its layer. Lower is better, 0 is the teacher. "
        "Grey: the layer has no such candidate, or its training was skipped or stopped because it is too "
        f"slow or worse than others.{some}",
    )
