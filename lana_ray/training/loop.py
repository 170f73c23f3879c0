"""The training loop, in plain torch: labels, and a teacher's answers where there is a teacher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lana_ray.config import FinetuneConfig, TrainConfig
from lana_ray.data import ImageData
from lana_ray.layers import evaluating
from lana_ray.training.state import TrainingState

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
    seed: int,
    checkpoint: Checkpoint,
    on_step: Callable[[], None],
    device: torch.device,
    on_epoch: Callable[[float], None] = lambda _: None,
    auxiliary_weight: float = 0.0,
) -> Trained:
    """Trains ``network`` in place, data-parallel over the ranks, and keeps its best epoch.

    With a teacher (and a ``FinetuneConfig``) the loss is ``(1 − w)·CE(labels) + w·T²·KL(teacher ‖ student)``
    at temperature T (Hinton et al., arXiv 1503.02531), as LANA fine-tunes its students (arXiv 2107.10624,
    section 3.4). The state is saved about once a minute and resumed from, step by step the same: what a step
    draws at random (images, augmentation, dropout) depends on the seed and on its number alone.

    Args:
        on_epoch: called before the steps of an epoch with the share of the training that is done.
        auxiliary_weight: of the cross-entropy of a second classifier, where the network in training mode
            answers with its logits and those of such a one.
    """
    network.to(device).to(memory_format=torch.channels_last).requires_grad_(True)
    per_epoch = _per_epoch(config, data.sizes["train"])
    steps = steps_of(config, data.sizes["train"])
    state = TrainingState.begin(network, config, steps)
    if (saved := checkpoint.load()) is not None:
        state.restore(saved, device)
        for _ in range(state.step):
            on_step()
    model = DistributedDataParallel(network) if rank.size > 1 else network
    last_save = time.monotonic()
    while state.step < steps:
        epoch, start = divmod(state.step, per_epoch)
        end = min(steps, (epoch + 1) * per_epoch)
        on_epoch(epoch * per_epoch / steps)
        for images, labels in _batches(data, config, rank, seed, epoch, start, end):
            torch.manual_seed(_step_seed(seed, state.step, rank))
            model.train()
            images, labels = images.to(device), labels.to(device)
            loss = _loss(model, images, labels, config, teacher, auxiliary_weight)
            state.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            state.optimizer.step()
            state.schedule.step()
            state.loss_sum += float(loss.detach())
            state.step += 1
            on_step()
            if rank.index == 0 and state.step < end and time.monotonic() - last_save > _SAVE_EVERY_S:
                checkpoint.save(state.dump())
                last_save = time.monotonic()
        if rank.index == 0:
            with evaluating(network):
                found = accuracy(network, data.batches("validation", batch_size=256), device)
            state.end_epoch(end / per_epoch, end - epoch * per_epoch, found)
        state.loss_sum = 0.0
    return Trained(state=state.best, validation_accuracy=state.best_accuracy, curve=state.curve)


def _batches(
    data: ImageData, config: TrainConfig, rank: Rank, seed: int, epoch: int, start: int, end: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's share of the batches from step ``start`` of an epoch to step ``end`` of the training."""
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
        seed=seed,
    )
    first = epoch * _per_epoch(config, data.sizes["train"]) + start
    for _, batch in zip(range(first, end), batches, strict=False):
        yield batch


def _step_seed(seed: int, step: int, rank: Rank) -> int:
    return hash((seed, step, rank.index)) & 0x7FFFFFFFFFFFFFFF


def _loss(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: TrainConfig,
    teacher: nn.Module | None,
    auxiliary_weight: float,
) -> Tensor:
    answer = model(images)
    output, *auxiliary = answer if isinstance(answer, tuple) else (answer,)
    loss = F.cross_entropy(output, labels, label_smoothing=config.label_smoothing)
    others = [F.cross_entropy(other, labels, label_smoothing=config.label_smoothing) for other in auxiliary]
    extra = auxiliary_weight * sum(others, torch.zeros_like(loss))
    if teacher is None or not isinstance(config, FinetuneConfig):
        return loss + extra
    with torch.no_grad():
        target = F.log_softmax(teacher(images) / config.temperature, dim=1)
    student = F.log_softmax(output / config.temperature, dim=1)
    divergence = F.kl_div(student, target, reduction="batchmean", log_target=True)
    distilled = (1 - config.kd_weight) * loss + config.kd_weight * config.temperature**2 * divergence
    return distilled + extra


@torch.no_grad()
def accuracy(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """Share of images whose most probable class is the label, in the mode the network is in."""
    right = count = 0
    for images, labels in batches:
        right += int((network(images.to(device)).argmax(1) == labels.to(device)).sum())
        count += len(labels)
    return right / count
