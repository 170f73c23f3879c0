"""Bilevel search: steps of the weights and of the architecture parameters in turn, with a cost (LA-DNAS)."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

from lana_ray.ids import Architecture
from lana_ray.run_dir.resumable import Checkpoint
from lana_ray.search.cost import Cost, cost_of, expected_cost, likeliest_within
from lana_ray.search.mixture import entropy, mix
from lana_ray.search.settings import SearchSettings
from lana_ray.search.supernet import Supernet

Batch = tuple[Tensor, Tensor]
Batches = Callable[[int, int], Iterator[Batch]]
"""Callback ``(epoch, first_step)``: yields the epoch's (images, labels) from there on, always the same."""
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Callback ``(output [n, classes], images [n, ...], labels [n])``: returns the loss, a scalar."""

NONE = "none"
"""Name of the operation that stands for no edge."""
PARAMETER_FREE = frozenset({"skip_connect", "identity", "avg_pool_3x3", "max_pool_3x3"})
_COLLAPSED = 0.5
"""Share of parameter-free operations above which an architecture counts as collapsed."""
_SAVE_EVERY_S = 60.0
_ROUNDS = 20
"""How often an unchanged excess, times the penalty, is added to λ over a whole search."""
_EVALUATED = 32
"""Architectures drawn to estimate an epoch's LAT(α)."""
_MODULES = ("alpha_optimizer", "weight_optimizer", "weight_schedule")
_VALUES = ("step", "multiplier", "sums", "trajectory")


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
    trajectory: tuple[Point, ...] = ()
    collapsed: bool = False
    """Whether more than half of the operations are parameter-free. DARTS is known to collapse like this if
    skips train faster than the operations they bypass; the architecture is then not worth training (DARTS+,
    arXiv 1909.06035; R-DARTS, arXiv 1909.09656)."""


def cross_entropy(output: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(output, labels)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """``loss + λ·LAT(α) / reference``."""

    cost: Cost
    """LAT, on the supernet's device."""
    reference: float
    """A cost in the same unit, such as the teacher's or the mean over random architectures."""
    loss: Loss = cross_entropy


@dataclass(frozen=True, kw_only=True)
class SearchBatches:
    """The images of a search, disjoint for the weights and for α."""

    weights: Batches
    """Not called if no weights are trained."""
    alphas: Batches
    steps: int
    """Steps of each kind in an epoch; both iterators must yield that many batches."""


def search(
    supernet: Supernet,
    objective: Objective,
    batches: SearchBatches,
    settings: SearchSettings,
    *,
    checkpoint: Checkpoint | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> SearchResult:
    """Minimises ``L + λ·LAT(α) / reference`` in α, and L in the weights, one step of each in turn.

    Dividing by the cost of a well-known network makes λ a price: the rise in loss that is worth saving all of
    this network's cost. The same λ then has the same meaning on a phone and on a GPU.

    With a target, λ is adapted by the augmented Lagrangian of ``LAT(α) ≤ target``: with the excess
    ``e = (LAT(α) − target) / reference``, the price is ``max(0, λ + penalty·e)``, and each step changes λ
    to ``max(0, λ + rate·e)``. Dual ascent alone would oscillate and could not hold an architecture that is
    the cheapest at no price. The supernet is trained in place. The checkpoint stores the state about once a
    minute and at the end of each epoch; a resumed search gives bitwise the same results.
    """
    total = settings.epochs * batches.steps
    state = SearchState.begin(supernet, settings, total)
    if checkpoint and (saved := checkpoint.load()) is not None:
        state.restore(saved)
        for _ in range(state.step):
            on_step()
    run = _Search(state, objective, batches, settings)
    last_save = time.monotonic()
    while state.step < total:
        for _ in run.epoch():
            on_step()
            if checkpoint and state.step % batches.steps and time.monotonic() - last_save > _SAVE_EVERY_S:
                checkpoint.save(state.dump())
                last_save = time.monotonic()
        state.trajectory.append(dataclasses.asdict(run.point()))
        state.sums = {}
        if checkpoint:
            checkpoint.save(state.dump())
            last_save = time.monotonic()
    return run.result()


@dataclass(kw_only=True)
class SearchState:
    """A supernet in search: everything needed to resume exactly.

    Random draws of a step depend only on the seed and the step's number.
    """

    supernet: Supernet
    alpha_optimizer: Adam
    multiplier: float
    """λ, without the penalty."""
    weight_optimizer: SGD | None = None
    """None, like the schedule, if no weights are trained."""
    weight_schedule: CosineAnnealingLR | None = None
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the losses over this epoch's steps so far."""
    trajectory: list[dict[str, Any]] = field(default_factory=list)
    """The fields of ``Point``, one dictionary per epoch."""

    @classmethod
    def begin(cls, supernet: Supernet, settings: SearchSettings, steps: int) -> SearchState:
        """Returns the state at the start of a search of ``steps`` steps."""
        alpha_optimizer = Adam(
            supernet.architecture_parameters(),
            lr=settings.alpha_lr,
            betas=settings.alpha_betas,
            weight_decay=settings.alpha_decay,
        )
        state = cls(supernet=supernet, alpha_optimizer=alpha_optimizer, multiplier=settings.multiplier)
        if weights := supernet.weight_parameters():
            state.weight_optimizer = SGD(
                weights,
                lr=settings.weight_lr,
                momentum=settings.weight_momentum,
                weight_decay=settings.weight_decay,
            )
            state.weight_schedule = CosineAnnealingLR(state.weight_optimizer, steps, settings.weight_lr_end)
        return state

    def dump(self) -> dict[str, Any]:
        """Returns everything except frozen weights, for ``restore``; tensors are not copied."""
        frozen = {name for name, p in self.supernet.named_parameters() if not p.requires_grad}
        kept = {name: value for name, value in self.supernet.state_dict().items() if name not in frozen}
        modules = {name: getattr(self, name) for name in _MODULES}
        state = {name: module.state_dict() for name, module in modules.items() if module is not None}
        return {"supernet": kept} | state | {name: getattr(self, name) for name in _VALUES}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores what ``dump`` returned for the same supernet and settings."""
        self.supernet.load_state_dict(state["supernet"], strict=False)
        for name in _MODULES:
            if name in state:
                getattr(self, name).load_state_dict(state[name])
        for name in _VALUES:
            setattr(self, name, state[name])


@dataclass(frozen=True)
class _Search:
    """The steps of a search, and summaries of its state."""

    state: SearchState
    objective: Objective
    batches: SearchBatches
    settings: SearchSettings

    def epoch(self) -> Iterator[None]:
        """Takes the remaining steps of the epoch in which the search stands, and yields after each."""
        state = self.state
        epoch, start = divmod(state.step, self.batches.steps)
        held = self.batches.alphas(epoch, start) if state.step >= self._warmup else None
        own = self.batches.weights(epoch, start) if state.weight_optimizer else None
        for _ in range(start, self.batches.steps):
            self._seed()
            batch = next(own) if own else None
            if held:
                self._step_alpha(next(held))
            if batch:
                self._step_weights(batch)
            state.step += 1
            yield

    @torch.no_grad()
    def point(self) -> Point:
        """The state at the end of an epoch."""
        state, steps, supernet = self.state, self.batches.steps, self.state.supernet
        logits = supernet.logits()
        architecture = supernet.space.discretise([logit.cpu().numpy() for logit in logits])
        expected = float(self._expected(logits, samples=_EVALUATED))
        return Point(
            epoch=state.step // steps - 1,
            weight_loss=state.sums.get("weight_loss", math.nan) / steps,
            alpha_loss=state.sums.get("alpha_loss", math.nan) / steps,
            expected_cost=expected,
            cost=cost_of(architecture, supernet.space, self.objective.cost, logits[0].device),
            entropy=float(entropy(logits)),
            parameter_free=parameter_free_share(architecture, supernet.space.operations),
            multiplier=self._price(self._excess(expected)),
            architecture=architecture,
        )

    @torch.no_grad()
    def result(self) -> SearchResult:
        space, cost, limit = self.state.supernet.space, self.objective.cost, self.settings.target
        rows = self.state.trajectory
        points = tuple(Point(**row | {"architecture": tuple(row["architecture"])}) for row in rows)
        logits = self.state.supernet.logits()
        architecture = points[-1].architecture
        if limit is not None:
            self._seed()
            architecture = likeliest_within(logits, space, cost, limit) or architecture
        return SearchResult(
            architecture=architecture,
            cost=cost_of(architecture, space, cost, logits[0].device),
            trajectory=points,
            collapsed=parameter_free_share(architecture, space.operations) > _COLLAPSED,
        )

    @property
    def _warmup(self) -> int:
        """Number of steps before α moves."""
        return self.settings.warmup_epochs * self.batches.steps if self.state.weight_optimizer else 0

    @property
    def _alpha_steps(self) -> int:
        """Number of α's steps in the whole search."""
        return self.settings.epochs * self.batches.steps - self._warmup

    @property
    def _progress(self) -> float:
        """Share of α's steps that are done, from 0 to 1."""
        return max(0.0, (self.state.step - self._warmup) / max(1, self._alpha_steps - 1))

    def _step_alpha(self, batch: Batch) -> None:
        """Updates α, and λ if there is a target."""
        state, settings, supernet = self.state, self.settings, self.state.supernet
        alphas = supernet.architecture_parameters()
        self._seed()
        value = self._loss(batch, self._mixed())
        gradients = _gradients(value, alphas)
        logits = supernet.logits()
        expected = self._expected(logits, samples=settings.samples)
        excess = self._excess(float(expected.detach()))
        decided = settings.entropy_weight * self._progress**2 * entropy(logits)
        extra = self._price(excess) * expected / self.objective.reference + decided
        for alpha, first, second in zip(alphas, gradients, _gradients(extra, alphas), strict=True):
            alpha.grad = first + second
        state.alpha_optimizer.step()
        if settings.target is not None:
            change = settings.penalty * excess * _ROUNDS / self._alpha_steps
            state.multiplier = max(0.0, state.multiplier + change)
        self._count("alpha_loss", value)

    def _step_weights(self, batch: Batch) -> None:
        """Updates the weights; the part of the graph that leads to α is not built."""
        state = self.state
        assert state.weight_optimizer is not None
        assert state.weight_schedule is not None
        with torch.no_grad():
            mixed = self._mixed()
        loss = self._loss(batch, mixed)
        state.weight_optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(state.supernet.weight_parameters(), self.settings.weight_clip)
        state.weight_optimizer.step()
        state.weight_schedule.step()
        self._count("weight_loss", loss)

    def _mixed(self) -> list[Tensor]:
        first, last = self.settings.temperature
        temperature = first + (last - first) * self._progress
        return mix(self.state.supernet.logits(), self.settings.mixture, temperature)

    def _loss(self, batch: Batch, mixed: list[Tensor]) -> Tensor:
        images, labels = (tensor.to(mixed[0].device) for tensor in batch)
        return self.objective.loss(self.state.supernet(images, mixed), images, labels)

    def _expected(self, logits: Sequence[Tensor], samples: int) -> Tensor:
        space, way = self.state.supernet.space, self.settings.way
        return expected_cost(logits, space, self.objective.cost, way=way, samples=samples)

    def _excess(self, expected: float) -> float:
        target = self.settings.target
        return 0.0 if target is None else (expected - target) / self.objective.reference

    def _price(self, excess: float) -> float:
        return max(0.0, self.state.multiplier + self.settings.penalty * excess)

    def _count(self, name: str, loss: Tensor) -> None:
        self.state.sums[name] = self.state.sums.get(name, 0.0) + float(loss.detach())

    def _seed(self) -> None:
        """Makes the next random draws depend only on the seed and the step's number."""
        torch.default_generator.manual_seed(hash((self.settings.seed, self.state.step)) & 0x7FFFFFFFFFFFFFFF)


def _gradients(loss: Tensor, of: Sequence[nn.Parameter]) -> list[Tensor]:
    """Returns the gradient of each parameter, zeros if the loss does not depend on it."""
    return list(torch.autograd.grad(loss, list(of), allow_unused=True, materialize_grads=True))


def parameter_free_share(architecture: Architecture, operations: Sequence[Sequence[str]]) -> float:
    """Returns the share of an architecture's operations without parameters; 1 if all are ``none``."""
    names = [names[choice] for names, choice in zip(operations, architecture, strict=True)]
    present = [name for name in names if name != NONE]
    return sum(name in PARAMETER_FREE for name in present) / len(present) if present else 1.0
