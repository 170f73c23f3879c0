"""Times a call on a machine whose speed fluctuates."""

from __future__ import annotations

import dataclasses
import itertools
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], object]

MIN_ROUNDS = 10
"""Fewest rounds for a meaningful confidence interval of the median."""
_ROUND_S = 0.002
_WARMUP_S = 0.02
_WARMUP_ROUNDS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Time of one inference of a batch, in milliseconds, corrected for the machine's drift."""

    median_ms: float
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


M = TypeVar("M", bound=Measurement)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A network that is timed alternately with others, to track the speed of the machine."""

    run: Call
    baseline_ms: float
    """Duration of a call at the machine speed to which all latencies are corrected."""


def time_calls(
    call: Call,
    *,
    rel_error: float = 0.01,
    time_limit_s: float = 0.5,
    references: Sequence[Reference] = (),
) -> Measurement:
    """Times ``call`` until the confidence interval of the median is narrow enough.

    After a warm-up, which ends once rounds get no faster, rounds of about 2 ms are timed, each after half as
    many untimed calls. A round is rejected if the system preempted this process (its count of involuntary
    context switches rose), as long as enough other rounds remain. With references, each round of the call is
    between two of theirs and is corrected to their baseline (``_at_baseline``).

    Two references are better than one, because a slow machine slows small and large networks unequally. The
    length of a round balances two errors: in short rounds, calls find the other network's weights in the
    caches; in long ones, the machine changes more between neighbouring rounds. Figures for both: "References
    and rounds of timing" in ``jobs/RESULTS.md``.

    On a GPU, the clock runs from launch to synchronisation; CUDA's events would exclude the launches, which
    dominate small networks.

    Args:
        call: one inference; must be finished when it returns.
        rel_error: stops at this half-width of the median's 95 % confidence interval (notch rule,
            1.57·IQR/√n, McGill et al. 1978), relative to the median.
        time_limit_s: stops at this time in any case, but after at least ``MIN_ROUNDS`` rounds.
        references: none, one, or a small and a large one.
    """
    begin = time.perf_counter()
    per_round = _warm_up(call)
    rounds: list[float] = []  # milliseconds per call
    corrected: list[float] = []  # milliseconds per call at the references' baseline
    disturbed: list[bool] = []
    turns = itertools.cycle(references)
    before = _time_reference(turns)
    deadline = time.perf_counter() + time_limit_s
    settled = False
    while not settled and (len(rounds) < MIN_ROUNDS or time.perf_counter() < deadline):
        switches = _involuntary_switches()
        took = _round(call, per_round)
        after = _time_reference(turns)
        disturbed.append(_involuntary_switches() != switches)
        rounds.append(took)
        corrected.append(_at_baseline(took, before, after) if before and after else took)
        before = after
        quiet = _quiet(disturbed)
        settled = len(quiet) >= MIN_ROUNDS and _half_width(np.asarray(corrected)[quiet]) <= rel_error
    kept = quiet if len(quiet) >= MIN_ROUNDS else np.arange(len(rounds))
    raw_ms = float(np.median(np.asarray(rounds)[kept]))
    low, median_ms, high = (float(q) for q in np.percentile(np.asarray(corrected)[kept], (25, 50, 75)))
    return Measurement(
        median_ms=median_ms,
        iqr_ms=high - low,
        repeats=len(kept) * per_round,
        seconds=time.perf_counter() - begin,
        settled=bool(settled),
        raw_ms=raw_ms,
        drift=raw_ms / median_ms,
    )


_ReferenceRound = tuple[float, float]
"""Baseline and measured duration of a reference's call, in milliseconds."""


def _time_reference(turns: Iterator[Reference]) -> _ReferenceRound | None:
    """Times a round of the next reference; returns None without references."""
    reference = next(turns, None)
    if reference is None:
        return None
    return reference.baseline_ms, _round(reference.run, _repeats(reference.baseline_ms))


def _at_baseline(took_ms: float, before: _ReferenceRound, after: _ReferenceRound) -> float:
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
    return dataclasses.replace(
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


def _quiet(disturbed: list[bool]) -> NDArray[np.int64]:
    """Returns the rounds that were not interrupted, and neither was the reference's round before them."""
    flags = np.asarray(disturbed)
    return np.flatnonzero(~flags & ~np.concatenate([[False], flags[:-1]]))


def _involuntary_switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _half_width(values: NDArray[np.float64]) -> float:
    low, median, high = np.percentile(values, (25, 50, 75))
    return float(1.57 * (high - low) / np.sqrt(len(values)) / max(median, 1e-12))


def _round(call: Call, repeats: int) -> float:
    """Returns milliseconds per call over ``repeats`` calls, after half as many untimed calls."""
    for _ in range((repeats + 1) // 2):
        call()
    start = time.perf_counter_ns()
    for _ in range(repeats):
        call()
    return (time.perf_counter_ns() - start) / repeats / 1e6


def _warm_up(call: Call) -> int:
    """Runs until three rounds in a row are no faster than the best one; returns the calls per round."""
    begin = time.perf_counter()
    best, since_better = float("inf"), 0
    for _ in range(_WARMUP_ROUNDS):
        took = _round(call, 1 if best == float("inf") else _repeats(best))
        since_better = 0 if took < 0.98 * best else since_better + 1
        best = min(best, took)
        if since_better >= 3 and time.perf_counter() - begin >= _WARMUP_S:
            break
    return _repeats(best)


def _repeats(call_ms: float) -> int:
    return max(1, round(_ROUND_S * 1e3 / max(call_ms, 1e-4)))
