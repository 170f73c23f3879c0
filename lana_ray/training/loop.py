"""The training loop, in plain torch: labels, and a teacher's answers where there is a teacher."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lana_ray.config import FinetuneConfig, TrainConfig
from lana_ray.data import ImageData
from lana_ray.distill.step import cosine
from lana_ray.layers import evaluating

_WARMUP = 0.1
_SAVE_EVERY_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Rank:
    """This process's place among those that train the same network."""

    index: int = 0
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where a training keeps its state; ``save`` is called by the first rank only."""

    load: Callable[[], bytes | None]
    save: Callable[[bytes], None]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Result of a training: the weights of its best epoch by accuracy on the validation split."""

    state: dict[str, Tensor]
    validation_accuracy: float
    curve: list[dict[str, float]]
    """Per evaluated epoch: ``epoch``, ``loss`` (training) and ``accuracy`` (validation)."""


def steps_of(config: TrainConfig, images: int) -> int:
    """Optimiser steps of a training on ``images`` training images."""
    return max(1, round(config.epochs * _per_epoch(config, images)))


def _per_epoch(config: TrainConfig, images: int) -> int:
    return max(1, images // config.batch_size)


def train_network(
    network: nn.Module,
    data: ImageData,
    config: TrainConfig,
    *,
    teacher: nn.Module | None,
    rank: Rank,
    wrap: Callable[[nn.Module], nn.Module],
    checkpoint: Checkpoint,
    on_step: Callable[[], None],
    device: torch.device,
) -> Trained:
    """Trains ``network`` in place with AdamW under a one-cycle cosine schedule, and keeps its best epoch.

    With a teacher (and a ``FinetuneConfig``) the loss is ``(1 − w)·CE(labels) + w·T²·KL(teacher ‖ student)``
    at temperature T (Hinton et al., arXiv 1503.02531), as LANA fine-tunes its students (arXiv 2107.10624,
    section 3.4). The state is saved about once a minute and resumed from, batch by batch the same.

    Args:
        wrap: makes the network data-parallel; identity where one process trains alone.
    """
    network.to(device).to(memory_format=torch.channels_last).requires_grad_(True)
    per_epoch = _per_epoch(config, data.sizes["train"])
    steps = steps_of(config, data.sizes["train"])
    decayed = [p for p in network.parameters() if p.ndim >= 2]
    others = [p for p in network.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.lr,
        foreach=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: cosine(k, steps, _WARMUP))
    step, curve, best, best_accuracy, total = 0, [], {}, -1.0, 0.0
    saved = checkpoint.load()
    if saved is not None:
        state = torch.load(io.BytesIO(saved), map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        step, curve, best, best_accuracy = (
            state["step"],
            state["curve"],
            state["best"],
            state["best_accuracy"],
        )
        total = state["total"]
        for _ in range(step):
            on_step()
    model = wrap(network)
    last_save = time.monotonic()
    while step < steps:
        epoch, start = divmod(step, per_epoch)
        batches = data.batches(
            "train",
            batch_size=config.batch_size // rank.size,
            epoch=epoch,
            shuffle=True,
            augment=True,
            rank=rank.index,
            world_size=rank.size,
            start_step=start,
            drop_last=True,
        )
        for images, labels in batches:
            images, labels = images.to(device), labels.to(device)
            model.train()
            loss = _loss(model(images), labels, config, teacher, images)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
            step += 1
            on_step()
            if step % per_epoch == 0 or step == steps:
                break
            if rank.index == 0 and time.monotonic() - last_save > _SAVE_EVERY_S:
                checkpoint.save(_pack(network, optimizer, schedule, step, curve, best, best_accuracy, total))
                last_save = time.monotonic()
        if rank.index == 0:
            with evaluating(network):
                score = accuracy(network, data.batches("validation", batch_size=256), device)
            seen = step - epoch * per_epoch
            curve.append({"epoch": step / per_epoch, "loss": total / seen, "accuracy": score})
            if score >= best_accuracy:
                best_accuracy = score
                best = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
        total = 0.0
    return Trained(state=best, validation_accuracy=best_accuracy, curve=curve)


def _pack(
    network: nn.Module,
    optimizer: Any,
    schedule: Any,
    step: int,
    curve: Any,
    best: Any,
    accuracy: float,
    total: float,
) -> bytes:
    buffer = io.BytesIO()
    state = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "step": step,
        "curve": curve,
        "best": best,
        "best_accuracy": accuracy,
        "total": total,
    }
    torch.save(state, buffer)
    return buffer.getvalue()


def _loss(
    output: Tensor, labels: Tensor, config: TrainConfig, teacher: nn.Module | None, images: Tensor
) -> Tensor:
    loss = F.cross_entropy(output, labels, label_smoothing=config.label_smoothing)
    if teacher is None or not isinstance(config, FinetuneConfig):
        return loss
    with torch.no_grad():
        target = F.log_softmax(teacher(images) / config.temperature, dim=1)
    student = F.log_softmax(output / config.temperature, dim=1)
    divergence = F.kl_div(student, target, reduction="batchmean", log_target=True)
    return (1 - config.kd_weight) * loss + config.kd_weight * config.temperature**2 * divergence


@torch.no_grad()
def accuracy(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """Share of images whose most probable class is the label, in the mode the network is in."""
    right = count = 0
    for images, labels in batches:
        right += int((network(images.to(device)).argmax(1) == labels.to(device)).sum())
        count += len(labels)
    return right / count
