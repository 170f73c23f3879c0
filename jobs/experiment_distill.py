"""Compares ways to train candidates: optimisers, learning rates, schedules and starts.

    python jobs/experiment_distill.py jobs/cifar10.yaml --steps 200 --layers 4 --json experiment.json

Trains the same candidates of the recipe's pool, at a few layers spread over its teacher, with one change at
a time from what ``distill`` does: Adam at the recipe's learning rate, a cosine after a short rise, a warm
start. Errors are ‖t − s‖² / ‖t‖² on images that were not trained on, with batch statistics; the table has
their geometric mean over the candidates, and its ratio to the recipe's.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table
from torch import Tensor, nn

from lana_ray.config import load_config
from lana_ray.distill.step import Distiller, Recipe, Trainee
from lana_ray.monitoring.progress import console, progress
from lana_ray.networks.layers import batch_statistics, observe
from lana_ray.ops.warmstart import warm_start
from lana_ray.pipeline import run
from lana_ray.workspace import Workspace

_TEST_IMAGES = 256


@dataclass(frozen=True)
class Variant:
    """A way to train."""

    lr: float = 1.0
    """Learning rate relative to the recipe's."""
    warm: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``Recipe``."""


def _optimizer(kind: Callable[..., torch.optim.Optimizer], **options: Any) -> dict[str, Any]:
    return {"optimizer": lambda parameters, lr: kind(parameters, lr=lr, foreach=True, **options)}


VARIANTS = {
    "as the recipe": Variant(),
    "started at random": Variant(warm=False),
    "learning rate / 4": Variant(lr=1 / 4),
    "learning rate / 2": Variant(lr=1 / 2),
    "learning rate x 2": Variant(lr=2),
    "learning rate x 4": Variant(lr=4),
    "constant learning rate": Variant(options={"schedule": lambda step, steps: 1.0}),
    "linear schedule": Variant(options={"schedule": lambda step, steps: 1 - step / steps}),
    "AdamW, decay 0.01": Variant(options=_optimizer(torch.optim.AdamW, weight_decay=0.01)),
    "Adam, second moment 0.99": Variant(options=_optimizer(torch.optim.Adam, betas=(0.9, 0.99))),
    "SGD, momentum 0.9, lr x 50": Variant(lr=50, options=_optimizer(torch.optim.SGD, momentum=0.9)),
    "bfloat16": Variant(options={"autocast": torch.bfloat16}),
}


def main(
    recipe: Path,
    steps: int = 200,
    layers: Annotated[int, typer.Option(help="Layers to try, spread over the teacher.")] = 4,
    run_dir: Annotated[str | None, typer.Option(help="Run directory; defaults to the recipe's.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the errors to this file.")
    ] = None,
) -> None:
    """Prints a table of the variants."""
    config = load_config(recipe, (f"run.dir={run_dir}",) if run_dir else ())
    run(config, until="teacher")
    workspace = Workspace(config)
    torch.set_num_threads(config.ray.cpus_per_worker or torch.get_num_threads())
    places = sorted({round(p) for p in np.linspace(0, len(workspace.layers) - 1, layers + 2)[1:-1]})
    errors = {}
    with progress("variants", len(VARIANTS)) as show:
        for number, (name, variant) in enumerate(VARIANTS.items(), 1):
            errors[name] = _train(workspace, places, variant, steps)
            show(number)
    usual = errors["as the recipe"]
    table = Table(title=f"{len(usual)} candidates after {steps} steps", title_justify="left")
    for column in ("variant", "error", "ratio", "better at"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for name, of_variant in errors.items():
        ratio = _geometric(of_variant) / _geometric(usual)
        better = sum(of_variant[candidate] < usual[candidate] for candidate in usual)
        table.add_row(name, f"{_geometric(of_variant):.4f}", f"{ratio:.2f}", f"{better} of {len(usual)}")
    console.print(table)
    if json_file:
        json_file.write_text(json.dumps(errors, indent=1))


def _geometric(errors: dict[str, float]) -> float:
    return math.exp(statistics.fmean(math.log(error) for error in errors.values()))


def _train(workspace: Workspace, places: list[int], variant: Variant, steps: int) -> dict[str, float]:
    """Returns the errors by candidate."""
    trainees = [
        Trainee(
            layer=workspace.layers[i],
            op=op.name,
            module=workspace.space.candidate(i, j).to(memory_format=torch.channels_last),
        )
        for i in places
        for j, op in enumerate(workspace.space.ops[i])
        if workspace.has_weights(workspace.space.ids[i][j])
    ]
    names = sorted({trainee.layer.name for trainee in trainees})
    size = workspace.config.distill.batch_size
    if variant.warm:
        first, _ = next(workspace.data.endless("train", batch_size=size))
        seen = observe(workspace.teacher, names, first)
        for trainee in trainees:
            own = workspace.teacher.get_submodule(trainee.layer.name)
            warm_start(trainee.module, trainee.layer, own, *seen[trainee.layer.name])
    lr = variant.lr * workspace.config.distill.lr
    distiller = Distiller(workspace.teacher, trainees, Recipe(lr=lr, steps=steps, **variant.options))
    for images, _ in itertools.islice(workspace.data.endless("train", batch_size=size), steps):
        distiller.step(images)
    images, _ = next(workspace.data.batches("score", batch_size=_TEST_IMAGES))
    seen = observe(workspace.teacher, names, images)
    return {f"{t.layer.name} {t.op}": normalised_error(t.module, *seen[t.layer.name]) for t in trainees}


@torch.no_grad()
def normalised_error(module: nn.Module, inputs: Tensor, output: Tensor) -> float:
    """Returns the squared error relative to the output's mean square, with the batch's own statistics."""
    with batch_statistics(module.eval()):
        return float((module(inputs) - output).square().mean() / output.square().mean())


if __name__ == "__main__":
    typer.run(main)
