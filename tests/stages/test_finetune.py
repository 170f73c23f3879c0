"""Students that their last measurement finds over a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lana_ray.costs.table import CostTables, MeasuredCost
from lana_ray.ids import Architecture, CostId
from lana_ray.selection.choice import Choice, Limit, Proposal, State
from lana_ray.selection.loop import Loop, Measurements, Proposed, World
from lana_ray.selection.margin import Noise
from lana_ray.stages import finetune
from lana_ray.stages.finetune import FinishedStudent
from lana_ray.training.job import TrainJob

ONE, OTHER = (1, 0), (0, 1)
EDGE, MEMORY = CostId("latency_ms", "edge"), CostId("peak_memory_mb", "edge")
SPACE = cast(Any, SimpleNamespace(fingerprint="space", label=str, network_structure=str))


def job(space: Any, architecture: Architecture) -> TrainJob:
    return TrainJob(file=f"students/{architecture}", key=str(architecture), architecture=architecture)


WORKSPACE = cast(Any, SimpleNamespace(student_job=job))


def chosen(student: Architecture, *others: Architecture) -> Choice:
    students = (student, *others)
    return Choice(
        budget="1ms",
        limits={EDGE: Limit(budget=1.0, noise=Noise(floor=0.02))},
        students={a: Proposal(predicted={EDGE: 0.9}) for a in students},
        measured={a: {EDGE: MeasuredCost(value=0.9)} for a in students},
        loss={a: 0.1 * (k + 1) for k, a in enumerate(students)},
        chosen=student,
        state=State.CHOSEN,
    )


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Architecture]:
    """The students that were trained."""
    done: list[Architecture] = []

    def train(workspace: Any, jobs: Sequence[TrainJob]) -> None:
        done.extend(job.architecture for job in jobs if job.architecture)

    monkeypatch.setattr(finetune, "train", train)
    return done


def measuring(monkeypatch: pytest.MonkeyPatch, latency: Any) -> list[tuple[set[Any], int]]:
    """Lets final measurements find ``latency(architecture, sessions)``; what was asked for."""
    asked: list[tuple[set[Any], int]] = []

    def measure(_: Any, __: Any, ___: Any, work: Any, sessions: range, title: str) -> Measurements:
        asked.append((set(work["edge"]), len(sessions)))
        return {EDGE: {a: MeasuredCost(value=latency(a, len(sessions))) for a in work["edge"]}}

    monkeypatch.setattr(finetune, "measure_students", measure)
    return asked


def test_every_student_is_measured_in_as_many_sessions(
    monkeypatch: pytest.MonkeyPatch, trained: list[Architecture]
) -> None:
    asked = measuring(monkeypatch, lambda a, count: 0.9 if a == OTHER else 0.985)
    choices = [chosen(ONE), chosen(OTHER)]
    found = finetune._train_and_measure(WORKSPACE, SPACE, {}, choices)
    assert asked == [({ONE, OTHER}, 5)]
    # Below the budget is not enough: a further measurement has to be, too.
    assert [finetune._is_over(choice, found) for choice in choices] == [True, False]


def world(latencies: Mapping[Architecture, float]) -> World:
    def measure(asked: Mapping[str, Sequence[Architecture]], attempt: int) -> Measurements:
        return {EDGE: {a: MeasuredCost(value=latencies[a]) for a in asked["edge"]}}

    return World(
        propose=lambda *_: Proposed(unmet="no further student"),
        measure=measure,
        evaluate=lambda some: dict.fromkeys(some, 0.5),
        noise=lambda _: Noise(floor=0.02),
        fix="",
    )


@pytest.mark.parametrize(("other_ms", "taken", "number"), [(0.9, OTHER, 2), (1.2, ONE, 1)])
def test_a_student_over_its_budget_gives_way_to_one_that_keeps_it(
    other_ms: float,
    taken: Architecture,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    trained: list[Architecture],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second best kept the budget once; whether it still does is measured before it is trained."""
    measuring(monkeypatch, lambda a, _: 1.1 if a == ONE else 0.8)
    monkeypatch.setattr(finetune, "_finished", lambda *known: [])
    tables = {EDGE: CostTables(id=EDGE, teacher=2.0)}
    before = Loop(choices=(chosen(ONE, OTHER),), tables=tables)
    _, after = finetune.run(WORKSPACE, SPACE, {}, before, world({OTHER: other_ms}))
    assert after.choices[0].chosen == taken
    assert trained == [ONE, OTHER][:number]
    assert ("the next best" if taken == OTHER else "no other student") in capsys.readouterr().out
    assert before.choices[0].chosen == ONE


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        ((0.9, 2.0, None), None),
        ((1.1, 2.0, None), "1.100 ms, over the budget of 1.000 ms"),
        ((0.9, 3.0, None), "3.000 MB, over the budget of 2.500 MB"),
        ((0.9, 1.0, "out of memory"), "out of memory"),
    ],
)
def test_a_student_that_misses_any_budget_is_not_registered(
    costs: tuple[float, float, str | None], words: str | None
) -> None:
    latency_ms, memory_mb, error = costs
    finished = FinishedStudent(
        target=cast(Any, SimpleNamespace(latency=EDGE)),
        budget="1ms",
        limits={EDGE: Limit(budget=1.0), MEMORY: Limit(budget=2.5)},
        teacher_ms=2.0,
        architecture="",
        job=job(SPACE, ONE),
        predicted={},
        calibration=None,
        costs={EDGE: MeasuredCost(value=latency_ms, error=error), MEMORY: MeasuredCost(value=memory_mb)},
        counts={},
        accuracy_before=None,
        tested=cast(Any, None),
    )
    problem = finished.problem
    assert problem is None if words is None else words in str(problem)
