"""Measures how long cost tables of many networks take, and how much memory.

    python jobs/benchmark_calibrate.py --networks 100000 --pool lana --json calibrate.json

The networks' costs are drawn, not measured: every candidate's differs by 10 % from its cost alone.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.table import Table

from lana_ray.config import Config
from lana_ray.costs.table import calibrate
from lana_ray.monitoring.progress import console
from lana_ray.workspace import structural_space

CLASSES, REST_MS, NOISE = 10, 0.05, 0.01


def main(
    networks: Annotated[int, typer.Option(min=2, help="Networks that the table is fitted to.")] = 100_000,
    pool: Annotated[str, typer.Option(help="Preset of operations.")] = "lana",
    to: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Prints the figures of one table."""
    config = Config.model_validate(
        {
            "run": {"dir": "unused"},
            "teacher": {"timm": "tf_efficientnet_lite0"},
            "data": {"source": "digits", "image_size": 64},
            "pool": {"preset": pool},
            "targets": [{"name": "here"}],
            "budgets": {"latency_ms": "50%"},
        }
    )
    space, rng = structural_space(config, CLASSES), np.random.default_rng(0)
    ops = [[op.name for op in of_layer] for of_layer in space.ops]
    alone = [rng.uniform(0.01, 0.1, len(names)) for names in ops]
    actual = [costs * rng.lognormal(0, 0.1, len(costs)) for costs in alone]
    drawn = [space.random(rng) for _ in range(networks)]
    exact = [REST_MS + sum(actual[i][j] for i, j in enumerate(choices)) for choices in drawn]
    values = np.array(exact) * rng.normal(1, NOISE, networks)
    before_mb, begin = _peak_mb(), time.perf_counter()
    table = calibrate(alone, ops, drawn, values.tolist())
    row = {
        "networks": networks,
        "candidates": sum(map(len, ops)),
        "seconds": time.perf_counter() - begin,
        "before_mb": before_mb,
        "peak_mb": _peak_mb(),
        "table_error": table.error,
    }
    shown = Table(title="A cost table", title_justify="left")
    for name in row:
        shown.add_column(name.replace("_", " "), justify="right")
    shown.add_row(*(f"{value:.4g}" if isinstance(value, float) else f"{value:,}" for value in row.values()))
    console.print(shown)
    if to is not None:
        to.write_text(json.dumps(row, indent=2))


def _peak_mb() -> float:
    """The largest size that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    typer.run(main)
