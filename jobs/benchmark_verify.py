"""Verifies every version of finished runs, and shows how many still keep their budgets.

    python jobs/benchmark_verify.py runs/first runs/second --json verified.json

Every session is a process of its own, as in ``lana-ray verify``. Nothing else should run on the machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from lana_ray.commands.verify import verify
from lana_ray.monitoring.progress import console, progress
from lana_ray.registry import list_models


def main(
    runs: Annotated[list[Path], typer.Argument(help="Run directories with a registry.")],
    to: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Prints the registered and the present latency of every version."""
    uris = {run: f"sqlite:///{run.resolve()}/mlflow.db" for run in runs}
    versions = [(run, version) for run, uri in uris.items() for version in list_models(uri)]
    rows = []
    with progress("verify", len(versions)) as show:
        for number, (run, version) in enumerate(versions, 1):
            found = verify(version.model_uri, tracking_uri=uris[run])
            rows.append(
                {
                    "run": run.name,
                    "target": version.tags["target"],
                    "budget": version.tags["budget"],
                    "budget_ms": found.limit_ms,
                    "registered_ms": float(version.tags["latency_ms"]),
                    "verified_ms": found.judged_ms,
                    "kept": found.judged_ms <= found.limit_ms,
                }
            )
            show(number)
    _show(rows)
    if to is not None:
        to.write_text(json.dumps(rows, indent=2))


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    kept = sum(row["kept"] for row in rows)
    shown = Table(title=f"{kept} of {len(rows)} versions keep their budgets", title_justify="left")
    for name in rows[0]:
        shown.add_column(name.replace("_", " "), justify="left" if name in ("run", "target") else "right")
    for row in rows:
        shown.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(shown)


if __name__ == "__main__":
    typer.run(main)
