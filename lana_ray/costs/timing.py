"""Times a call on a machine whose speed fluctuates."""

from __future__ import annotations

import itertools
import math
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

Call = Callable[[], object]

MIN_ROUNDS = 10
"""Fewest rounds for a meaningful confidence interval of the median."""
_ROUND_S = 0.002
_WARMUP_S = 0.02
_WARMUP_ROUNDS = 50
_SOAK_S = 1.0
_STEADY = 1.01
"""A machine soaks as long as ``_SOAK_S`` of work makes it slower by this factor."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Time of one inference of a batch, in milliseconds, corrected for the machine's drift."""

    median_ms: float
    p90_ms: float
    """90 % of calls took at most this long, those that the system interrupted included."""
    p99_ms: float
    iqr_ms: float
    """Distance between the quartiles of the rounds."""
    repeats: int
    """Number of timed inferences behind the median."""
    seconds: float
    """Duration of the measurement: warm-up and timed inferences, including the reference's."""
    settled: bool
    """Whether the 95 % confidence interval of the median became narrow enough within the time limit."""
    raw_ms: float
    """The median without correction."""
    drift: float
    """Latency of the reference during this measurement, divided by its baseline; 1 without a reference."""

    def at(self, quantile: str) -> float:
        """Milliseconds within which this share of the calls ended: ``p50``, ``p90`` or ``p99``."""
        return {"p50": self.median_ms, "p90": self.p90_ms, "p99": self.p99_ms}[quantile]


_NAN = float("nan")
FAILED = Measurement(
    median_ms=_NAN,
    p90_ms=_NAN,
    p99_ms=_NAN,
    iqr_ms=_NAN,
    repeats=0,
    seconds=0.0,
    settled=False,
    raw_ms=_NAN,
    drift=_NAN,
)
"""Of what could not be measured."""
M = TypeVar("M", bound=Measurement)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A network that is timed alternately with others, to track the speed of the machine."""

    run: Call
    baseline_ms: float
    """Duration of a call at the machine speed to which all latencies are corrected."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long to time, see ``time_calls``."""

    rel_error: float
    time_limit_s: float
    calls: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Round:
    """Some calls, one right after the other."""

    calls_ms: tuple[float, ...]
    seconds: float
    """With the untimed calls before them."""
    interrupted: bool
    """Whether the system preempted this process, or did so in a reference's round before or after."""
    factor: float = 1.0
    """Corrects the durations for the machine's drift."""

    @property
    def mean_ms(self) -> float:
        return sum(self.calls_ms) / len(self.calls_ms)


def time_calls(
    call: Call,
    *,
    rel_error: float = 0.01,
    time_limit_s: float = 0.5,
    calls: int = 0,
    references: Sequence[Reference] = (),
) -> Measurement:
    """Times ``call`` until the confidence interval of the median is narrow enough.

    After a warm-up, which ends once rounds get no faster, rounds of about 2 ms are timed, each after half as
    many untimed calls. A round is rejected if the system preempted this process (its count of involuntary
    context switches rose), as long as enough other rounds remain. With references, the call runs for as long
    as a reference's round between two of theirs, and is corrected to their baseline (``at_baseline``).

    Two references are better than one, because a slow machine slows small and large networks unequally; the
    nearer one alone tracks a call that is faster or slower than both. The length of a round balances two
    errors: in short rounds, calls find the other network's weights in the caches; in long ones, the machine
    changes more between neighbouring rounds. Figures for both: "References and rounds of timing" in
    ``jobs/RESULTS.md``.

    On a GPU, the clock runs from launch to synchronisation; CUDA's events would exclude the launches, which
    dominate small networks.

    Args:
        call: one inference; must be finished when it returns.
        rel_error: stops at this half-width of the median's 95 % confidence interval (notch rule,
            1.57·IQR/√n, McGill et al. 1978), relative to the median.
        time_limit_s: stops at this time in any case, but after at least ``MIN_ROUNDS`` rounds.
        calls: fewest timed calls, whatever the time limit; high quantiles need many.
        references: none, one, or a small and a large one.
    """
    begin = time.perf_counter()
    call_ms = _warm_up(call)
    per_round = _repeats(call_ms)
    enough = max(MIN_ROUNDS, math.ceil(calls / per_round))
    turns = itertools.cycle(_near(references, call_ms))
    before = _reference_round(turns)
    deadline = time.perf_counter() + time_limit_s
    rounds: list[_Round] = []
    settled = False
    while not settled and (len(rounds) < enough or time.perf_counter() < deadline):
        block = _block(call, per_round, before)
        after = _reference_round(turns)
        rounds += [_corrected(each, before, after) for each in block]
        before = after
        settled = len(_quiet(rounds)) >= enough and half_width(_means_ms(_quiet(rounds))) <= rel_error
    return _combined(rounds, per_round, time.perf_counter() - begin, bool(settled))


def _combined(rounds: Sequence[_Round], per_round: int, seconds: float, settled: bool) -> Measurement:
    """Quiet rounds give the median, all calls the higher quantiles."""
    quiet = _quiet(rounds)
    kept = quiet if len(quiet) >= MIN_ROUNDS else rounds
    raw_ms = float(np.median([each.mean_ms for each in kept]))
    low, median_ms, high = np.percentile(_means_ms(kept), (25, 50, 75)).tolist()
    all_ms = [ms * each.factor for each in rounds for ms in each.calls_ms]
    p90_ms, p99_ms = np.percentile(all_ms, (90, 99)).tolist()
    return Measurement(
        median_ms=median_ms,
        p90_ms=p90_ms,
        p99_ms=p99_ms,
        iqr_ms=high - low,
        repeats=len(kept) * per_round,
        seconds=seconds,
        settled=settled,
        raw_ms=raw_ms,
        drift=raw_ms / median_ms,
    )


def soak(call: Call, limit_s: float) -> None:
    """Runs a call until the machine gets no slower, so that it reaches the speed that it can sustain."""
    end = time.perf_counter() + limit_s
    before_ms = 0.0
    while time.perf_counter() < end:
        took_ms = _mean_over(call, _SOAK_S)
        if before_ms and took_ms <= _STEADY * before_ms:
            return
        before_ms = took_ms


def _mean_over(call: Call, seconds: float) -> float:
    begin = time.perf_counter()
    count = 0
    while time.perf_counter() < begin + seconds:
        call()
        count += 1
    return (time.perf_counter() - begin) / count


def _near(references: Sequence[Reference], call_ms: float) -> Sequence[Reference]:
    """The references to compare a call with: both if its duration is between theirs, else the nearer one."""
    ordered = sorted(references, key=lambda reference: reference.baseline_ms)
    if ordered and call_ms <= ordered[0].baseline_ms:
        return ordered[:1]
    if ordered and call_ms >= ordered[-1].baseline_ms:
        return ordered[-1:]
    return references


def _reference_round(turns: Iterator[Reference]) -> tuple[Reference, _Round] | None:
    """A round of the next reference; None without references."""
    for reference in turns:
        return reference, _round(reference.run, _repeats(reference.baseline_ms))
    return None


def _block(call: Call, repeats: int, beside: tuple[Reference, _Round] | None) -> list[_Round]:
    """One round, or as many as take as long as a reference's round."""
    end = time.perf_counter() + (beside[1].seconds if beside else 0.0)
    block = [_round(call, repeats)]
    while time.perf_counter() < end:
        block.append(_round(call, repeats))
    return block


def _corrected(
    each: _Round, before: tuple[Reference, _Round] | None, after: tuple[Reference, _Round] | None
) -> _Round:
    """A round corrected to the baseline of the references' rounds around it."""
    if before is None or after is None:
        return each
    interrupted = each.interrupted or before[1].interrupted or after[1].interrupted
    pairs = [(reference.baseline_ms, one.mean_ms) for reference, one in (before, after)]
    return replace(each, interrupted=interrupted, factor=at_baseline(each.mean_ms, *pairs) / each.mean_ms)


Pair = tuple[float, float]
"""Baseline and measured duration of a reference's call, in milliseconds."""


def at_baseline(took_ms: float, before: Pair, after: Pair) -> float:
    """Corrects a duration to the references' baseline: linear between two, proportional beyond them."""
    (small, small_ms), (large, large_ms) = sorted((before, after))
    if small == large:
        return took_ms * small * 2 / (small_ms + large_ms)
    if took_ms <= small_ms:
        return took_ms * small / small_ms
    if took_ms >= large_ms:
        return took_ms * large / large_ms
    return small + (took_ms - small_ms) / (large_ms - small_ms) * (large - small)


def middle(sessions: Sequence[M]) -> M:
    """Combines measurements of the same network in separate sessions: the median one, settled if all are.

    A session's memory layout, and the processes that share the caches with it, change latency more than the
    rounds of one session show, however many: on a shared virtual machine by 2 to 5 % from session to session
    (EfficientNet-Lite0 at 64 and 32 pixels against its teacher), after 5 s as much as after half a second.
    """
    chosen = sorted(sessions, key=lambda session: session.median_ms)[(len(sessions) - 1) // 2]
    return replace(
        chosen,
        repeats=sum(session.repeats for session in sessions),
        seconds=sum(session.seconds for session in sessions),
        settled=all(session.settled for session in sessions),
    )


def spread(networks: Iterable[Sequence[float]]) -> tuple[float, int]:
    """Returns the relative standard deviation between sessions of a network, pooled over networks.

    Args:
        networks: for each network, the medians of its sessions, in any unit.

    Returns:
        The deviation, and its degrees of freedom: the number of sessions minus the number of networks.
    """
    arrays = [np.asarray(sessions) for sessions in networks]
    freedom = sum(len(sessions) - 1 for sessions in arrays)
    squares = sum(float(np.square(x / x.mean() - 1).sum()) for x in arrays)
    return (float(np.sqrt(squares / freedom)) if freedom else 0.0), freedom


def _quiet(rounds: Sequence[_Round]) -> list[_Round]:
    """The rounds that were not interrupted."""
    return [each for each in rounds if not each.interrupted]


def _involuntary_switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _means_ms(rounds: Sequence[_Round]) -> list[float]:
    """Milliseconds per call of each round, at the references' baseline."""
    return [each.mean_ms * each.factor for each in rounds]


def half_width(values: Sequence[float]) -> float:
    """Half-width of the median's 95 % confidence interval, relative to the median (see ``time_calls``)."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return float(1.57 * (high - low) / np.sqrt(len(values)) / max(median, 1e-12))


def _round(call: Call, repeats: int) -> _Round:
    """Times ``repeats`` calls, after half as many untimed calls."""
    begin, switches = time.perf_counter_ns(), _involuntary_switches()
    for _ in range((repeats + 1) // 2):
        call()
    moments = [time.perf_counter_ns()]
    for _ in range(repeats):
        call()
        moments.append(time.perf_counter_ns())
    return _Round(
        calls_ms=tuple((end - start) / 1e6 for start, end in itertools.pairwise(moments)),
        seconds=(moments[-1] - begin) / 1e9,
        interrupted=_involuntary_switches() != switches,
    )


def _warm_up(call: Call) -> float:
    """Runs until three rounds in a row are no faster than the best one; returns its milliseconds per call."""
    begin = time.perf_counter()
    best, since_better = float("inf"), 0
    for _ in range(_WARMUP_ROUNDS):
        took = _round(call, 1 if best == float("inf") else _repeats(best)).mean_ms
        since_better = 0 if took < 0.98 * best else since_better + 1
        best = min(best, took)
        if since_better >= 3 and time.perf_counter() - begin >= _WARMUP_S:
            break
    return best


def _repeats(call_ms: float) -> int:
    return max(1, round(_ROUND_S * 1e3 / max(call_ms, 1e-4)))
