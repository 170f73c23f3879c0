"""The choice among measured students: a second measurement must confirm it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from lana_ray.config import Budget
from lana_ray.errors import UserError
from lana_ray.latency.fleet import Job
from lana_ray.latency.store import Sample
from lana_ray.layers import find_layers
from lana_ray.spaces import LayerwiseSpace
from lana_ray.stages import sample as sample_stage
from lana_ray.stages import select
from lana_ray.stages.choice import Choice

from .measured import sample
from .networks import net

NET = net(3).eval()
SPACE = LayerwiseSpace(NET, find_layers(NET, torch.zeros(2, 3, 16, 16)), ["identity", "mbconv_e1_k3"])
WORKSPACE = cast(Any, SimpleNamespace(space=SPACE))
COSTS = cast(Any, {"edge": SimpleNamespace(job=lambda work: SimpleNamespace(work=work, samples={}))})
FAST, MIDDLE, SLOW = (1, 1, 1), (1, 1, 0), (0, 0, 0)


def choice() -> Choice:
    """Three students within 1 ms, the slowest of the lowest loss."""
    found = Choice(target="edge", budget=Budget.parse("1ms"), budget_ms=1.0, limit_ms=0.98)
    found.loss = {FAST: 0.9, MIDDLE: 0.5, SLOW: 0.2}
    found.measured = {
        FAST: sample(median_ms=0.5),
        MIDDLE: sample(median_ms=0.8),
        SLOW: sample(median_ms=0.97),
    }
    found.architecture = SLOW
    return found


def measured_again(monkeypatch: pytest.MonkeyPatch, times: dict[Any, Sample]) -> list[str]:
    """Lets every session find these; which networks were asked for."""
    asked: list[str] = []

    def measure(workspace: Any, jobs: Sequence[Job], title: str) -> None:
        for job in jobs:
            for work in job.work:
                assert work.session not in (None, *sample_stage.SESSIONS)  # those chose it
                if work.what not in asked:
                    asked.append(work.what)
                job.samples[work.key] = times[work.architecture]

    monkeypatch.setattr(sample_stage, "measure", measure)
    return asked


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_student_that_was_lucky_gives_way_to_the_next_best(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(select, "_AT_ONCE", at_once)
    asked = measured_again(monkeypatch, {SLOW: sample(median_ms=1.2), MIDDLE: sample(median_ms=0.9)})
    chosen = choice()
    select._confirm(WORKSPACE, [chosen], COSTS)
    assert chosen.architecture == MIDDLE
    assert asked == [SPACE.label(SLOW), SPACE.label(MIDDLE)]
    assert (chosen.given_up, chosen.confirmed) == ({SLOW}, {MIDDLE})


def test_a_student_that_fails_the_second_time_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    nan = float("nan")
    measured_again(
        monkeypatch,
        {
            SLOW: sample(median_ms=nan, error="out of memory"),
            MIDDLE: sample(median_ms=nan),
            FAST: sample(median_ms=0.98),
        },
    )
    chosen = choice()
    select._confirm(WORKSPACE, [chosen], COSTS)
    assert chosen.architecture == FAST


def test_the_same_sessions_serve_all_budgets_of_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured_again(
        monkeypatch, {SLOW: sample(median_ms=0.9), MIDDLE: sample(median_ms=0.8), FAST: sample(median_ms=0.5)}
    )
    select._confirm(WORKSPACE, [choice(), choice()], COSTS)
    assert asked == [SPACE.label(a) for a in (SLOW, MIDDLE, FAST)]


def test_no_student_that_keeps_it_twice_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    measured_again(monkeypatch, dict.fromkeys((SLOW, MIDDLE, FAST), sample(median_ms=1.5)))
    with pytest.raises(UserError, match=r"'edge': budget 1ms .*none of 3 .* the last took 1\.500 ms"):
        select._confirm(WORKSPACE, [choice()], COSTS)


def test_a_budget_that_no_student_kept_has_twice_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two budgets, one is kept from the first round on and one in the third of at most four."""
    loose, tight = choice(), choice()
    loose.limit_ms, tight.limit_ms = 5.0, 0.55
    networks: dict[Any, Sample] = {}
    times = dict(zip((SLOW, MIDDLE, FAST), (0.9, 0.7, 0.5), strict=True))
    proposed: list[tuple[int, list[str]]] = []

    def propose(*arguments: Any) -> dict[str, Any]:
        choices, number = arguments[1], arguments[4]
        unfinished = [c for c in choices if not c.finished]
        if not unfinished:
            return {}
        new = list(times)[number]
        for c in unfinished:
            c.students[new] = cast(Any, (number, None))
        proposed.append((number, ["tight" if c is tight else "loose" for c in unfinished]))
        return {"edge": [new]}

    def measure(workspace: Any, new: dict[str, Any], costs: Any) -> None:
        networks.update({a: sample(median_ms=times[a]) for a in new["edge"]})

    monkeypatch.setattr(select, "open_choices", lambda *_: [loose, tight])
    monkeypatch.setattr(select, "_propose", propose)
    monkeypatch.setattr(select, "_measure", measure)
    monkeypatch.setattr(select, "losses", lambda _, within: dict.fromkeys(within, 1.0))
    for name in ("_confirm", "_say", "_write"):
        monkeypatch.setattr(select, name, lambda *_: None)
    settings = SimpleNamespace(select=SimpleNamespace(rounds=2))
    workspace = cast(Any, SimpleNamespace(config=settings))
    select.run(workspace, cast(Any, {"edge": SimpleNamespace(networks=networks)}), [])
    assert proposed == [(0, ["loose", "tight"]), (1, ["loose", "tight"]), (2, ["tight"])]
    assert (list(loose.loss), list(tight.loss)) == ([SLOW, MIDDLE], [FAST])
