"""What a run would do, without doing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil, prod
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from lana_ray.cluster.claims import PROCESS_BYTES, held, no_room, trainers
from lana_ray.cluster.connection import Node, connect, find_cluster, nodes, this_machine
from lana_ray.cluster.placement import assign_targets
from lana_ray.cluster.trainers import describe, worker_group
from lana_ray.config import Config, Target
from lana_ray.costs import macs
from lana_ray.data import MissingDataError
from lana_ray.data.names import listed
from lana_ray.deploy.runtimes import RUNTIMES, check
from lana_ray.errors import UserError
from lana_ray.measurement.latencies import LATENCY
from lana_ray.networks.checkpoints import read_weights
from lana_ray.networks.preparation import example_images, run
from lana_ray.networks.teachers import load_teacher, random_weights, structure
from lana_ray.ops import count_weights
from lana_ray.preflight.settings import allowed_choices, check_batches, check_pool, check_space
from lana_ray.preflight.teacher import check_teacher, first_images
from lana_ray.spaces.cells import CellSupernet
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.spaces.offers import offers
from lana_ray.stages.distill import worker_groups
from lana_ray.stages.sample import planned_candidates
from lana_ray.training.loop import steps_of
from lana_ray.trials.problem import EPOCHS
from lana_ray.workspace import Workspace, cell_space

_IMAGENET_CLASSES = 1000


def plan(config: Config) -> Table:
    """The stages of a run as a table, with their sizes and where they run.

    Raises:
        UserError: as the run itself would, except that data and nodes that are not here are only noted.
    """
    for target in config.targets:
        check(target)
    check_pool(config)
    workspace = Workspace(config)
    table = Table(title=f"plan for {config.run.dir}", title_justify="left", show_lines=True)
    table.add_column("stage", no_wrap=True)
    table.add_column("what would run")
    try:
        data = workspace.opened
        sizes: dict[str, int] | None = data.sizes
        classes = data.num_classes
        splits = ", ".join(f"{size} {split}" for split, size in data.sizes.items())
        what = f"{splits} images; {classes} classes, {config.data.image_size} px"
        order = f"the teacher's outputs are taken in this order: {listed(data.classes, 12)}"
        table.add_row("data", "\n".join((what, order, *data.notes, *data.check())))
    except MissingDataError as error:
        sizes, classes = None, _IMAGENET_CLASSES
        table.add_row("data", f"not here: {error}")
    if sizes is not None:
        check_batches(config, sizes)
    space, notes = _checked_space(config, workspace, classes if sizes else None)
    check_space(config, space)
    teacher_macs = _teacher_macs(config, space)
    table.add_row("teacher", "\n".join((_teacher(config, space, teacher_macs), *notes)))
    table.add_row("pool", "\n".join(offers(space)))
    where, training = _nodes(config, _trained(space))
    table.add_row("workers", "\n".join(training))
    for line in _sampling(workspace.targets, where, len(planned_candidates(space))):
        table.add_row("sample", line)
    table.add_row("distill", _distillation(config, space, teacher_macs))
    table.add_row("score", f"{sum(map(len, space.ops))} candidates on {config.score.images} images each")
    table.add_row("select", _selection(config, space))
    if "search" in config.model_fields_set:
        table.add_row("search", "\n".join(("with lana-ray search:", *_search(config, space, classes))))
    budgets, targets = len(config.budgets.latency_ms), len(config.targets)
    joint = _has_joint(config)
    most = budgets * (targets + joint)
    steps = f", {_finetuning(config, sizes['train'], teacher_macs)}" if sizes else ""
    table.add_row("finetune", f"at most {most} students for {config.finetune.epochs:g} epochs{steps}")
    versions = budgets * targets * (1 + joint)
    table.add_row("register", f"at most {versions} versions in {targets} registered models of MLflow")
    return table


def _checked_space(
    config: Config, workspace: Workspace, classes: int | None
) -> tuple[LayerwiseSpace, list[str]]:
    """The space of a teacher that is checked as in a run, and what to know of its weights.

    Pretrained ones are not fetched for it.

    Args:
        classes: None if the data is not here: random images stand in, and any number of classes will do.
    """
    teacher, size = config.teacher, config.data.image_size
    settings: dict[str, Any] = {"image_size": size, "seed": config.run.seed}
    if classes is None:
        if teacher.weights:
            read_weights(teacher.weights)
        network, _ = structure(teacher, _IMAGENET_CLASSES, **settings)
        answers = run(network, example_images(size))
        own = answers.shape[1] if isinstance(answers, Tensor) and answers.dim() == 2 else _IMAGENET_CLASSES
        return check_teacher(config, network, own).space, []
    notes = []
    if teacher.pretrained:
        network, _ = structure(teacher, classes, **settings)
    else:
        loaded = load_teacher(teacher, classes, **settings)
        network = loaded.network
        if loaded.untrained:
            notes.append(f"trained for {teacher.adapt.epochs:g} epochs first, since {loaded.untrained}")
        if warning := random_weights(teacher, loaded, classes, **settings):
            notes.append(warning)
    return check_teacher(config, network, classes, first_images(workspace.data)).space, notes


def _sampling(targets: Sequence[Target], where: Mapping[str, str], alone: int) -> Iterator[str]:
    """What is measured on each target, and where."""
    for target in targets:
        networks = target.measure.architectures
        yield "\n".join(
            (
                f"{target.name} ({target.runtime}, {target.precision}, {target.threads} threads, batch "
                f"{target.batch_size}, {target.device}): {alone} candidates alone and {networks} whole "
                f"networks, at most {(alone + networks) * target.measure.time_limit_s / 60:.0f} minutes of "
                "timing, beside what building each program takes",
                where[target.name],
                *(
                    f"runtime missing on this machine: {mend}"
                    for mend in [RUNTIMES[target.runtime].missing]
                    if mend
                ),
            )
        )


def _has_joint(config: Config) -> bool:
    return config.select.joint and len(config.targets) > 1


def _selection(config: Config, space: LayerwiseSpace) -> str:
    budgets = ", ".join(map(str, config.budgets.latency_ms))
    on_all = " and on all" if _has_joint(config) else ""
    left = prod(map(len, allowed_choices(config, space)))
    wide = [str(budget) for budget in config.budgets.latency_ms if budget.relative and budget.value >= 1]
    most = config.select.max_ops
    few = "" if most is None else f" of at most {most} different operations"
    return (
        f"budgets {budgets} on {len(config.targets)} targets{on_all}, {config.select.count} students each "
        f"measured and evaluated, in up to {config.select.rounds} rounds; {left:.2g} architectures"
        f"{few} to choose from"
        + "".join(f"; at most {limit} {name}" for name, limit in _bounds(config))
        + (f"; the teacher itself keeps {', '.join(wide)}" if wide else "")
    )


def _search(config: Config, space: LayerwiseSpace, classes: int) -> Iterator[str]:
    """What ``lana-ray search`` would do beside the stages above it, on every target."""
    asked = config.search
    steps = EPOCHS * max(1, asked.steps // EPOCHS)
    if asked.aim == "budget":
        given, trials = "each with a drawn budget", asked.trials
    elif asked.grid is None:
        given, trials = "each with a drawn λ from {:g} to {:g}".format(*asked.lambdas), asked.trials
    else:
        values = ", ".join(f"{value:g}" for value in asked.grid)
        trials = len(asked.grid) * asked.seeds
        given = f"λ of {values} with {asked.seeds} seed{'s'[: asked.seeds > 1]} each"
    if asked.cells is None:
        if "differentiable" in asked.methods:
            yield (
                f"on each target {trials} differentiable searches, {given}, {steps} steps of "
                f"{asked.batch_size} score images; {space.size:.2g} architectures to search"
            )
        if "program" in asked.methods:
            yield f"on each target {asked.trials} integer programs, each with a drawn budget"
        return
    cells = cell_space(config, classes)
    supernet = CellSupernet(cell_space(config, classes, of_supernet=True), partial=asked.cells.partial)
    parameters = sum(p.numel() for p in supernet.weight_parameters())
    yield (
        f"cells of {asked.cells.space}: {cells.size:.2g} architectures; the supernet has "
        f"{parameters / 1e6:.2g} million parameters"
    )
    networks = min(asked.cells.samples, cells.size)
    for target in config.targets:
        minutes = (networks + asked.cells.active) * target.measure.time_limit_s / 60
        chosen = f" and {asked.cells.active} chosen" if asked.cells.active else ""
        took = (
            f"their {asked.cost} read"
            if asked.cost != LATENCY
            else f"at most {minutes:.0f} minutes of timing"
        )
        yield f"{target.name}: {networks} random{chosen} cells, {took}"
    yield (
        f"on each target {trials} searches, {given}, {steps} steps of {asked.batch_size} training and "
        f"{asked.batch_size} score images; what each finds is trained for "
        f"{asked.cells.trial_epochs:g} epochs, the best for each budget for {config.finetune.epochs:g}"
    )


def _bounds(config: Config) -> list[tuple[str, str]]:
    """The budgets beyond latency, as they are written."""
    bounds = config.budgets.bounds.items()
    return [(name, f"{most} of the teacher's" if most.relative else f"{most}") for name, most in bounds]


def _teacher(config: Config, space: LayerwiseSpace, teacher_macs: float) -> str:
    parameters = sum(p.numel() for p in space.network.parameters())
    source = config.teacher.timm or config.teacher.factory
    return (
        f"{source}, {_words(parameters)} parameters, {_words(teacher_macs)} multiply-accumulates "
        f"an image, {len(space.layers)} layers to replace"
    )


def _teacher_macs(config: Config, space: LayerwiseSpace) -> float:
    size = config.data.image_size
    return macs.count(space.network, torch.zeros(1, 3, size, size))


def _distillation(config: Config, space: LayerwiseSpace, teacher_macs: float) -> str:
    """How much it is, by what can be counted: how long it takes, only the workers' hardware tells."""
    settings = config.distill
    candidates = _trained(space)
    images = settings.steps * settings.batch_size
    passes = ceil(candidates / settings.group_size) * images
    return (
        f"{candidates} candidates of {len(space.layers)} layers, {settings.steps} steps of "
        f"{settings.batch_size} images; at most {settings.group_size} at once per worker"
        + ("" if config.pool.max_cost is None else "; less those that sampling finds too slow")
        + f"\n{_words(candidates * settings.steps)} steps of a candidate: {_words(candidates * images)} "
        f"images through candidates, forward and back, and at least {_words(passes)} through the teacher, "
        f"{_words(passes * teacher_macs)} multiply-accumulates\n"
        f"at most {_words(4 * _trained_weights(space))} bytes of weights to keep"
    )


def _trained(space: LayerwiseSpace) -> int:
    """How many candidates distillation trains."""
    return sum(space.is_trained(i, j) for i, choices in enumerate(space.everything) for j in choices)


def _trained_weights(space: LayerwiseSpace) -> int:
    """Weights of all candidates that are trained; those of equal shapes are counted once and added often."""
    known: dict[object, int] = {}
    total = 0
    for i, (layer, ops) in enumerate(zip(space.layers, space.ops, strict=True)):
        for j, op in enumerate(ops):
            if not space.is_trained(i, j):
                continue
            key = (op.key, layer.name if op.of_teacher else layer.place)
            if key not in known and op.of_teacher:
                known[key] = sum(weight.numel() for weight in space.candidate(i, j).parameters())
            elif key not in known:
                known[key] = count_weights(op, layer)
            total += known[key]
    return total


def _finetuning(config: Config, train: int, teacher_macs: float) -> str:
    steps = steps_of(config.finetune, train)
    images = steps * config.finetune.batch_size
    return (
        f"{steps} steps each: {_words(images)} images through the student, forward and back, and through the "
        f"teacher, {_words(images * teacher_macs)} multiply-accumulates"
    )


def _words(number: float) -> str:
    """Three digits and a word: ``13.7 billion``."""
    sizes = {1e18: "quintillion", 1e15: "quadrillion", 1e12: "trillion", 1e9: "billion", 1e6: "million"}
    for size, word in sizes.items():
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,.0f}"


def _nodes(config: Config, candidates: int) -> tuple[dict[str, str], list[str]]:
    """Where each target would be sampled, or why it could not be, and lines on the workers that train."""
    address = find_cluster(config.ray.address)
    if address is None:
        return _describe(config, candidates, [this_machine()])
    try:
        with connect(config.ray):
            return _describe(config, candidates, nodes(gone=True))
    except UserError as error:
        cannot = f"cannot run now: {error}"
        return dict.fromkeys((target.name for target in config.targets), cannot), [cannot]


def _describe(config: Config, candidates: int, known: list[Node]) -> tuple[dict[str, str], list[str]]:
    alive = [node for node in known if node.alive]
    return {target.name: _place(target, alive) for target in config.targets}, _workers(
        config, candidates, known
    )


def _workers(config: Config, candidates: int, known: Sequence[Node]) -> list[str]:
    """The workers of each training, or why there are none; distillation's memory shows when it begins."""
    groups = {
        "distill": worker_groups(config.ray, candidates, PROCESS_BYTES, known),
        "finetune": [worker_group(config.ray, config.finetune, known)],
    }
    lines = [f"{title}: {describe(group, config.ray)}" for title, found in groups.items() for group in found]
    for group in groups["distill"] + groups["finetune"]:
        if held(known, group.claim) < group.fewest:
            wait_s = config.ray.label_wait_s
            then = f"would wait {wait_s:g} s for a node" if wait_s else "cannot run now"
            lines = [f"{then}: {no_room(group.claim, config.ray, known, group.fewest)}"]
    return [*lines, f"on {', '.join(sorted({node.name for node in trainers(known)})) or 'no node'}"]


def _place(target: Target, known: list[Node]) -> str:
    try:
        placement = assign_targets([target], known)[target.name]
    except UserError as error:
        return f"cannot run now: {error}"
    standing_in = ", standing in: no node is labelled" if placement.stand_in else ""
    return f"on {', '.join(placement.nodes)}{standing_in}"
