"""Measures how far LAT(α) is from the true latencies of the cells that searches find, on NAS-Bench-201.

    python jobs/experiment_latency_term.py PATH/latency --seeds 3 --json latency_term.json

PATH/latency has ``nb201/`` (``archs.txt``, ``latency_ms.npz``): HELP's measurements as numpy archives,
milliseconds. A toy task prefers convolutions; the search weighs it against a predictor of 900 cells. Then a
real supernet learns handwritten digits, while it is searched for half of the mean cell's latency on each
device.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import torch
import typer
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor, nn

from lana_ray.config import DataConfig
from lana_ray.data import load_data
from lana_ray.errors import UserError
from lana_ray.latency import LatencyPredictor
from lana_ray.monitoring.progress import console
from lana_ray.search.bilevel import Batches, Objective, SearchBatches, search
from lana_ray.search.cost import Cost, Way, expected_cost
from lana_ray.search.settings import SearchSettings
from lana_ray.spaces import Architecture, NasBench201Space
from lana_ray.spaces.cells import CellSupernet
from lana_ray.spaces.cells.nasbench201 import OPERATIONS

TASK = torch.tensor([1.0, 0.6, 0.3, 0.0, 0.5])
"""Loss of each operation on an edge."""
SAMPLES = 900
TARGETS = (0.4, 0.7, 1.0)
"""Targets relative to the mean cell's latency."""
SCALES = (0.3, 1.0, 3.0)
"""Standard deviations of random logits."""
DRAWS: dict[str, tuple[Way, float | None]] = {
    "expectation": ("expectation", None),
    "gumbel": ("gumbel", None),
    "gumbel, τ = 10": ("gumbel", 10.0),
    "gumbel, τ = 1": ("gumbel", 1.0),
    "gumbel, τ = 0.1": ("gumbel", 0.1),
    "argmax": ("argmax", None),
}
SHARE = 0.5
"""Target of the searches on digits, relative to the mean cell's latency."""
EPOCHS, STEPS, BATCH = 20, 20, 64
CELLS = NasBench201Space()
Figures = dict[str, dict[str, dict[str, list[float]]]]
"""Figures by device, by way of LAT(α), by name."""


class Toy(nn.Module):
    """A supernet whose loss is the mean of its edges' operations."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.space = CELLS
        self.alphas = nn.ParameterList(nn.Parameter(torch.randn(5, generator=generator)) for _ in range(6))

    def logits(self) -> list[Tensor]:
        return [alpha.log_softmax(0) for alpha in self.alphas]

    def architecture_parameters(self) -> list[nn.Parameter]:
        return list(self.alphas)

    def weight_parameters(self) -> list[nn.Parameter]:
        return []

    def forward(self, images: Tensor, weights: Sequence[Tensor]) -> Tensor:
        return torch.stack([(TASK * weight).sum() for weight in weights]).mean()


@dataclass(frozen=True)
class Device:
    """A device's true latencies of all live cells, and a predictor fitted to some of them."""

    latencies: dict[Architecture, float]
    cost: Cost
    mean: float


def main(
    folder: Annotated[Path, typer.Argument(help="The folder with nb201/.")],
    devices: Annotated[
        str, typer.Option(help="Names of devices, separated by commas.")
    ] = "raspi4,1080ti_256",
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    to: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Prints three tables: values along searches, gradients compared with exact ones, cells for digits."""
    if not (folder / "nb201" / "archs.txt").is_file():
        raise UserError(
            "missing_file", f"{folder}: no nb201/archs.txt there; give the folder that has nb201/"
        )
    searches: Figures = {}
    gradients: Figures = {}
    by_name = {name: _device(folder, name) for name in devices.split(",")}
    for name, device in by_name.items():
        searches[name] = {way: _searches(device, way, seeds) for way in get_args(Way)}
        gradients[name] = _gradients(device, seeds)
    table = Table(title="LAT(α) along searches for a target", title_justify="left")
    for heading in ("device", "LAT(α)", "|LAT / true − 1|", "in the last epoch", "Spearman", "true / target"):
        table.add_column(heading, justify="left" if heading in ("device", "LAT(α)") else "right")
    for name, ways in searches.items():
        for way, measures in ways.items():
            along, end = (f"{100 * np.median(measures[key]):.1f} %" for key in ("along", "end"))
            least, most = min(measures["reached"]), max(measures["reached"])
            reached = f"{np.median(measures['reached']):.2f} ({least:.2f} to {most:.2f})"
            table.add_row(name, way, along, end, f"{measures['spearman'][0]:.3f}", reached)
    console.print(table)
    table = Table(
        title="Gradient of one LAT(α), 8 samples, compared with the exact one", title_justify="left"
    )
    for heading in ("device", "LAT(α)", "cosine", "length"):
        table.add_column(heading, justify="left" if heading in ("device", "LAT(α)") else "right")
    for name, draws in gradients.items():
        for draw, measures in draws.items():
            table.add_row(name, draw, *(f"{np.mean(measures[key]):.2f}" for key in ("cosine", "length")))
    console.print(table)
    digits = _digits(by_name, seeds)
    console.print(_digits_table(digits))
    if to:
        figures = {"search": searches, "gradient": gradients, "digits": digits}
        to.write_text(json.dumps(figures, indent=1))


def _device(folder: Path, name: str) -> Device:
    """Loads a device's measurements, without cells that have dead edges, since deployed cells have none."""
    cells = [CELLS.parse(line) for line in (folder / "nb201" / "archs.txt").read_text().splitlines()]
    with np.load(folder / "nb201" / "latency_ms.npz", allow_pickle=False) as file:
        if name not in file.files:
            raise UserError("unknown_name", f"unknown device {name!r}; available: {', '.join(file.files)}")
        by_cell = dict(zip(cells, file[name].astype(float).tolist(), strict=True))
    by_cell = {cell: by_cell[cell] for cell in cells if CELLS.live(cell) == cell}
    rng = np.random.default_rng(0)
    drawn = [CELLS.live(CELLS.random(rng)) for _ in range(SAMPLES)]
    latencies = np.array([by_cell[cell] for cell in drawn])
    predictor = LatencyPredictor(seed=0).fit(np.stack([CELLS.encode(cell) for cell in drawn]), latencies)
    return Device(by_cell, predictor.as_module(), float(latencies.mean()))


def _searches(device: Device, way: Way, seeds: int) -> dict[str, list[float]]:
    """Searches from random α for every target: errors of LAT(α), its rank correlation, and the results."""
    expected, true, end, reached = [], [], [], []
    for target, seed in product(TARGETS, range(seeds)):
        result = search(
            Toy(seed),
            Objective(cost=device.cost, reference=device.mean, loss=lambda answer, images, labels: answer),
            SearchBatches(weights=_nothing, alphas=_nothing, steps=5),
            SearchSettings(
                epochs=40,
                alpha_lr=0.1,
                mixture="relaxed",
                way=way,
                target=target * device.mean,
                seed=seed,
            ),
        )
        expected += [point.expected_cost for point in result.trajectory]
        true += [device.latencies[point.architecture] for point in result.trajectory]
        end.append(abs(expected[-1] / true[-1] - 1))
        reached.append(device.latencies[result.architecture] / (target * device.mean))
    errors = np.abs(np.array(expected) / np.array(true) - 1)
    return {
        "along": errors.tolist(),
        "end": end,
        "spearman": [float(spearmanr(expected, true).statistic)],
        "reached": reached,
    }


def _gradients(device: Device, seeds: int) -> dict[str, dict[str, list[float]]]:
    """Compares gradients of each way at random logits with that of the exact mean over all cells.

    Returns, by way, the cosines and the relative lengths.
    """
    everything = list(product(range(len(OPERATIONS)), repeat=6))
    choices = torch.tensor(everything)
    with torch.no_grad():
        costs = device.cost(torch.from_numpy(np.stack([CELLS.encode(cell) for cell in everything])))
    figures: dict[str, dict[str, list[float]]] = {draw: {"cosine": [], "length": []} for draw in DRAWS}
    for scale, seed in product(SCALES, range(5 * seeds)):
        torch.manual_seed(seed)
        logits = [(scale * torch.randn(len(OPERATIONS))).requires_grad_() for _ in range(6)]
        logs = [logit.log_softmax(0)[column] for logit, column in zip(logits, choices.T, strict=True)]
        exact = _flat((torch.stack(logs).sum(0).exp() * costs).sum(), logits)
        for draw, (way, temperature) in DRAWS.items():
            value = expected_cost(logits, CELLS, device.cost, way=way, temperature=temperature)
            slope = _flat(value, logits)
            figures[draw]["cosine"].append(float(torch.cosine_similarity(slope, exact, dim=0)))
            figures[draw]["length"].append(float(slope.norm() / exact.norm()))
    return figures


def _digits(devices: dict[str, Device], seeds: int) -> list[dict[str, Any]]:
    """Searches a real supernet on real images, with the same settings for each device."""
    data = load_data(DataConfig(source="digits", image_size=16, score_images=300), seed=0)
    rows = []
    for seed, (name, device) in product(range(seeds), devices.items()):
        torch.manual_seed(seed)
        supernet = CellSupernet(NasBench201Space(classes=10, width=8, cells=1), partial=1)

        def batches(split: str, seed: int = seed) -> Batches:
            return lambda epoch, start: data.endless(
                split, batch_size=BATCH, start_step=epoch * STEPS + start, seed=seed
            )

        result = search(
            supernet,
            Objective(cost=device.cost, reference=device.mean),
            SearchBatches(weights=batches("train"), alphas=batches("score"), steps=STEPS),
            SearchSettings(
                epochs=EPOCHS,
                warmup_epochs=EPOCHS // 2,
                weight_lr=0.1,
                alpha_lr=0.1,
                target=SHARE * device.mean,
                seed=seed,
            ),
        )
        moved = result.trajectory[EPOCHS // 2 - 1 :]  # from where α moves
        expected = [point.expected_cost for point in moved]
        true = [device.latencies[CELLS.live(point.architecture)] for point in moved]
        rows.append(
            {
                "seed": seed,
                "device": name,
                "spearman": float(spearmanr(expected, true).statistic),
                "cell": CELLS.format(result.architecture),
                "share": {
                    other: there.latencies[CELLS.live(result.architecture)] / there.mean
                    for other, there in devices.items()
                },
            }
        )
        console.print(f"digits, seed {seed}: searched for {name}", highlight=False)
    return rows


def _digits_table(rows: Sequence[dict[str, Any]]) -> Table:
    title = f"Cells for digits, searched for {SHARE:g} of the mean cell's latency on each device"
    table = Table(title=title, title_justify="left")
    for heading in ("seed", "searched for", "Spearman along it", "true / mean", "cell"):
        table.add_column(heading, justify="left" if heading in ("searched for", "cell") else "right")
    for row in rows:
        shares = ", ".join(f"{share:.2f} on {name}" for name, share in row["share"].items())
        table.add_row(str(row["seed"]), row["device"], f"{row['spearman']:.2f}", shares, row["cell"])
    return table


def _flat(value: Tensor, logits: Sequence[Tensor]) -> Tensor:
    return torch.cat(torch.autograd.grad(value, list(logits)))


def _nothing(epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in count(start):
        yield torch.zeros(1), torch.zeros(1)


if __name__ == "__main__":
    typer.run(main)
