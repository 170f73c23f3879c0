"""How long a call takes on a machine that is never quite still."""

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
"""Rounds below which a confidence interval of the median means nothing."""
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
    """Timed inferences that the median rests on."""
    seconds: float
    """How long all that took: warm-up and timed inferences, the reference's among them."""
    settled: bool
    """The 95 % confidence interval of the median became narrow enough within the time limit."""
    raw_ms: float
    """The median as the clock gave it."""
    drift: float
    """How much slower the reference ran beside this measurement than its baseline; 1 without one."""


M = TypeVar("M", bound=Measurement)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A network that is timed beside others, to tell how fast the machine is at that moment."""

    run: Call
    baseline_ms: float
    """What a call takes when the machine is as fast as all latencies are expressed at."""


def time_calls(
    call: Call,
    *,
    rel_error: float = 0.01,
    time_limit_s: float = 0.5,
    references: Sequence[Reference] = (),
) -> Measurement:
    """Times ``call`` until the median is known well enough.

    After a warm-up that ends once a round is no faster than those before it, rounds of about 2 ms are timed,
    each after half as many calls that are not. A round in which the system took the CPU away from this
    process (its count of involuntary context switches rose) is rejected, as long as enough others remain.
    With references, every round of the call stands between two of theirs and is expressed at their baseline,
    see ``_at_baseline``: whatever slows the machine slows all of them.

    Two references are better than one. What slows a machine slows a small network and a large one unequally:
    beside the teacher alone, students of a quarter to a half of its latency were measured again within 3.2 %
    in the median and 11 % at the 90th percentile, beside the teacher and a small network in turn within 1.1
    and 4.3 %, in as many rounds (EfficientNet-Lite0 at 32 pixels, ONNX Runtime, 0.5 s, on a shared virtual
    machine; operator by operator in PyTorch it makes no difference: 1.6 and 5.5 %).

    How long a round is decides between two errors. The first calls after the other network find its weights
    in the caches: a student that takes 0.27 of its teacher when timed by itself takes 0.34 in rounds of one
    call, 0.32 with one untimed call before, 0.27 in rounds like these. The longer they are, the more the
    machine may change between neighbours: on a shared virtual machine whose speed wandered by 5 to 18 % from
    one half second to the next, the median ratio repeated within 2.4 to 2.8 % in rounds of 1 ms and within
    4.4 % in rounds of 4 ms.

    On a GPU the clock runs from the launch until the device is synchronised, which is what a caller waits
    for; CUDA's events would leave the launches out, which are most of a small network.

    Args:
        call: one inference; must be finished when it returns.
        rel_error: half-width of the median's 95 % confidence interval (notch rule, 1.57·IQR/√n, McGill et
            al. 1978), relative to the median, at which to stop.
        time_limit_s: when to stop in any case; at least ``MIN_ROUNDS`` rounds are made.
        references: none, one, or a small and a large one.
    """
    begin = time.perf_counter()
    per_round = _warm_up(call)
    rounds: list[float] = []  # milliseconds per call
    corrected: list[float] = []  # the same at the references' baseline
    disturbed: list[bool] = []
    turns = itertools.cycle(references)
    before = _beside(turns)
    deadline = time.perf_counter() + time_limit_s
    settled = False
    while not settled and (len(rounds) < MIN_ROUNDS or time.perf_counter() < deadline):
        switches = _involuntary_switches()
        took = _round(call, per_round)
        after = _beside(turns)
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


_Beside = tuple[float, float]
"""What a reference took in a round beside a call, after its baseline."""


def _beside(turns: Iterator[Reference]) -> _Beside | None:
    """A round of the reference whose turn it is."""
    reference = next(turns, None)
    if reference is None:
        return None
    return reference.baseline_ms, _round(reference.run, _repeats(reference.baseline_ms))


def _at_baseline(took_ms: float, before: _Beside, after: _Beside) -> float:
    """What a call would have taken at the baseline of the references in the rounds before and after it.

    Between two references linearly, below the smaller and above the larger in proportion to it.
    """
    (small, small_ms), (large, large_ms) = sorted((before, after))
    if small == large:
        return took_ms * small * 2 / (small_ms + large_ms)
    if took_ms <= small_ms:
        return took_ms * small / small_ms
    if took_ms >= large_ms:
        return took_ms * large / large_ms
    return small + (took_ms - small_ms) / (large_ms - small_ms) * (large - small)


def middle(sessions: Sequence[M]) -> M:
    """One measurement from several of the same network, each in a session of its own.

    Where a session's memory lies, and who shares the caches with it in those seconds, changes what a call
    takes more than the rounds of one session show, however many: on a shared virtual machine, 2 to 5 % from
    session to session (EfficientNet-Lite0 at 64 and 32 pixels against its teacher), as much after 5 s as
    after half a second. So it is the median session that counts, and it has settled if all have.
    """
    chosen = sorted(sessions, key=lambda session: session.median_ms)[(len(sessions) - 1) // 2]
    return dataclasses.replace(
        chosen,
        repeats=sum(session.repeats for session in sessions),
        seconds=sum(session.seconds for session in sessions),
        settled=all(session.settled for session in sessions),
    )


def spread(networks: Iterable[Sequence[float]]) -> tuple[float, int]:
    """How much sessions of one network differ: relative standard deviation, pooled over networks.

    Args:
        networks: medians of the sessions of each, in any unit.

    Returns:
        The deviation, and its degrees of freedom: as many as there are sessions beyond each network's first.
    """
    arrays = [np.asarray(sessions) for sessions in networks]
    freedom = sum(len(sessions) - 1 for sessions in arrays)
    squares = sum(float(np.square(x / x.mean() - 1).sum()) for x in arrays)
    return (float(np.sqrt(squares / freedom)) if freedom else 0.0), freedom


def _quiet(disturbed: list[bool]) -> NDArray[np.int64]:
    """Rounds that neither they nor the reference before them were interrupted in."""
    flags = np.asarray(disturbed)
    return np.flatnonzero(~flags & ~np.concatenate([[False], flags[:-1]]))


def _involuntary_switches() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _half_width(values: NDArray[np.float64]) -> float:
    low, median, high = np.percentile(values, (25, 50, 75))
    return float(1.57 * (high - low) / np.sqrt(len(values)) / max(median, 1e-12))


def _round(call: Call, repeats: int) -> float:
    """Milliseconds per call over ``repeats`` calls, after half as many that are not timed."""
    for _ in range((repeats + 1) // 2):
        call()
    start = time.perf_counter_ns()
    for _ in range(repeats):
        call()
    return (time.perf_counter_ns() - start) / repeats / 1e6


def _warm_up(call: Call) -> int:
    """Runs until three rounds in a row are no faster than the best before; calls per round afterwards."""
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
