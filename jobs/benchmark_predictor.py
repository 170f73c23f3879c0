"""Compares latency predictors with published figures, on published measurements.

    python jobs/benchmark_predictor.py PATH/latency --seeds 3 --json predictor.json

PATH/latency has ``nb201/`` (``archs.txt``, ``latency_ms.npz``, ``i7_7820x_latency_ms.npz``) and ``fbnet/``
(``latency_ms.npz``): HELP's and BRP-NAS' measurements as numpy archives, milliseconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.table import Table
from scipy.stats import spearmanr

from lana_ray.errors import UserError
from lana_ray.latency import LatencyPredictor, TransferPredictor
from lana_ray.monitoring.progress import console
from lana_ray.predictors.fits import quality
from lana_ray.spaces import FBNetSpace, NasBench201Space

Floats = NDArray[np.float64]

SAMPLES, NEW_DEVICE_SAMPLES = 900, 20
SIZES = (100, 300, 500, 700, 900)
# Shares within ±1, ±5 and ±10 % (arXiv 2007.08668).
BRP_NAS = (0.360, 0.852, 0.964)


@dataclass(frozen=True)
class Task:
    """Source devices, new devices, and published mean rank correlations: HELP, MultiPredict, NASFLAT."""

    space: str
    sources: str
    targets: str
    samples: int
    published: tuple[float, float, float]


TASKS = {
    "ND": Task(
        "nb201",
        "1080ti_1 1080ti_32 1080ti_256 silver_4114 silver_4210r samsung_a50 pixel3 essential_ph_1 samsung_s7",
        "titan_rtx_256 gold_6226 fpga pixel2 raspi4 eyeriss",
        512,
        (0.948, 0.930, 0.959),
    ),
    "FD": Task(
        "fbnet",
        "1080ti_1 1080ti_32 1080ti_64 silver_4114 silver_4210r samsung_a50 pixel3 essential_ph_1 samsung_s7",
        "fpga raspi4 eyeriss",
        800,
        (0.910, 0.960, 0.961),
    ),
    "F1": Task(
        "fbnet",
        "2080ti_1 essential_ph_1 silver_4114 titan_rtx_1 titan_rtx_32",
        "eyeriss fpga raspi4 samsung_a50 samsung_s7",
        800,
        (0.793, 0.756, 0.809),
    ),
}


def main(
    folder: Annotated[Path, typer.Argument(help="The folder with nb201/ and fbnet/.")],
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    to: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Prints three tables: a device from scratch, new devices, and chosen samples."""
    if not (folder / "nb201" / "archs.txt").is_file():
        raise UserError(
            "missing_file", f"{folder}: no nb201/archs.txt there; give the folder that has nb201/"
        )
    scratch = list(_from_scratch(folder, seeds))
    table = Table(title=f"i7-7820X, NAS-Bench-201, {SAMPLES} samples", title_justify="left")
    for heading in ("", "±1 %", "±5 %", "±10 %", "Spearman", "fit s"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("BRP-NAS, published", *(f"{100 * share:.1f}" for share in BRP_NAS), "", "")
    means, spreads = (np.array(scratch).mean(0), np.array(scratch).std(0))
    shown = [f"{100 * m:.1f} ± {100 * s:.1f}" for m, s in zip(means[:3], spreads[:3], strict=True)]
    table.add_row("LatencyPredictor", *shown, f"{means[3]:.4f} ± {spreads[3]:.4f}", f"{means[4]:.0f}")
    console.print(table)
    transfers = {name: np.array(list(_transfer(folder, task, seeds))) for name, task in TASKS.items()}
    table = Table(title=f"Spearman on a new device, {NEW_DEVICE_SAMPLES} samples", title_justify="left")
    for heading in ("task", "HELP", "MultiPredict", "NASFLAT", "TransferPredictor", "chosen by it"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    for name, correlations in transfers.items():
        means, spreads = correlations.mean((0, 1)), correlations.mean(1).std(0)
        shown = [f"{mean:.4f} ± {spread:.4f}" for mean, spread in zip(means, spreads, strict=True)]
        table.add_row(name, *(f"{p:.3f}" for p in TASKS[name].published), *shown)
    console.print(table)
    errors = np.array([_errors(folder, seed) for seed in range(seeds)])  # [seeds, 2, sizes]
    table = Table(title="i7-7820X: mean error by samples, random or chosen", title_justify="left")
    for heading in ("samples", "random", "chosen"):
        table.add_column(heading, justify="right")
    means, spreads = 100 * errors.mean(0), 100 * errors.std(0)
    for column, size in enumerate(SIZES):
        shown = [f"{means[row, column]:.2f} ± {spreads[row, column]:.2f} %" for row in (0, 1)]
        table.add_row(str(size), *shown)
    console.print(table)
    enough = np.interp(-means[0, -1], -means[1], SIZES)
    console.print(f"{enough:.0f} chosen samples are as good as {SIZES[-1]} random ones.")
    if to:
        figures = {
            "i7": scratch,
            "transfer": {name: correlations.tolist() for name, correlations in transfers.items()},
            "active": {"samples": SIZES, "random": errors[:, 0].tolist(), "chosen": errors[:, 1].tolist()},
        }
        to.write_text(json.dumps(figures, indent=1))


def _cells(folder: Path, *, live: bool) -> Floats:
    space = NasBench201Space()
    lines = (folder / "nb201" / "archs.txt").read_text().splitlines()
    return np.stack([space.encode_string(line, live=live) for line in lines]).astype(np.float64)


def _desktop(folder: Path) -> tuple[Floats, Floats]:
    """Returns encodings and latencies of the cells that were measured on the i7."""
    with np.load(folder / "nb201" / "i7_7820x_latency_ms.npz", allow_pickle=False) as file:
        latency = file[file.files[0]]
    measured = ~np.isnan(latency)
    return _cells(folder, live=True)[measured], latency[measured]


def _from_scratch(folder: Path, seeds: int) -> Iterator[tuple[float, ...]]:
    """Yields each seed's shares within the bounds, Spearman and seconds to fit."""
    encodings, latency = _desktop(folder)
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(latency))
        training, rest = order[:SAMPLES], order[SAMPLES:]
        start = time.perf_counter()
        predictor = LatencyPredictor(seed=seed).fit(encodings[training], latency[training])
        seconds = time.perf_counter() - start
        result = quality(predictor.predict(encodings[rest]), latency[rest])
        yield result.within_1, result.within_5, result.within_10, result.spearman, seconds


def _errors(folder: Path, seed: int) -> list[list[float]]:
    """Returns mean relative errors on 4,000 cells for every number of samples: [2, sizes].

    First all samples are random; then all but the first are chosen by the predictor of those before.
    """
    encodings, latency = _desktop(folder)
    order = np.random.default_rng(seed).permutation(len(latency))
    test, pool = np.split(order, [4000])
    curves: list[list[float]] = [[], []]
    for errors, choosing in zip(curves, (False, True), strict=True):
        training, rest = np.split(pool, [SIZES[0]])
        for size, following in zip(SIZES, (*SIZES[1:], SIZES[-1]), strict=True):
            predictor = LatencyPredictor(seed=seed).fit(encodings[training], latency[training])
            errors.append(quality(predictor.predict(encodings[test]), latency[test]).mean_error)
            more = following - size
            chosen = predictor.choose(encodings[rest], more) if choosing else np.arange(more)
            training, rest = np.concatenate([training, rest[chosen]]), np.delete(rest, chosen)
    return curves


def _transfer(folder: Path, task: Task, seeds: int) -> Iterator[list[tuple[float, float]]]:
    """Yields each seed's rank correlations over the whole space on every new device.

    The first is from measurements of random architectures, the second from those the predictor chooses.
    """
    with np.load(folder / task.space / "latency_ms.npz", allow_pickle=False) as file:
        latencies = {name: file[name].astype(np.float64) for name in file.files}
    if task.space == "fbnet":
        rows = latencies.pop("arch").astype(int)
        encodings = np.stack([FBNetSpace().encode(tuple(row)) for row in rows]).astype(np.float64)
    else:
        # These devices also run dead edges.
        encodings = _cells(folder, live=False)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        sources = {}
        for device in task.sources.split():
            sources[device] = np.full(len(encodings), np.nan)
            measured = rng.permutation(len(encodings))[: task.samples]
            sources[device][measured] = latencies[device][measured]
        transfer = TransferPredictor(seed=seed).fit(encodings, sources)
        chosen = transfer.choose(encodings, NEW_DEVICE_SAMPLES)
        correlations = []
        for device in task.targets.split():
            few = rng.permutation(len(encodings))[:NEW_DEVICE_SAMPLES]
            true = latencies[device]
            adapted = [transfer.adapt(encodings[rows], true[rows]) for rows in (few, chosen)]
            ranks = [float(spearmanr(p.predict(encodings), true).statistic) for p in adapted]
            correlations.append((ranks[0], ranks[1]))
        yield correlations


if __name__ == "__main__":
    typer.run(main)
