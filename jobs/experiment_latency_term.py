"""How far LAT(α) is from what the found cells really take, on measured latencies of NAS-Bench-201.

    python jobs/experiment_latency_term.py PATH/latency --seeds 3 --json latency_term.json

PATH/latency holds ``nb201/`` (``archs.txt``, ``latency_ms.npz``): HELP's measurements as numpy archives,
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
from lana_ray.search.bilevel import Batches, search
from lana_ray.search.cost import Cost, Way, expected_cost
from lana_ray.search.settings import SearchSettings
from lana_ray.spaces import Architecture, NasBench201Space
from lana_ray.spaces.cells import CellSupernet
from lana_ray.spaces.cells.nasbench201 import OPERATIONS

TASK = torch.tensor([1.0, 0.6, 0.3, 0.0, 0.5])
"""Loss of each operation on an edge."""
SAMPLES = 900
TARGETS = (0.4, 0.7, 1.0)
"""Of the mean cell's latency."""
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
"""Of the mean cell's latency, that cells for digits are searched for."""
EPOCHS, STEPS, BATCH = 20, 20, 64
CELLS = NasBench201Space()
Figures = dict[str, dict[str, dict[str, list[float]]]]
"""By device, by way of LAT(α), by name."""


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
    """True latencies of all live cells, and a predictor of some."""

    known: dict[Architecture, float]
    cost: Cost
    mean: float


def main(
    folder: Annotated[Path, typer.Argument(help="The folder with nb201/.")],
    devices: Annotated[
        str, typer.Option(help="Names of devices, separated by commas.")
    ] = "raspi4,1080ti_256",
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    to: Annotated[Path | None, typer.Option("--json", help="Where the figures go as JSON.")] = None,
) -> None:
    """Prints three tables: values along searches for a target, gradients beside the exact ones, and the cells
    found for digits on each device."""
    if not (folder / "nb201" / "archs.txt").is_file():
        raise UserError(f"{folder}: no nb201/archs.txt there")
    searches: Figures = {}
    gradients: Figures = {}
    known = {name: _device(folder, name) for name in devices.split(",")}
    for name, device in known.items():
        searches[name] = {way: _searches(device, way, seeds) for way in get_args(Way)}
        gradients[name] = _gradients(device, seeds)
    table = Table(title="LAT(α) along searches for a target", title_justify="left")
    for heading in ("device", "LAT(α)", "|LAT / true − 1|", "in the last epoch", "Spearman", "true / target"):
        table.add_column(heading, justify="left" if heading in ("device", "LAT(α)") else "right")
    for name, ways in searches.items():
        for way, found in ways.items():
            along, end = (f"{100 * np.median(found[key]):.1f} %" for key in ("along", "end"))
            least, most = min(found["reached"]), max(found["reached"])
            reached = f"{np.median(found['reached']):.2f} ({least:.2f} to {most:.2f})"
            table.add_row(name, way, along, end, f"{found['spearman'][0]:.3f}", reached)
    console.print(table)
    table = Table(title="Gradient of one LAT(α), 8 samples, beside the exact one", title_justify="left")
    for heading in ("device", "LAT(α)", "cosine", "length"):
        table.add_column(heading, justify="left" if heading in ("device", "LAT(α)") else "right")
    for name, draws in gradients.items():
        for draw, found in draws.items():
            table.add_row(name, draw, *(f"{np.mean(found[key]):.2f}" for key in ("cosine", "length")))
    console.print(table)
    digits = _digits(known, seeds)
    console.print(_digits_table(digits))
    if to:
        figures = {"search": searches, "gradient": gradients, "digits": digits}
        to.write_text(json.dumps(figures, indent=1))


def _device(folder: Path, name: str) -> Device:
    """Cells with dead edges are left out: what is deployed has none."""
    cells = [CELLS.parse(line) for line in (folder / "nb201" / "archs.txt").read_text().splitlines()]
    with np.load(folder / "nb201" / "latency_ms.npz", allow_pickle=False) as file:
        if name not in file.files:
            raise UserError(f"no device {name!r}; there are {', '.join(file.files)}")
        known = dict(zip(cells, file[name].astype(float).tolist(), strict=True))
    known = {cell: known[cell] for cell in cells if CELLS.live(cell) == cell}
    rng = np.random.default_rng(0)
    drawn = [CELLS.live(CELLS.random(rng)) for _ in range(SAMPLES)]
    latencies = np.array([known[cell] for cell in drawn])
    predictor = LatencyPredictor(seed=0).fit(np.stack([CELLS.encode(cell) for cell in drawn]), latencies)
    return Device(known, predictor.as_module(), float(latencies.mean()))


def _searches(device: Device, way: Way, seeds: int) -> dict[str, list[float]]:
    """From random α to every target: errors of LAT(α), its rank correlation, and what was reached."""
    expected, true, end, reached = [], [], [], []
    for target, seed in product(TARGETS, range(seeds)):
        result = search(
            Toy(seed),
            device.cost,
            settings=SearchSettings(
                epochs=40,
                alpha_lr=0.1,
                mixture="relaxed",
                way=way,
                target=target * device.mean,
                seed=seed,
            ),
            reference=device.mean,
            operations=[OPERATIONS] * 6,
            weight_batches=_nothing,
            alpha_batches=_nothing,
            steps=5,
            loss=lambda answer, images, labels: answer,
        )
        expected += [point.expected_cost for point in result.trajectory]
        true += [device.known[point.architecture] for point in result.trajectory]
        end.append(abs(expected[-1] / true[-1] - 1))
        reached.append(device.known[result.architecture] / (target * device.mean))
    errors = np.abs(np.array(expected) / np.array(true) - 1)
    return {
        "along": errors.tolist(),
        "end": end,
        "spearman": [float(spearmanr(expected, true).statistic)],
        "reached": reached,
    }


def _gradients(device: Device, seeds: int) -> dict[str, dict[str, list[float]]]:
    """Cosine with the gradient of the predictor's mean over all cells by their probabilities, and relative
    length, of each way at random logits."""
    everything = list(product(range(len(OPERATIONS)), repeat=6))
    choices = torch.tensor(everything)
    with torch.no_grad():
        costs = device.cost(torch.from_numpy(np.stack([CELLS.encode(cell) for cell in everything])))
    found: dict[str, dict[str, list[float]]] = {draw: {"cosine": [], "length": []} for draw in DRAWS}
    for scale, seed in product(SCALES, range(5 * seeds)):
        torch.manual_seed(seed)
        logits = [(scale * torch.randn(len(OPERATIONS))).requires_grad_() for _ in range(6)]
        logs = [logit.log_softmax(0)[column] for logit, column in zip(logits, choices.T, strict=True)]
        exact = _flat((torch.stack(logs).sum(0).exp() * costs).sum(), logits)
        for draw, (way, temperature) in DRAWS.items():
            value = expected_cost(logits, CELLS, device.cost, way=way, temperature=temperature)
            slope = _flat(value, logits)
            found[draw]["cosine"].append(float(torch.cosine_similarity(slope, exact, dim=0)))
            found[draw]["length"].append(float(slope.norm() / exact.norm()))
    return found


def _digits(devices: dict[str, Device], seeds: int) -> list[dict[str, Any]]:
    """Searches of a real supernet on real images, alike but for the device."""
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
            device.cost,
            settings=SearchSettings(
                epochs=EPOCHS,
                warmup_epochs=EPOCHS // 2,
                weight_lr=0.1,
                alpha_lr=0.1,
                target=SHARE * device.mean,
                seed=seed,
            ),
            reference=device.mean,
            operations=[OPERATIONS] * 6,
            weight_batches=batches("train"),
            alpha_batches=batches("score"),
            steps=STEPS,
        )
        moved = result.trajectory[EPOCHS // 2 - 1 :]  # from where α moves
        expected = [point.expected_cost for point in moved]
        true = [device.known[CELLS.live(point.architecture)] for point in moved]
        rows.append(
            {
                "seed": seed,
                "device": name,
                "spearman": float(spearmanr(expected, true).statistic),
                "cell": CELLS.format(result.architecture),
                "share": {
                    other: there.known[CELLS.live(result.architecture)] / there.mean
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
