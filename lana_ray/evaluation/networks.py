"""Losses and accuracies of networks, computed by Ray tasks whose results are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from lana_ray.cluster.tasks import device, run_tasks, task_bytes
from lana_ray.ids import Architecture
from lana_ray.networks.layers import batch_statistics
from lana_ray.run_dir import layout
from lana_ray.run_dir.code_version import method_version
from lana_ray.run_dir.digest import DIGEST_KEY
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.scoring.score import batch_statistics_loss
from lana_ray.training.job import TrainJob
from lana_ray.training.loop import accuracy
from lana_ray.workspace import Workspace

_BATCH_SIZE = 256


def losses(workspace: Workspace, architectures: Sequence[Architecture]) -> dict[Architecture, float]:
    """Mean loss of distilled students on the scoring split before fine-tuning, with batch statistics.

    Selection keeps the student with the lowest loss (LANA, arXiv 2107.10624, section 3.3).
    """
    how = (workspace.config.score.batch_size, method_version("scoring.score"))
    data = workspace.data.fingerprint
    keys = {a: fingerprint("loss", workspace.student_key(a), data, *how) for a in architectures}
    return _kept(workspace, _loss, keys, "evaluate")


def accuracies_before(
    workspace: Workspace, architectures: Sequence[Architecture]
) -> dict[Architecture, float]:
    """Test accuracy of distilled students before fine-tuning, with batch statistics."""
    how = (workspace.data.fingerprint, method_version("training.loop"))
    keys = {a: fingerprint("before", workspace.student_key(a), *how) for a in architectures}
    return _kept(workspace, _accuracy_before, keys, "test")


def validated(workspace: Workspace, architecture: Architecture) -> tuple[float, float]:
    """A distilled student's loss (score split) and accuracy (validation split) with batch statistics."""
    network = workspace.student(architecture).eval()
    loss = _scoring_loss(workspace, network)
    with batch_statistics(network):
        return loss, _accuracy(workspace, network, "validation")


def accuracies(workspace: Workspace, jobs: Sequence[TrainJob], split: str = "test") -> dict[TrainJob, float]:
    """Accuracy of trained networks on a split, kept under the digest of their weights."""
    how = (workspace.data.fingerprint, method_version("training.loop"))
    digests = {job: weights_digest(workspace, job) for job in jobs}
    keys = {job: fingerprint("accuracy", split, digest, job.key, *how) for job, digest in digests.items()}
    return _kept(workspace, _accuracy_after, keys, split, split)


def weights_digest(workspace: Workspace, job: TrainJob) -> str:
    """The recorded digest of a trained network's weights, which is checked when they are read."""
    metadata = workspace.storage.tensor_metadata(job.file)
    assert metadata is not None, "training comes first"
    return metadata[DIGEST_KEY]


def _kept(
    workspace: Workspace, evaluate: Callable[..., float], keys: Mapping[Any, str], title: str, *more: Any
) -> dict[Any, float]:
    """Results by subject; tasks compute those that are missing by ``evaluate(workspace, subject, *more)``."""
    files = {subject: layout.evaluation(key) for subject, key in keys.items()}
    stored = {subject: workspace.storage.kept(file, _value) for subject, file in files.items()}
    pending = [subject for subject, value in stored.items() if value is None]
    calls = [(evaluate, files[subject], subject, *more) for subject in pending]
    memory = task_bytes(workspace, _BATCH_SIZE) if pending else 0
    values = run_tasks(_evaluate, calls, workspace.config, title=title, memory=memory)
    computed = dict(zip(pending, values, strict=True))
    return {subject: computed[subject] if value is None else value for subject, value in stored.items()}


def _value(kept: Any) -> float:
    return float(kept["value"])


def _evaluate(
    workspace: Workspace, evaluate: Callable[..., float], file: str, subject: Any, *more: Any
) -> float:
    value = evaluate(workspace, subject, *more)
    workspace.storage.write_json(file, {"value": value, "what": _name(workspace, subject)})
    return value


def _name(workspace: Workspace, subject: Architecture | TrainJob) -> str:
    if not isinstance(subject, TrainJob):
        return workspace.space.label(subject)
    if subject.architecture is None:
        return "teacher"
    return workspace.students(subject.space).label(subject.architecture)


def _loss(workspace: Workspace, architecture: Architecture) -> float:
    return _scoring_loss(workspace, workspace.student(architecture))


def _accuracy_before(workspace: Workspace, architecture: Architecture) -> float:
    network = workspace.student(architecture).eval()
    with batch_statistics(network):
        return _accuracy(workspace, network, "test")


def _accuracy_after(workspace: Workspace, job: TrainJob, split: str) -> float:
    return _accuracy(workspace, trained_network(workspace, job), split)


def trained_network(workspace: Workspace, job: TrainJob) -> nn.Module:
    """The teacher or a fine-tuned student in evaluation mode, from the run directory."""
    if job.architecture is None:
        return workspace.teacher
    network = workspace.students(job.space).build(job.architecture)
    network.load_state_dict(workspace.storage.read_tensors(job.file))
    return network.eval().requires_grad_(False)


def _scoring_loss(workspace: Workspace, network: nn.Module) -> float:
    where = device(workspace)
    batches = workspace.data.batches("score", batch_size=workspace.config.score.batch_size)
    return batch_statistics_loss(network.to(where), ((x.to(where), y.to(where)) for x, y in batches))


def _accuracy(workspace: Workspace, network: nn.Module, split: str) -> float:
    where = device(workspace)
    return accuracy(network.to(where), workspace.data.batches(split, batch_size=_BATCH_SIZE), where)
