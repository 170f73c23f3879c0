"""Which worker trains which candidates."""

from __future__ import annotations

from collections.abc import Mapping

Candidate = tuple[int, int]
"""(layer, choice)."""


def partition(costs: Mapping[Candidate, float], workers: int) -> list[list[Candidate]]:
    """Splits candidates so that all workers finish together: the dearest first, each to the idlest worker.

    Each worker's share comes back in the order of the layers, so that neighbours share activations.

    Args:
        costs: time of one step of each candidate, in any unit.
    """
    shares: list[list[Candidate]] = [[] for _ in range(workers)]
    load = [0.0] * workers
    for candidate in sorted(costs, key=lambda c: (-costs[c], c)):
        idlest = load.index(min(load))
        shares[idlest].append(candidate)
        load[idlest] += costs[candidate]
    return [sorted(share) for share in shares]
