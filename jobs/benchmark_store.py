"""Measures how long the sample store takes to read and to merge samples that came in small blocks.

    python jobs/benchmark_store.py --samples 100000 --json store.json

Prints a row for each, and how many files are left.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lana_ray.costs.samples import Sample, SampleStore
from lana_ray.monitoring.progress import console
from lana_ray.run_dir.layout import SAMPLES
from lana_ray.run_dir.storage import Storage

BLOCK = 10
LABEL = "|".join(f"blocks.{k // 4}.{k % 4}=mbconv_e3_k5" for k in range(16))


def main(
    samples: Annotated[int, typer.Option(min=BLOCK, help=f"Samples, in blocks of {BLOCK}.")] = 100_000,
    to: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Prints seconds and numbers of files."""
    with tempfile.TemporaryDirectory() as folder:
        storage, rows = Storage(folder), dict[str, tuple[float, int]]()

        def timed(title: str, call: Callable[[], object]) -> None:
            began = time.perf_counter()
            call()
            rows[title] = time.perf_counter() - began, len(storage.list(SAMPLES))

        timed("write", lambda: _write(SampleStore(storage), samples))
        store = SampleStore(storage)
        timed("read", lambda: store.read("key"))
        timed("read again", lambda: store.read("key"))
        timed("merge", store.compact)
        timed("read again, merged", lambda: store.read("key"))
        other = SampleStore(storage)
        timed("another process: read", lambda: other.read("key"))
        assert len(other.read()) == samples
    table = Table(title=f"{samples:,} samples", title_justify="left")
    for name in ("", "seconds", "files afterwards"):
        table.add_column(name, justify="right")
    for title, (seconds, files) in rows.items():
        table.add_row(title, f"{seconds:.2f}", str(files))
    console.print(table)
    if to:
        to.write_text(json.dumps(rows, indent=1))


def _write(store: SampleStore, samples: int) -> None:
    for start in range(0, samples, BLOCK):
        store.append([_sample(number) for number in range(start, min(start + BLOCK, samples))])


def _sample(number: int) -> Sample:
    return Sample(
        target="edge",
        target_key="key",
        kind="network",
        key=f"{number:064x}",
        what=LABEL,
        median_ms=1.0,
        p90_ms=1.1,
        p99_ms=1.2,
        iqr_ms=0.1,
        raw_ms=1.0,
        drift=1.0,
        repeats=100,
        seconds=0.5,
        settled=True,
        error=None,
        node="a node",
        processor="a processor",
        runtime="a runtime",
        threads=1,
        cpus="0",
        process=1,
        time=float(number),
    )


if __name__ == "__main__":
    typer.run(main)
