"""Divides candidates into rounds that train together, by their time and the memory that they need."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lana_ray.ids import CandidateId
from lana_ray.networks.layers import Layer

# The fewest images that a batch-norm can be trained on.
_IMAGES = 2
# Each parameter has itself, its gradient and Adam's two moments.
_KEPT = 4
# Largest tensors alive in addition to the saved ones: an output, its gradient, the next one's.
_PASSING = 3

# Rounds that each worker would get if none were smaller than the first.
_GUIDED = 2.0
# Minimum time of a round's candidates, in passes of the teacher.
_WORTH = 10.0


@dataclass(frozen=True, kw_only=True)
class Demand:
    """Memory that one candidate adds to the worker that trains it, in bytes."""

    kept: int
    """Bytes during its whole round: weights, gradients and the optimiser's state."""
    per_image: int
    """Bytes per image during its own step: tensors saved for the backward pass and temporary ones."""
    observed: int
    """Bytes per image for the layer's input and output in the teacher, which its candidates share."""


def demand(module: nn.Module, layer: Layer) -> Demand:
    """Measures the demand of a candidate in training mode, on the CPU.

    Its running statistics change, so the module must not be used further.
    """
    own = {tensor.untyped_storage()._cdata for tensor in module.state_dict(keep_vars=True).values()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
        # Keeps the storage alive, so that no other tensor gets its address.
        held.append(tensor)
        return tensor

    held: list[Tensor] = []
    with torch.random.fork_rng(devices=[]), saved_tensors_hooks(note, lambda tensor: tensor):
        images = torch.zeros(_IMAGES, *layer.input_shape)
        own.add(images.untyped_storage()._cdata)
        output: Tensor = module(images)
    passing = _PASSING * max(output.nbytes, *saved.values(), 0)
    weights = sum(parameter.nbytes for parameter in module.parameters())
    return Demand(
        kept=_KEPT * weights,
        per_image=(sum(saved.values()) + passing) // _IMAGES,
        observed=(images.nbytes + output.nbytes) // _IMAGES,
    )


def plan_rounds(
    costs: Mapping[CandidateId, float],
    fits: Callable[[list[CandidateId]], bool],
    *,
    overhead: float,
    workers: int,
    most: int,
) -> list[list[CandidateId]]:
    """Splits candidates into rounds, which workers take one after another until none is left.

    All workers should finish together, whatever their speed, so each round takes a smaller part of the rest
    (guided self-scheduling, Polychronopoulos and Kuck 1987). But each round costs a teacher's pass per batch,
    so no round is made so small for balance that this pass is more than a tenth of it, and a single worker
    takes everything at once. Candidates keep the order of their layers: a round of neighbouring layers needs
    few activations, and runs the teacher only up to its last layer.

    Args:
        costs: time of one step of each candidate, in any unit; in the order of their layers.
        overhead: time of the teacher's pass, in the same unit.
        fits: whether candidates have enough memory together. A candidate that does not fit by itself gets its
            own round, and trains on its batch in parts.
        most: candidates in a round, which are lost if a worker dies.
    """
    rounds: list[list[CandidateId]] = []
    left, taken = sum(costs.values()), 0.0
    # Every worker gets at least one round.
    least = min(_WORTH * overhead, left / workers)
    for candidate in costs:
        here = rounds[-1] if rounds else []
        share = max(left / (_GUIDED * workers), least)
        if workers == 1 or left - share < (1 - 1e-9) * least:
            share = left
        larger = taken + costs[candidate] > share * (1 + 1e-9)
        if not here or larger or len(here) == most or not fits([*here, candidate]):
            rounds.append([])
            left, taken = left - taken, 0.0
        rounds[-1].append(candidate)
        taken += costs[candidate]
    return rounds


def memory(candidates: list[CandidateId], demands: Mapping[CandidateId, Demand], batch_size: int) -> int:
    """Returns the bytes that a round takes at its peak, in addition to the teacher."""
    candidate_demands = [demands[candidate] for candidate in candidates]
    observed = {candidate.layer: demands[candidate].observed for candidate in candidates}
    largest = max(one.per_image for one in candidate_demands)
    return sum(one.kept for one in candidate_demands) + batch_size * (sum(observed.values()) + largest)


def parts(demand: Demand, batch_size: int, limit_bytes: float) -> int:
    """Returns how many parts a batch must be split into for a candidate's step to keep the limit.

    Each part has at least two images, as batch-norms need them.
    """
    free = limit_bytes - demand.kept - batch_size * demand.observed
    images = max(1, int(free / max(demand.per_image, 1)))
    return max(1, min(math.ceil(batch_size / images), batch_size // 2))
