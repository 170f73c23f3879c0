"""What becomes of a fine-tuned student that is measured over its budget."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lana_ray.cluster.train_worker import TrainJob
from lana_ray.config import Budget
from lana_ray.costs.samples import Sample
from lana_ray.stages import confirm, finetune
from lana_ray.stages.choice import Choice, Limit
from lana_ray.stages.sample import SESSIONS, Judged
from lana_ray.stages.select import Selected

from ..measured import sample

ONE, OTHER = (1, 0), (0, 1)
JOBS = {a: TrainJob(file=f"students/{a}", key=str(a), architecture=a) for a in (ONE, OTHER)}


def choice(architecture: Any) -> Choice:
    limits = {"edge": Limit(budget_ms=1.0, limit_ms=0.98)}
    return Choice(budget=Budget.parse("1ms"), limits=limits, architecture=architecture)


def test_only_a_student_found_over_its_budget_is_measured_in_further_sessions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[set[Any], int]] = []

    def judge(_: Any, work: dict[str, Any], __: Any, sessions: range, title: str) -> dict[Any, Judged]:
        asked.append((set(work["edge"]), len(sessions)))
        first = len(sessions) == len(SESSIONS)
        times = {ONE: 1.1 if first else 0.97, OTHER: 0.9}
        return {("edge", a): Judged(sample(median_ms=times[a]), ()) for a in work["edge"]}

    monkeypatch.setattr(finetune, "judge", judge)
    space = SimpleNamespace(fingerprint="space", label=str, network_structure=str)
    workspace, choices = cast(Any, SimpleNamespace(space=space)), [choice(ONE), choice(OTHER)]
    found = finetune._measure(workspace, choices, cast(Any, JOBS), cast(Any, {}))
    assert asked == [({ONE, OTHER}, 3), ({ONE}, 6)]
    assert {a: s.median_ms for (_, a), s in found.items()} == {ONE: 0.97, OTHER: 0.9}
    assert not any(finetune._is_over(choice, found) for choice in choices)


def test_a_student_that_fails_on_its_target_is_over() -> None:
    samples: dict[tuple[str, tuple[int, ...]], Sample] = {}
    samples["edge", ONE] = sample(median_ms=0.5, error="out of memory")
    assert finetune._is_over(choice(ONE), samples)


THIRD = (1, 1)
SPACE = SimpleNamespace(fingerprint="space", label=str, network_structure=str)


@pytest.mark.parametrize(("other_ms", "taken"), [(0.9, OTHER), (1.2, THIRD)])
def test_who_takes_over_is_measured_again_first(
    monkeypatch: pytest.MonkeyPatch, other_ms: float, taken: Any
) -> None:
    """The second best kept its budget when it was chosen from; whether it still does decides."""
    sessions_asked: list[range] = []

    def judge(_: Any, work: dict[str, Any], __: Any, sessions: range, title: str) -> dict[Any, Judged]:
        sessions_asked.append(sessions)
        times = {OTHER: other_ms, THIRD: 0.8}
        return {("edge", a): Judged(sample(median_ms=times[a]), ()) for a in work["edge"]}

    monkeypatch.setattr(confirm, "judge", judge)
    monkeypatch.setattr(confirm, "losses", lambda *_: {ONE: 0.1, OTHER: 0.2, THIRD: 0.3})
    over = choice(ONE)
    over.loss = {ONE: 0.1, OTHER: 0.2, THIRD: 0.3}
    found, replaced = replace([over], nothing)
    assert found.choices == replaced
    assert [(c.architecture, ONE in c.given_up) for c in replaced] == [(taken, True)]
    assert (over.architecture, over.given_up) == (ONE, set())
    confirmed = confirm.sessions(0)
    assert all(set(sessions).isdisjoint([*SESSIONS, *confirmed]) for sessions in sessions_asked)


def nothing(missed: Selected, time: int) -> Selected:
    """Finds no further students."""
    return missed


def replace(choices: list[Choice], look_again: finetune.Again) -> tuple[Selected, list[Choice]]:
    """All students of the choices were measured over their budget."""
    selected = Selected(choices=choices, costs={})
    over = {("edge", c.architecture): sample(median_ms=1.1) for c in choices if c.architecture}
    return finetune._replace(cast(Any, SimpleNamespace(space=SPACE)), selected, over, look_again, 1)


def test_where_no_student_is_left_others_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = cast(Any, {"edge": "with what was measured"})

    def look_again(missed: Selected, time: int) -> Selected:
        return Selected(
            choices=[dataclasses.replace(c, architecture=OTHER) for c in missed.choices], costs=costs
        )

    alone = choice(ONE)
    alone.loss = {ONE: 0.1}
    monkeypatch.setattr(confirm, "losses", lambda *_: {})
    found, replaced = replace([alone], look_again)
    assert [c.architecture for c in found.choices] == [c.architecture for c in replaced] == [OTHER]
    assert found.costs == costs


def test_where_no_other_student_keeps_the_budget_the_first_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(_: Any, work: dict[str, Any], *__: Any) -> dict[Any, Judged]:
        return {("edge", a): Judged(sample(median_ms=1.2), ()) for a in work["edge"]}

    monkeypatch.setattr(confirm, "judge", judge)
    monkeypatch.setattr(confirm, "losses", lambda *_: {})
    alone, over = choice(ONE), choice(ONE)
    alone.loss, over.loss = {ONE: 0.1}, {ONE: 0.1, OTHER: 0.2}
    found, replaced = replace([alone, over], nothing)
    assert replaced == []
    assert [c.architecture for c in found.choices] == [ONE, ONE]
