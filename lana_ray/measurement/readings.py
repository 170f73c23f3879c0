"""Meter readings of networks on their targets; each network is read once, and the result is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lana_ray.cluster.fleet import MAX_FAILURES
from lana_ray.cluster.leases import Busy, Waiting, lease
from lana_ray.cluster.tasks import run_on_targets
from lana_ray.config import Config, Target
from lana_ray.costs.registry import metered, unavailable
from lana_ray.errors import Unsupported, UserError, one_line
from lana_ray.ids import QUANTILES, Architecture, latency_cost
from lana_ray.measurement.latencies import Sampled
from lana_ray.monitoring.progress import progress_of, say
from lana_ray.run_dir import layout
from lana_ray.spaces.space import StudentSpace
from lana_ray.workspace import Workspace, structural_students

_WAIT_S = 5.0
"""Seconds to wait for cores before a reading is queued again."""


@dataclass(frozen=True)
class Refusal:
    """Why the exporter or the runtime refuses a network."""

    reason: str


def check_meters(workspace: Workspace, costs: Mapping[str, str]) -> None:
    """Raises UserError if a node of some target cannot read a meter.

    Args:
        costs: name of the meter -> the setting that requires it.
    """
    targets = [(target, cost) for cost in costs for target in workspace.targets]
    asked = [(target, (target, cost)) for target, cost in targets]
    for position, reason, error in run_on_targets(_unavailable, asked, workspace.config):
        if why := error or reason:
            target, cost = targets[position]
            raise UserError(
                "unavailable",
                f"target {target.name!r}: {costs[cost]} cannot be read on its node, because {why}",
            )


def readings(
    workspace: Workspace,
    space: StudentSpace,
    cost: str,
    sampled: Mapping[str, Sampled],
    asked: Mapping[str, Sequence[Architecture]],
    title: str,
) -> dict[str, dict[Architecture, float]]:
    """Reads a meter for networks on their targets; returns the costs of those that could be read, by target.

    Readings are kept in the run directory by target, meter and structure, and so is the reason if the
    exporter or the runtime refuses a network; neither is repeated. A reading that failed ``MAX_FAILURES``
    times for another reason is not kept. Raises UserError if no node serves a target any more.
    """
    storage = workspace.storage
    keys = {name: sampled[name].target_key for name in asked}
    files = {
        name: {a: layout.reading(keys[name], cost, space.network_structure(a)) for a in architectures}
        for name, architectures in asked.items()
    }
    there = {file for key in keys.values() for file in storage.list(layout.readings(key))}
    missing = {
        file: (name, a)
        for name, of_target in files.items()
        for a, file in of_target.items()
        if file not in there or storage.kept(file, _reading) is None
    }
    lost = _read_missing(workspace, space, cost, sampled, missing, title)
    kept = {
        name: {a: lost.get(file) or _reading(storage.read_json(file)) for a, file in of_target.items()}
        for name, of_target in files.items()
    }
    new = Counter(name for name, _ in missing.values())
    for name, of_target in kept.items():
        _tell(f"{title}: {name}: {cost}", list(of_target.values()), new[name])
    return {
        name: {a: reading["value"] for a, reading in of_target.items() if reading["error"] is None}
        for name, of_target in kept.items()
    }


def _read_missing(
    workspace: Workspace,
    space: StudentSpace,
    cost: str,
    sampled: Mapping[str, Sampled],
    missing: Mapping[str, tuple[str, Architecture]],
    title: str,
) -> dict[str, dict[str, Any]]:
    """Takes and writes missing readings; returns those that failed, which are not written, by file.

    Args:
        missing: target and architecture by file.
    """
    config, storage, classes = workspace.config, workspace.storage, workspace.data.num_classes
    calls = [
        (sampled[name].target, (config, sampled[name].target, classes, space.name, cost, a))
        for name, a in missing.values()
    ]
    todo, done = Counter(name for name, _ in missing.values()), Counter[str]()
    order, lost = list(missing.items()), dict[str, dict[str, Any]]()
    with progress_of({f"{title} {cost} {name}": count for name, count in todo.items()}) as show:
        for position, value, error in run_on_cores(_read, calls, config):
            file, (name, architecture) = order[position]
            reading = {"target": name, "what": space.label(architecture), "value": value, "error": error}
            if isinstance(value, Refusal):
                reading |= {"value": None, "error": value.reason}
            if error is None:
                storage.write_json(file, reading)
            else:
                lost[file] = reading
            done[name] += 1
            show(f"{title} {cost} {name}", done[name])
    return lost


def _reading(kept: Any) -> dict[str, Any]:
    return {key: kept[key] for key in ("what", "value", "error")}


def teacher_cost(workspace: Workspace, cost: str, sampled: Sampled) -> float:
    """The teacher's cost on a target, in the cost's unit; raises UserError if it cannot be read."""
    for quantile in QUANTILES:
        if cost == latency_cost(quantile):
            return sampled.teacher.at(quantile)
    name, space = sampled.target.name, workspace.space
    costs = readings(workspace, space, cost, {name: sampled}, {name: [space.teacher]}, "teacher")[name]
    if not costs:
        raise UserError("failed", f"target {name!r}: {cost} of the teacher could not be read")
    return costs[space.teacher]


def _tell(title: str, of_target: Sequence[Mapping[str, Any]], new: int) -> None:
    """Says how many of a target's networks were read, unless all were reused."""
    failed = [reading for reading in of_target if reading["error"] is not None]
    if new or failed:
        notes = [f"{new} read", f"{len(of_target) - new} reused"]
        notes += [f"{len(failed)} failed, {failed[0]['what']} with {failed[0]['error']}"] if failed else []
        say(f"{title}: {', '.join(notes)}")


def _unavailable(target: Target, cost: str) -> str | None:
    """The reason why this node cannot read a meter; None if it can."""
    return unavailable(target, [cost]).get(cost)


def run_on_cores(
    function: Callable[..., Any], calls: Sequence[tuple[Target, tuple[Any, ...]]], config: Config
) -> Iterator[tuple[int, Any, str | None]]:
    """Runs calls as ``run_on_targets`` does, each on leased cores; repeats those that failed.

    Args:
        function: its first two arguments are the configuration and the target.
    """
    waits: dict[str, Waiting] = {}
    failures = Counter[int]()
    left = list(range(len(calls)))
    while left:
        again = []
        asked = [(calls[position][0], (function, *calls[position][1])) for position in left]
        for place, value, error in run_on_targets(_on_cores, asked, config):
            name = calls[left[place]][0].name
            if isinstance(value, Busy):
                waits.setdefault(name, Waiting(f"target {name!r}")).say(value)
                again.append(left[place])
                continue
            failures[left[place]] += error is not None
            if error is not None and failures[left[place]] < MAX_FAILURES:
                again.append(left[place])
            else:
                waits.pop(name, None)
                yield left[place], value, error
        left = again


def _on_cores(function: Callable[..., Any], config: Config, target: Target, *more: Any) -> Any:
    """Calls a function on leased cores of this node; returns their holder if none are free.

    What the exporter or the runtime refuses, they would again, so the refusal is a result.
    """
    own = lease(target.threads, f"target {target.name!r}", config.run.dir, wait_s=_WAIT_S)
    if isinstance(own, Busy):
        return own
    with own.used():
        torch.set_num_threads(target.threads)
        try:
            return function(config, target, *more)
        except Unsupported as error:
            return Refusal(one_line(error))


def _read(
    config: Config, target: Target, num_classes: int, space: str, cost: str, architecture: Architecture
) -> float:
    """Takes one reading."""
    network = structural_students(config, num_classes, space).build(architecture)
    value = metered(network, target, [cost])[cost]
    if value <= 0:
        raise UserError("failed", f"the meter reads {value:g}; relative errors need a positive cost")
    return value
