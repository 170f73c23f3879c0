"""The students considered for one budget, and the one chosen: states of the closed loop."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lana_ray.config import Config, LatencyBudget, Target
from lana_ray.costs.registry import COUNTED
from lana_ray.costs.table import CostTables, MeasuredCost
from lana_ray.ids import Architecture, CostId
from lana_ray.selection.margin import Noise, noise_of
from lana_ray.selection.problem import Selection

_MANY = 10**6
FIRST_SESSIONS = 3
"""Number of sessions in which a student is first judged."""
USE = 0.95
"""Share of a budget that a student should use if the choices allow it."""

Costs = Mapping[CostId, MeasuredCost]
"""What one student was measured to cost."""


class State(enum.Enum):
    """Where a choice stands."""

    PROPOSING = "proposing"
    """Further students are proposed for it."""
    READY = "ready"
    """One of its students keeps the budget, and is to be measured again."""
    CHOSEN = "chosen"
    """Its student kept the budget in further sessions."""
    UNMET = "unmet"
    """No student keeps the budget; ``Choice.unmet`` says why."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """An upper bound on one cost, in its unit."""

    budget: float
    """As the user set it."""
    noise: Noise = field(default_factory=Noise)
    """How measurements of one network vary."""
    is_absolute: bool = False
    """Whether it bounds what the clock shows, however slow the target has become; costs are corrected."""

    def value(self, sessions: int = FIRST_SESSIONS) -> float:
        """What the median of so many sessions must keep, for a further one to keep the budget."""
        slowdown = self.noise.slowdown if self.is_absolute else 1.0
        return self.budget / slowdown * (1 - self.noise.share(sessions))

    def kept_by(self, cost: MeasuredCost) -> bool:
        """Whether a measurement is low enough for a further one to keep the budget."""
        return cost.error is None and cost.value <= self.value(len(cost.sessions))

    def kept_at_last(self, cost: MeasuredCost) -> bool:
        """The same for a last measurement: the student was chosen by others, so it counts as certain."""
        return cost.error is None and self.of(cost) <= self.budget * (1 - self.noise.share(_MANY))

    def of(self, cost: MeasuredCost) -> float:
        """The part of a measurement that the budget bounds."""
        return cost.sustained if self.is_absolute else cost.value


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """How a student came to be considered."""

    selection: Selection | None = None
    """As the program proposed it; None for a student of another search."""
    predicted: Mapping[CostId, float]
    calibrations: Mapping[CostId, int] = field(default_factory=dict)
    """Number of the table that each prediction is of."""
    round: int = 0
    """The first one that proposed it."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One budget, on one target or on several at once, and the students considered for it."""

    budget: str
    """Its name: the bound on latency, such as ``50%``."""
    limits: Mapping[CostId, Limit]
    """On every cost that is measured. One student must keep all of them, on all targets."""
    aim: float = 1.0
    """Share of the limits that the program is asked for: less than 1 after it has been missed."""
    students: Mapping[Architecture, Proposal] = field(default_factory=dict)
    measured: Mapping[Architecture, Costs] = field(default_factory=dict)
    """The students that ran on all targets."""
    loss: Mapping[Architecture, float] = field(default_factory=dict)
    """Lower is better; of the students within the limits."""
    given_up: frozenset[Architecture] = frozenset()
    """Within the limits once, but not when measured again."""
    confirmed: frozenset[Architecture] = frozenset()
    """Within the limits when measured again."""
    leader: Architecture | None = None
    """The best student by the last round's tables."""
    chosen: Architecture | None = None
    state: State = State.PROPOSING
    unmet: str = ""
    """Why there is no student, in one line."""

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(of.target for of in self.limits if of.target is not None))

    @property
    def name(self) -> str:
        """The budget; that of several targets at once has a name of its own."""
        return f"{self.budget} on all" if len(self.targets) > 1 else self.budget

    @property
    def place(self) -> str:
        """The targets, for messages."""
        return ", ".join(map(repr, self.targets))

    def keeps(self, costs: Costs) -> bool:
        """Whether a student with these costs keeps every limit."""
        return all(limit.kept_by(costs[of]) for of, limit in self.limits.items())

    def within(self) -> list[Architecture]:
        """The students that ran, kept the limits and were not given up."""
        return [a for a, costs in self.measured.items() if self.keeps(costs) and a not in self.given_up]

    def candidates(self) -> list[Architecture]:
        """The students within the limits that were not given up, the lowest loss first."""
        return sorted((a for a in self.loss if a not in self.given_up), key=lambda a: (self.loss[a], a))

    def leader_fits(self) -> bool:
        """Whether the program's best student keeps the limits and makes use of at least one of them."""
        costs = self.measured.get(self.leader) if self.leader else None
        if costs is None or not self.keeps(costs):
            return False
        return any(costs[of].value >= USE * limit.value() for of, limit in self.limits.items())

    def is_tighter(self, than: Choice) -> bool:
        """Whether a student that keeps this choice's limits keeps the other's as well."""
        return all(
            of in self.limits and self.limits[of].value() <= limit.value()
            for of, limit in than.limits.items()
        )

    def with_students(self, more: Mapping[Architecture, Proposal], round: int) -> Choice:
        """The same with the students of a round; one that is there already keeps its first proposal."""
        new = {a: replace(one, round=round) for a, one in more.items() if a not in self.students}
        return replace(self, students={**self.students, **new})

    def adopting(self, student: Architecture, other: Choice) -> Choice:
        """The same with a student that was chosen for a tighter budget."""
        return replace(
            self,
            students={**self.students, student: self.students.get(student, other.students[student])},
            measured={**self.measured, student: {of: other.measured[student][of] for of in self.limits}},
            loss={**self.loss, student: other.loss[student]},
            confirmed=self.confirmed | {student},
            chosen=student,
        )

    def giving_up(self, student: Architecture) -> Choice:
        """The same without this student: the next best is chosen, if there is one."""
        left = [a for a in self.candidates() if a != student]
        return replace(self, given_up=self.given_up | {student}, chosen=left[0] if left else None)


def limits_of(
    config: Config, tables: Mapping[CostId, CostTables], targets: Sequence[Target], latency: LatencyBudget
) -> dict[CostId, Limit]:
    """The limits on all measured costs of one budget, by cost."""
    limits = {}
    for target in targets:
        of = CostId(latency.cost, target.name)
        limits[of] = Limit(
            budget=latency.limit_ms(tables[of].teacher, target.batch_size),
            noise=noise_of(config.select, tables[of]),
            is_absolute=latency.is_absolute,
        )
        for cost, bound in config.budgets.bounds.items():
            if cost not in COUNTED:
                of = CostId(cost, target.name)
                noise = noise_of(config.select, tables[of])
                limits[of] = Limit(budget=bound.limit(tables[of].teacher), noise=noise)
    return limits
