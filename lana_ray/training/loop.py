"""The training loop in plain torch, on labels and, if there is a teacher, its outputs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lana_ray.config import FinetuneConfig, TrainConfig
from lana_ray.data import ImageData
from lana_ray.networks.layers import evaluating
from lana_ray.networks.preparation import memory_format
from lana_ray.run_dir.resumable import Checkpoint
from lana_ray.training.micro import Rank, StepTotal, all_reduce, broadcast, micro_batches
from lana_ray.training.state import TrainingState

__all__ = ["Checkpoint", "Rank", "Trained", "accuracy", "steps_of", "train_network"]

_SAVE_EVERY_S = 60.0
_VALIDATION_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Result of a training: the weights of its best epoch by accuracy on the validation split."""

    state: dict[str, Tensor]
    validation_accuracy: float
    curve: list[dict[str, float]]
    """Per evaluated epoch: ``epoch``, ``loss`` (training) and ``accuracy`` (validation)."""


def steps_of(config: TrainConfig, images: int) -> int:
    """Returns the number of optimiser steps of a training on ``images`` training images."""
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
    """Trains the parameters of ``network`` that require a gradient, in place, and keeps its best epoch.

    The training is data-parallel over the ranks. It saves its state about once a minute and resumes with
    exactly the same steps: a micro-batch's random draws (images, augmentation, dropout) depend only on the
    seed and its number, so the result does not depend on how many ranks share the micro-batches.

    Args:
        checkpoint: stores the state; only the first rank saves it.
        rank: one of at most ``micro_batches`` processes; more would be idle.
        on_epoch: called before the steps of an epoch with the share of the training that is done.
        auxiliary_weight: weight of the cross-entropy of a second classifier, whose logits come second.
    """
    network.to(device).to(memory_format=memory_format(network))
    images_per_step = min(config.batch_size, data.sizes["train"])
    count = micro_batches(images_per_step, config.micro_batch_size)
    assigned = range(rank.index, count, rank.size)
    per_epoch = _per_epoch(config, data.sizes["train"])
    steps = steps_of(config, data.sizes["train"])
    state = TrainingState.begin(network, config, steps)
    if (saved := checkpoint.load()) is not None:
        state.restore(saved)
        for _ in range(state.step):
            on_step()
    last_save = time.monotonic()
    while state.step < steps:
        epoch, start = divmod(state.step, per_epoch)
        end = min(steps, (epoch + 1) * per_epoch)
        on_epoch(epoch * per_epoch / steps)
        numbers = [step * count + k for step in range(start, end - epoch * per_epoch) for k in assigned]
        batches = _micro_batches(data, epoch, images_per_step // count, numbers, seed)
        while state.step < end:
            total = StepTotal(network.train())
            for k, (images, labels) in zip(assigned, itertools.islice(batches, len(assigned)), strict=True):
                torch.manual_seed(_draw_seed(seed, state.step, k))
                total.restart()
                batch = images.to(device), labels.to(device)
                total.add(_loss(network, *batch, config, teacher, auxiliary_weight))
            state.update(total.finish(count, rank))
            on_step()
            if rank.index == 0 and state.step < end and time.monotonic() - last_save > _SAVE_EVERY_S:
                checkpoint.save(state.dump())
                last_save = time.monotonic()
        broadcast(network.state_dict().values(), rank)
        with evaluating(network):
            validation_accuracy = _validated(network, data, rank, device)
        state.end_epoch(end / per_epoch, end - epoch * per_epoch, validation_accuracy)
    return Trained(state=state.best, validation_accuracy=state.best_accuracy, curve=state.curve)


def _micro_batches(
    data: ImageData, epoch: int, size: int, numbers: Sequence[int], seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the micro-batches of an epoch's training images that have these numbers."""
    return data.batches(
        "train",
        batch_size=size,
        epoch=epoch,
        shuffle=True,
        augment=True,
        only=numbers,
        drop_last=True,
        seed=seed,
    )


def _draw_seed(seed: int, step: int, micro_batch: int) -> int:
    return hash((seed, step, micro_batch)) & 0x7FFFFFFFFFFFFFFF


def _validated(network: nn.Module, data: ImageData, rank: Rank, device: torch.device) -> float:
    """Returns the accuracy on the validation split, whose batches the ranks share."""
    batches = data.steps("validation", batch_size=_VALIDATION_BATCH)
    assigned = range(rank.index, batches, rank.size)
    result = _right(network, data.batches("validation", batch_size=_VALIDATION_BATCH, only=assigned), device)
    counts = torch.tensor(result, dtype=torch.float64, device=device)
    all_reduce(counts, rank)
    right, images = counts.tolist()
    return right / images


def _loss(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: TrainConfig,
    teacher: nn.Module | None,
    auxiliary_weight: float,
) -> Tensor:
    """Cross-entropy; with a teacher ``(1 − w)·CE(labels) + w·T²·KL(teacher ‖ student)`` at temperature T.

    Hinton et al., arXiv 1503.02531; LANA fine-tunes its students like this (arXiv 2107.10624, section 3.4).
    """
    answer = network(images)
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


def accuracy(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """Returns the share of images whose most probable class is the label, in the network's current mode."""
    right, count = _right(network, batches, device)
    return right / count


@torch.no_grad()
def _right(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> tuple[int, int]:
    """Returns how many images are classified correctly, and how many there are."""
    right = count = 0
    for images, labels in batches:
        right += int((network(images.to(device)).argmax(1) == labels.to(device)).sum())
        count += len(labels)
    return right, count
