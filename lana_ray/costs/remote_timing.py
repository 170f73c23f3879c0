"""Times networks on devices that time themselves: the runtimes that are remote."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np

from lana_ray.config import Target
from lana_ray.costs.timing import (
    MIN_ROUNDS,
    Call,
    Measurement,
    Pair,
    Reference,
    Timing,
    at_baseline,
    half_width,
    time_calls,
)
from lana_ray.deploy.runtimes import RUNTIMES, Session
from lana_ray.errors import DeviceError, Unsupported

_RUNS = 3
"""Fewest runs of a measurement that settles."""
_TRIES = 2
"""How often a program must fail, each time with a reference that runs after it, until it is refused."""


def time_session(
    session: Session, target: Target, timing: Timing, references: Sequence[Reference] = ()
) -> Measurement:
    """Times a session by this node's clock, or by its device's if the runtime is remote.

    Raises:
        UserError: a remote runtime fails, see ``time_runs``.
    """
    if RUNTIMES[target.runtime].is_remote:
        return time_runs(session.run, target, timing, references)
    return time_calls(session.run, **asdict(timing), references=references)


def time_runs(run: Call, target: Target, timing: Timing, references: Sequence[Reference]) -> Measurement:
    """Times a network by the calls that its device reports, in milliseconds.

    Each run is between two of the references' and is corrected to their baseline. Runs are repeated until
    the confidence interval of the median over runs is narrow enough, since what differs between runs is the
    same for all calls of one; or until the time limit, but for as many calls as ``timing`` demands.

    Raises:
        Unsupported: the network's run failed ``_TRIES`` times, and a reference's did not.
        DeviceError: a reference's run failed too, there is none, or a quantile needs more of the calls.
    """
    begin = time.perf_counter()
    calls: list[float] = []
    corrected: list[float] = []
    runs_ms: list[float] = []
    turns = itertools.cycle(references)
    before = _reference_pair(turns)
    settled, enough, fewest = False, max(MIN_ROUNDS, timing.calls), MIN_ROUNDS
    while len(calls) < max(1, timing.calls) or not (
        settled or time.perf_counter() - begin >= timing.time_limit_s
    ):
        took = _calls_ms(run, references)
        fewest = min(fewest, len(took))
        if timing.calls and fewest < MIN_ROUNDS:
            raise DeviceError(
                "invalid_setting",
                f"target {target.name!r}: a budget on p90 or p99 needs every call's milliseconds, but "
                f"command.run printed {len(took)} numbers; print a line per call, at least {MIN_ROUNDS}",
            )
        after = _reference_pair(turns)
        own = [at_baseline(each, before, after) if before and after else each for each in took]
        calls += took
        corrected += own
        runs_ms.append(float(np.median(own)))
        before = after
        settled = len(calls) >= enough and len(runs_ms) >= _RUNS and half_width(runs_ms) <= timing.rel_error
    raw_ms = float(np.median(calls))
    low, median_ms, high = np.percentile(corrected, (25, 50, 75)).tolist()
    # Means of several calls tell nothing of single ones.
    is_each = fewest == MIN_ROUNDS
    p90_ms, p99_ms = np.percentile(corrected, (90, 99)).tolist() if is_each else (math.nan, math.nan)
    return Measurement(
        median_ms=median_ms,
        p90_ms=p90_ms,
        p99_ms=p99_ms,
        iqr_ms=high - low,
        repeats=len(calls),
        seconds=time.perf_counter() - begin,
        settled=settled,
        raw_ms=raw_ms,
        drift=raw_ms / median_ms,
    )


def _reference_pair(turns: Iterator[Reference]) -> Pair | None:
    """Runs the next reference; returns None without references."""
    for reference in turns:
        return reference.baseline_ms, float(np.median(_numbers(reference.run)))
    return None


def _calls_ms(run: Call, references: Sequence[Reference]) -> list[float]:
    """Runs a network; tells a device that is away from a program that it cannot run."""
    for attempt in range(_TRIES):
        try:
            return _numbers(run)
        except DeviceError as error:
            if not references:
                raise
            reason = str(error)
        references[attempt % len(references)].run()
    raise Unsupported("refused", reason)


def _numbers(run: Call) -> list[float]:
    return [float(each) for each in np.asarray(run(), dtype=np.float64)]
