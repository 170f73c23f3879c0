"""Compares candidates of a strided layer that pad as the layer does with those that pad every side alike.

    python jobs/experiment_padding.py jobs/cifar10.yaml --steps 80

Trains candidates of the recipe's teacher at its layers with a stride, on the recipe's images and with the
teacher's weights as they are loaded, not adapted. Errors are ‖t − s‖² / ‖t‖² on images that were not trained
on, with batch statistics, after a warm start and after the steps: Adam at the recipe's learning rate.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from experiment_distill import normalised_error
from rich.table import Table
from torch import nn

from lana_ray.config import load_config
from lana_ray.distill.step import Distiller, Recipe, Trainee
from lana_ray.monitoring.progress import console, progress
from lana_ray.networks.layers import Layer, find_layers, observe
from lana_ray.networks.teachers import load_teacher
from lana_ray.ops import build_op, parse_op, warm_start
from lana_ray.spaces.layerwise import activation
from lana_ray.workspace import Workspace

OPS = ("pruned_w0.5", "mbconv_e3_k3", "mbconv_e3_k5", "mbconv_e3_k1", "conv_pair_w0.25_k3", "repvgg_w0.25_k3")
_TEST_IMAGES = 256


def main(
    recipe: Path,
    steps: int = 80,
    ops: Annotated[str, typer.Option(help="Operations to try, separated by commas.")] = ",".join(OPS),
    settings: Annotated[list[str] | None, typer.Option("--set", help="As for lana-ray run.")] = None,
) -> None:
    """Prints a table of candidates by layer."""
    config = load_config(recipe, tuple(settings or ()))
    data = Workspace(config).data
    network = load_teacher(config.teacher, data.num_classes).network
    size, lr = config.distill.batch_size, config.distill.lr
    first, _ = next(data.endless("train", batch_size=size))
    layers = [layer for layer in find_layers(network, first) if layer.stride > 1]
    table = Table(title=f"error at the start → after {steps} steps", title_justify="left")
    for column in ("candidate", "padding", *(layer.name for layer in layers)):
        table.add_column(column)
    trainees = {
        (op, padding): [_candidate(network, layer, op, padding) for layer in layers]
        for op in ops.split(",")
        for padding in ("alike on every side", "the layer's")
        if not (op.startswith("pruned") and padding != "the layer's")
    }
    every = [trainee for of_op in trainees.values() for trainee in of_op]
    names = [layer.name for layer in layers]
    seen = observe(network, names, first)
    for trainee in every:
        own = network.get_submodule(trainee.layer.name)
        warm_start(trainee.module, trainee.layer, own, *seen[trainee.layer.name])
    images, _ = next(data.batches("score", batch_size=_TEST_IMAGES))
    test = observe(network, names, images)
    before = [normalised_error(t.module, *test[t.layer.name]) for t in every]
    distiller = Distiller(network, every, Recipe(lr=lr, steps=steps))
    with progress("steps", steps) as show:
        for number, (batch, _) in enumerate(data.endless("train", batch_size=size), 1):
            distiller.step(batch)
            show(number)
            if number == steps:
                break
    after = [normalised_error(t.module, *test[t.layer.name]) for t in every]
    errors = dict(zip(map(id, every), zip(before, after, strict=True), strict=True))
    for (op, padding), of_op in trainees.items():
        table.add_row(op, padding, *("{:.3f} → {:.3f}".format(*errors[id(t)]) for t in of_op))
    console.print(table)


def _candidate(network: nn.Module, layer: Layer, op: str, padding: str) -> Trainee:
    at = layer if padding == "the layer's" else replace(layer, offset=(0.0, 0.0))
    own = network.get_submodule(layer.name)
    module = build_op(parse_op(op), at, seed=0, act=activation(network), teacher=own)
    return Trainee(layer=at, op=op, module=module.to(memory_format=torch.channels_last))


if __name__ == "__main__":
    typer.run(main)
