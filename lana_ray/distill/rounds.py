"""Which candidates train together, and in which order the workers take them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lana_ray.distill.demand import Demand
from lana_ray.ids import CandidateId

_GUIDED = 2.0  # rounds that each worker would get if none were smaller than the first
_WORTH = 10.0  # passes of the teacher, that the candidates of a round should take at least


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

    At the end all workers should finish together, however fast each is, so rounds take ever smaller parts of
    what is left (guided self-scheduling, Polychronopoulos and Kuck 1987). But each round costs a teacher's
    pass a batch, so none is made small for balance's sake in which that would be more than a tenth, and one
    worker alone takes all at once. Candidates keep the order of their layers: a round of neighbours needs
    few activations, and the teacher only as far as its last layer.

    Args:
        costs: time of one step of each candidate, in any unit; in the order of their layers.
        overhead: that of the teacher's pass, in the same.
        limit_bytes: of memory, that a round may take beside the teacher. A candidate that takes more by
            itself is a round of its own, and trains on its batch in parts.
        most: candidates of a round, which is what the death of a worker can lose.
    """
    rounds: list[list[CandidateId]] = []
    left, taken = sum(costs.values()), 0.0
    least = min(_WORTH * overhead, left / workers)  # a round for everyone all the same
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
    """Bytes that a round takes at its peak, beside the teacher."""
    known = [demands[candidate] for candidate in candidates]
    observed = {candidate.layer: demands[candidate].observed for candidate in candidates}
    largest = max(one.per_image for one in known)
    return sum(one.kept for one in known) + batch_size * (sum(observed.values()) + largest)


def parts(demand: Demand, batch_size: int, limit_bytes: float) -> int:
    """Into how many parts a batch is split so that a candidate's step keeps the limit; 1 where it does whole.

    At least two images are left in a part, as batch-norms need them.
    """
    free = limit_bytes - demand.kept - batch_size * demand.observed
    images = max(1, int(free / max(demand.per_image, 1)))
    return max(1, min(math.ceil(batch_size / images), batch_size // 2))
