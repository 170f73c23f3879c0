"""Divides candidates into rounds that train together, in the order in which workers take them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lana_ray.distill.demand import Demand
from lana_ray.ids import CandidateId

# Rounds that each worker would get if none were smaller than the first.
_GUIDED = 2.0
# Minimum time of a round's candidates, in passes of the teacher.
_WORTH = 10.0


def plan_rounds(
    costs: Mapping[CandidateId, float],
    demands: Mapping[CandidateId, Demand],
    *,
    overhead: float,
    workers: int,
    batch_size: int,
    limit_bytes: float,
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
        limit_bytes: memory that a round may take in addition to the teacher. A candidate that takes more by
            itself gets its own round, and trains on its batch in parts.
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
        fits = memory([*here, candidate], demands, batch_size) <= limit_bytes
        if not here or larger or not fits or len(here) == most:
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
