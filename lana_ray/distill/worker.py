"""What one Ray Train worker does: distils its share of the candidates, group by group."""

from __future__ import annotations

import json
import statistics
from typing import Any

import torch
from ray import train

from lana_ray.distill.partition import Candidate
from lana_ray.distill.step import Distiller, Trainee
from lana_ray.layers import observe
from lana_ray.ops.warmstart import warm_start
from lana_ray.storage import FINGERPRINT_KEY
from lana_ray.workspace import Workspace, candidate_file

_FINAL = 20  # the last steps, whose mean error is kept as the candidate's


def distill_worker(setting: dict[str, Any]) -> None:
    """Trains the candidates of ``setting["shares"][rank]`` and writes each as soon as its group is done.

    A candidate whose file is there already, from before a crash, is passed over. Steps done are added to
    the board ``setting["board"]``.
    """
    context = train.get_context()
    workspace = Workspace(setting["config"])
    torch.set_num_threads(workspace.config.ray.cpus_per_worker)
    share: list[Candidate] = [
        c for c in setting["shares"][context.get_world_rank()] if not is_done(workspace, c)
    ]
    size = workspace.config.distill.group_size
    for start in range(0, len(share), size):
        distill_group(workspace, share[start : start + size], setting["board"])
    train.report({"candidates": len(share)})


def is_done(workspace: Workspace, candidate: Candidate) -> bool:
    """Whether the run directory holds this very candidate."""
    name = candidate_file(
        workspace.layers[candidate[0]].name, workspace.space.ops[candidate[0]][candidate[1]].name
    )
    metadata = workspace.storage.tensor_metadata(name)
    return metadata is not None and metadata.get(FINGERPRINT_KEY) == workspace.candidate_key(*candidate)


def distill_group(workspace: Workspace, group: list[Candidate], board: Any) -> None:
    """Trains one group of candidates together and writes their weights and curves."""
    settings, teacher = workspace.config.distill, workspace.teacher
    device = torch.device("cuda" if workspace.config.ray.gpus_per_worker else "cpu")
    teacher.to(device)
    trainees = [
        Trainee(
            layer=workspace.layers[i],
            op=workspace.space.ops[i][choice].name,
            module=workspace.space.candidate(i, choice).to(device).to(memory_format=torch.channels_last),
        )
        for i, choice in group
    ]
    distiller: Distiller | None = None
    step, epoch = 0, 0
    while step < settings.steps:
        batches = workspace.data.batches(
            "train", batch_size=settings.batch_size, epoch=epoch, shuffle=True, augment=True, drop_last=True
        )
        for images, _ in batches:
            images = images.to(device)
            if distiller is None:
                _warm_start(teacher, trainees, images)
                distiller = Distiller(teacher, trainees, lr=settings.lr, steps=settings.steps)
            distiller.step(images)
            step += 1
            board.add.remote(len(group))
            if step == settings.steps:
                break
        epoch += 1
    for candidate, trainee in zip(group, trainees, strict=True):
        error = statistics.fmean(trainee.curve[-_FINAL:])
        metadata = {
            FINGERPRINT_KEY: workspace.candidate_key(*candidate),
            "error": "nan" if trainee.diverged else f"{error:.6g}",
            "curve": json.dumps([round(value, 5) for value in trainee.curve]),
        }
        name = candidate_file(trainee.layer.name, trainee.op)
        workspace.storage.write_tensors(name, trainee.module.state_dict(), metadata)


def _warm_start(teacher: torch.nn.Module, trainees: list[Trainee], images: torch.Tensor) -> None:
    seen = observe(teacher, sorted({trainee.layer.name for trainee in trainees}), images)
    for trainee in trainees:
        own = teacher.get_submodule(trainee.layer.name)
        warm_start(trainee.module, trainee.layer, own, *seen[trainee.layer.name])
