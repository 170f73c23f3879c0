"""A Ray Train worker that trains networks one after another, data-parallel with the other workers."""

from __future__ import annotations

import json
from typing import Any

import torch
from ray import train
from torch import nn

from lana_ray.config import Config, FinetuneConfig, TrainConfig
from lana_ray.ids import Architecture
from lana_ray.run_dir import layout
from lana_ray.run_dir.resumable import checkpoint_in
from lana_ray.run_dir.storage import FINGERPRINT_KEY, Storage
from lana_ray.spaces.cells import CellStudents
from lana_ray.spaces.cells.network import AUXILIARY, CellNetwork
from lana_ray.training.job import TrainJob
from lana_ray.training.loop import Training, train_network
from lana_ray.training.micro import Rank
from lana_ray.workspace import Workspace


def train_worker(setting: dict[str, Any]) -> None:
    """Trains the networks of ``setting["jobs"]`` data-parallel over all workers.

    Networks that already have a file are skipped; interrupted ones resume from their last saved state.
    """
    context = train.get_context()
    rank = Rank(index=context.get_world_rank(), size=context.get_world_size())
    config: Config = setting["config"]
    workspace = Workspace(config)
    jobs: list[TrainJob] = setting["jobs"]
    for job in jobs:
        if not is_trained(workspace.storage, job):
            _train(workspace, job, rank, setting["board"], setting["group"][0])
    train.report({"networks": len(jobs)})


def is_trained(storage: Storage, job: TrainJob) -> bool:
    """Whether the run directory holds the network of a job, undamaged."""
    metadata = storage.intact_metadata(job.file)
    return metadata is not None and metadata.get(FINGERPRINT_KEY) == job.key


def _train(workspace: Workspace, job: TrainJob, rank: Rank, board: Any, group: str) -> None:
    name = f"{group} {job.key}"
    if rank.index == 0:
        board.begin.remote(name)
    device = torch.device("cuda" if workspace.config.ray.gpus_per_worker else "cpu")
    seed = workspace.config.run.seed
    torch.manual_seed(seed)  # a new head's weights must not depend on what was trained before
    storage, partial = workspace.storage, layout.network_state(job.space, job.key)
    settings: TrainConfig | FinetuneConfig = workspace.config.finetune
    teacher: nn.Module | None = None if job.architecture is None else workspace.teacher.to(device)
    extras: dict[str, Any] = {}
    if job.architecture is None:
        settings = workspace.config.teacher.adapt
        network = workspace.teacher_to_train()
    elif job.space == CellStudents.name:
        network, extras = _cells(workspace, job.architecture)
    else:
        network = workspace.student(job.architecture)

    trained = train_network(
        network.to(device),
        workspace.data,
        Training(config=settings, seed=seed, teacher=teacher, **extras),
        checkpoint=checkpoint_in(storage, partial),
        rank=rank,
        on_step=(lambda: board.add.remote(1, name)) if rank.index == 0 else (lambda: None),
    )
    if rank.index == 0:
        metadata = {
            FINGERPRINT_KEY: job.key,
            "validation_accuracy": f"{trained.validation_accuracy:.6f}",
            "curve": json.dumps(trained.curve),
        }
        # Only cells: a teacher may have parts of this name.
        left_out = AUXILIARY if isinstance(network, CellNetwork) else ()
        deployed = {k: v for k, v in trained.state.items() if not k.startswith(left_out)}
        storage.write_tensors(job.file, deployed, metadata)
        storage.remove(partial)
    if rank.size > 1:
        torch.distributed.barrier()


def _cells(workspace: Workspace, architecture: Architecture) -> tuple[CellNetwork, dict[str, Any]]:
    """A network of cells, and what its ``Training`` has in addition; drop-path rises from epoch to epoch."""
    cells = workspace.config.search.cells
    assert cells is not None
    weight = cells.auxiliary_weight
    network = workspace.cells.build(architecture, drop_path=cells.drop_path, auxiliary=weight > 0)
    return network, {"on_epoch": network.ramp_drop_path, "auxiliary_weight": weight}
