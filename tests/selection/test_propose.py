"""The program of one choice: its students, and why there are none."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lana_ray.config import SelectConfig
from lana_ray.costs.table import CostTable, CostTables
from lana_ray.ids import CostId
from lana_ray.run_dir.storage import Storage
from lana_ray.selection import propose as solve
from lana_ray.selection.choice import Choice, Limit
from lana_ray.selection.margin import Noise
from lana_ray.selection.propose import Pool, propose, reason_unmet, state

OPS = [["teacher", "identity", "mbconv_e1_k3"]] * 2 + [["teacher", "mbconv_e1_k3"]]
SIZES = [len(ops) for ops in OPS]
EDGE, SERVER = CostId("latency_ms", "edge"), CostId("latency_ms", "server")
PARAMS, MACS = CostId("params"), CostId("macs")
Floats = NDArray[np.float64]


def pool(scores: Any = None, **exact: float) -> Pool:
    return Pool(
        layers=["blocks.0", "blocks.1", "blocks.2"],
        ops=OPS,
        scores=scores if scores is not None else [np.zeros(n) for n in SIZES],
        exact={CostId(name): Limit(budget=limit) for name, limit in exact.items()},
    )


def table(of: CostId, rest: float = 0.5, costs: Any = None, **per_op: float) -> CostTables:
    """The teacher's layers cost 1, others what is given."""
    values = {"teacher": 1.0, "identity": 0.5, "mbconv_e1_k3": 0.6} | per_op
    costs = costs or [np.array([values[op] for op in ops]) for ops in OPS]
    known = CostTable(rest=rest, costs=tuple(costs))
    return CostTables(id=of, teacher=3.5, tables=(known,))


def choice(*limits: float, margin: float = 0.0) -> Choice:
    of = dict(zip((EDGE, SERVER), limits, strict=False))
    return Choice(budget="50%", limits={k: Limit(budget=v, noise=Noise(floor=margin)) for k, v in of.items()})


def reason(asked: Choice, *tables: CostTables, of: Pool | None = None, **options: Any) -> str:
    return reason_unmet(of or pool(), SelectConfig(**options), asked, {known.id: known for known in tables})


def test_a_budget_that_cannot_be_met_names_the_least_that_can_be_had() -> None:
    text = reason(choice(1.75, margin=0.02), table(EDGE))
    for words in ("'edge'", "budget 50% (1.715 ms with the margin)", "about 2.100 ms", "raise the budget"):
        assert words in text
    assert reason(choice(2.15), table(EDGE)) == ""


@pytest.mark.parametrize(
    ("options", "forbidden", "words"),
    [
        ({"max_ops": 0}, (), ("of at most 0 operations takes about 3.500 ms", "select.max_ops")),
        ({"forbid": ("*",)}, ("identity", "mbconv_e1_k3"), ("about 3.500 ms", "select.forbid")),
        ({"max_ops": 1}, ("teacher",), ("select.max_ops 1", "the 2 operations")),
    ],
)
def test_what_clashes_with_a_budget_is_named(
    options: dict[str, Any], forbidden: tuple[str, ...], words: tuple[str, ...]
) -> None:
    scores = [np.array([np.inf if op in forbidden else 0.0 for op in ops]) for ops in OPS]
    if "teacher" in forbidden:
        scores[0][2], scores[1][1] = np.inf, np.inf  # identity alone here, mbconv alone there
    text = reason(choice(2.8), table(EDGE), of=pool(scores), **options)
    assert text.startswith("target 'edge': budget 50% ")
    for some in words:
        assert some in text


def test_a_counted_budget_that_clashes_with_a_latency_is_named() -> None:
    """identity alone is small enough, and too slow."""
    params = table(PARAMS, rest=0.0, identity=0.0, mbconv_e1_k3=200.0, teacher=300.0)
    text = reason(choice(2.8), table(EDGE, identity=1.2), params, of=pool(params=250.0))
    assert "student that keeps budgets.params takes about 3.500 ms" in text
    assert "raise the budget or budgets.params" in text


def test_two_counted_budgets_that_clash_are_named() -> None:
    """Of every layer's candidates one has few parameters and one few operations."""
    few, many = [1.0, 3.0, 3.0], [3.0, 1.0, 1.0]
    tables = [
        table(of, rest=1.0, costs=[np.array(values[:n]) for n in SIZES])
        for of, values in ((PARAMS, few), (MACS, many))
    ]
    text = reason(choice(9.0), table(EDGE), *tables, of=pool(params=5.0, macs=5.0))
    for words in ("'edge'", "budget 50%", "budgets.params", "keeps budgets.macs takes about 10 params"):
        assert words in text
    assert "raise budgets.params or budgets.macs" in text


def test_a_joint_budget_names_the_other_target() -> None:
    """Each operation is fast on one of the targets only."""
    tables = table(EDGE, mbconv_e1_k3=2.0), table(SERVER, identity=2.0)
    text = reason(choice(2.625, 2.625), *tables)
    for words in ("50% on all", "that keeps the budget on server takes about "):
        assert words in text
    assert reason(choice(2.625), tables[0]) == ""


def test_a_candidate_that_does_not_run_on_a_target_is_no_traceback() -> None:
    scores = [np.array([np.inf, np.inf, 0.0]), np.zeros(3), np.zeros(2)]
    text = reason(choice(9.0), table(EDGE, mbconv_e1_k3=np.inf), of=pool(scores))
    assert "'edge': budget 50% cannot be met" in text
    assert "layer blocks.0" in text


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_budget_is_unmet_where_brute_force_finds_no_student(data: st.DataObject) -> None:
    """Latency on one or two targets, parameters and few operations, together."""

    def drawn(of: CostId) -> CostTables:
        values = [np.array([float(data.draw(st.integers(0, 9))) for _ in range(n)]) for n in SIZES]
        return table(of, rest=1.0, costs=values)

    most, limit = data.draw(st.none() | st.integers(0, 2)), float(data.draw(st.integers(1, 30)))
    targets = (EDGE, SERVER)[: data.draw(st.integers(1, 2))]
    tables = {of: drawn(of) for of in (*targets, PARAMS)}
    of, asked = pool(params=data.draw(st.integers(3, 25)) + 0.0), choice(*[limit] * len(targets))
    text = reason_unmet(of, SelectConfig(max_ops=most), asked, tables)
    statement = state(asked, tables, of.exact)
    kept = [
        student
        for student in itertools.product(*map(range, SIZES))
        if most is None or len({OPS[i][j] for i, j in enumerate(student)} - {"teacher"}) <= most
        if all(
            sum(float(costs[i][j]) for i, j in enumerate(student)) <= statement.limits[name]
            for name, costs in statement.costs.items()
        )
    ]
    assert bool(kept) == (text == ""), text


@pytest.mark.parametrize("rest", [0.5, -0.5])
def test_what_every_student_pays_may_be_less_than_nothing(tmp_path: Path, rest: float) -> None:
    """A regression's intercept on a busy machine; the predictions are of whole networks all the same."""
    known = table(EDGE, rest=rest, costs=[np.full(n, 0.1) for n in SIZES])
    scores = [np.linspace(0, 1, n) for n in SIZES]
    storage = Storage(str(tmp_path))
    found = propose(pool(scores), SelectConfig(), storage, choice(1.0), {EDGE: known})
    assert next(iter(found.students)) == (0, 0, 0)
    for proposal in found.students.values():
        assert proposal.predicted == {EDGE: pytest.approx(rest + 0.3)}
        assert proposal.calibrations == {EDGE: 0}
    tight = propose(pool(scores), SelectConfig(), storage, choice(rest + 0.2), {EDGE: known})
    assert not tight.students
    assert f"takes about {rest + 0.3:.3f} ms" in tight.unmet


@pytest.mark.parametrize("options", [{"max_ops": 0}, {"time_limit_s": 1e-9}])
def test_a_program_without_a_solution_says_why(options: dict[str, Any], tmp_path: Path) -> None:
    found = propose(pool(), SelectConfig(**options), Storage(str(tmp_path)), choice(2.8), {EDGE: table(EDGE)})
    assert not found.students
    assert found.unmet.startswith("target 'edge': budget 50%")


def test_solutions_are_kept_whatever_a_time_limit_would_make_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen, storage = SelectConfig(count=3, time_limit_s=1.0), Storage(str(tmp_path))
    scores = [np.array([0.0, 0.2, np.inf]), np.array([0.0, 0.2, np.inf]), np.array([0.0, 0.2])]
    known = {EDGE: table(EDGE, costs=[np.array([1.0, 0.4, 9.0][:n]) for n in SIZES])}
    first = propose(pool(scores), chosen, storage, choice(3.0), known)
    assert next(iter(first.students)).count(1) == 1

    def unsolvable(*_: Any, **__: Any) -> list[Any]:
        raise AssertionError("solved again")

    monkeypatch.setattr(solve, "select", unsolvable)
    assert propose(pool(scores), chosen, storage, choice(3.0), known) == first
    others = [*scores[:2], np.array([0.0, 0.3])]
    for of, asked in ((pool(scores), choice(2.9)), (pool(others), choice(3.0))):
        with pytest.raises(AssertionError, match="solved again"):
            propose(of, chosen, storage, asked, known)


def test_students_are_of_as_few_operations_as_asked_for(tmp_path: Path) -> None:
    """Both operations would be used; either one alone is as good, at two layers."""
    scores = [np.array([0.0, 0.1, 0.9]), np.array([0.0, 0.9, 0.1]), np.array([0.0, 0.95])]
    known = {EDGE: table(EDGE, rest=0.0, costs=[np.array([1.0, 0.5, 0.4][:n]) for n in SIZES])}

    def chosen(max_ops: int | None) -> tuple[int, ...]:
        options = SelectConfig(count=1, max_ops=max_ops)
        found = propose(pool(scores), options, Storage(str(tmp_path)), choice(2.0), known)
        (student,) = found.students
        return student

    assert chosen(None) == (1, 2, 0)
    assert chosen(1) in {(1, 1, 0), (2, 2, 0)}
