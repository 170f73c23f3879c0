"""What networks cost on their targets by a meter other than the clock: read there once, and kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lana_ray.cluster.fleet import MAX_FAILURES
from lana_ray.cluster.leases import Busy, Waiting, lease
from lana_ray.cluster.tasks import run_on_targets
from lana_ray.config import Config, Target
from lana_ray.costs.registry import metered, unavailable
from lana_ray.errors import Unsupported, UserError, one_line
from lana_ray.monitoring.progress import progress_of, say
from lana_ray.spaces.space import Architecture, StudentSpace
from lana_ray.stages.fit import MIN_NETWORKS
from lana_ray.stages.sample import Sampled
from lana_ray.workspace import Workspace, structural_students

FOLDER = "metered"
_WAIT_S = 5.0
"""For cores, before a reading gives way to others and is asked for again."""


@dataclass(frozen=True)
class _Refusal:
    """Why the exporter or the runtime refuses a network."""

    reason: str


def check(workspace: Workspace) -> None:
    """Refuses a search for a cost that cannot be learnt; the nodes of the targets are asked.

    Raises:
        UserError: naming the first target whose node cannot read the meter, or where too few students would
            be metered for a predictor.
    """
    settings, targets = workspace.config.search, workspace.targets
    if not settings.metered:
        return  # samplers say themselves what they cannot do
    for target in targets:
        if settings.cells is None and target.measure.architectures < MIN_NETWORKS:
            raise UserError(
                f"target {target.name!r}: a predictor of search.cost {settings.cost} needs {MIN_NETWORKS} "
                f"students; raise measure.architectures, which is {target.measure.architectures}"
            )
    asked = [(target, (target, settings.cost)) for target in targets]
    for position, reason, error in run_on_targets(_unavailable, asked, workspace.config):
        if why := error or reason:
            raise UserError(
                f"target {targets[position].name!r}: search.cost {settings.cost} is not available on its "
                f"node, because {why}"
            )


def readings(
    workspace: Workspace,
    space: StudentSpace,
    sampled: Mapping[str, Sampled],
    asked: Mapping[str, Sequence[Architecture]],
    title: str,
) -> dict[str, dict[Architecture, float]]:
    """Reads the meter of ``search.cost`` for networks on their targets; the cost of those that could be read.

    Each reading is a file of the run directory as soon as it is there, by target, meter and structure, and
    never taken again; so is the reason if the exporter or the runtime refuses a network. What failed
    otherwise, ``MAX_FAILURES`` times, is not kept.

    Args:
        asked: by target.

    Raises:
        UserError: when no node serves a target any more.
    """
    config, storage, cost = workspace.config, workspace.storage, workspace.config.search.cost
    folders = {name: f"{FOLDER}/{sampled[name].target_key}" for name in asked}
    files = {
        name: {a: f"{folders[name]}/{cost}-{space.network_structure(a)}.json" for a in architectures}
        for name, architectures in asked.items()
    }
    there = {file for folder in folders.values() for file in storage.list(folder)}
    missing = {
        file: (name, a)
        for name, mine in files.items()
        for a, file in mine.items()
        if file not in there or storage.kept(file, _reading) is None
    }
    classes = workspace.data.num_classes
    calls = [
        (sampled[name].target, (config, classes, space.name, sampled[name].target, a))
        for name, a in missing.values()
    ]
    todo, done = Counter(name for name, _ in missing.values()), Counter[str]()
    order, lost = list(missing.items()), dict[str, dict[str, Any]]()
    with progress_of({f"{title} {cost} {name}": count for name, count in todo.items()}) as show:
        for position, value, error in _read_all(calls, config):
            file, (name, architecture) = order[position]
            reading = {"target": name, "what": space.label(architecture), "value": value, "error": error}
            if isinstance(value, _Refusal):
                reading |= {"value": None, "error": value.reason}
            if error is None:
                storage.write_json(file, reading)
            else:
                lost[file] = reading
            done[name] += 1
            show(f"{title} {cost} {name}", done[name])
    kept = {
        name: {a: lost.get(file) or _reading(storage.read_json(file)) for a, file in mine.items()}
        for name, mine in files.items()
    }
    for name, mine in kept.items():
        _tell(f"{title}: {name}: {cost}", list(mine.values()), done[name])
    return {
        name: {a: reading["value"] for a, reading in mine.items() if reading["error"] is None}
        for name, mine in kept.items()
    }


def _reading(kept: Any) -> dict[str, Any]:
    return {key: kept[key] for key in ("what", "value", "error")}


def teacher_cost(workspace: Workspace, sampled: Sampled) -> float:
    """What the teacher costs on a target, in the unit of ``search.cost``.

    Raises:
        UserError: where it could not be read.
    """
    if not workspace.config.search.metered:
        return sampled.teacher_ms
    name, space = sampled.target.name, workspace.space
    found = readings(workspace, space, {name: sampled}, {name: [space.teacher]}, "teacher")[name]
    if not found:
        raise UserError(f"target {name!r}: {workspace.config.search.cost} of the teacher could not be read")
    return found[space.teacher]


def _tell(title: str, of_target: Sequence[Mapping[str, Any]], new: int) -> None:
    """Says what came of a target's networks, unless all of it is known."""
    failed = [reading for reading in of_target if reading["error"] is not None]
    if new or failed:
        notes = [f"{new} read", f"{len(of_target) - new} reused"]
        notes += [f"{len(failed)} failed, {failed[0]['what']} with {failed[0]['error']}"] if failed else []
        say(f"{title}: {', '.join(notes)}")


def _unavailable(target: Target, cost: str) -> str | None:
    """Why this node cannot read a meter."""
    return unavailable(target, [cost]).get(cost)


def _read_all(
    calls: Sequence[tuple[Target, tuple[Any, ...]]], config: Config
) -> Iterator[tuple[int, Any, str | None]]:
    """As ``run_on_targets``; readings that failed, or for which no cores were free, are asked for again.

    Raises:
        UserError: as ``Waiting.say``.
    """
    waits: dict[str, Waiting] = {}
    failures = Counter[int]()
    left = list(range(len(calls)))
    while left:
        again = []
        for place, value, error in run_on_targets(_read, [calls[position] for position in left], config):
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


def _read(
    config: Config, num_classes: int, space: str, target: Target, architecture: Architecture
) -> float | Busy | _Refusal:
    """One reading, on a node of the target and on cores that it leases; who holds them if none are free."""
    own = lease(target.threads, f"target {target.name!r}", config.run.dir, wait_s=_WAIT_S)
    if isinstance(own, Busy):
        return own
    with own.used():
        torch.set_num_threads(target.threads)
        network, cost = (
            structural_students(config, num_classes, space).build(architecture),
            config.search.cost,
        )
        try:
            value = metered(network, target, [cost])[cost]
        except Unsupported as error:
            return _Refusal(one_line(error))
    if value <= 0:
        raise UserError(f"the meter reads {value:g}; relative errors need a positive cost")
    return value
