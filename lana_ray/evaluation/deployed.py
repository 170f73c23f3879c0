"""Accuracy of deployed programs, which may answer differently from the network they were made from."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lana_ray.cluster.leases import leased
from lana_ray.cluster.tasks import run_on_targets, shared
from lana_ray.config import Config, Target
from lana_ray.deploy.inputs import example_input
from lana_ray.deploy.runtimes import Session, load, program
from lana_ray.deploy.runtimes.runtime import in_batches
from lana_ray.errors import UserError
from lana_ray.evaluation.networks import accuracies, weights_digest
from lana_ray.measurement.latencies import Sampled
from lana_ray.monitoring.progress import progress
from lana_ray.registry.verification import runs_here
from lana_ray.run_dir import layout
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.storage import Storage
from lana_ray.training.job import TrainJob
from lana_ray.workspace import Workspace, structural_students

Pair = tuple[str, TrainJob]
"""A target's name and a trained network."""
_CHUNK_BYTES = 64 << 20
"""Bytes of images that are sent to a target at a time, since its nodes need not have the data."""
_PROGRAMS = 32
"""Programs that a target's process keeps loaded, since each chunk of images goes through all of them."""


@dataclass(frozen=True, kw_only=True)
class StudentAccuracy:
    """Accuracies of a student and its teacher on a target."""

    accuracy: float
    """Accuracy on the test split, as is the teacher's."""
    validation_accuracy: float
    teacher_accuracy: float
    weights: str
    """The digest of the tested weights."""


def student_accuracies(
    workspace: Workspace, sampled: Mapping[str, Sampled], students: Mapping[Pair, bool]
) -> dict[Pair, StudentAccuracy]:
    """Accuracies of students on their targets; raises UserError if a program cannot be run.

    If a target computes in less than float32, or this machine lacks its runtime or device, its program
    answers all images on one of its nodes. Otherwise the network itself is evaluated: it agrees with the
    program to float32's accuracy, which registration checks. So it is for students that do not run on their
    target, which ``students`` says.
    """
    teacher = workspace.teacher_job
    teachers = [(name, teacher) for name in dict.fromkeys(name for name, _ in students)]
    targets = [sampled[name].target for name, _ in teachers]
    answering = {target.name for target in targets if target.precision != "fp32" or not runs_here(target)}

    def on(split: str, pairs: Sequence[Pair]) -> dict[Pair, float]:
        networks = accuracies(workspace, list(dict.fromkeys(job for _, job in pairs)), split)
        deployed = [pair for pair in pairs if pair[0] in answering and students.get(pair, True)]
        programs = _of_programs(workspace, sampled, deployed, split)
        return {pair: programs.get(pair, networks[pair[1]]) for pair in pairs}

    test, validation = on("test", [*students, *teachers]), on("validation", list(students))
    return {
        (name, job): StudentAccuracy(
            accuracy=test[name, job],
            validation_accuracy=validation[name, job],
            teacher_accuracy=test[name, teacher],
            weights=weights_digest(workspace, job),
        )
        for name, job in students
    }


def _of_programs(
    workspace: Workspace, sampled: Mapping[str, Sampled], pairs: Sequence[Pair], split: str
) -> dict[Pair, float]:
    """Accuracy of programs; each is measured once and kept under the digest of its weights."""
    config, storage, data = workspace.config, workspace.storage, workspace.data

    def file_of(name: str, job: TrainJob) -> str:
        identity = (weights_digest(workspace, job), sampled[name].target_key, data.fingerprint)
        return layout.evaluation(fingerprint("deployed", split, *identity))

    files = {pair: file_of(*pair) for pair in pairs}
    kept = {pair: storage.kept(file, lambda value: float(value["value"])) for pair, file in files.items()}
    pending = [pair for pair, value in kept.items() if value is None]
    right, count = dict.fromkeys(pending, 0), 0
    size = math.ceil(_CHUNK_BYTES / (4 * 3 * config.data.image_size**2))
    with progress(f"{split} on targets", data.sizes[split]) as show:
        chunks = data.batches(split, batch_size=size, channels_last=False) if pending else ()
        for images, labels in chunks:
            sent = config, data.num_classes, shared(images), shared(labels)
            calls = [(sampled[name].target, (sampled[name].target, job, *sent)) for name, job in pending]
            for position, correct, error in run_on_targets(_answer, calls, config):
                name, job = pending[position]
                if error is not None:
                    raise UserError(
                        "failed",
                        f"target {name!r}: the program of {job.file} cannot be evaluated there: {error}",
                    )
                right[name, job] += correct
            count += len(labels)
            show(count)
    for name, job in pending:
        value = right[name, job] / count
        storage.write_json(files[name, job], {"value": value, "what": f"{name}: {job.file} as deployed"})
        kept[name, job] = value
    return {pair: value for pair, value in kept.items() if value is not None}


def _answer(
    target: Target, job: TrainJob, config: Config, num_classes: int, images: Tensor, labels: Tensor
) -> int:
    """The number of images that a program classifies correctly."""
    with leased(target.threads, f"target {target.name!r}", config.run.dir):
        session = _session(config, num_classes, target, job)
        answers = in_batches(session.predict, images, target.batch_size)
    return int((answers.argmax(1) == labels).sum())


@functools.lru_cache(maxsize=_PROGRAMS)
def _session(config: Config, num_classes: int, target: Target, job: TrainJob) -> Session:
    torch.set_num_threads(target.threads)
    space = structural_students(config, num_classes, job.space)
    network = copy.deepcopy(space.network) if job.architecture is None else space.build(job.architecture)
    network.load_state_dict(Storage(config.run.dir).read_tensors(job.file))
    example = example_input(target)
    return load(program(network, example, target), example, target)
