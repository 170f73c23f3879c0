"""Measures how well cost tables predict networks they were not calibrated with, by the number of networks.

    python jobs/benchmark_table.py --runtime onnxruntime --pool small --dir runs/table

Measures every candidate of EfficientNet-Lite0 alone, a design of networks, and random networks to test with,
all in this process. Samples are kept in the directory, so the command may be stopped and started again.
*Independent* is a prior without shared deviations.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import typer
from rich.table import Table

from lana_ray.config import Config
from lana_ray.costs import table
from lana_ray.costs.sampler import Sampler
from lana_ray.costs.samples import Sample, SampleStore
from lana_ray.costs.table import CostTable, Floats, calibrate
from lana_ray.costs.work import Work, network_work
from lana_ray.ids import Architecture
from lana_ray.monitoring.progress import console, progress
from lana_ray.run_dir.storage import Storage
from lana_ray.spaces.design import balanced
from lana_ray.stages.sample import isolated_latencies, planned_candidates, worth
from lana_ray.workspace import structural_space

CLASSES, SEED, BLOCK = 10, 0, 20
COUNTS = (16, 48, 200)

Networks = Mapping[Architecture, float]


def main(
    directory: Annotated[str, typer.Option("--dir", help="Folder of the samples.")],
    runtime: Annotated[str, typer.Option(help="Runtime of the networks.")] = "onnxruntime",
    pool: Annotated[str, typer.Option(help="Preset of operations.")] = "small",
    tests: Annotated[int, typer.Option(min=1, help="Networks to test with.")] = 60,
    time_limit_s: Annotated[float, typer.Option(help="Time limit of one measurement.")] = 0.3,
    to: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Prints the errors of tables of networks measured here."""
    target = {"name": "here", "runtime": runtime, "input_shape": (3, 64, 64)}
    config = Config.model_validate(
        {
            "run": {"dir": directory},
            "teacher": {"timm": "tf_efficientnet_lite0"},
            "data": {"source": "digits", "image_size": 64},
            "pool": {"preset": pool},
            "targets": [{**target, "measure": {"time_limit_s": time_limit_s}}],
            "budgets": {"latency_ms": "50%"},
        }
    )
    space = structural_space(config, CLASSES)
    sampler = Sampler(space, config.targets[0], Storage(directory))
    store = SampleStore(Storage(directory))
    alone = _measure(sampler, store, planned_candidates(space), "candidates")
    isolated = isolated_latencies(space, config.targets[0], alone)
    among = worth(isolated, config.pool.max_cost)
    design = list(dict.fromkeys(balanced(max(COUNTS), among, SEED)))
    rng = np.random.default_rng(SEED + 1)
    held_out = [space.random(rng, among) for _ in range(tests)]
    work = {a: network_work(space, a) for a in (*held_out, *design)}
    taken = _measure(sampler, store, list(work.values()), "networks")
    latencies = {a: taken[item.key].median_ms for a, item in work.items() if not taken[item.key].error}
    left_out = {a: latencies[a] for a in held_out if a in latencies and a not in design}
    drawn = [a for a in design if a in latencies]
    ops = [[op.name for op in of_layer] for of_layer in space.ops]
    rows = [
        {"networks": count, **_errors(isolated, ops, {a: latencies[a] for a in drawn[:count]}, left_out)}
        for count in COUNTS
    ]
    _show(f"{sum(map(len, among))} candidates, {runtime}, {len(left_out)} networks left out", rows)
    if to:
        to.write_text(json.dumps({"runtime": runtime, "pool": pool, "rows": rows}, indent=1))


def _measure(sampler: Sampler, store: SampleStore, work: list[Work], title: str) -> dict[str, Sample]:
    """Returns the samples by key; measures what the directory lacks."""
    stored = {sample.key: sample for sample in store.read(sampler.target_key())}
    if "teacher" not in stored:
        references = list(sampler.sample([], []))
        store.append(references)
        stored |= {sample.key: sample for sample in references}
    baselines = [stored[key].median_ms for key in ("teacher", "floor") if key in stored]
    missing = [item for item in work if item.key not in stored]
    with progress(title, len(missing)) as show:
        for start in range(0, len(missing), BLOCK):
            block = list(sampler.sample(missing[start : start + BLOCK], baselines))
            store.append(block)
            stored |= {sample.key: sample for sample in block}
            show(start + len(block))
    store.compact()
    return stored


def _errors(
    isolated: Sequence[Floats], ops: Sequence[Sequence[str]], networks: Networks, left_out: Networks
) -> dict[str, float]:
    """Median relative errors on the networks that were left out."""
    calibrated = functools.partial(calibrate, isolated, ops, list(networks), list(networks.values()))
    found = calibrated()
    with patch.object(table, "_SHARED", (0.0,)):
        independent = calibrated()
    return {
        "independent": _error(independent, left_out),
        "shared": _error(found, left_out),
        "left_out_in_turn": found.error,
        "candidates_alone": found.error_isolated,
    }


def _error(found: CostTable, left_out: Networks) -> float:
    return float(np.median([abs(found.predict(a) / value - 1) for a, value in left_out.items()]))


def _show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    shown = Table(title=title, title_justify="left")
    for name in rows[0]:
        shown.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        shown.add_row(*(f"{value:.2%}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(shown)


if __name__ == "__main__":
    typer.run(main)
