"""The closed loop: students are proposed by tables, measured whole, and chosen by what was measured.

LANA trusts its table and misses its targets by −8 % to +14 % (arXiv 2107.10624, table 2). Here every round
solves the program for each open budget, measures the proposed students, and calibrates the tables with them.
Nothing in here measures, solves or evaluates: ``World`` is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lana_ray.costs.table import CostTables, MeasuredCost
from lana_ray.ids import Architecture, CostId
from lana_ray.selection.choice import Choice, Proposal, State
from lana_ray.selection.margin import Noise

_STEP = 0.04
"""By how much lower the next round aims for a budget that no student has kept yet."""
_AT_ONCE = 2
"""Students confirmed together: starting a sampler takes longer than measuring one of them."""

Tables = Mapping[CostId, CostTables]
Measurements = Mapping[CostId, Mapping[Architecture, MeasuredCost]]


@dataclass(frozen=True, kw_only=True)
class Proposed:
    """The students that a program proposes for a choice, or why there are none."""

    students: Mapping[Architecture, Proposal] = field(default_factory=dict)
    """The best first."""
    unmet: str = ""


@dataclass(frozen=True, kw_only=True)
class World:
    """What the loop works on."""

    propose: Callable[[Choice, Tables], Proposed]
    measure: Callable[[Mapping[str, Sequence[Architecture]], int], Measurements]
    """Callback ``(architectures by target, attempt)``: every cost that has a limit on these targets. Attempt
    0 is the first measurement; each later one has sessions of its own."""
    evaluate: Callable[[Sequence[Architecture]], Mapping[Architecture, float]]
    """Losses of whole students; lower is better."""
    noise: Callable[[CostTables], Noise]
    """How measurements of one network vary for this cost."""
    fix: str
    """What may help if no student keeps a budget."""


@dataclass(frozen=True, kw_only=True)
class Loop:
    """Where the loop stands."""

    choices: tuple[Choice, ...]
    tables: Tables
    """With every student measured so far."""
    rounds: int = 0
    """Number of rounds that were made."""

    def where(self, state: State) -> list[int]:
        """Indices of the choices in this state."""
        return [k for k, choice in enumerate(self.choices) if choice.state is state]

    def updated(self, new: Mapping[int, Choice]) -> Loop:
        """The same with some choices replaced, by index."""
        return replace(self, choices=tuple(new.get(k, choice) for k, choice in enumerate(self.choices)))


def close_loop(loop: Loop, world: World, rounds: int) -> Loop:
    """Chooses a student for every budget, or says why there is none.

    A budget is ready when the program's best student keeps it and uses 95 % of it: one that runs faster than
    predicted left accuracy behind. After the last round any student within will do; the one with the lowest
    loss is chosen, once further sessions confirm it. A budget without one goes on for as many rounds again,
    each aiming a little lower: the table's errors scatter around it. A student of a tighter budget that has
    a lower loss is taken for the wider one too.

    Returns:
        The loop with all choices ``CHOSEN`` or ``UNMET``.
    """
    for number in range(2 * rounds):
        open_ = loop.where(State.PROPOSING)
        before, is_last = loop, number + 1 >= rounds
        loop = next_round(loop, open_, world)
        is_new = any(len(loop.tables[of].networks) > len(before.tables[of].networks) for of in before.tables)
        for k in open_:
            choice = loop.choices[k]
            if choice.within() and (choice.leader_fits() or is_last or not is_new):
                loop = loop.updated({k: replace(choice, state=State.READY)})
        if is_last or not loop.where(State.PROPOSING):
            loop = confirm(loop, loop.where(State.READY), world, attempt=1)
        missed = loop.where(State.PROPOSING)
        if not missed:
            break
        if number:  # the first table is not calibrated yet
            loop = loop.updated({k: _aiming_lower(loop.choices[k]) for k in missed})
    for k in loop.where(State.PROPOSING):
        choice = loop.choices[k]
        loop = loop.updated(
            {k: replace(choice, state=State.UNMET, unmet=choice.unmet or _unmet(choice, world))}
        )
    return _prefer_tighter(loop)


def replace_missed(loop: Loop, missed: Mapping[int, Architecture], world: World, attempt: int) -> Loop:
    """Gives up students that turned out to be over their budget after all, for the next best ones.

    The others are confirmed once more first: what made one student slower since it was chosen may have done
    so to them. For a choice without another student, one more round aims lower.

    Args:
        missed: the students to give up, by index of their choice.
        attempt: how often this was done before, counted from 1.

    Returns:
        The loop with the choices that have another student now; one without keeps the student it had.
    """
    loop = loop.updated({k: loop.choices[k].giving_up(student) for k, student in missed.items()})
    loop = confirm(loop, [k for k in missed if loop.choices[k].candidates()], world, attempt + 1)
    if without := [k for k in missed if loop.choices[k].chosen is None]:
        lower = {k: replace(loop.choices[k], aim=loop.choices[k].aim * (1 - _STEP)) for k in without}
        loop = next_round(loop.updated(lower), without, world)
        loop = confirm(loop, [k for k in without if loop.choices[k].within()], world, attempt + 1)
    return loop.updated(
        {
            k: replace(loop.choices[k], chosen=loop.choices[k].chosen or student, state=State.CHOSEN)
            for k, student in missed.items()
        }
    )


def next_round(loop: Loop, which: Sequence[int], world: World) -> Loop:
    """Has students proposed for some choices, measures the new ones, and calibrates the tables with them."""
    asked: dict[str, list[Architecture]] = {}
    for k in which:
        choice = loop.choices[k]
        proposed = world.propose(choice, loop.tables)
        if not proposed.students:
            # If an earlier table proposed students, those are what there is.
            unmet = "" if choice.students else proposed.unmet
            loop = loop.updated({k: replace(choice, unmet=unmet)})
            continue
        choice = replace(choice, unmet="", leader=next(iter(proposed.students)))
        loop = loop.updated({k: choice.with_students(proposed.students, loop.rounds)})
        for student in proposed.students:
            for of in choice.limits:
                assert of.target is not None
                of_target = asked.setdefault(of.target, [])
                if student not in loop.tables[of].networks and student not in of_target:
                    of_target.append(student)
    asked = {target: architectures for target, architectures in asked.items() if architectures}
    found = world.measure(asked, 0) if asked else {}
    tables = {of: known.with_networks(found.get(of, {})) for of, known in loop.tables.items()}
    loop = replace(loop, tables=tables, rounds=loop.rounds + 1)
    return loop.updated({k: _with_measurements(loop.choices[k], tables, world) for k in which})


def _with_measurements(choice: Choice, tables: Tables, world: World) -> Choice:
    limits = {of: replace(limit, noise=world.noise(tables[of])) for of, limit in choice.limits.items()}
    measured = {
        student: {of: tables[of].networks[student] for of in limits}
        for student in choice.students
        if all(student in tables[of].networks for of in limits)
    }
    return replace(choice, limits=limits, measured=measured)


def confirm(loop: Loop, which: Sequence[int], world: World, attempt: int) -> Loop:
    """Chooses the student with the lowest loss that keeps its budget in further sessions as well.

    The best of many students within a limit is likely to be one whose measurement erred in its favour (the
    winner's curse); fine-tuning is too expensive to find that out afterwards. A choice without any such
    student is left to be proposed others.

    Args:
        which: indices of choices that have a student within their limits.
    """
    losses = world.evaluate(list(dict.fromkeys(a for k in which for a in loop.choices[k].within())))
    for k in which:
        choice = loop.choices[k]
        choice = replace(choice, loss={**choice.loss, **{a: losses[a] for a in choice.within()}})
        loop = loop.updated({k: replace(choice, chosen=choice.candidates()[0])})
    again: dict[CostId, dict[Architecture, MeasuredCost]] = {}
    while unsure := [k for k in which if loop.choices[k].chosen and not _is_confirmed(loop.choices[k])]:
        asked: dict[str, dict[Architecture, None]] = {}
        for k in unsure:
            for target in loop.choices[k].targets:
                best = dict.fromkeys(loop.choices[k].candidates()[:_AT_ONCE])
                asked[target] = asked.get(target, {}) | best
        found = world.measure({target: list(some) for target, some in asked.items()}, attempt)
        again = {of: {**again.get(of, {}), **some} for of, some in {**again, **found}.items()}
        loop = loop.updated({k: _accepted(loop.choices[k], again) for k in unsure})
    return loop.updated(
        {
            k: replace(loop.choices[k], state=State.CHOSEN if loop.choices[k].chosen else State.PROPOSING)
            for k in which
        }
    )


def _is_confirmed(choice: Choice) -> bool:
    return choice.chosen in choice.confirmed


def _accepted(choice: Choice, again: Measurements) -> Choice:
    """The choice with the best student that was confirmed, or the best that was not measured again yet."""
    while choice.chosen is not None:
        student = choice.chosen
        costs = {of: again[of][student] for of in choice.limits if student in again.get(of, {})}
        if len(costs) < len(choice.limits):
            return choice
        together = {of: choice.measured[student][of].with_sessions(costs[of]) for of in costs}
        if all(limit.kept_by(together[of]) for of, limit in choice.limits.items()):
            measured = {**choice.measured, student: together}
            return replace(choice, measured=measured, confirmed=choice.confirmed | {student})
        choice = choice.giving_up(student)
    return choice


def _aiming_lower(choice: Choice) -> Choice:
    if choice.within() or not choice.students:
        return choice
    return replace(choice, aim=choice.aim * (1 - _STEP))


def _prefer_tighter(loop: Loop) -> Loop:
    """Scores, by which students are proposed to use a budget, need not rank whole students as losses do."""
    chosen = [loop.choices[k] for k in loop.where(State.CHOSEN)]
    for k in loop.where(State.CHOSEN):
        for other in chosen:
            choice, student = loop.choices[k], other.chosen
            assert student is not None
            if other.is_tighter(choice) and other.loss[student] < choice.loss[choice.candidates()[0]]:
                loop = loop.updated({k: choice.adopting(student, other)})
    return loop


def _unmet(choice: Choice, world: World) -> str:
    limits = ", ".join(of.written(limit.value()) for of, limit in choice.limits.items())
    nearest = min(choice.measured.values(), key=lambda costs: _used(choice, costs), default=None)
    took = ", ".join(of.written(one.value) for of, one in nearest.items()) if nearest else "nan"
    return (
        f"target {choice.place}: budget {choice.name} ({limits} with the margin): none of "
        f"{len(choice.measured)} students measured kept it ({len(choice.given_up)} did once, but not again), "
        f"the nearest took {took}; {world.fix}"
    )


def _used(choice: Choice, costs: Mapping[CostId, MeasuredCost]) -> float:
    """The largest share of a limit that a student takes."""
    return max(costs[of].value / limit.value() for of, limit in choice.limits.items())
