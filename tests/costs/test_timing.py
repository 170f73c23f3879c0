"""Timing on a simulated machine, whose clock moves by what its calls cost and by nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest

from lana_ray.costs import timing
from lana_ray.costs.timing import MIN_ROUNDS, Call, Measurement, Reference, middle, soak, time_calls


class Machine:
    """Stands in for ``time`` and for the system's count of involuntary switches."""

    def __init__(self) -> None:
        self.now_ns = 10**12
        self.switches = 7
        self.slowdown = 1.0
        self.wear = 0.0
        """By how much a second of work slows the machine."""

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def perf_counter(self) -> float:
        return self.now_ns / 1e9

    def spend(self, ms: float) -> None:
        self.now_ns += round(ms * 1e6 * self.slowdown)
        self.slowdown += self.wear * ms / 1e3

    def call(self, costs_ms: float | Iterable[float]) -> Call:
        """A call that costs so much, or these amounts in turn."""
        costs = itertools.repeat(costs_ms) if isinstance(costs_ms, float) else iter(costs_ms)
        return lambda: self.spend(next(costs))

    def interrupted(self, cost_ms: float, every: int) -> Call:
        """A call that the system interrupts now and then for a long time."""
        counter = itertools.count(1)

        def run() -> None:
            self.spend(cost_ms)
            if next(counter) % every == 0:
                self.spend(50.0)
                self.switches += 1

        return run


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    simulated = Machine()
    monkeypatch.setattr(timing, "time", simulated)
    monkeypatch.setattr(timing, "_involuntary_switches", lambda: simulated.switches)
    return simulated


def noise(median_ms: float, spread: float) -> Iterable[float]:
    rng = np.random.default_rng(0)
    while True:
        yield median_ms * (1 + spread * float(rng.uniform(-1, 1)))


def test_a_steady_call_is_known_exactly(machine: Machine) -> None:
    m = time_calls(machine.call(3.0))
    assert m.median_ms == pytest.approx(3.0)
    assert m.raw_ms == pytest.approx(3.0)
    assert m.iqr_ms == pytest.approx(0.0, abs=1e-6)
    assert m.drift == pytest.approx(1.0)
    assert m.settled
    assert m.repeats == MIN_ROUNDS


@pytest.mark.parametrize("cost_ms", [0.0005, 0.02, 0.7, 40.0])
def test_short_calls_are_timed_many_at_a_time(machine: Machine, cost_ms: float) -> None:
    m = time_calls(machine.call(cost_ms), time_limit_s=0.0)
    assert m.median_ms == pytest.approx(cost_ms, rel=1e-3)
    assert m.repeats % MIN_ROUNDS == 0
    assert m.repeats * cost_ms >= MIN_ROUNDS * 0.5  # rounds are long enough for any clock


def test_the_first_slow_calls_do_not_count(machine: Machine) -> None:
    falling = [30.0, 20.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0]
    m = time_calls(machine.call(itertools.chain(falling, itertools.repeat(3.0))))
    assert m.median_ms == pytest.approx(3.0)
    assert m.iqr_ms == pytest.approx(0.0, abs=1e-6)


def test_quartiles_are_reported(machine: Machine) -> None:
    m = time_calls(machine.call(noise(10.0, 0.1)), rel_error=1e-9, time_limit_s=20.0)
    assert m.median_ms == pytest.approx(10.0, rel=0.02)
    assert m.iqr_ms == pytest.approx(1.0, rel=0.2)  # of a uniform distribution over ±10 %


def test_it_stops_when_the_median_is_known_and_not_before(machine: Machine) -> None:
    rough, fine = (
        time_calls(machine.call(noise(3.0, 0.2)), rel_error=error, time_limit_s=60.0) for error in (0.1, 0.02)
    )
    assert rough.settled
    assert fine.settled
    assert MIN_ROUNDS <= rough.repeats < fine.repeats
    assert fine.median_ms == pytest.approx(3.0, rel=0.04)


def test_it_stops_at_the_time_limit_and_says_so(machine: Machine) -> None:
    begin = machine.perf_counter()
    m = time_calls(machine.call(noise(3.0, 0.5)), rel_error=1e-6, time_limit_s=1.0)
    assert not m.settled
    assert 1.0 <= machine.perf_counter() - begin < 1.5
    assert m.seconds == machine.perf_counter() - begin
    assert m.repeats > MIN_ROUNDS


def test_even_without_time_there_are_enough_rounds(machine: Machine) -> None:
    m = time_calls(machine.call(noise(30.0, 0.5)), rel_error=1e-6, time_limit_s=0.0)
    assert m.repeats == MIN_ROUNDS
    assert not m.settled


def test_a_slower_machine_slows_the_reference_too(machine: Machine) -> None:
    machine.slowdown = 1.5
    m = time_calls(machine.call(2.0), references=[Reference(run=machine.call(4.0), baseline_ms=4.0)])
    assert m.median_ms == pytest.approx(2.0)
    assert m.raw_ms == pytest.approx(3.0)
    assert m.drift == pytest.approx(1.5)


def test_a_machine_that_slows_down_meanwhile(machine: Machine) -> None:
    machine.wear = 2.0  # three times as slow after a second
    m = time_calls(
        machine.call(2.0),
        references=[Reference(run=machine.call(4.0), baseline_ms=4.0)],
        rel_error=1e-9,
        time_limit_s=0.5,
    )
    assert m.median_ms == pytest.approx(2.0, rel=0.01)
    assert m.raw_ms > 2.2
    assert m.drift == pytest.approx(m.raw_ms / m.median_ms)


def test_the_reference_measured_against_itself_is_its_baseline(machine: Machine) -> None:
    machine.slowdown = 0.8
    m = time_calls(machine.call(4.0), references=[Reference(run=machine.call(4.0), baseline_ms=4.0)])
    assert m.median_ms == pytest.approx(4.0)
    assert m.drift == pytest.approx(0.8)


def test_two_references_tell_how_each_part_of_the_machine_slows(machine: Machine) -> None:
    """A call is overhead and computing, which slow down by factors of their own."""

    def call(overhead_ms: float, computing_ms: float) -> Call:
        return machine.call(1.7 * overhead_ms + 1.2 * computing_ms)

    small, large = (Reference(run=call(1.0, c), baseline_ms=1 + c) for c in (1.0, 7.0))
    for references in ([small, large], [large, small]):
        m = time_calls(call(1.0, 3.0), references=references)
        assert m.median_ms == pytest.approx(4.0)
        assert m.raw_ms == pytest.approx(5.3)
    alone = time_calls(call(1.0, 3.0), references=[large])
    assert alone.median_ms == pytest.approx(4.0 * 5.3 / 4.0 * 8 / 10.1)


@pytest.mark.parametrize(("cost_ms", "expected_ms"), [(1.0, 0.5), (20.0, 10.0), (2.0, 1.0), (8.0, 4.0)])
def test_beyond_both_references_the_nearer_counts(
    machine: Machine, cost_ms: float, expected_ms: float
) -> None:
    references = [Reference(run=machine.call(2 * ms), baseline_ms=ms) for ms in (1.0, 4.0)]
    m = time_calls(machine.call(cost_ms), references=references)
    assert m.median_ms == pytest.approx(expected_ms)


def test_references_that_change_places_still_give_a_latency(machine: Machine) -> None:
    """A small reference that takes longer than the large one: the machine was disturbed beside it."""
    references = [Reference(run=machine.call(ms), baseline_ms=base) for ms, base in ((6.0, 1.0), (4.0, 4.0))]
    for cost_ms in (3.0, 5.0, 7.0):
        assert 0 < time_calls(machine.call(cost_ms), references=references).median_ms < 10


@pytest.mark.parametrize("with_reference", [False, True])
def test_interrupted_rounds_are_rejected(machine: Machine, with_reference: bool) -> None:
    references = [Reference(run=machine.call(4.0), baseline_ms=4.0)] if with_reference else []
    m = time_calls(machine.interrupted(3.0, every=5), references=references, time_limit_s=5.0)
    assert m.median_ms == pytest.approx(3.0)
    assert m.iqr_ms == pytest.approx(0.0, abs=1e-6)
    assert m.settled
    assert m.repeats >= MIN_ROUNDS


def test_rounds_beside_an_interrupted_reference_are_rejected(machine: Machine) -> None:
    reference = Reference(run=machine.interrupted(4.0, every=7), baseline_ms=4.0)
    m = time_calls(machine.call(3.0), references=[reference], time_limit_s=5.0)
    assert m.median_ms == pytest.approx(3.0)
    assert m.iqr_ms == pytest.approx(0.0, abs=1e-6)
    assert m.drift == pytest.approx(1.0)


def test_where_every_round_is_interrupted_all_count(machine: Machine) -> None:
    m = time_calls(machine.interrupted(3.0, every=1), time_limit_s=0.0)
    assert m.median_ms == pytest.approx(53.0)
    assert m.repeats == MIN_ROUNDS
    assert not m.settled


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_of_several_sessions_the_median_counts(count: int) -> None:
    sessions = [
        Measurement(
            median_ms=ms,
            p90_ms=ms,
            p99_ms=ms,
            iqr_ms=ms / 10,
            repeats=7,
            seconds=2,
            settled=ms != 4,
            raw_ms=2 * ms,
            drift=2,
        )
        for ms in (5.0, 1.0, 4.0, 3.0, 2.0)[:count]
    ]
    found = middle(sessions)
    assert found.median_ms == np.quantile([s.median_ms for s in sessions], 0.5, method="lower")
    assert (found.iqr_ms, found.raw_ms) == (found.median_ms / 10, 2 * found.median_ms)
    assert (found.repeats, found.seconds, found.settled) == (7 * count, 2 * count, count < 3)


def test_quantiles_are_of_single_calls_and_those_that_were_interrupted_count(machine: Machine) -> None:
    """Every 21st call takes ten times as long: 5 % of the calls, which the median does not show."""
    slow = itertools.cycle([0.5] * 20 + [5.0])
    m = time_calls(machine.call(slow), rel_error=1e-9, time_limit_s=2.0)
    assert m.median_ms < 1.1
    assert [m.at(q) for q in ("p50", "p90", "p99")] == pytest.approx([m.median_ms, 0.5, 5.0])
    m = time_calls(machine.interrupted(0.5, every=20), rel_error=1e-9, time_limit_s=2.0)
    assert (m.median_ms, m.p90_ms, m.p99_ms) == pytest.approx((0.5, 0.5, 50.5))


def test_a_slower_machine_slows_quantiles_too(machine: Machine) -> None:
    machine.slowdown = 2.0
    m = time_calls(
        machine.call(itertools.cycle([1.0] * 20 + [4.0])),
        references=[Reference(run=machine.call(1.0), baseline_ms=1.0)],
        calls=400,
    )
    assert (m.p90_ms, m.p99_ms) == pytest.approx((1.0, 4.0))


@pytest.mark.parametrize("cost_ms", [0.5, 3.0])
def test_high_quantiles_get_the_calls_that_they_need(machine: Machine, cost_ms: float) -> None:
    m = time_calls(machine.call(cost_ms), time_limit_s=0.0, calls=200)
    assert m.repeats >= 200
    assert m.settled


@pytest.mark.parametrize("large_ms", [100.0, 1000.0])
def test_a_small_call_beside_a_large_reference_has_half_of_the_time(
    machine: Machine, large_ms: float
) -> None:
    large = Reference(run=machine.call(large_ms), baseline_ms=large_ms)
    m = time_calls(machine.call(noise(1.0, 0.1)), references=[large], rel_error=1e-9, time_limit_s=0.0)
    assert m.median_ms == pytest.approx(1.0, rel=0.02)
    assert 1.5e-3 * m.repeats > 0.3 * m.seconds  # with the untimed calls
    assert m.seconds < 10 * large_ms / 1e3


def test_the_reference_of_a_calls_own_size_tracks_it(machine: Machine) -> None:
    """One that is far larger would only take time."""
    ran: list[str] = []

    def reference(name: str, ms: float) -> Reference:
        def run() -> None:
            ran.append(name)
            machine.spend(ms)

        return Reference(run=run, baseline_ms=ms)

    both = [reference("large", 50.0), reference("small", 5.0)]
    for cost_ms, nearer in ((1.0, {"small"}), (80.0, {"large"}), (20.0, {"small", "large"})):
        ran.clear()
        time_calls(machine.call(cost_ms), references=both, time_limit_s=0.0)
        assert set(ran) == nearer


def test_a_soak_ends_once_the_machine_gets_no_slower(machine: Machine) -> None:
    """It heats up for ten seconds, and is 1.5 times as slow from then on."""
    begin = machine.perf_counter()

    def run() -> None:
        machine.slowdown = 1.0 + min(machine.perf_counter() - begin, 10.0) / 20
        machine.spend(5.0)

    soak(run, 60.0)
    assert machine.slowdown == 1.5
    assert 10.0 < machine.perf_counter() - begin < 14.0


def test_a_soak_has_a_time_limit(machine: Machine) -> None:
    machine.wear = 0.1
    begin = machine.perf_counter()
    soak(machine.call(5.0), 8.0)
    assert 8.0 <= machine.perf_counter() - begin < 10.5
    soak(machine.call(5.0), 0.0)
    assert machine.perf_counter() - begin < 10.5
