"""What cannot come out whatever is measured: told from the configuration and the networks' structure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import nn

from lana_ray.config import Config, CountBudget
from lana_ray.costs import macs
from lana_ray.costs.registry import COUNTED, METERS
from lana_ray.deploy.inputs import example_input
from lana_ray.errors import UserError
from lana_ray.ids import Choices
from lana_ray.ops import parse_op, register_files
from lana_ray.ops.registry import TEACHER
from lana_ray.selection.constraints import constrained
from lana_ray.selection.few import fewest_operations
from lana_ray.spaces.layerwise import LayerwiseSpace

_CHEAP = 100
"""So many structures are counted in a few seconds; more are counted once sampling has left some out."""


def check_pool(config: Config) -> None:
    """Raises UserError for a name in ``pool.ops`` that is no operation."""
    register_files(config.pool.modules)
    for place, name in enumerate(config.pool.ops or ()):
        try:
            parse_op(name)
        except UserError as error:
            raise UserError(f"pool.ops[{place}]: {error}") from None


def check_batches(config: Config, sizes: Mapping[str, int]) -> None:
    """Raises UserError for a batch that was asked for and is larger than the training images.

    A default is no wish: it becomes as small as the data.
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
                f"{key}.batch_size: {size} is more than the {train} images to train with; set at most {train}"
            )


def check_space(config: Config, space: LayerwiseSpace) -> None:
    """Raises UserError where the candidates and the settings of ``select`` can keep no budget.

    Args:
        space: of the teacher's structure, whatever its weights.
    """
    allowed, most = allowed_choices(config, space), config.select.max_ops
    if most is not None:
        names = [[space.ops[i][j].name for j in choices] for i, choices in enumerate(allowed)]
        if (needed := fewest_operations(names, free=[TEACHER])) > most:
            raise UserError(
                f"select.max_ops: {most} is too few: select.force and select.forbid leave layers without the "
                f"teacher's own operation, which need {needed} others; raise it to {needed}"
            )
    if most == 0 or all(choices == (0,) for choices in allowed):
        _check_teacher_alone(config)
    for name in COUNTED:
        budget: CountBudget | None = getattr(config.budgets, name)
        if budget is not None:
            _check_counted(config, space, allowed, name, budget)


def allowed_choices(config: Config, space: LayerwiseSpace) -> Choices:
    """The candidates that ``select.force`` and ``select.forbid`` leave."""
    left = constrained(
        [np.zeros(len(ops)) for ops in space.ops],
        [layer.name for layer in space.layers],
        [[op.name for op in ops] for ops in space.ops],
        force=config.select.force,
        forbid=config.select.forbid,
    )
    return tuple(tuple(np.flatnonzero(np.isfinite(of_layer)).tolist()) for of_layer in left)


def _check_teacher_alone(config: Config) -> None:
    """The one student that is left, the teacher itself, keeps no budget that is less than its own latency."""
    budgets, free = config.budgets.latency_ms, 1 - config.select.margin
    if all(budget.relative and budget.value * free < 1 for budget in budgets):
        raise UserError(
            "pool.ops, select.force, select.forbid and select.max_ops leave the teacher alone to choose, "
            f"which keeps none of budgets.latency_ms: {', '.join(map(str, budgets))}; allow other operations"
        )


def _check_counted(
    config: Config, space: LayerwiseSpace, allowed: Choices, name: str, budget: CountBudget
) -> None:
    """Refuses a budget below the smallest student, as far as that is known without counting for long."""
    smallest = list(_smallest_places(space, allowed))
    places = {(i, 0) for i in range(len(space.layers))}.union(*smallest)
    structures = {space.structure(i, j): (i, j) for i, j in places}
    if len(structures) > _CHEAP or (name == macs.METER.name and _fuses(space.network)):
        return
    counts = {}
    for key, (i, j) in structures.items():
        counts[key] = _count(config, space.candidate(i, j).eval(), space, i, name)
    teacher = _count(config, space.network, space, None, name)
    layers = sum(counts[space.structure(i, 0)] for i in range(len(space.layers)))
    least = sum(min(counts[space.structure(i, j)] for i, j in of_layer) for of_layer in smallest if of_layer)
    check_smallest(name, budget.limit(teacher), teacher - layers + least, teacher)


def _smallest_places(space: LayerwiseSpace, allowed: Choices) -> Iterator[set[tuple[int, int]]]:
    """Per layer the candidates that may be the smallest; none where the layer can be left out."""
    for i, choices in enumerate(allowed):
        free = any(space.ops[i][j].family == "identity" for j in choices)
        yield set() if free else {(i, j) for j in choices}


def _fuses(network: nn.Module) -> bool:
    """Whether eager mode hides multiplications from the count that ``macs.count`` makes without an export."""
    return any(isinstance(module, nn.MultiheadAttention) for module in network.modules())


def _count(config: Config, module: nn.Module, space: LayerwiseSpace, layer: int | None, name: str) -> float:
    """What is counted of a layer's candidate, or of the network."""
    size, target = config.data.image_size, config.targets[0]
    shape = (3, size, size) if layer is None else space.layers[layer].input_shape
    if name == macs.METER.name:
        return macs.count(module, torch.zeros(1, *shape))
    return METERS[name].read(module, example_input(target), target)


def check_smallest(name: str, limit: float, least: float, teacher: float) -> None:
    """Raises UserError for a budget below the smallest student, all three counted alike."""
    if least > limit:
        raise UserError(
            f"budgets.{name}: {limit:.6g} cannot be met: the smallest student has {least:.6g} (the "
            f"teacher {teacher:.6g}); raise the budget or add smaller operations to the pool"
        )
