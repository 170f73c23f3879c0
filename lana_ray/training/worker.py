"""What one Ray Train worker does: trains networks one after another, together with the other workers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from ray import train

from lana_ray.config import Config, FinetuneConfig, TrainConfig
from lana_ray.storage import FINGERPRINT_KEY, Storage
from lana_ray.teachers import load_teacher
from lana_ray.training.loop import Checkpoint, Rank, train_network
from lana_ray.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One network to train; its weights end in ``file`` with ``key`` as their fingerprint."""

    file: str
    key: str
    architecture: tuple[int, ...] | None
    """None for the teacher itself."""


def train_worker(setting: dict[str, Any]) -> None:
    """Trains the networks of ``setting["jobs"]`` data-parallel over all workers, each as its file tells.

    A network whose file is there already is passed over; one that was interrupted goes on from its last
    saved state.
    """
    context = train.get_context()
    rank = Rank(index=context.get_world_rank(), size=context.get_world_size())
    config: Config = setting["config"]
    torch.set_num_threads(config.ray.cpus_per_worker)
    workspace = Workspace(config)
    jobs: list[TrainJob] = setting["jobs"]
    for job in jobs:
        if not is_trained(workspace.storage, job):
            _train(workspace, job, rank, setting["board"])
    train.report({"networks": len(jobs)})


def is_trained(storage: Storage, job: TrainJob) -> bool:
    """Whether the run directory holds this very network."""
    metadata = storage.tensor_metadata(job.file)
    return metadata is not None and metadata.get(FINGERPRINT_KEY) == job.key


def _train(workspace: Workspace, job: TrainJob, rank: Rank, board: Any) -> None:
    device = torch.device("cuda" if workspace.config.ray.gpus_per_worker else "cpu")
    seed = workspace.config.run.seed
    torch.manual_seed(seed)  # a new head's weights must not depend on what was trained before
    storage, partial = workspace.storage, f"training/{job.key}.pt"
    settings: TrainConfig | FinetuneConfig
    if job.architecture is None:
        settings, teacher = workspace.config.teacher.adapt, None
        network = load_teacher(workspace.config.teacher, workspace.data.num_classes).network
    else:
        settings, teacher = workspace.config.finetune, workspace.teacher.to(device)
        network = workspace.student(job.architecture)

    trained = train_network(
        network,
        workspace.data,
        settings,
        teacher=teacher,
        rank=rank,
        seed=seed,
        checkpoint=Checkpoint(
            load=lambda: storage.read_bytes(partial) if storage.exists(partial) else None,
            save=lambda state: storage.write_bytes(partial, state),
        ),
        on_step=(lambda: board.add.remote(1)) if rank.index == 0 else (lambda: None),
        device=device,
    )
    if rank.index == 0:
        metadata = {
            FINGERPRINT_KEY: job.key,
            "validation_accuracy": f"{trained.validation_accuracy:.6f}",
            "curve": json.dumps(trained.curve),
        }
        storage.write_tensors(job.file, trained.state, metadata)
        storage.remove(partial)
    if rank.size > 1:
        torch.distributed.barrier()
