"""What is considered and chosen for one budget, on one target or on several at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lana_ray.config import Budget
from lana_ray.costs.samples import Sample
from lana_ray.selection import Selection
from lana_ray.spaces.space import Architecture

USE = 0.95
"""Share of a budget that a student should use where the choices allow it."""


@dataclass(kw_only=True)
class Limit:
    """A budget on one target."""

    budget_ms: float
    limit_ms: float
    """The budget less the margin kept for the spread of re-measurements."""

    @property
    def confirmed_ms(self) -> float:
        """Half of the margin is left for measurements to come."""
        return (self.limit_ms + self.budget_ms) / 2


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """How a student came to be considered."""

    round: int
    """The one that proposed it first."""
    selection: Selection
    """Its costs are named by target."""
    calibrations: Mapping[str, int]
    """By target: the position of the table that predicted its cost."""


def keeps(sample: Sample, limit_ms: float) -> bool:
    """Whether a network ran, and in that time."""
    return sample.error is None and sample.median_ms <= limit_ms


@dataclass(kw_only=True)
class Choice:
    """The students considered for one budget, and the one chosen."""

    budget: Budget
    limits: dict[str, Limit]
    """By target. Where there are several, one architecture shall keep the budget on all of them."""
    aim: float = 1.0
    """Share of the limits that the program is asked for: less where they have been missed."""
    students: dict[Architecture, Proposal] = field(default_factory=dict)
    measured: dict[Architecture, dict[str, Sample]] = field(default_factory=dict)
    """By target; the students that ran on all of them."""
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
    unmet: str = ""
    """Why there is no student, in one line."""

    @property
    def name(self) -> str:
        """The budget, unlike that of the same targets alone."""
        return f"{self.budget} on all" if len(self.limits) > 1 else str(self.budget)

    @property
    def place(self) -> str:
        """Where the budget is to be kept, for messages."""
        return ", ".join(self.limits)

    def keeps(self, samples: Mapping[str, Sample]) -> bool:
        """Whether a student with these measurements, by target, keeps every limit."""
        return all(keeps(samples[target], limit.limit_ms) for target, limit in self.limits.items())

    def within(self) -> list[Architecture]:
        """The students that ran, kept the limits and were not given up."""
        return [a for a, samples in self.measured.items() if self.keeps(samples) and a not in self.given_up]

    def leader_fits(self) -> bool:
        """Whether the program's best student of the last round keeps the limits and makes use of one."""
        samples = self.measured.get(self.leader) if self.leader else None
        if samples is None or not self.keeps(samples):
            return False
        return any(samples[target].median_ms >= USE * limit.limit_ms for target, limit in self.limits.items())

    def is_tighter(self, than: Choice) -> bool:
        """Whether what keeps this budget keeps the other as well, on all its targets."""
        return all(
            target in self.limits and self.limits[target].budget_ms <= limit.budget_ms
            for target, limit in than.limits.items()
        )

    def adopt(self, student: Architecture, other: Choice) -> None:
        """Takes a student that was chosen for a tighter budget."""
        self.students.setdefault(student, other.students[student])
        self.measured[student] = {target: other.measured[student][target] for target in self.limits}
        self.loss[student] = other.loss[student]
        self.confirmed.add(student)
        self.architecture = student

    def candidates(self) -> list[Architecture]:
        """The students within the limits that were not given up, the lowest loss first."""
        return sorted((a for a in self.loss if a not in self.given_up), key=lambda a: (self.loss[a], a))

    def replace(self) -> bool:
        """Gives the chosen student up for the one with the next lowest loss; False where there is none."""
        others = [a for a in self.candidates() if a != self.architecture]
        if self.architecture is None or not others:
            return False
        self.given_up.add(self.architecture)
        self.architecture = others[0]
        return True
