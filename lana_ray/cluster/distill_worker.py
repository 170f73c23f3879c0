"""A Ray Train worker that distils one round of candidates after another."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ray
import torch
from ray import train
from torch import nn

from lana_ray.distill.rounds import Demand, parts
from lana_ray.distill.step import DIVERGED, Distiller, Recipe, Trainee
from lana_ray.ids import CandidateId
from lana_ray.networks.layers import observe
from lana_ray.networks.preparation import memory_format
from lana_ray.ops.warmstart import warm_start
from lana_ray.run_dir import layout
from lana_ray.run_dir.resumable import Checkpoint, checkpoint_in
from lana_ray.run_dir.storage import FINGERPRINT_KEY
from lana_ray.workspace import Workspace

GIB = 2**30
SAVE_EVERY_S = 60.0
_SAVING_SHARE = 0.05  # of the time may be spent on saving states


def distill_worker(setting: dict[str, Any]) -> None:
    """Trains rounds from ``setting["board"]`` until none is left, and writes candidates when a round ends.

    Candidates that already have a file, from before a crash, are skipped.

    Args:
        setting: ``config``, ``board``, ``group`` (name, and whether its workers have GPUs), ``demands``
            by candidate.
    """
    workspace, board = Workspace(setting["config"]), setting["board"]
    name, gpus = setting["group"]
    me = f"{name} {train.get_context().get_world_rank()}"
    trained = 0
    work = ray.get(board.join.remote(me)) or ray.get(board.take.remote(me))
    while work is not None:
        left = [candidate for candidate in work if ending(workspace, candidate) is None]
        board.add.remote((len(work) - len(left)) * workspace.config.distill.steps, me)
        if left:
            distill_round(
                workspace,
                left,
                demands=setting["demands"],
                device=torch.device("cuda" if gpus else "cpu"),
                on_steps=lambda count: board.add.remote(count, me),
            )
        trained += len(left)
        work = ray.get(board.take.remote(me))
    train.report({"candidates": trained})


class Ending(NamedTuple):
    """How a candidate's distillation ended."""

    error: float
    """Normalised error at the end; NaN if it diverged."""
    stopped: str
    """Why it ended early; empty if it did not."""
    curve: list[float]
    """Normalised error of every step."""


def ending(workspace: Workspace, candidate: CandidateId) -> Ending | None:
    """Reads a candidate's distillation result; None if there is none for the current settings."""
    metadata = workspace.storage.intact_metadata(layout.candidate(candidate))
    if metadata is None or metadata.get(FINGERPRINT_KEY) != workspace.candidate_key(candidate):
        return None
    return Ending(float(metadata["error"]), metadata["stopped"], json.loads(metadata["curve"]))


def distill_round(
    workspace: Workspace,
    candidates: Sequence[CandidateId],
    *,
    demands: dict[CandidateId, Demand],
    device: torch.device,
    on_steps: Callable[[int], object],
) -> None:
    """Trains candidates together and writes their weights and curves.

    Each candidate's state is saved about once a minute, so the next worker that trains it, in any round,
    repeats at most a minute.

    Args:
        on_steps: called with the number of candidate steps done.
    """
    settings, teacher = workspace.config.distill, workspace.teacher.to(device)
    limit = settings.memory_gb * GIB
    places = {candidate: workspace.space.place(candidate) for candidate in candidates}
    trainees = {
        candidate: Trainee(
            layer=workspace.layers[layer],
            op=candidate.op,
            module=workspace.space.candidate(layer, choice)
            .to(device)
            .to(memory_format=memory_format(teacher)),
            parts=parts(demands[candidate], settings.batch_size, limit),
        )
        for candidate, (layer, choice) in places.items()
    }
    distiller = Distiller(
        teacher,
        list(trainees.values()),
        Recipe(
            lr=settings.lr,
            steps=settings.steps,
            autocast=torch.bfloat16 if settings.precision == "bf16" else None,
        ),
        seed=workspace.config.run.seed,
    )
    on_steps(_resume(workspace, distiller, trainees))
    begin = distiller.steps_done
    batches = workspace.data.endless("train", batch_size=settings.batch_size, start_step=begin)
    due = time.monotonic() + SAVE_EVERY_S
    for step, (images, _) in zip(range(begin, settings.steps), batches, strict=False):
        images = images.to(device)
        if step == 0:
            _warm_start(teacher, [t for t in trainees.values() if not t.curve], images)
        behind = sum(len(trainee.curve) <= step for trainee in trainees.values())
        distiller.step(images)
        on_steps(behind)
        if time.monotonic() > due:
            due = _save(workspace, distiller, trainees)
    for candidate, trainee in trainees.items():
        _write(workspace, candidate, trainee)
        workspace.storage.remove(layout.candidate_state(candidate))


def _resume(workspace: Workspace, distiller: Distiller, trainees: Mapping[CandidateId, Trainee]) -> int:
    """Restores saved states; returns the number of candidate steps in them."""
    for candidate, trainee in trainees.items():
        saved = _checkpoint(workspace, candidate).load()
        if saved is not None and saved["key"] == workspace.candidate_key(candidate):
            distiller.restore(trainee, saved)
    return sum(len(trainee.curve) for trainee in trainees.values())


def _save(workspace: Workspace, distiller: Distiller, trainees: Mapping[CandidateId, Trainee]) -> float:
    """Saves the state of every candidate; returns the monotonic time of the next save."""
    begin = time.monotonic()
    for candidate, trainee in trainees.items():
        state = {"key": workspace.candidate_key(candidate), **distiller.state_of(trainee)}
        _checkpoint(workspace, candidate).save(state)
    end = time.monotonic()
    return end + max(SAVE_EVERY_S, (end - begin) / _SAVING_SHARE)


def _checkpoint(workspace: Workspace, candidate: CandidateId) -> Checkpoint:
    return checkpoint_in(workspace.storage, layout.candidate_state(candidate))


def _write(workspace: Workspace, candidate: CandidateId, trainee: Trainee) -> None:
    metadata = {
        FINGERPRINT_KEY: workspace.candidate_key(candidate),
        "error": "nan" if trainee.stopped == DIVERGED else f"{trainee.error:.6g}",
        "stopped": trainee.stopped or "",
        "curve": json.dumps([round(value, 5) for value in trainee.curve]),
    }
    workspace.storage.write_tensors(layout.candidate(candidate), trainee.module.state_dict(), metadata)


def _warm_start(teacher: nn.Module, trainees: Sequence[Trainee], images: torch.Tensor) -> None:
    seen = observe(teacher, sorted({trainee.layer.name for trainee in trainees}), images)
    for trainee in trainees:
        own = teacher.get_submodule(trainee.layer.name)
        warm_start(trainee.module, trainee.layer, own, *seen[trainee.layer.name])
