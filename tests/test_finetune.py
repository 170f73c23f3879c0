"""What becomes of a fine-tuned student that is measured over its budget."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from lana_ray.config import Budget
from lana_ray.latency.store import Sample
from lana_ray.stages import finetune
from lana_ray.stages.choice import Choice, Limit
from lana_ray.stages.sample import SESSIONS, Judged
from lana_ray.training.worker import TrainJob

from .measured import sample

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
    space = SimpleNamespace(fingerprint="space", label=str)
    workspace, choices = cast(Any, SimpleNamespace(space=space)), [choice(ONE), choice(OTHER)]
    found = finetune._measure(workspace, choices, cast(Any, JOBS), cast(Any, {}))
    assert asked == [({ONE, OTHER}, 3), ({ONE}, 6)]
    assert {a: s.median_ms for (_, a), s in found.items()} == {ONE: 0.97, OTHER: 0.9}
    assert finetune._over(choices, found) == []


def test_a_student_that_fails_on_its_target_is_over() -> None:
    samples: dict[tuple[str, tuple[int, ...]], Sample] = {}
    samples["edge", ONE] = sample(median_ms=0.5, error="out of memory")
    assert finetune._over([choice(ONE)], samples) != []
