"""What is considered and chosen for one target and one budget."""

from __future__ import annotations

from dataclasses import dataclass, field

from lana_ray.config import Budget
from lana_ray.latency.store import Sample
from lana_ray.selection import Selection
from lana_ray.spaces.layerwise import Architecture

USE = 0.95
"""Share of a budget that a student should use where the choices allow it."""


@dataclass(kw_only=True)
class Choice:
    """The students considered for one target and budget, and the one chosen."""

    target: str
    budget: Budget
    budget_ms: float
    limit_ms: float
    """The budget less the margin kept for the spread of re-measurements."""
    aim: float = 1.0
    """Share of the limit that the program is asked for: less where it has been missed."""
    students: dict[Architecture, tuple[int, Selection]] = field(default_factory=dict)
    """Every selection proposed, with the round that proposed it first."""
    measured: dict[Architecture, Sample] = field(default_factory=dict)
    loss: dict[Architecture, float] = field(default_factory=dict)
    architecture: Architecture | None = None
    given_up: set[Architecture] = field(default_factory=set)
    """Chosen once, but over budget when measured again."""
    confirmed: set[Architecture] = field(default_factory=set)
    """Well within the budget when measured again."""
    leader: Architecture | None = None
    """The best student by the last round's table."""
    finished: bool = False
    """No more students need be proposed."""

    @property
    def aim_ms(self) -> float:
        """What the program is asked for."""
        return self.aim * self.limit_ms

    def within(self) -> list[Architecture]:
        """The students that ran, kept the limit and were not given up."""
        kept = [a for a, s in self.measured.items() if s.error is None and s.median_ms <= self.limit_ms]
        return [a for a in kept if a not in self.given_up]

    def leader_fits(self) -> bool:
        """Whether the program's best student of the last round keeps the limit and makes use of it."""
        sample = self.measured.get(self.leader) if self.leader else None
        if sample is None or sample.error is not None:
            return False
        return USE * self.limit_ms <= sample.median_ms <= self.limit_ms

    def candidates(self) -> list[Architecture]:
        """The students within the limit that were not given up, the lowest loss first."""
        return sorted((a for a in self.loss if a not in self.given_up), key=lambda a: (self.loss[a], a))

    def replace(self) -> bool:
        """Gives the chosen student up for the one with the next lowest loss; False where there is none."""
        others = [a for a in self.candidates() if a != self.architecture]
        if self.architecture is None or not others:
            return False
        self.given_up.add(self.architecture)
        self.architecture = others[0]
        return True
