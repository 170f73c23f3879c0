"""One step of layer-wise distillation: one teacher pass serves a whole round of candidates."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lana_ray.layers import Layer, observe

DIVERGED, HOPELESS = "diverged", "hopeless"
"""Why a candidate was stopped."""
RECENT = 20
"""Steps whose mean error is taken for a candidate's error."""
_WARMUP = 0.05  # share of the steps in which the learning rate rises
_FAR = 2.0  # times as wrong as at its start, and as an answer of zero: a candidate that far has diverged
_HOPELESS = 0.7  # of a candidate's error: with less, and at no more cost, another leaves it no hope


@dataclass
class Trainee:
    """One candidate in training: it learns to answer the teacher's input to its layer as the layer does."""

    layer: Layer
    op: str
    module: nn.Module
    parts: int = 1
    """Into which each batch is split for it, where its activations would take too much memory at once."""
    cost: float = 0.0
    """What it costs deployed, in any unit, to be compared with others of its layer."""
    curve: list[float] = field(default_factory=list)
    """Normalised error ‖t − s‖² / ‖t‖² of every step; comparable across layers."""
    stopped: str | None = None
    """``DIVERGED`` or ``HOPELESS``, where it was stopped before its time."""

    @property
    def error(self) -> float:
        """Mean of the latest errors."""
        return statistics.fmean(self.curve[-RECENT:])


class Distiller:
    """Trains a round of candidates against one teacher.

    Minimises Σ ‖t_i(x) − s_ij(x)‖² for every candidate j of layer i, where x is the teacher's own
    activation (arXiv 2107.10624, eq. 2), each divided by ‖t_i(x)‖². The problems share nothing but the
    teacher's pass: gradients of one candidate never reach another, and each candidate's graph is freed
    before the next one runs, so that memory is bounded by the round's weights, its layers' activations and
    one candidate's step. The optimiser's arithmetic runs over the whole round at once.

    A candidate is stopped when its error is not finite, or when its mean over the last steps is twice both
    its first and what an answer of zero would have.

    Args:
        teacher: in evaluation mode, frozen.
        trainees: candidates in training; put into training mode.
        lr: peak learning rate.
        steps: length of the schedule.
        optimizer: made of (parameters, lr).
        schedule: the learning rate's factor at a step of so many.
        autocast: precision of the candidates' arithmetic; their weights and the error stay fp32.
    """

    def __init__(
        self,
        teacher: nn.Module,
        trainees: Sequence[Trainee],
        *,
        lr: float,
        steps: int,
        optimizer: Callable[[list[nn.Parameter], float], torch.optim.Optimizer] | None = None,
        schedule: Callable[[int, int], float] | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._teacher = teacher
        self.trainees = list(trainees)
        self._autocast = autocast
        parameters = [p for trainee in self.trainees for p in trainee.module.train().parameters()]
        self._optimizer = (optimizer or _adam)(parameters, lr)
        factor = schedule or _warm_cosine
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda k: factor(k, steps))

    def step(self, images: Tensor) -> None:
        """One batch, shape [N, 3, H, W], for every candidate that was not stopped."""
        active = [trainee for trainee in self.trainees if trainee.stopped is None]
        if not active:
            return
        seen = observe(self._teacher, sorted({trainee.layer.name for trainee in active}), images)
        scales = {name: output.square().mean() + 1e-12 for name, (_, output) in seen.items()}
        errors = [self._learn(t, *seen[t.layer.name], scales[t.layer.name]) for t in active]
        for trainee, error in zip(active, torch.stack(errors).tolist(), strict=True):  # one wait for a GPU
            trainee.curve.append(error)
            if _is_lost(trainee.curve):
                trainee.stopped = DIVERGED
                trainee.module.zero_grad(set_to_none=True)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._schedule.step()

    def _learn(self, trainee: Trainee, inputs: Tensor, output: Tensor, scale: Tensor) -> Tensor:
        """Adds the gradients of one candidate; returns its error."""
        total = torch.zeros((), device=inputs.device)
        parts = (inputs.tensor_split(trainee.parts), output.tensor_split(trainee.parts))
        for some, wanted in zip(*parts, strict=True):
            with self._precision(inputs.device):
                answer = trainee.module(some)
            error = (answer.float() - wanted).square().mean() / scale * (len(some) / len(inputs))
            error.backward()
            total += error.detach()
        return total

    def _precision(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self._autocast)

    def stop_hopeless(self) -> None:
        """Stops candidates that another of their layer has left behind.

        That is one that costs no more and whose error is below ``_HOPELESS`` times theirs: successive
        halving (Jamieson and Talwalkar, arXiv 1502.07943) with dominance in (cost, error) in place of rank,
        since a candidate is only ever chosen for what it costs.
        """
        active = [trainee for trainee in self.trainees if trainee.stopped is None]
        for trainee in active:
            rivals = (t for t in active if t.layer == trainee.layer and t.cost <= trainee.cost)
            if any(rival.error < _HOPELESS * trainee.error for rival in rivals):
                trainee.stopped = HOPELESS


def _is_lost(curve: Sequence[float]) -> bool:
    if not math.isfinite(curve[-1]):
        return True
    recent = statistics.fmean(curve[-RECENT:])
    return len(curve) > RECENT and recent > _FAR * max(1.0, statistics.fmean(curve[:RECENT]))


def _adam(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=lr, foreach=True)


def _warm_cosine(step: int, steps: int) -> float:
    return cosine(step, steps, _WARMUP)


def cosine(step: int, steps: int, warmup: float) -> float:
    """Factor of the learning rate: a linear rise over ``warmup`` of the steps, then half a cosine to zero."""
    rise = max(1.0, warmup * steps)
    if step < rise:
        return min(1.0, (step + 1) / rise)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1.0, steps - rise))))
