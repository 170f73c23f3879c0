"""Stage 1: the teacher's weights in the run directory, trained on the data where they must be."""

from __future__ import annotations

from typing import Any

from lana_ray.checks import check_teacher, first_images, list_parameters
from lana_ray.progress import say
from lana_ray.stages.structure import check_space
from lana_ray.storage import FINGERPRINT_KEY, fingerprint
from lana_ray.teachers import Teacher, random_weights
from lana_ray.training.driver import run_training, worker_group
from lana_ray.training.loop import steps_of
from lana_ray.training.worker import TrainJob, is_trained, train_worker
from lana_ray.workspace import TEACHER_FILE, Workspace


def load_checked(workspace: Workspace) -> Teacher:
    """The teacher as configured, tried on the data's first images for all that the stages do with it."""
    teacher = workspace.loaded
    data = workspace.data
    config = workspace.config
    checked = check_teacher(config, teacher.network, data.num_classes, first_images(data))
    check_space(config, checked.space)
    notes = [*teacher.notes, *checked.notes]
    settings: dict[str, Any] = {"image_size": config.data.image_size, "seed": config.run.seed}
    if warning := random_weights(config.teacher, teacher, data.num_classes, **settings):
        notes.append(warning)
    if teacher.frozen:
        notes.append(
            f"training leaves alone {list_parameters(sorted(teacher.frozen))}, made without gradient"
        )
    for note in notes:
        say(f"teacher: {note}")
    return teacher


def run(workspace: Workspace) -> Teacher:
    """Writes ``teacher.safetensors``, after a short training where the head is new or the weights random.

    It was checked before (``load_checked``).
    """
    config, teacher = workspace.config, workspace.loaded
    adapt = config.teacher.adapt if teacher.untrained else None
    key = fingerprint(teacher.fingerprint, workspace.data.fingerprint, adapt, config.run.seed)
    job = TrainJob(file=TEACHER_FILE, key=key, architecture=None)
    if is_trained(workspace.storage, job):
        say(f"teacher: {teacher.name} reused")
    elif adapt is None:
        workspace.storage.write_tensors(TEACHER_FILE, teacher.network.state_dict(), {FINGERPRINT_KEY: key})
        say(f"teacher: {teacher.name}")
    else:
        say(f"teacher: {teacher.name} is trained for {adapt.epochs:g} epochs, since {teacher.untrained}")
        total = steps_of(adapt, workspace.data.sizes["train"])
        run_training(
            train_worker,
            {"jobs": [job]},
            config,
            title="teacher",
            total=total,
            groups=[worker_group(config.ray, adapt)],
            process_group=True,
        )
    return teacher
