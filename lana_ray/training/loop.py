"""The training loop in plain torch, on labels and, if there is a teacher, its outputs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lana_ray.config import FinetuneConfig, TrainConfig
from lana_ray.data import ImageData
from lana_ray.distill.step import cosine
from lana_ray.networks.layers import evaluating
from lana_ray.networks.preparation import memory_format
from lana_ray.run_dir.resumable import Checkpoint
from lana_ray.training.micro import Rank, StepTotal, all_reduce, broadcast, micro_batches

_SAVE_EVERY_S = 60.0
_VALIDATION_BATCH = 256
_WARMUP = 0.1
_MODULES = ("network", "optimizer", "schedule")
_VALUES = ("step", "loss_sum", "curve", "best", "best_accuracy")


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


@dataclass(kw_only=True)
class TrainingState:
    """A network in training, its optimiser and its progress: everything needed to resume exactly."""

    network: nn.Module
    optimizer: AdamW
    schedule: LambdaLR
    step: int = 0
    loss_sum: float = 0.0
    """Sum of the losses over this epoch's steps so far."""
    curve: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    """The weights of the epoch with the highest ``best_accuracy``."""
    best_accuracy: float = -1.0

    @classmethod
    def begin(cls, network: nn.Module, config: TrainConfig, steps: int) -> TrainingState:
        """Returns the initial state: AdamW under a one-cycle cosine schedule of ``steps``.

        Vectors (biases, scales) get no weight decay.
        """
        matrices = [p for p in network.parameters() if p.ndim >= 2]
        vectors = [p for p in network.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        optimizer = AdamW(groups, lr=config.lr, foreach=True)
        schedule = LambdaLR(optimizer, lambda step: cosine(step, steps, _WARMUP))
        return cls(network=network, optimizer=optimizer, schedule=schedule)

    def dump(self) -> dict[str, Any]:
        """Returns all that ``restore`` needs for the same network and settings; tensors are not copied."""
        state = {name: getattr(self, name).state_dict() for name in _MODULES}
        return state | {name: getattr(self, name) for name in _VALUES}

    def restore(self, state: dict[str, Any]) -> None:
        for name in _MODULES:
            getattr(self, name).load_state_dict(state[name])
        for name in _VALUES:
            setattr(self, name, state[name])

    def update(self, loss: float) -> None:
        """Takes one optimiser step along the network's gradients; ``loss`` is the step's mean loss."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.loss_sum += loss
        self.step += 1

    def end_epoch(self, epoch: float, steps: int, accuracy: float) -> None:
        """Adds a point to the curve, and keeps the weights if they are the best so far."""
        self.curve.append({"epoch": epoch, "loss": self.loss_sum / steps, "accuracy": accuracy})
        self.loss_sum = 0.0
        if accuracy >= self.best_accuracy:
            self.best_accuracy = accuracy
            self.best = {k: v.detach().cpu().clone() for k, v in self.network.state_dict().items()}


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a network is trained."""

    config: TrainConfig
    seed: int
    teacher: nn.Module | None = None
    """With a ``FinetuneConfig``, the network also learns this one's outputs."""
    auxiliary_weight: float = 0.0
    """Weight of the cross-entropy of a second classifier, whose logits come second."""
    on_epoch: Callable[[float], None] = lambda _: None
    """Called before the steps of an epoch with the share of the training that is done."""

    def loss(self, network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy; with a teacher ``(1 − w)·CE(labels) + w·T²·KL(teacher ‖ student)`` at temperature T.

        Hinton et al., arXiv 1503.02531; so LANA fine-tunes its students (arXiv 2107.10624, section 3.4).
        """
        config, answer = self.config, network(images)
        outputs = answer if isinstance(answer, tuple) else (answer,)
        loss, *others = (
            F.cross_entropy(output, labels, label_smoothing=config.label_smoothing) for output in outputs
        )
        extra = self.auxiliary_weight * sum(others, torch.zeros_like(loss))
        if self.teacher is None or not isinstance(config, FinetuneConfig):
            return loss + extra
        with torch.no_grad():
            target = F.log_softmax(self.teacher(images) / config.temperature, dim=1)
        student = F.log_softmax(outputs[0] / config.temperature, dim=1)
        divergence = F.kl_div(student, target, reduction="batchmean", log_target=True)
        distilled = (1 - config.kd_weight) * loss + config.kd_weight * config.temperature**2 * divergence
        return distilled + extra


def train_network(
    network: nn.Module,
    data: ImageData,
    training: Training,
    *,
    checkpoint: Checkpoint,
    rank: Rank = Rank(),  # noqa: B008 - frozen
    on_step: Callable[[], None] = lambda: None,
) -> Trained:
    """Trains the parameters of ``network`` that require a gradient, in place, and keeps its best epoch.

    The training is data-parallel over the ranks. It saves its state about once a minute and resumes with
    exactly the same steps: a micro-batch's random draws (images, augmentation, dropout) depend only on the
    seed and its number, so the result does not depend on how many ranks share the micro-batches.

    Args:
        network: on the device to train on, as is the teacher.
        checkpoint: stores the state; only the first rank saves it.
        rank: one of at most ``micro_batches`` processes; more would be idle.
    """
    network.to(memory_format=memory_format(network))
    config, device = training.config, next(network.parameters()).device
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
        training.on_epoch(epoch * per_epoch / steps)
        numbers = [step * count + k for step in range(start, end - epoch * per_epoch) for k in assigned]
        batches = _micro_batches(data, epoch, images_per_step // count, numbers, training.seed)
        while state.step < end:
            total = StepTotal(network.train())
            for k, (images, labels) in zip(assigned, itertools.islice(batches, len(assigned)), strict=True):
                torch.manual_seed(hash((training.seed, state.step, k)) & 0x7FFFFFFFFFFFFFFF)
                total.restart()
                total.add(training.loss(network, images.to(device), labels.to(device)))
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
    return data.shuffled("train", batch_size=size, epoch=epoch, only=numbers, seed=seed)


def _validated(network: nn.Module, data: ImageData, rank: Rank, device: torch.device) -> float:
    """Returns the accuracy on the validation split, whose batches the ranks share."""
    batches = data.steps("validation", batch_size=_VALIDATION_BATCH)
    assigned = range(rank.index, batches, rank.size)
    result = _right(network, data.batches("validation", batch_size=_VALIDATION_BATCH, only=assigned), device)
    counts = torch.tensor(result, dtype=torch.float64, device=device)
    all_reduce(counts, rank)
    right, images = counts.tolist()
    return right / images


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
