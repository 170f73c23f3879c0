"""Bilevel search: steps of the weights and of the architecture parameters in turn, with a cost (LA-DNAS)."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lana_ray.ids import Architecture
from lana_ray.run_dir.resumable import Checkpoint
from lana_ray.search.cost import Cost, cost_of, expected_cost, likeliest_within
from lana_ray.search.mixture import entropy, mix
from lana_ray.search.settings import SearchSettings
from lana_ray.search.state import SearchState
from lana_ray.search.supernet import Supernet

Batch = tuple[Tensor, Tensor]
Batches = Callable[[int, int], Iterator[Batch]]
"""Callback ``(epoch, first_step)``: yields the epoch's (images, labels) from there on, always the same."""
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Callback ``(output [n, classes], images [n, ...], labels [n])``: returns the loss, a scalar."""

NONE = "none"
"""Name of the operation that stands for no edge."""
_SAVE_EVERY_S = 60.0
_ROUNDS = 20
"""How often an unchanged excess, times the penalty, is added to λ over a whole search."""
_EVALUATED = 32
"""Architectures drawn to estimate an epoch's LAT(α)."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """State of a search at the end of an epoch."""

    epoch: int
    weight_loss: float
    """The weights' task loss, mean over the epoch; NaN if no weights are trained."""
    alpha_loss: float
    """α's task loss, mean over the epoch; NaN before α moves."""
    expected_cost: float
    """LAT(α)."""
    cost: float
    """Cost of the architecture that the scores stand for."""
    entropy: float
    """Entropy of α, relative to the largest possible."""
    parameter_free: float
    """Share of operations without parameters in the architecture."""
    multiplier: float
    """λ, including the penalty."""
    architecture: Architecture


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The architecture that a search ended with, and how it got there."""

    architecture: Architecture
    """The architecture that the scores stand for; with a target, the likeliest one that meets it."""
    cost: float
    """The architecture's cost, as the cost function predicts it."""
    scores: tuple[NDArray[np.float64], ...]
    """Logits of the supernet, one array per decision."""
    trajectory: tuple[Point, ...]
    collapsed: bool
    """Whether the share of parameter-free operations exceeds the settings' limit. DARTS is known to collapse
    like this if skips train faster than the operations they bypass; the architecture is then not worth
    training (DARTS+, arXiv 1909.06035; R-DARTS, arXiv 1909.09656)."""


def cross_entropy(output: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Returns the task's loss."""
    return F.cross_entropy(output, labels)


def search(
    supernet: Supernet,
    cost: Cost,
    *,
    settings: SearchSettings,
    reference: float,
    operations: Sequence[Sequence[str]],
    weight_batches: Batches,
    alpha_batches: Batches,
    steps: int,
    loss: Loss = cross_entropy,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> SearchResult:
    """Minimises ``L + λ·LAT(α) / reference`` in α, and L in the weights, one step of each in turn.

    Dividing by the cost of a well-known network makes λ a price: the rise in loss that is worth saving all of
    this network's cost. The same λ then has the same meaning on a phone and on a GPU.

    With a target, λ is adapted by the augmented Lagrangian of ``LAT(α) ≤ target``: with the excess
    ``e = (LAT(α) − target) / reference``, the price is ``max(0, λ + penalty·e)``, and each step changes λ
    to ``max(0, λ + rate·e)``. Dual ascent alone would oscillate and could not hold an architecture that is
    the cheapest at no price. A resumed search gives bitwise the same results.

    Args:
        supernet: trained in place.
        cost: LAT, on the supernet's device.
        reference: a cost in the same unit, such as the teacher's or the mean over random architectures.
        operations: names of every decision's choices, to count parameter-free ones; ``none`` is no operation.
        weight_batches: images for the weights; not called if no weights are trained.
        alpha_batches: images for α, disjoint from those for the weights.
        steps: steps of each kind in an epoch; both iterators must yield that many batches.
        checkpoint: stores the state about once a minute and at the end of each epoch.
    """
    state = SearchState.begin(supernet, settings, settings.epochs * steps)
    if checkpoint and (saved := checkpoint.load()) is not None:
        state.restore(saved)
        for _ in range(state.step):
            on_step()
    turn = _Turn(state, cost, settings, reference, loss)
    last_save = time.monotonic()

    def save() -> None:
        nonlocal last_save
        if checkpoint:
            checkpoint.save(state.dump())
            last_save = time.monotonic()

    def after_step() -> None:
        on_step()
        if state.step % steps and time.monotonic() - last_save > _SAVE_EVERY_S:
            save()

    while state.step < settings.epochs * steps:
        epoch = state.step // steps
        _search_epoch(turn, weight_batches, alpha_batches, steps, after_step)
        state.trajectory.append(_point(state, cost, settings, reference, operations, epoch, steps))
        state.sums = {}
        save()
    return _result(state, supernet, cost, settings, operations)


def _search_epoch(
    turn: _Turn,
    weight_batches: Batches,
    alpha_batches: Batches,
    steps: int,
    after_step: Callable[[], None],
) -> None:
    """Takes the steps that are left of the epoch in which the search stands."""
    state, settings = turn.state, turn.settings
    total = settings.epochs * steps
    warmup = settings.warmup_epochs * steps if state.weight_optimizer else 0
    device = state.supernet.architecture_parameters()[0].device
    epoch, start = divmod(state.step, steps)
    held = alpha_batches(epoch, start) if state.step >= warmup else None
    own = weight_batches(epoch, start) if state.weight_optimizer else None
    for _ in range(start, steps):
        torch.default_generator.manual_seed(_seed(settings, state.step))
        progress = max(0.0, (state.step - warmup) / max(1, total - warmup - 1))
        batch = _to(next(own), device) if own else None
        if held:
            turn.alpha(_to(next(held), device), progress, total - warmup)
        if batch:
            turn.weights(batch, progress)
        state.step += 1
        after_step()


def _result(
    state: SearchState,
    supernet: Supernet,
    cost: Cost,
    settings: SearchSettings,
    operations: Sequence[Sequence[str]],
) -> SearchResult:
    points = tuple(Point(**row | {"architecture": tuple(row["architecture"])}) for row in state.trajectory)
    with torch.no_grad():
        logits = supernet.logits()
    architecture = points[-1].architecture
    if settings.target is not None:
        torch.default_generator.manual_seed(_seed(settings, state.step))
        architecture = likeliest_within(logits, supernet.space, cost, settings.target) or architecture
    share = parameter_free_share(architecture, operations, settings.parameter_free)
    return SearchResult(
        architecture=architecture,
        cost=cost_of(architecture, supernet.space, cost, logits[0].device),
        scores=tuple(logit.double().cpu().numpy() for logit in logits),
        trajectory=points,
        collapsed=share > settings.collapse_share,
    )


@dataclass(frozen=True)
class _Turn:
    """One step of α and one step of the weights."""

    state: SearchState
    cost: Cost
    settings: SearchSettings
    reference: float
    loss: Loss

    def alpha(self, held: Batch, progress: float, steps: int) -> None:
        """Updates α, and λ if there is a target; ``steps`` is the number of α's steps in the whole search."""
        state, settings, supernet = self.state, self.settings, self.state.supernet
        alphas, seed = supernet.architecture_parameters(), _seed(settings, state.step)
        torch.default_generator.manual_seed(seed)
        mixed = mix(supernet.logits(), settings.mixture, self._temperature(progress))
        value = self._task(held, mixed)
        gradients = _gradients(value, alphas)
        logits = supernet.logits()
        expected = expected_cost(
            logits,
            supernet.space,
            self.cost,
            way=settings.way,
            samples=settings.samples,
        )
        excess = _excess(float(expected.detach()), settings, self.reference)
        price = _price(state.multiplier, excess, settings)
        extra = price * expected / self.reference + settings.entropy_weight * progress**2 * entropy(logits)
        for alpha, first, second in zip(alphas, gradients, _gradients(extra, alphas), strict=True):
            alpha.grad = first + second
        state.alpha_optimizer.step()
        if settings.target is not None:
            state.multiplier = max(0.0, state.multiplier + settings.penalty * excess * _ROUNDS / steps)
        self._count("alpha_loss", value)

    def weights(self, batch: Batch, progress: float) -> None:
        """Updates the weights; the part of the graph that leads to α is not built."""
        state, settings = self.state, self.settings
        assert state.weight_optimizer is not None
        assert state.weight_schedule is not None
        with torch.no_grad():
            mixed = mix(state.supernet.logits(), settings.mixture, self._temperature(progress))
        loss = self._task(batch, mixed)
        state.weight_optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(state.supernet.weight_parameters(), settings.weight_clip)
        state.weight_optimizer.step()
        state.weight_schedule.step()
        self._count("weight_loss", loss)

    def _task(self, batch: Batch, mixed: list[Tensor]) -> Tensor:
        images, labels = batch
        return self.loss(self.state.supernet(images, mixed), images, labels)

    def _temperature(self, progress: float) -> float:
        first, last = self.settings.temperature
        return first + (last - first) * progress

    def _count(self, name: str, loss: Tensor) -> None:
        self.state.sums[name] = self.state.sums.get(name, 0.0) + float(loss.detach())


def _gradients(loss: Tensor, of: Sequence[nn.Parameter]) -> list[Tensor]:
    """Returns the gradient of each parameter, zeros if the loss does not depend on it."""
    return list(torch.autograd.grad(loss, list(of), allow_unused=True, materialize_grads=True))


def parameter_free_share(
    architecture: Architecture, operations: Sequence[Sequence[str]], free: frozenset[str]
) -> float:
    """Returns the share of an architecture's operations that are in ``free``; 1 if all are ``none``."""
    names = [names[choice] for names, choice in zip(operations, architecture, strict=True)]
    present = [name for name in names if name != NONE]
    return sum(name in free for name in present) / len(present) if present else 1.0


def _excess(expected: float, settings: SearchSettings, reference: float) -> float:
    return 0.0 if settings.target is None else (expected - settings.target) / reference


def _price(multiplier: float, excess: float, settings: SearchSettings) -> float:
    return max(0.0, multiplier + settings.penalty * excess)


@torch.no_grad()
def _point(
    state: SearchState,
    cost: Cost,
    settings: SearchSettings,
    reference: float,
    operations: Sequence[Sequence[str]],
    epoch: int,
    steps: int,
) -> dict[str, Any]:
    space, logits = state.supernet.space, state.supernet.logits()
    architecture = space.discretise([logit.cpu().numpy() for logit in logits])
    expected = float(expected_cost(logits, space, cost, way=settings.way, samples=_EVALUATED))
    point = Point(
        epoch=epoch,
        weight_loss=state.sums.get("weight_loss", math.nan) / steps,
        alpha_loss=state.sums.get("alpha_loss", math.nan) / steps,
        expected_cost=expected,
        cost=cost_of(architecture, space, cost, logits[0].device),
        entropy=float(entropy(logits)),
        parameter_free=parameter_free_share(architecture, operations, settings.parameter_free),
        multiplier=_price(state.multiplier, _excess(expected, settings, reference), settings),
        architecture=architecture,
    )
    return dataclasses.asdict(point)


def _seed(settings: SearchSettings, step: int) -> int:
    return hash((settings.seed, step)) & 0x7FFFFFFFFFFFFFFF


def _to(batch: Batch, device: torch.device) -> Batch:
    return batch[0].to(device), batch[1].to(device)
