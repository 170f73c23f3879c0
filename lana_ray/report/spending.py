"""Time and cost of every stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lana_ray.run_dir.hours import Invocation, StageTime


@dataclass(frozen=True, kw_only=True)
class Row:
    """The sum of a stage over all invocations."""

    stage: str
    seconds: float
    share: float
    """Share of the seconds of all stages."""
    last: float | None
    """Seconds in the last invocation; None if it did not reach this stage."""
    node_hours: float
    cost: float | None


@dataclass(frozen=True, kw_only=True)
class Spending:
    rows: list[Row]
    total: Row
    invocations: int
    killed: list[str]
    """The stages in which earlier invocations were killed."""
    price: float | None


def spending(invocations: Sequence[Invocation], price: float | None) -> Spending | None:
    """Sums up the stages of all invocations, at a price per node-hour; None if nothing was recorded."""
    if not invocations:
        return None
    last = invocations[-1].stages
    names = dict.fromkeys(name for one in invocations for name in one.stages)
    spent = {name: _sum([one.stages[name] for one in invocations if name in one.stages]) for name in names}
    total = _sum(list(spent.values()))
    return Spending(
        rows=[_row(name, spent[name], total, last.get(name), price) for name in names],
        total=_row("all", total, total, _sum(list(last.values())), price),
        invocations=len(invocations),
        killed=[one.running for one in invocations[:-1] if one.running is not None],
        price=price,
    )


def _sum(parts: Sequence[StageTime]) -> StageTime:
    return StageTime(
        seconds=sum(part.seconds for part in parts), node_seconds=sum(part.node_seconds for part in parts)
    )


def _row(stage: str, spent: StageTime, total: StageTime, last: StageTime | None, price: float | None) -> Row:
    node_hours = spent.node_seconds / 3600
    return Row(
        stage=stage,
        seconds=spent.seconds,
        share=spent.seconds / total.seconds if total.seconds else 0.0,
        last=None if last is None else last.seconds,
        node_hours=node_hours,
        cost=None if price is None else price * node_hours,
    )
