"""Cost tables from synthetic machines that are known exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from lana_ray.costs import table as table_module
from lana_ray.costs.table import CostTable, Floats, calibrate
from lana_ray.ids import family_of

SIZES = (6, 5, 6, 6, 4, 6, 6, 5)
NAMES = ("teacher", "mbconv_e1_k3", "mbconv_e3_k3", "mbconv_e6_k5", "conv_pair_w0.5_k3", "identity")
OPS = [NAMES[:size] for size in SIZES]


@dataclass
class Machine:
    """Networks cost ``rest`` and their candidates' costs; candidates timed alone tell it wrongly."""

    rest: float
    costs: list[Floats]
    isolated: list[Floats]
    noise: float
    rng: np.random.Generator

    def architectures(self, count: int) -> list[tuple[int, ...]]:
        columns = [self.rng.permutation(np.resize(self.rng.permutation(m), count)) for m in SIZES]
        return [tuple(map(int, row)) for row in np.stack(columns, axis=1)]

    def latencies(self, architectures: list[tuple[int, ...]]) -> Floats:
        exact = [self.rest + sum(c[j] for c, j in zip(self.costs, a, strict=True)) for a in architectures]
        return np.asarray(exact) * (1 + self.noise * self.rng.standard_normal(len(exact)))


def machine(
    seed: int, *, noise: float = 0.01, scale: float = 1.0, call_ms: float = 0.0, fusion: float = 0.0
) -> Machine:
    """A machine where a candidate alone costs ``scale`` times as much, a call more, and what fusion saves."""
    rng = np.random.default_rng(seed)
    costs = [rng.lognormal(0, 0.7, m) for m in SIZES]
    isolated = [scale * c * np.exp(fusion * rng.standard_normal(len(c))) + call_ms for c in costs]
    return Machine(rest=1.5, costs=costs, isolated=isolated, noise=noise, rng=rng)


def errors(table: CostTable, architectures: list[tuple[int, ...]], latencies: Floats) -> Floats:
    return np.abs(np.asarray([table.predict(a) for a in architectures]) / latencies - 1)


@pytest.mark.parametrize("seed", range(5))
def test_networks_not_measured_are_predicted_better_than_by_isolated_costs(seed: int) -> None:
    m = machine(seed, call_ms=0.3, fusion=0.25)
    measured, others = m.architectures(48), m.architectures(200)
    latencies = m.latencies(measured)
    table = calibrate(m.isolated, OPS, measured, latencies.tolist())
    m.noise = 0.0
    error = float(np.median(errors(table, others, m.latencies(others))))
    added = [sum(c[j] for c, j in zip(m.isolated, a, strict=True)) for a in measured]
    rest = float(np.median(latencies - np.asarray(added)))
    plain = CostTable(rest=rest, costs=tuple(m.isolated), error_isolated=0, error=0, networks=2)
    error_isolated = float(np.median(errors(plain, others, m.latencies(others))))
    assert error < 0.6 * error_isolated
    assert error < 0.03
    assert table.error_isolated == pytest.approx(error_isolated, rel=0.5)
    assert table.error == pytest.approx(error, abs=0.02)  # what it says of itself is about true
    assert table.error < table.error_isolated


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.5])
def test_scale_and_offset_are_recovered(scale: float) -> None:
    m = machine(1, noise=0.0, scale=scale)
    measured, others = m.architectures(24), m.architectures(100)
    table = calibrate(m.isolated, OPS, measured, m.latencies(measured).tolist())
    assert errors(table, others, m.latencies(others)).max() < 1e-3
    assert table.rest == pytest.approx(m.rest, rel=0.02)
    for found, true in zip(table.costs, m.costs, strict=True):
        np.testing.assert_allclose(found, true, rtol=0.02)
    assert table.error < 1e-3


def test_what_every_isolated_call_pays_is_taken_out() -> None:
    m = machine(2, noise=0.0, call_ms=0.5)
    measured, others = m.architectures(48), m.architectures(100)
    table = calibrate(m.isolated, OPS, measured, m.latencies(measured).tolist())
    assert float(np.median(errors(table, others, m.latencies(others)))) < 0.01
    assert table.predict((0,) * 8) < m.rest + sum(c[0] for c in m.isolated) - 3.0  # eight calls of 0.5 ms


def test_a_candidate_that_cannot_run_stays_infinite() -> None:
    m = machine(3)
    measured = [a for a in m.architectures(60) if a[2] != 4 and a[5] != 0]
    m.isolated[2][4] = m.isolated[5][0] = np.inf
    table = calibrate(m.isolated, OPS, measured, m.latencies(measured).tolist())
    found = [np.flatnonzero(np.isinf(costs)).tolist() for costs in table.costs]
    assert found == [[], [], [4], [], [], [0], [], []]
    assert table.predict((0, 0, 4, 0, 0, 1, 0, 0)) == np.inf
    assert np.isfinite(table.predict(measured[0]))
    assert np.isfinite(table.error)


def test_a_candidate_that_costs_nothing_costs_nothing() -> None:
    m = machine(4, noise=0.02)
    for costs, isolated in zip(m.costs, m.isolated, strict=True):
        costs[1] = isolated[1] = 0.0
    measured = m.architectures(48)
    table = calibrate(m.isolated, OPS, measured, m.latencies(measured).tolist())
    for costs in table.costs:
        assert 0 <= costs[1] < 0.1


def test_the_order_of_the_networks_does_not_matter() -> None:
    m = machine(5, fusion=0.2)
    measured = m.architectures(40)
    latencies = m.latencies(measured)
    order = m.rng.permutation(40)
    first = calibrate(m.isolated, OPS, measured, latencies.tolist())
    second = calibrate(m.isolated, OPS, [measured[k] for k in order], latencies[order].tolist())
    assert second.rest == pytest.approx(first.rest)
    assert second.error == pytest.approx(first.error)
    for a, b in zip(first.costs, second.costs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_one_lying_network_does_not_spoil_the_table() -> None:
    m = machine(6, noise=0.005, fusion=0.1)
    measured, others = m.architectures(48), m.architectures(100)
    latencies = m.latencies(measured)
    latencies[7] *= 1.5
    table = calibrate(m.isolated, OPS, measured, latencies.tolist())
    m.noise = 0.0
    assert float(np.median(errors(table, others, m.latencies(others)))) < 0.03


_COST = st.floats(0.0, 100.0)


@st.composite
def measurements(draw: st.DrawFn) -> tuple[list[Floats], list[tuple[int, ...]], list[float]]:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    isolated = [np.asarray(draw(st.lists(_COST, min_size=m, max_size=m))) for m in sizes]
    network = st.tuples(*(st.integers(0, m - 1) for m in sizes))
    networks = draw(st.lists(network, min_size=2, max_size=8))
    count = len(networks)
    latencies = draw(st.lists(st.floats(0.01, 1000.0), min_size=count, max_size=count))
    return isolated, networks, latencies


@settings(deadline=None, max_examples=60)
@given(measurements())
def test_no_cost_is_ever_negative(given_: tuple[list[Floats], list[tuple[int, ...]], list[float]]) -> None:
    isolated, networks, latencies = given_
    table = calibrate(isolated, [NAMES[: len(costs)] for costs in isolated], networks, latencies)
    assert [len(costs) for costs in table.costs] == [len(costs) for costs in isolated]
    for costs in table.costs:
        assert np.isfinite(costs).all()
        assert (costs >= 0).all()
    assert np.isfinite([table.rest, table.error, table.error_isolated]).all()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
def test_the_unit_of_time_does_not_matter(seed: int, unit: float) -> None:
    m = machine(seed, fusion=0.2, call_ms=0.1)
    measured = m.architectures(24)
    latencies = m.latencies(measured)
    first = calibrate(m.isolated, OPS, measured, latencies.tolist())
    second = calibrate([unit * c for c in m.isolated], OPS, measured, (unit * latencies).tolist())
    assert second.predict(measured[0]) == pytest.approx(unit * first.predict(measured[0]), rel=1e-6)
    assert second.error == pytest.approx(first.error, rel=1e-6)


def shared_machine(seed: int, *, own: float, op: float, family: float, layer: float) -> Machine:
    """A machine whose candidates alone err by what they share with others, and by something of their own."""
    m, rng = machine(seed), np.random.default_rng(seed)
    families = {name: float(rng.normal(0, family)) for name in sorted({family_of(name) for name in NAMES})}
    of_op = {name: families[family_of(name)] + float(rng.normal(0, op)) for name in NAMES}
    for i, ops in enumerate(OPS):
        at = float(rng.normal(0, layer))
        deviations = [np.exp(of_op[name] + at + rng.normal(0, own)) for name in ops]
        m.isolated[i] = m.costs[i] * np.asarray(deviations)
    return m


def error_with(m: Machine, count: int) -> float:
    """Median error on networks that were not measured."""
    measured, others = m.architectures(count), m.architectures(200)
    table = calibrate(m.isolated, OPS, measured, m.latencies(measured).tolist())
    return float(np.median(errors(table, others, m.latencies(others))))


@pytest.mark.parametrize("shared", ["op", "family", "layer"])
def test_candidates_learn_from_others_with_which_they_share_something(
    shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spreads = {"op": 0.0, "family": 0.0, "layer": 0.0} | {shared: 0.4}

    def median_error() -> float:
        machines = [shared_machine(seed, own=0.02, **spreads) for seed in range(6)]
        return float(np.median([error_with(m, 16) for m in machines]))

    sharing = median_error()
    monkeypatch.setattr(table_module, "_SHARED", (0.0,))
    assert sharing < 0.8 * median_error()


def test_candidates_that_share_nothing_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def median_error(count: int) -> float:
        return float(np.median([error_with(machine(seed, fusion=0.25), count) for seed in range(8)]))

    sharing = {count: median_error(count) for count in (16, 48)}
    monkeypatch.setattr(table_module, "_SHARED", (0.0,))
    for count, error in sharing.items():
        assert error < 1.1 * median_error(count)


def test_costs_that_come_out_negative_change_no_network() -> None:
    """Alone, one candidate seems to take far longer than it does; the layer's others are known exactly."""
    m = machine(4, noise=0.0)
    for costs, isolated in zip(m.costs, m.isolated, strict=True):
        costs[1] = 0.0
        costs -= 0.8 * costs.min()
        isolated[:] = np.abs(m.rng.normal(1.0, 0.5, len(isolated)))
    measured = m.architectures(200)
    table = calibrate(m.isolated, OPS, measured, m.latencies(measured).tolist())
    assert min(costs.min() for costs in table.costs) >= 0
    others = m.architectures(100)
    assert errors(table, others, m.latencies(others)).max() < 0.01


@pytest.mark.parametrize("count", [20, 90])
def test_both_dimensions_solve_the_same_regression(count: int) -> None:
    """The networks’, if they are fewer than the components of the prior, and that of the components."""
    m = machine(3, fusion=0.2)
    networks, rng = m.architectures(count), np.random.default_rng(1)
    basis, kinds = table_module._components(OPS, np.append(np.concatenate(m.isolated), 0.1) + 0.01)
    whole = table_module._Regression(
        design=scipy.sparse.diags_array(1 / rng.uniform(5, 9, count)) @ table_module._design(SIZES, networks),
        residual=rng.normal(0, 0.04, count),
        basis=basis,
        kinds=kinds,
    )
    assert (count <= basis.shape[1]) == (count == 20)
    spreads = (0.01, 0.2, 0.1, 0.05, 0.0)
    mean, left_out = whole.solve(spreads)
    own = np.append(np.concatenate(m.isolated), 0.1) + 0.01
    names = [name for ops in OPS for name in ops]
    families = [family_of(name) for name in names]
    share = 0.04 * np.eye(len(names)) + 0.01 * np.equal.outer(names, names)
    share = share + 0.0025 * np.equal.outer(families, families)
    prior = np.zeros((len(own), len(own)))
    prior[:-1, :-1], prior[-1, -1] = share, 1.0
    prior *= np.outer(own, own)
    design = whole.design.toarray()
    kernel = design @ prior @ design.T + 0.01**2 * np.eye(count)
    np.testing.assert_allclose(mean, prior @ design.T @ np.linalg.solve(kernel, whole.residual), rtol=1e-6)
    assert whole.loss(spreads) == pytest.approx(np.mean(np.minimum(np.abs(left_out), 0.2) ** 2))
    for k in (0, 7):
        rows = np.arange(count) != k
        others = replace(whole, design=whole.design[rows], residual=whole.residual[rows])
        without, _ = others.solve(spreads)
        assert left_out[k] == pytest.approx(whole.residual[k] - (whole.design[[k]] @ without)[0], rel=1e-6)


def test_many_networks_take_the_dimension_of_the_candidates() -> None:
    m = machine(4, noise=0.01)
    networks = m.architectures(20_000)
    table = calibrate(m.isolated, OPS, networks, m.latencies(networks).tolist())
    assert table.networks == 20_000
    for found, true in zip(table.costs, m.costs, strict=True):
        assert np.ptp(found - true) < 0.02  # but for what layers and rest share
