"""Mutable training state: everything needed to resume exactly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lana_ray.config import TrainConfig
from lana_ray.distill.step import cosine

_WARMUP = 0.1
_MODULES = ("network", "optimizer", "schedule")
_VALUES = ("step", "loss_sum", "curve", "best", "best_accuracy")


@dataclass(kw_only=True)
class TrainingState:
    """A network in training, its optimiser and its progress."""

    network: nn.Module
    optimizer: AdamW
    schedule: LambdaLR
    step: int = 0
    loss_sum: float = 0.0
    """Sum of the losses over this epoch's steps so far."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """Per evaluated epoch: ``epoch``, ``loss`` (training) and ``accuracy`` (validation)."""
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
        """Returns the complete state, for ``restore``; tensors are not copied."""
        state = {name: getattr(self, name).state_dict() for name in _MODULES}
        return state | {name: getattr(self, name) for name in _VALUES}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the state that ``dump`` returned for the same network and settings."""
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
