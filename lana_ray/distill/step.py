"""One step of layer-wise distillation: one teacher pass serves a whole group of candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lana_ray.layers import Layer, observe

_WARMUP = 0.05  # share of the steps in which the learning rate rises


@dataclass
class Trainee:
    """One candidate in training: it learns to answer the teacher's input to its layer as the layer does."""

    layer: Layer
    op: str
    module: nn.Module
    curve: list[float] = field(default_factory=list)
    """Normalised error ‖t − s‖² / ‖t‖² of every step; comparable across layers."""
    diverged: bool = False


class Distiller:
    """Trains a group of candidates against one teacher.

    Minimises Σ ‖t_i(x) − s_ij(x)‖² for every candidate j of layer i, where x is the teacher's own
    activation (arXiv 2107.10624, eq. 2), each divided by ‖t_i(x)‖². The problems share nothing but the
    teacher's pass: gradients of one candidate never reach another, and each candidate's graph is freed
    before the next one runs, so that memory is bounded by the group's weights and one layer's activations.
    Adam with a cosine schedule; the optimiser's arithmetic runs over the whole group at once.

    Args:
        teacher: in evaluation mode, frozen.
        trainees: candidates in training; put into training mode.
        lr: peak learning rate.
        steps: length of the schedule.
    """

    def __init__(self, teacher: nn.Module, trainees: Sequence[Trainee], *, lr: float, steps: int) -> None:
        self._teacher = teacher
        self.trainees = list(trainees)
        self._names = sorted({trainee.layer.name for trainee in self.trainees})
        parameters = [p for trainee in self.trainees for p in trainee.module.train().parameters()]
        self._optimizer = torch.optim.Adam(parameters, lr=lr, foreach=True)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda k: cosine(k, steps, _WARMUP)
        )

    def step(self, images: Tensor) -> None:
        """One batch, shape [N, 3, H, W], for every candidate that has not diverged."""
        seen = observe(self._teacher, self._names, images)
        scales = {name: output.square().mean() + 1e-12 for name, (_, output) in seen.items()}
        for trainee in self.trainees:
            if trainee.diverged:
                continue
            inputs, output = seen[trainee.layer.name]
            error = (trainee.module(inputs) - output).square().mean() / scales[trainee.layer.name]
            trainee.curve.append(float(error.detach()))
            if math.isfinite(trainee.curve[-1]):
                error.backward()
            else:
                trainee.diverged = True
                trainee.module.zero_grad(set_to_none=True)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._schedule.step()


def cosine(step: int, steps: int, warmup: float) -> float:
    """Factor of the learning rate: a linear rise over ``warmup`` of the steps, then half a cosine to zero."""
    rise = max(1.0, warmup * steps)
    if step < rise:
        return min(1.0, (step + 1) / rise)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1.0, steps - rise))))
