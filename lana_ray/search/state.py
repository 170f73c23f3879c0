"""Mutable search state: everything needed to resume exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lana_ray.search.settings import SearchSettings
from lana_ray.search.supernet import Supernet

_MODULES = ("alpha_optimizer", "weight_optimizer", "weight_schedule")
_VALUES = ("step", "multiplier", "sums", "trajectory")


@dataclass(kw_only=True)
class SearchState:
    """A supernet in search. Random draws of a step depend only on the seed and the step's number."""

    supernet: Supernet
    alpha_optimizer: Adam
    weight_optimizer: Optimizer | None
    """None, like the schedule, if no weights are trained."""
    weight_schedule: LambdaLR | None
    multiplier: float
    """λ, without the penalty."""
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the losses over this epoch's steps so far."""
    trajectory: list[dict[str, Any]] = field(default_factory=list)
    """The fields of ``Point``, one dictionary per epoch."""

    @classmethod
    def begin(cls, supernet: Supernet, settings: SearchSettings, steps: int) -> SearchState:
        """Returns the state at the start of a search of ``steps`` steps."""
        optimizer, schedule = None, None
        if weights := supernet.weight_parameters():
            optimizer = SGD(
                weights,
                lr=settings.weight_lr,
                momentum=settings.weight_momentum,
                weight_decay=settings.weight_decay,
            )
            end = settings.weight_lr_end / settings.weight_lr
            schedule = LambdaLR(
                optimizer, lambda k: end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, k / steps)))
            )
        alpha_optimizer = Adam(
            supernet.architecture_parameters(),
            lr=settings.alpha_lr,
            betas=settings.alpha_betas,
            weight_decay=settings.alpha_decay,
        )
        return cls(
            supernet=supernet,
            alpha_optimizer=alpha_optimizer,
            weight_optimizer=optimizer,
            weight_schedule=schedule,
            multiplier=settings.multiplier,
        )

    def dump(self) -> dict[str, Any]:
        """Returns everything except frozen weights, for ``restore``; tensors are not copied."""
        frozen = {name for name, p in self.supernet.named_parameters() if not p.requires_grad}
        kept = {name: value for name, value in self.supernet.state_dict().items() if name not in frozen}
        modules = {name: getattr(self, name) for name in _MODULES}
        state = {name: module.state_dict() for name, module in modules.items() if module is not None}
        return {"supernet": kept} | state | {name: getattr(self, name) for name in _VALUES}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the state that ``dump`` returned for the same supernet and settings."""
        self.supernet.load_state_dict(state["supernet"], strict=False)
        for name in _MODULES:
            if name in state:
                getattr(self, name).load_state_dict(state[name])
        for name in _VALUES:
            setattr(self, name, state[name])
