"""What a run would do, without doing it: every stage plans itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from torch import Tensor

from lana_ray.cluster.claims import PROCESS_BYTES, held, no_room, trainers
from lana_ray.cluster.connection import Node, connect, find_cluster, nodes, this_machine
from lana_ray.cluster.placement import assign_targets
from lana_ray.cluster.trainers import describe, worker_group
from lana_ray.config import Config, Target
from lana_ray.data import MissingDataError
from lana_ray.data.names import listed
from lana_ray.errors import UserError
from lana_ray.networks.checkpoints import read_weights
from lana_ray.networks.preparation import example_images, run
from lana_ray.networks.teachers import random_weights, structure
from lana_ray.pipeline import RUN, SEARCH
from lana_ray.preflight.planned import Planned
from lana_ray.preflight.settings import check_batches, check_names, check_space
from lana_ray.preflight.teacher import check_teacher, first_images
from lana_ray.spaces.cells import CellStudents
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.stages.distill import trained_candidates, worker_groups
from lana_ray.workspace import Workspace

_IMAGENET_CLASSES = 1000


def plan(config: Config) -> Table:
    """A table of a run's stages; raises UserError as a run would, but only notes missing data and nodes."""
    check_names(config)
    workspace = Workspace(config)
    table = Table(title=f"plan for {config.run.dir}", title_justify="left", show_lines=True)
    table.add_column("stage", no_wrap=True)
    table.add_column("what would run")
    sizes, classes, lines = _data(workspace)
    table.add_row("data", "\n".join(lines))
    if sizes is not None:
        check_batches(config, sizes)
    space, notes = _checked_space(workspace, sizes is not None)
    check_space(config, space)
    places, workers = _nodes(config, trained_candidates(space))
    table.add_row("workers", "\n".join(workers))
    planned = Planned(
        workspace=workspace, space=space, classes=classes, sizes=sizes, notes=notes, places=places
    )
    for stage in RUN:
        for row in stage.plan(planned):
            table.add_row(stage.name, row)
    if "search" in config.model_fields_set:
        kind = LayerwiseSpace.name if config.search.cells is None else CellStudents.name
        search = next(stage for stage in SEARCH[kind] if stage.name == "search")
        table.add_row("search", "\n".join(("with lana-ray search:", *search.plan(planned))))
    return table


def _data(workspace: Workspace) -> tuple[dict[str, int] | None, int, list[str]]:
    """Images by split, the number of classes, and what to say of them; no sizes if the data is not here."""
    try:
        data = workspace.opened
    except MissingDataError as error:
        return None, _IMAGENET_CLASSES, [f"not here: {error}"]
    splits = ", ".join(f"{size} {split}" for split, size in data.sizes.items())
    what = f"{splits} images; {data.num_classes} classes, {workspace.config.data.image_size} px"
    order = f"the teacher's outputs are taken in this order: {listed(data.classes, 12)}"
    return dict(data.sizes), data.num_classes, [what, order, *data.notes, *data.check()]


def _checked_space(workspace: Workspace, has_data: bool) -> tuple[LayerwiseSpace, list[str]]:
    """The space of a teacher that is checked as in a run, and what to know of its weights.

    Pretrained weights are not fetched for it. Without data it is checked on random images, for any number of
    classes.
    """
    config, teacher, size = workspace.config, workspace.config.teacher, workspace.config.data.image_size
    settings: dict[str, Any] = {"image_size": size, "seed": config.run.seed}
    if not has_data:
        if teacher.weights:
            read_weights(teacher.weights)
        network, _ = structure(teacher, _IMAGENET_CLASSES, **settings)
        answers = run(network, example_images(size))
        own = answers.shape[1] if isinstance(answers, Tensor) and answers.dim() == 2 else _IMAGENET_CLASSES
        return check_teacher(config, network, own).space, []
    classes, notes = workspace.opened.num_classes, []
    if teacher.pretrained:
        network, _ = structure(teacher, classes, **settings)
    else:
        loaded = workspace.loaded
        network = loaded.network
        if loaded.untrained:
            notes.append(f"trained for {teacher.adapt.epochs:g} epochs first, since {loaded.untrained}")
        if warning := random_weights(teacher, loaded, classes, **settings):
            notes.append(warning)
    return check_teacher(config, network, classes, first_images(workspace.data)).space, notes


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
    places = {target.name: _place(target, alive) for target in config.targets}
    return places, _workers(config, candidates, known)


def _workers(config: Config, candidates: int, known: Sequence[Node]) -> list[str]:
    """The workers of each training, or why there are none; distillation's memory shows when it begins."""
    groups = {
        "distill": worker_groups(config.ray, candidates, PROCESS_BYTES, known),
        "finetune": [worker_group(config.ray, config.finetune, known)],
    }
    lines = [f"{title}: {describe(group, config.ray)}" for title, some in groups.items() for group in some]
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
