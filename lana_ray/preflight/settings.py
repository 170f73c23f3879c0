"""Refuses settings that no measurement could satisfy, given the structure of the networks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from lana_ray.config import Config, CountBudget
from lana_ray.costs import macs
from lana_ray.costs.registry import COUNTED, METERS
from lana_ray.deploy import runtimes
from lana_ray.deploy.inputs import example_input
from lana_ray.errors import UserError
from lana_ray.ids import Choices
from lana_ray.ops import parse_op, register_files
from lana_ray.ops.registry import TEACHER
from lana_ray.selection.constraints import constrained
from lana_ray.selection.max_ops import fewest_operations
from lana_ray.spaces.layerwise import LayerwiseSpace

_CHEAP = 100
"""Most structures that are counted here, in a few seconds; more are counted after sampling drops some."""


def check_names(config: Config) -> None:
    """Raises UserError for a target that its runtime does not support, or an unknown name in ``pool.ops``."""
    for target in config.targets:
        runtimes.check(target)
    register_files(config.pool.modules)
    for place, name in enumerate(config.pool.ops or ()):
        try:
            parse_op(name)
        except UserError as error:
            raise UserError(error.code, f"pool.ops[{place}]: {error}") from None


def check_batches(config: Config, sizes: Mapping[str, int]) -> None:
    """Raises UserError for a batch size that exceeds the number of training images.

    Default batch sizes are not checked, since they are reduced to the size of the data.

    Args:
        sizes: number of images per split.
    """
    train = sizes["train"]
    trainings = (
        ("teacher.adapt", config.teacher.adapt),
        ("distill", config.distill),
        ("finetune", config.finetune),
    )
    for key, settings in trainings:
        size = settings.batch_size
        if "batch_size" in settings.model_fields_set and size > train:
            raise UserError(
                "invalid_setting",
                f"{key}.batch_size: {size} is more than the {train} training images; set at most {train}",
            )


def check_space(config: Config, space: LayerwiseSpace) -> None:
    """Raises UserError if the candidates and the settings of ``select`` cannot keep any budget.

    Args:
        space: a space of the teacher's structure, with any weights.
    """
    allowed, most = allowed_choices(config, space), config.select.max_ops
    if most is not None:
        names = [[space.ops[i][j].name for j in choices] for i, choices in enumerate(allowed)]
        if (needed := fewest_operations(names, free=[TEACHER])) > most:
            raise UserError(
                "invalid_setting",
                f"select.max_ops: {most} is too few: select.force and select.forbid exclude the teacher's "
                f"operation from layers that need {needed} others; raise it to {needed}",
            )
    if most == 0 or all(choices == (0,) for choices in allowed):
        _check_teacher_alone(config)
    for name in COUNTED:
        budget: CountBudget | None = getattr(config.budgets, name)
        if budget is not None:
            _check_counted(config, space, allowed, name, budget)


def allowed_choices(config: Config, space: LayerwiseSpace) -> Choices:
    """Returns the candidates of each layer that ``select.force`` and ``select.forbid`` allow."""
    scores = constrained(
        [np.zeros(len(ops)) for ops in space.ops],
        [layer.name for layer in space.layers],
        [[op.name for op in ops] for ops in space.ops],
        force=config.select.force,
        forbid=config.select.forbid,
    )
    return tuple(tuple(np.flatnonzero(np.isfinite(row)).tolist()) for row in scores)


def _check_teacher_alone(config: Config) -> None:
    """Raises UserError if the teacher is the only student and all budgets are less than its own latency."""
    budgets, free = config.budgets.latencies, 1 - config.select.margin
    if all(budget.relative and budget.limit_ms(1.0, 1) * free < 1 for budget in budgets):
        raise UserError(
            "infeasible",
            "pool.ops, select.force, select.forbid and select.max_ops only allow the teacher, which keeps "
            f"none of budgets.latency_ms: {', '.join(map(str, budgets))}; allow other operations",
        )


def _check_counted(
    config: Config, space: LayerwiseSpace, allowed: Choices, name: str, budget: CountBudget
) -> None:
    """Raises UserError for a budget below the smallest student; checks nothing if counting takes long."""
    # The candidates that may be a layer's smallest; none if the layer can be removed.
    smallest: list[set[tuple[int, int]]] = [
        set() if any(space.ops[i][j].family == "identity" for j in choices) else {(i, j) for j in choices}
        for i, choices in enumerate(allowed)
    ]
    all_places = {(i, 0) for i in range(len(space.layers))}.union(*smallest)
    structures = {space.structure(i, j): (i, j) for i, j in all_places}
    # Eager mode hides the multiplications of attention from ``macs.count``, which does not export.
    hides = any(isinstance(module, nn.MultiheadAttention) for module in space.network.modules())
    if len(structures) > _CHEAP or (name == macs.METER.name and hides):
        return
    counts = {
        key: _count(config, space.candidate(i, j).eval(), space, i, name)
        for key, (i, j) in structures.items()
    }
    teacher = _count(config, space.network, space, None, name)
    layers = sum(counts[space.structure(i, 0)] for i in range(len(space.layers)))
    least = sum(min(counts[space.structure(i, j)] for i, j in places) for places in smallest if places)
    check_smallest(name, budget.limit(teacher), teacher - layers + least, teacher)


def _count(config: Config, module: nn.Module, space: LayerwiseSpace, layer: int | None, name: str) -> float:
    """Returns the cost ``name`` of a layer's candidate, or of the network if ``layer`` is None."""
    size, target = config.data.image_size, config.targets[0]
    shape = (3, size, size) if layer is None else space.layers[layer].input_shape
    if name == macs.METER.name:
        return macs.count(module, torch.zeros(1, *shape))
    return METERS[name].read(module, example_input(target), target)


def check_smallest(name: str, limit: float, least: float, teacher: float) -> None:
    """Raises UserError for a budget below the smallest student.

    Args:
        name: the counted cost.
        limit: the budget.
        least: the cost of the smallest student.
        teacher: the cost of the teacher.
    """
    if least > limit:
        raise UserError(
            "infeasible",
            f"budgets.{name}: {limit:.6g} cannot be met: the smallest student has {least:.6g} (the "
            f"teacher {teacher:.6g}); raise the budget or add smaller operations to the pool",
        )
