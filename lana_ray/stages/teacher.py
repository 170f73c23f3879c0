"""Stage 1: writes the teacher's weights, after training on the data if necessary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lana_ray.cluster.train_worker import is_trained, train_worker
from lana_ray.cluster.trainers import Training, run_training, worker_group
from lana_ray.monitoring.progress import say
from lana_ray.networks.factories import factory_files
from lana_ray.networks.preparation import example_images
from lana_ray.networks.teachers import Teacher, random_weights, weights_fingerprint
from lana_ray.preflight.planned import Planned, in_words
from lana_ray.preflight.settings import check_space
from lana_ray.preflight.teacher import check_teacher, first_images, list_parameters
from lana_ray.run_dir import layout
from lana_ray.run_dir.code_version import installed_code, method_version, public_version, source_version
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.storage import FINGERPRINT_KEY
from lana_ray.training.job import TrainJob
from lana_ray.training.loop import steps_of
from lana_ray.workspace import Workspace

_ROUNDING = 1e-3
"""Difference between machines that counts as rounding, relative to the largest output."""


def load_checked(workspace: Workspace) -> Teacher:
    """The configured teacher, after checks on the first images of everything that the stages need."""
    teacher = workspace.loaded
    data = workspace.data
    config = workspace.config
    checked = check_teacher(
        config,
        teacher.network,
        data.num_classes,
        first_images(data),
        find=lambda *_: workspace.untrained_space,
    )
    check_space(config, checked.space)
    notes = [*teacher.notes, *checked.notes]
    settings: dict[str, Any] = {"image_size": config.data.image_size, "seed": config.run.seed}
    if warning := random_weights(config.teacher, teacher, data.num_classes, **settings):
        notes.append(warning)
    if teacher.frozen:
        notes.append(f"not trained: {list_parameters(sorted(teacher.frozen))}, made without gradient")
    for note in notes:
        say(f"teacher: {note}")
    return teacher


def run(workspace: Workspace) -> Teacher:
    """Writes ``teacher.safetensors``, after a short training if the head is new or the weights random."""
    config, teacher = workspace.config, workspace.loaded
    adapt = config.teacher.adapt if teacher.untrained else None
    answers = _answers(workspace, teacher)
    _say_changes(workspace, teacher, answers)
    data, training = workspace.data.fingerprint, method_version("training.loop") if adapt else None
    key = fingerprint(
        teacher.fingerprint, answers, public_version("torch"), data, adapt, config.run.seed, training
    )
    job = TrainJob(file=layout.TEACHER, key=key, architecture=None)
    if is_trained(workspace.storage, job):
        say(f"teacher: {teacher.name} reused")
    elif adapt is None:
        workspace.storage.write_tensors(layout.TEACHER, teacher.network.state_dict(), {FINGERPRINT_KEY: key})
        say(f"teacher: {teacher.name}")
    else:
        say(f"teacher: {teacher.name} is trained for {adapt.epochs:g} epochs, since {teacher.untrained}")
        adaptation = Training(
            title="teacher",
            worker=train_worker,
            setting={"jobs": [job]},
            groups=[worker_group(config.ray, adapt)],
            total=steps_of(adapt, workspace.data.sizes["train"]),
        )
        run_training(adaptation, config)
    return teacher


def _say_changes(workspace: Workspace, teacher: Teacher, answers: str) -> None:
    """Says which inputs of the run have changed; records their identity, and the factory's source files."""
    config, storage = workspace.config, workspace.storage
    files, folder = factory_files(config.teacher.factory) if config.teacher.factory else ([], Path())
    code = {file.relative_to(folder).as_posix(): file for file in files}
    now = {
        **installed_code(),
        **{name: source_version(file) for name, file in code.items()},
        "the teacher's weights": weights_fingerprint(teacher.network),
        "the teacher's answers": answers,
        "the images or labels": workspace.data.content,
    }
    before = storage.read_json(layout.IDENTITY) if storage.exists(layout.IDENTITY) else {}
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if before and changed:
        say(f"changed since the last run: {', '.join(changed)}; dependent results are recomputed")
    for name in code.keys() & set(changed):
        storage.write_bytes(layout.factory(name), code[name].read_bytes())
    storage.write_json(layout.IDENTITY, now)


@torch.no_grad()
def _answers(workspace: Workspace, teacher: Teacher) -> str:
    """Identity of the teacher's outputs for fixed images; nearly equal outputs have the same identity."""
    # Machines round differently.
    storage = workspace.storage
    answers = teacher.network(example_images(workspace.config.data.image_size))
    if storage.tensor_metadata(layout.ANSWERS) is not None:
        recorded = storage.read_tensors(layout.ANSWERS)["answers"]
        far = _ROUNDING * float(recorded.abs().max())
        if recorded.shape == answers.shape and torch.allclose(recorded, answers, rtol=0, atol=far):
            return fingerprint(recorded.tolist())
    storage.write_tensors(layout.ANSWERS, {"answers": answers}, {})
    return fingerprint(answers.tolist())


def plan(planned: Planned) -> list[str]:
    """The teacher's size, and notes on its weights."""
    network, teacher = planned.space.network, planned.config.teacher
    parameters = sum(parameter.numel() for parameter in network.parameters())
    size = (
        f"{teacher.timm or teacher.factory}, {in_words(parameters)} parameters, "
        f"{in_words(planned.teacher_macs)} multiply-accumulates an image, {len(planned.space.layers)} layers "
        "to replace"
    )
    return ["\n".join((size, *planned.notes))]
