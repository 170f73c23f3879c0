"""The choice among measured students: a second measurement must confirm it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lana_ray.cluster.job import Job
from lana_ray.config import Budget, BudgetsConfig, SelectConfig, Target
from lana_ray.costs.samples import Sample
from lana_ray.errors import UserError
from lana_ray.networks.layers import find_layers
from lana_ray.run_dir.storage import Storage
from lana_ray.selection import InfeasibleBudget
from lana_ray.spaces import LayerwiseSpace
from lana_ray.spaces.space import Architecture
from lana_ray.stages import budgets, confirm, select
from lana_ray.stages import sample as sample_stage
from lana_ray.stages.choice import Choice, Limit
from lana_ray.stages.counts import CountedBudget
from lana_ray.stages.sample import Judged

from ..measured import sample
from ..small_networks import net

NET = net(3).eval()
SPACE = LayerwiseSpace(NET, find_layers(NET, torch.zeros(2, 3, 16, 16)), ["identity", "mbconv_e1_k3"])
SIZES = [len(ops) for ops in SPACE.ops]
WORKSPACE = cast(Any, SimpleNamespace(space=SPACE))
COSTS = cast(Any, {"edge": SimpleNamespace(job=lambda work: SimpleNamespace(work=work, samples={}))})
FAST, MIDDLE, SLOW = (1, 1, 1), (1, 1, 0), (0, 0, 0)


def losses(workspace: Any, architectures: Sequence[Any]) -> dict[Any, float]:
    """The slower the better."""
    return {a: {FAST: 0.9, MIDDLE: 0.5, SLOW: 0.2}[a] for a in architectures}


def choice() -> Choice:
    """Three students within 1 ms, the slowest of the lowest loss."""
    limits = {"edge": Limit(budget_ms=1.0, limit_ms=0.98)}
    found = Choice(budget=Budget.parse("1ms"), limits=limits)
    times = {FAST: 0.5, MIDDLE: 0.8, SLOW: 0.97}
    found.measured = {a: {"edge": sample(median_ms=ms)} for a, ms in times.items()}
    found.finished = True
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
                job.samples[work.key] = times[SPACE.parse(work.what)]

    monkeypatch.setattr(sample_stage, "measure", measure)
    monkeypatch.setattr(confirm, "losses", losses)
    return asked


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_student_that_was_lucky_gives_way_to_the_next_best(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(confirm, "_AT_ONCE", at_once)
    asked = measured_again(monkeypatch, {SLOW: sample(median_ms=1.2), MIDDLE: sample(median_ms=0.9)})
    chosen = choice()
    (chosen,) = confirm.run(WORKSPACE, [chosen], COSTS)
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
            FAST: sample(median_ms=0.985),
        },
    )
    chosen = choice()
    (chosen,) = confirm.run(WORKSPACE, [chosen], COSTS)
    assert chosen.architecture == FAST


def test_the_same_sessions_serve_all_budgets_of_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = measured_again(
        monkeypatch, {SLOW: sample(median_ms=0.9), MIDDLE: sample(median_ms=0.8), FAST: sample(median_ms=0.5)}
    )
    confirm.run(WORKSPACE, [choice(), choice()], COSTS)
    assert asked == [SPACE.label(a) for a in (SLOW, MIDDLE)]


def test_a_choice_without_a_student_that_keeps_it_twice_is_left_unfinished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured_again(monkeypatch, dict.fromkeys((SLOW, MIDDLE, FAST), sample(median_ms=1.5)))
    chosen = choice()
    (chosen,) = confirm.run(WORKSPACE, [chosen], COSTS)
    assert (chosen.architecture, chosen.finished, chosen.within()) == (None, False, [])
    assert chosen.given_up == {SLOW, MIDDLE, FAST}


def joint_choice() -> Choice:
    """Two students on two targets; the one with the lower loss runs over on the second."""
    limits = {"edge": Limit(budget_ms=1.0, limit_ms=0.98), "server": Limit(budget_ms=0.1, limit_ms=0.098)}
    found = Choice(budget=Budget.parse("50%"), limits=limits, finished=True)
    found.measured = {
        SLOW: {"edge": sample(median_ms=0.9), "server": sample(median_ms=0.11)},
        MIDDLE: {"edge": sample(median_ms=0.8), "server": sample(median_ms=0.097)},
        FAST: {"edge": sample(median_ms=0.5), "server": sample(median_ms=0.05)},
    }
    return found


def test_a_joint_choice_keeps_every_targets_limit() -> None:
    found = joint_choice()
    assert found.name == "50% on all"
    assert found.within() == [MIDDLE, FAST]
    for leader, fits in ((SLOW, False), (MIDDLE, True), (FAST, False)):  # over, uses one, uses none
        found.leader = leader
        assert found.leader_fits() == fits


def test_a_joint_choice_is_confirmed_on_every_target(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[Any]] = {}

    def judge(_: Any, work: dict[str, Any], *rest: Any) -> dict[Any, Judged]:
        for target, networks in work.items():
            asked.setdefault(target, []).extend(networks)
        again = {("edge", MIDDLE): 0.8, ("server", MIDDLE): 0.2, ("edge", FAST): 0.5, ("server", FAST): 0.05}
        return {key: Judged(sample(median_ms=ms), ()) for key, ms in again.items()}

    monkeypatch.setattr(confirm, "losses", losses)
    monkeypatch.setattr(confirm, "judge", judge)
    (found,) = confirm.run(WORKSPACE, [joint_choice()], COSTS)
    assert asked == {"edge": [MIDDLE, FAST], "server": [MIDDLE, FAST]}
    assert (found.architecture, found.given_up) == (FAST, {MIDDLE})


class Loop:
    """``select.run`` on students that take as long as told, one proposed for all open budgets a round."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, choices: list[Choice], times: list[float]) -> None:
        architectures = [(i % 3, i // 3, 0) for i in range(len(times))]
        self.choices, self.proposed = choices, list[tuple[int, list[float]]]()
        self.times = dict(zip(architectures, times, strict=True))
        self.unlucky: set[Any] = set()
        """Students that are slower in further sessions."""
        self.networks: dict[Any, Sample] = {}
        monkeypatch.setattr(select, "open_choices", lambda *_: choices)
        monkeypatch.setattr(select, "_propose", self._propose)
        monkeypatch.setattr(select, "_measured", self._measured)
        monkeypatch.setattr(confirm, "losses", lambda _, found: {a: -self.times[a] for a in found})
        monkeypatch.setattr(confirm, "judge", self._judge)
        for name in ("_say", "write"):
            monkeypatch.setattr(select, name, lambda *_: None)

    def world(self, rounds: int) -> Any:
        """The workspace and the costs."""
        settings = SelectConfig(rounds=rounds, margin=0)
        budgets = BudgetsConfig(latency_ms=(Budget.parse("9ms"),))
        workspace = SimpleNamespace(config=SimpleNamespace(select=settings, budgets=budgets), space=SPACE)
        return workspace, {"edge": SimpleNamespace(networks=self.networks, sessions_ms={})}

    def run(self, rounds: int) -> None:
        workspace, costs = self.world(rounds)
        scores = [np.zeros(len(ops)) for ops in SPACE.ops]
        self.choices = select.run(workspace, cast(Any, costs), scores).choices

    def _propose(self, _: Any, unfinished: list[Choice], *rest: Any) -> dict[str, Any]:
        number = rest[-1]
        new = list(self.times)[number]
        self.proposed.append((number, [round(c.aim, 2) for c in unfinished]))
        for c in unfinished:
            c.students[new] = cast(Any, None)
        return {"edge": [new]}

    def _measured(self, _: Any, new: dict[str, Any], costs: Any) -> Any:
        self.networks.update({a: sample(median_ms=self.times[a]) for a in new["edge"]})
        return costs

    def _judge(self, _: Any, asked: dict[str, Any], *rest: Any) -> dict[Any, Judged]:
        again = {a: sample(median_ms=self.times[a] + 9 * (a in self.unlucky)) for a in asked["edge"]}
        return {("edge", a): Judged(found, ()) for a, found in again.items()}


def budget(limit_ms: float) -> Choice:
    limits = {"edge": Limit(budget_ms=limit_ms, limit_ms=limit_ms)}
    return Choice(budget=Budget.parse("9ms"), limits=limits)


def test_a_budget_that_no_student_kept_has_twice_the_rounds_and_aims_lower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two budgets, one is kept from the first round on and one in the third of at most four."""
    loop = Loop(monkeypatch, [budget(5.0), budget(0.55)], [0.9, 0.7, 0.5, 0.4])
    loop.run(rounds=2)
    assert loop.proposed == [(0, [1.0, 1.0]), (1, [1.0, 1.0]), (2, [0.96])]
    assert [c.architecture for c in loop.choices] == [(0, 0, 0), (2, 0, 0)]


def test_a_budget_whose_students_were_only_lucky_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch, [budget(1.0)], [0.9, 0.8, 0.6])
    loop.unlucky = {(0, 0, 0), (1, 0, 0)}
    loop.run(rounds=2)
    assert loop.proposed == [(0, [1.0]), (1, [1.0]), (2, [0.96])]
    assert loop.choices[0].architecture == (2, 0, 0)


def test_a_student_that_uses_the_budget_ends_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch, [budget(1.0)], [0.9, 0.97, 0.6])
    for c in loop.choices:
        monkeypatch.setattr(
            type(c), "leader_fits", lambda c: list(c.measured.values())[-1]["edge"].median_ms >= 0.95
        )
    loop.run(rounds=3)
    assert [number for number, _ in loop.proposed] == [0, 1]
    assert loop.choices[0].architecture == (1, 0, 0)


def test_a_budget_that_is_never_kept_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch, [budget(0.5)], [0.9, 0.4, 0.6, 0.7])
    loop.unlucky = {(1, 0, 0)}
    with pytest.raises(UserError, match=r"'edge': budget 9ms .* none of 4 .*\(1 did once.* took 0\.400 ms"):
        loop.run(rounds=2)


def test_a_missed_budget_gets_a_round_more_that_aims_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch, [budget(1.0)], [0.9, 0.8, 0.7, 0.6])
    loop.run(rounds=1)
    (found,) = loop.choices
    assert found.architecture == (0, 0, 0)
    found.given_up.add((0, 0, 0))
    workspace, costs = loop.world(rounds=1)
    scores = [np.zeros(len(ops)) for ops in SPACE.ops]
    missed = select.Selected(choices=[found], costs=cast(Any, costs))
    (again,) = select.again(workspace, scores, missed, 1).choices
    assert loop.proposed[-1] == (3, [0.96])
    assert again.architecture == (0, 1, 0)
    assert (found.architecture, found.aim) == ((0, 0, 0), 1.0)


def test_a_budget_that_is_never_kept_does_not_cost_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch, [budget(1.0), budget(0.3)], [0.9, 0.8, 0.6, 0.7])
    loop.run(rounds=2)
    kept, missed = loop.choices
    assert (kept.architecture, kept.unmet) == ((0, 0, 0), "")
    assert missed.architecture is None
    assert "none of 4 students measured kept it" in missed.unmet


def test_a_better_student_of_a_tighter_budget_is_taken_for_the_wider() -> None:
    def chosen(architecture: Architecture, loss: float, **budgets_ms: float) -> Choice:
        limits = {name: Limit(budget_ms=ms, limit_ms=0.98 * ms) for name, ms in budgets_ms.items()}
        found = Choice(budget=Budget.parse("50%"), limits=limits, architecture=architecture, finished=True)
        found.students[architecture] = cast(Any, f"proposal of {architecture}")
        found.measured[architecture] = {name: sample(median_ms=ms / 2) for name, ms in budgets_ms.items()}
        found.loss[architecture] = loss
        return found

    wide, tight = chosen(SLOW, 0.7, edge=1.0), chosen(FAST, 0.6, edge=0.8)
    elsewhere = chosen(MIDDLE, 0.1, server=0.1)
    joint = chosen(MIDDLE, 0.65, edge=1.0, server=1.0)
    select._prefer_tighter([wide, tight, elsewhere, joint])
    assert [c.architecture for c in (wide, tight, elsewhere, joint)] == [FAST, FAST, MIDDLE, MIDDLE]
    assert wide.students[FAST] == tight.students[FAST]
    assert wide.measured[FAST]["edge"].median_ms == 0.4
    assert wide.candidates() == [FAST, SLOW]
    assert wide.replace()
    assert wide.architecture == SLOW

    alone = chosen(SLOW, 0.7, edge=1.0)
    select._prefer_tighter([alone, joint])
    assert alone.architecture == MIDDLE
    assert list(alone.measured[MIDDLE]) == ["edge"]


def test_the_programs_solutions_are_kept_whatever_a_time_limit_would_make_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = SelectConfig(count=3, time_limit_s=1.0)
    workspace = cast(
        Any, SimpleNamespace(storage=Storage(str(tmp_path)), config=SimpleNamespace(select=chosen))
    )
    scores, costs = [np.array([0.0, 0.2, np.inf])] * 3, {"edge": [np.array([1.0, 0.4, np.inf])] * 3}
    found = select._solve(workspace, scores, costs, {"edge": 2.5})
    assert found[0].choices.count(1) == 1
    assert all(selection.costs["edge"] <= 2.5 for selection in found)

    def unsolvable(*_: Any, **__: Any) -> list[Any]:
        raise AssertionError("solved again")

    monkeypatch.setattr(select, "select", unsolvable)
    assert select._solve(workspace, scores, costs, {"edge": 2.5}) == found
    others = [*scores[:2], np.array([0.0, 0.3, np.inf])]
    for other in ((scores, costs, {"edge": 2.4}), (others, costs, {"edge": 2.5})):
        with pytest.raises(AssertionError, match="solved again"):
            select._solve(workspace, *other)


def test_students_are_of_as_few_operations_as_asked_for(tmp_path: Path) -> None:
    """Both operations would be used; either one alone is as good, at two layers."""
    scores = [np.array([0.0, 0.1, 0.9]), np.array([0.0, 0.9, 0.1]), np.array([0.0, 0.95, 0.95])]
    costs = {"edge": [np.array([1.0, 0.5, 0.4])] * 3}
    names = [["teacher", "identity", "mbconv_e1_k3"]] * 3
    space = SimpleNamespace(ops=[[SimpleNamespace(name=name) for name in of_layer] for of_layer in names])

    def chosen(max_ops: int | None) -> tuple[int, ...]:
        config = SimpleNamespace(select=SelectConfig(count=1, max_ops=max_ops))
        workspace = cast(Any, SimpleNamespace(storage=Storage(str(tmp_path)), config=config, space=space))
        return select._solve(workspace, scores, costs, {"edge": 2.0})[0].choices

    assert chosen(None) == (1, 2, 0)
    assert chosen(1) in {(1, 1, 0), (2, 2, 0)}
    with pytest.raises(InfeasibleBudget) as caught:
        chosen(0)
    assert (caught.value.name, caught.value.cheapest, caught.value.most_operations) == ("edge", 3.0, 0)


class Checked:
    """``select.check`` of three layers, where ``identity`` takes half as long as the teacher's."""

    def __init__(self, folder: Path, asked: dict[str, Any], **options: Any) -> None:
        config = SimpleNamespace(
            select=SelectConfig(**{"margin": 0.0, **options}), budgets=BudgetsConfig.model_validate(asked)
        )
        parts = {
            "space": SPACE,
            "config": config,
            "teacher": NET,
            "targets": (Target(name="edge", input_shape=(3, 16, 16)),),
            "storage": Storage(str(folder)),
        }
        self.workspace = cast(Any, SimpleNamespace(**parts))
        self.costs: dict[str, Any] = {}
        self.target("edge")

    def target(self, name: str, considered: Any = SPACE.everything, **op_ms: float) -> Checked:
        """A target where every layer's candidates take so long, the teacher's layers 1 ms."""
        ms = {"teacher": 1.0, "identity": 0.5, "mbconv_e1_k3": 0.6} | op_ms
        costs_ms = [np.array([ms[op.name] for op in ops]) for ops in SPACE.ops]
        table = SimpleNamespace(rest_ms=0.5, costs_ms=costs_ms)
        teacher = {"teacher_ms": 3.5, "considered": considered, "sessions_ms": {}}
        self.costs[name] = SimpleNamespace(table=table, **teacher)
        return self

    def run(self) -> None:
        select.check(self.workspace, self.costs)

    def refused(self) -> str:
        with pytest.raises(UserError) as error:
            self.run()
        return str(error.value)


def test_a_budget_that_cannot_be_met_costs_the_others_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Checked(tmp_path, {"latency_ms": ["61%", "50%"]}).run()
    (line,) = capsys.readouterr().out.splitlines()
    for words in ("'edge'", "budget 50% (1.750 ms", "about 2.100 ms", "raise the budget"):
        assert words in line
    text = Checked(tmp_path, {"latency_ms": ["50%", "1ms"]}).refused()
    assert "budget 50%" in text
    assert "nor can" in text
    assert capsys.readouterr().out == ""


def test_budgets_that_the_teacher_keeps_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Checked(tmp_path, {"latency_ms": ["100%", "99ms", "99%"]}).run()
    lines = capsys.readouterr().out.splitlines()
    assert ["100%" in lines[0], "99ms" in lines[1], len(lines)] == [True, True, 2]
    assert all("3.500 ms" in line for line in lines)


@pytest.mark.parametrize(
    ("asked", "options", "says"),
    [
        (
            {"latency_ms": "80%"},
            {"max_ops": 0},
            ("of at most 0 operations takes about 3.500 ms", "select.max_ops"),
        ),
        (
            {"latency_ms": "80%"},
            {"forbid": ("*=identity", "*=mbconv*")},
            ("about 3.500 ms", "select.forbid"),
        ),
        (
            {"latency_ms": "80%"},
            {"force": ("blocks.0=mbconv*", "blocks.2=identity"), "max_ops": 1},
            ("select.max_ops 1", "the 2 operations"),
        ),
    ],
)
def test_what_clashes_with_a_budget_is_named(
    asked: dict[str, Any], options: dict[str, Any], says: tuple[str, ...], tmp_path: Path
) -> None:
    text = Checked(tmp_path, asked, **options).refused()
    assert text.startswith("target 'edge': budget ")
    for words in says:
        assert words in text


def test_a_counted_budget_that_clashes_with_a_latency_is_named(tmp_path: Path) -> None:
    """identity alone is small enough, and too slow."""
    checked = Checked(tmp_path, {"latency_ms": "70%", "params": 600}, force=("blocks.1=mbconv*",))
    text = checked.target("edge", identity=1.2).refused()
    assert "student that keeps budgets.params takes about 3.500 ms" in text
    assert "raise the budget or budgets.params, loosen select.force" in text


def test_a_joint_budget_that_cannot_be_met_is_left_open_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each operation is fast on one of the targets only."""
    checked = Checked(tmp_path, {"latency_ms": "75%"}, joint=True)
    checked.target("edge", mbconv_e1_k3=2.0).target("server", identity=2.0)
    checked.run()
    (line,) = capsys.readouterr().out.splitlines()
    for words in ("'edge'", "75% on all", "that keeps the budget on server takes about "):
        assert words in line


def test_a_candidate_that_does_not_run_on_a_target_is_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checked = Checked(tmp_path, {"latency_ms": "85%"}, force=("blocks.0=mbconv*",), joint=True)
    checked.target("server", mbconv_e1_k3=np.inf).run()
    alone, joint = capsys.readouterr().out.splitlines()
    assert "'server': budget 85% cannot be met" in alone
    assert "85% on all cannot be met" in joint
    assert "layer blocks.0" in alone


def test_two_counted_budgets_that_clash_are_named(tmp_path: Path) -> None:
    """Of a layer with two candidates one has few parameters and one few operations."""
    few, many = [1.0, 3.0, 3.0], [3.0, 1.0, 1.0]
    counted = [
        CountedBudget(name="params", limit=5.0, rest=1.0, costs=tuple(np.array(few[:n]) for n in SIZES)),
        CountedBudget(name="macs", limit=5.0, rest=1.0, costs=tuple(np.array(many[:n]) for n in SIZES)),
    ]
    here = Checked(tmp_path, {"latency_ms": "100%"})
    (choice,) = budgets.open_choices(here.workspace, here.costs)
    stated = budgets.state(choice, here.costs, counted)
    scores = [np.zeros(n) for n in SIZES]
    found, reason = select._solved(here.workspace, choice, stated, counted, scores, select._solve)
    assert found == []
    for words in ("'edge'", "budget 100%", "budgets.params 5", "keeps budgets.macs has 10 params"):
        assert words in reason
    assert "raise budgets.params or budgets.macs" in reason


@pytest.mark.parametrize("options", [{"max_ops": 0}, {"time_limit_s": 1e-9}])
def test_a_program_without_a_solution_leaves_its_budget_open(options: dict[str, Any], tmp_path: Path) -> None:
    """In the first round, and in a later one, when the students there are stay."""
    here = Checked(tmp_path, {"latency_ms": "80%"}, **options)
    here.costs["edge"].networks, here.costs["edge"].tables = {}, (None,)
    (choice,) = budgets.open_choices(here.workspace, here.costs)
    scores = [np.zeros(n) for n in SIZES]
    assert select._propose(here.workspace, [choice], here.costs, [], scores, 0) == {}
    assert choice.unmet.startswith("target 'edge': budget 80%")
    choice.students[FAST] = cast(Any, None)
    assert select._propose(here.workspace, [choice], here.costs, [], scores, 1) == {}
    assert choice.unmet == ""


def test_what_is_forced_but_was_left_out_is_told_before_training(tmp_path: Path) -> None:
    """identity is slower than its layer where it is measured so, and then not there to be forced."""
    checked = Checked(tmp_path, {"latency_ms": "90%"}, force=("blocks.0=identity",))
    checked.run()
    text = checked.target("edge", considered=((0,), *SPACE.everything[1:])).refused()
    assert "layer blocks.0 without a candidate to choose: identity was left out" in text


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_budget_is_unmet_where_brute_force_finds_no_student(data: st.DataObject, tmp_path: Path) -> None:
    """Latency on one or two targets, parameters and few operations, together."""

    def table() -> tuple[NDArray[np.float64], ...]:
        return tuple(np.array([float(data.draw(st.integers(0, 9))) for _ in range(n)]) for n in SIZES)

    most, limit_ms = data.draw(st.none() | st.integers(0, 2)), float(data.draw(st.integers(1, 30)))
    counted = CountedBudget(name="params", limit=data.draw(st.integers(3, 25)) + 0.0, rest=1.0, costs=table())
    here = Checked(tmp_path, {"latency_ms": limit_ms}, max_ops=most, joint=True)
    for name in ("edge", "server")[: data.draw(st.integers(1, 2))]:
        known = {"teacher_ms": 9.0, "sessions_ms": {}}
        here.costs[name] = SimpleNamespace(table=SimpleNamespace(rest_ms=1.0, costs_ms=table()), **known)
    for choice in budgets.open_choices(here.workspace, here.costs):
        stated = budgets.state(choice, here.costs, [counted])
        scores = [np.zeros(n) for n in SIZES]
        _, reason = select._solved(here.workspace, choice, stated, [counted], scores, select._any)
        kept = [
            student
            for student in itertools.product(*map(range, SIZES))
            if most is None
            or len({SPACE.ops[i][j].name for i, j in enumerate(student)} - {"teacher"}) <= most
            if all(
                sum(float(costs[i][j]) for i, j in enumerate(student)) <= stated.limits[name]
                for name, costs in stated.costs.items()
            )
        ]
        assert bool(kept) == (reason == ""), reason


@pytest.mark.parametrize("rest_ms", [0.5, -0.5])
def test_what_every_student_pays_may_be_less_than_nothing(tmp_path: Path, rest_ms: float) -> None:
    """A regression's intercept on a busy machine; the predictions are of whole networks all the same."""
    table = SimpleNamespace(rest_ms=rest_ms, costs_ms=[np.full(len(ops), 0.1) for ops in SPACE.ops])
    costs = cast(Any, {"edge": SimpleNamespace(table=table, tables=(None, table), networks={})})
    workspace = cast(
        Any,
        SimpleNamespace(
            storage=Storage(str(tmp_path)), config=SimpleNamespace(select=SelectConfig()), space=SPACE
        ),
    )
    asked = Choice(budget=Budget.parse("1ms"), limits={"edge": Limit(budget_ms=1.0, limit_ms=1.0)})
    scores = [np.linspace(0, 1, len(ops)) for ops in SPACE.ops]
    new = select._propose(workspace, [asked], costs, [], scores, 0)
    assert new["edge"][0] == SPACE.teacher
    for proposal in asked.students.values():
        assert proposal.selection.costs["edge"] == pytest.approx(rest_ms + 0.3)
        assert proposal.calibrations == {"edge": 1}
    tight = Choice(budget=Budget.parse("1ms"), limits={"edge": Limit(budget_ms=1.0, limit_ms=rest_ms + 0.2)})
    assert select._propose(workspace, [tight], costs, [], scores, 0) == {}
    assert f"takes about {rest_ms + 0.3:.3f} ms" in tight.unmet
