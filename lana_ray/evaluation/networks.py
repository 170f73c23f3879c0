"""Losses and accuracies of networks, computed by Ray tasks whose results are kept."""

from __future__ import annotations

from collections.abc import Sequence
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
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.training.job import TrainJob
from lana_ray.training.loop import accuracy
from lana_ray.workspace import Workspace

_BATCH_SIZE = 256


def losses(workspace: Workspace, architectures: Sequence[Architecture]) -> dict[Architecture, float]:
    """Mean loss of distilled students on the scoring split before fine-tuning, with batch statistics.

    Selection keeps the student with the lowest loss (LANA, arXiv 2107.10624, section 3.3).
    """
    how = (workspace.config.score.batch_size, method_version("scoring.score"))
    keys = {
        a: fingerprint("loss", workspace.student_key(a), workspace.data.fingerprint, *how)
        for a in architectures
    }
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
    settings, where = workspace.config.score, device(workspace)
    network = workspace.student(architecture).to(where).eval()
    scoring = workspace.data.batches("score", batch_size=settings.batch_size)
    loss = batch_statistics_loss(network, ((x.to(where), y.to(where)) for x, y in scoring))
    with batch_statistics(network):
        return loss, accuracy(network, workspace.data.batches("validation", batch_size=_BATCH_SIZE), where)


def accuracies(workspace: Workspace, jobs: Sequence[TrainJob], split: str = "test") -> dict[TrainJob, float]:
    """Accuracy of trained networks on a split, kept under the digest of their weights."""
    how = (workspace.data.fingerprint, method_version("training.loop"))
    keys = {
        job: fingerprint("accuracy", split, weights_digest(workspace, job), job.key, *how) for job in jobs
    }
    return _kept(workspace, _accuracy, keys, split, split)


def weights_digest(workspace: Workspace, job: TrainJob) -> str:
    """The recorded digest of a trained network's weights, which is checked when they are read."""
    metadata = workspace.storage.tensor_metadata(job.file)
    assert metadata is not None, "training comes first"
    return metadata[DIGEST_KEY]


def _kept(
    workspace: Workspace, function: Any, keys: dict[Any, str], title: str, *more: Any
) -> dict[Any, float]:
    """Results by subject; those that the run directory lacks are computed.

    Args:
        function: task ``(workspace, subject, file, *more)`` that writes the file.
    """
    files = {subject: layout.evaluation(key) for subject, key in keys.items()}
    stored = {subject: workspace.storage.kept(file, _value) for subject, file in files.items()}
    pending = [subject for subject, value in stored.items() if value is None]
    calls = [(subject, files[subject], *more) for subject in pending]
    memory = task_bytes(workspace, _BATCH_SIZE) if pending else 0
    run_tasks(function, calls, workspace.config, title=title, memory=memory)
    return {
        subject: _value(workspace.storage.read_json(files[subject])) if value is None else value
        for subject, value in stored.items()
    }


def _value(kept: Any) -> float:
    return float(kept["value"])


def _loss(workspace: Workspace, architecture: Architecture, file: str) -> None:
    settings, where = workspace.config.score, device(workspace)
    batches = workspace.data.batches("score", batch_size=settings.batch_size)
    network = workspace.student(architecture).to(where)
    value = batch_statistics_loss(network, ((x.to(where), y.to(where)) for x, y in batches))
    _keep(workspace, file, value, architecture)


def _accuracy_before(workspace: Workspace, architecture: Architecture, file: str) -> None:
    network = workspace.student(architecture).eval()
    with batch_statistics(network):
        value = _split_accuracy(workspace, network, "test")
    _keep(workspace, file, value, architecture)


def _accuracy(workspace: Workspace, job: TrainJob, file: str, split: str) -> None:
    value = _split_accuracy(workspace, trained_network(workspace, job), split)
    _keep(workspace, file, value, job.architecture, job.space)


def trained_network(workspace: Workspace, job: TrainJob) -> nn.Module:
    """The teacher or a fine-tuned student in evaluation mode, from the run directory."""
    if job.architecture is None:
        return workspace.teacher
    network = workspace.students(job.space).build(job.architecture)
    network.load_state_dict(workspace.storage.read_tensors(job.file))
    return network.eval().requires_grad_(False)


def _split_accuracy(workspace: Workspace, network: nn.Module, split: str) -> float:
    where = device(workspace)
    return accuracy(network.to(where), workspace.data.batches(split, batch_size=_BATCH_SIZE), where)


def _keep(
    workspace: Workspace,
    file: str,
    value: float,
    architecture: Architecture | None,
    space: str = LayerwiseSpace.name,
) -> None:
    what = "teacher" if architecture is None else workspace.students(space).label(architecture)
    workspace.storage.write_json(file, {"value": value, "what": what})
