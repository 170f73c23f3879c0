"""One step of layer-wise distillation: one teacher pass serves a whole round of candidates."""

from __future__ import annotations

import functools
import math
import statistics
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lana_ray.networks.layers import Layer, observe

DIVERGED = "diverged"
"""The reason for which a candidate was stopped."""
RECENT = 20
"""Number of latest steps whose mean error is a candidate's error."""
# Share of the steps in which the learning rate rises.
_WARMUP = 0.05
# A candidate has diverged if its error is this many times that of its start and of an output of zero.
_FAR = 2.0


@dataclass
class Trainee:
    """One candidate in training: it learns to map the teacher's input to its layer to the layer's output."""

    layer: Layer
    op: str
    module: nn.Module
    parts: int = 1
    """Parts that each batch is split into, if its activations would take too much memory at once."""
    curve: list[float] = field(default_factory=list)
    """Normalised error ‖t − s‖² / ‖t‖² of every step so far; comparable across layers."""
    stopped: str | None = None
    """``DIVERGED`` if it was stopped early."""

    @property
    def error(self) -> float:
        """Mean of the ``RECENT`` latest errors."""
        return statistics.fmean(self.curve[-RECENT:])


def cosine(step: int, steps: int, warmup: float) -> float:
    """Returns the learning rate's factor: a linear rise for the share ``warmup``, then half a cosine to 0."""
    rise = max(1.0, warmup * steps)
    if step < rise:
        return min(1.0, (step + 1) / rise)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1.0, steps - rise))))


_ADAM = functools.partial(torch.optim.Adam, foreach=True)
_WARM_COSINE = functools.partial(cosine, warmup=_WARMUP)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How candidates are optimised."""

    lr: float
    """Peak learning rate."""
    steps: int
    """Length of the schedule."""
    optimizer: Callable[..., torch.optim.Optimizer] = _ADAM
    """Callback ``(parameters, lr=)``: returns the optimiser."""
    schedule: Callable[[int, int], float] = _WARM_COSINE
    """Callback ``(step, steps)``: returns the learning rate's factor."""
    autocast: torch.dtype | None = None
    """Precision of the candidates' arithmetic; their weights and the error stay fp32."""


class Distiller:
    """Trains a round of candidates against one teacher.

    Minimises Σ ‖t_i(x) − s_ij(x)‖² for every candidate j of layer i, where x is the teacher's own
    activation (arXiv 2107.10624, eq. 2), each divided by ‖t_i(x)‖². The problems share only the teacher's
    pass: gradients of one candidate never reach another, and each candidate's graph is freed before the next
    one runs, so that memory is bounded by the round's weights, its layers' activations and one candidate's
    step. The optimiser updates all candidates of the round at once.

    A candidate is stopped if its error is not finite, or if its mean over the latest steps is twice both its
    first mean and the error of an output of zero.

    Args:
        teacher: in evaluation mode, frozen.
        trainees: candidates in training; put into training mode.
        seed: for a candidate's random draws in a step, such as dropout, whatever else is in the round.
    """

    def __init__(
        self, teacher: nn.Module, trainees: Sequence[Trainee], recipe: Recipe, *, seed: int = 0
    ) -> None:
        self._teacher, self._recipe, self._seed = teacher, recipe, seed
        self.trainees = list(trainees)
        parameters = [p for trainee in self.trainees for p in trainee.module.train().parameters()]
        self._optimizer = recipe.optimizer(parameters, lr=recipe.lr)

    @property
    def steps_done(self) -> int:
        """Steps of the candidates that are furthest behind; all steps if none is left to train."""
        return min((len(t.curve) for t in self.trainees if t.stopped is None), default=self._recipe.steps)

    def step(self, images: Tensor) -> None:
        """Trains the candidates that were not stopped on one batch, shape [N, 3, H, W].

        Candidates that were resumed from a later step wait for the others.
        """
        step = self.steps_done
        active = [t for t in self.trainees if t.stopped is None and len(t.curve) == step]
        if not active:
            return
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.lr * self._recipe.schedule(step, self._recipe.steps)
        seen = observe(self._teacher, sorted({trainee.layer.name for trainee in active}), images)
        scales = {name: output.square().mean() + 1e-12 for name, (_, output) in seen.items()}
        errors = []
        for trainee in active:
            name = zlib.crc32(f"{trainee.layer.name} {trainee.op}".encode())
            torch.manual_seed(hash((self._seed, step, name)) & 0x7FFFFFFFFFFFFFFF)
            inputs, output = seen[trainee.layer.name]
            errors.append(self._learn(trainee, inputs, output, scales[trainee.layer.name]))
        # One transfer for all errors, since each waits for the GPU.
        for trainee, error in zip(active, torch.stack(errors).tolist(), strict=True):
            trainee.curve.append(error)
            if _is_lost(trainee.curve):
                trainee.stopped = DIVERGED
                trainee.module.zero_grad(set_to_none=True)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state_of(self, trainee: Trainee) -> dict[str, Any]:
        """Returns one candidate's complete training state: ``restore`` continues from it exactly."""
        moments = [dict(self._optimizer.state.get(p, {})) for p in trainee.module.parameters()]
        return {
            "module": dict(trainee.module.state_dict()),
            "optimizer": moments,
            "curve": torch.tensor(trainee.curve, dtype=torch.float64),
            "stopped": trainee.stopped,
        }

    def restore(self, trainee: Trainee, state: dict[str, Any]) -> None:
        """Restores the state that ``state_of`` returned for the same candidate and settings."""
        trainee.module.load_state_dict(state["module"])
        trainee.curve[:] = state["curve"].tolist()
        trainee.stopped = state["stopped"]
        for parameter, moments in zip(trainee.module.parameters(), state["optimizer"], strict=True):
            if moments:
                self._optimizer.state[parameter] = {
                    key: x.to(parameter.device) if isinstance(x, Tensor) and x.dim() else x
                    for key, x in moments.items()
                }

    def _learn(self, trainee: Trainee, inputs: Tensor, output: Tensor, scale: Tensor) -> Tensor:
        """Adds the gradients of one candidate and returns its error."""
        total, precision = torch.zeros((), device=inputs.device), self._recipe.autocast
        parts = (inputs.tensor_split(trainee.parts), output.tensor_split(trainee.parts))
        for some, expected in zip(*parts, strict=True):
            with torch.autocast(inputs.device.type, precision, enabled=precision is not None):
                answer = trainee.module(some)
            error = (answer.float() - expected).square().mean() / scale * (len(some) / len(inputs))
            error.backward()
            total += error.detach()
        return total


def _is_lost(curve: Sequence[float]) -> bool:
    if not math.isfinite(curve[-1]):
        return True
    recent = statistics.fmean(curve[-RECENT:])
    return len(curve) > RECENT and recent > _FAR * max(1.0, statistics.fmean(curve[:RECENT]))
