"""Stage 7: profiles teacher and students on their targets, so that the report shows where their time goes."""

from __future__ import annotations

from collections.abc import Sequence

from lana_ray.config import Config, Target
from lana_ray.costs.profile import profile
from lana_ray.deploy.runtimes import RUNTIMES
from lana_ray.ids import Architecture
from lana_ray.measurement.latencies import Sampled
from lana_ray.measurement.readings import Refusal, run_on_cores
from lana_ray.monitoring.progress import say
from lana_ray.preflight.planned import Planned
from lana_ray.run_dir import layout
from lana_ray.run_dir.code_version import method_version
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.tables import PROFILES, ProfileRow
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.stages.finetune import FinishedStudent
from lana_ray.workspace import Workspace, structural_students

_Networks = dict[str, tuple[Architecture, float]]
"""Architecture and measured milliseconds by the network's name."""


def run(workspace: Workspace, finished: Sequence[FinishedStudent]) -> None:
    """Writes a profile for every target whose runtime has one; unchanged ones are kept."""
    sampled = {student.target.target.name: student.target for student in finished}
    for name, target in sampled.items():
        runtime = RUNTIMES[target.target.runtime]
        if runtime.profile is None:
            say(f"profile: {name}: {runtime.title} has no profile")
            continue
        networks = {"teacher": (workspace.space.teacher, target.teacher_ms)}
        networks |= {
            student.budget: (workspace.space.parse(student.architecture), student.latency.value)
            for student in finished
            if student.target.target.name == name and student.problem is None
        }
        key = fingerprint(target.target_key, networks, method_version("costs.profile"))
        if workspace.storage.table_fingerprint(layout.profile(name)) != key:
            rows, is_whole = _profiled(workspace, target, networks)
            # The next run tries again what failed.
            PROFILES.write(workspace.storage, layout.profile(name), rows, key if is_whole else "")


def _profiled(workspace: Workspace, sampled: Sampled, networks: _Networks) -> tuple[list[ProfileRow], bool]:
    """The rows of the networks, in their order, and whether none failed; a refusal is no failure."""
    rows: dict[str, list[ProfileRow]] = {name: [] for name in networks}
    is_whole = True
    config, target, classes = workspace.config, sampled.target, workspace.data.num_classes
    calls = [(target, (config, target, classes, a)) for a, _ in networks.values()]
    for position, took, error in run_on_cores(_profile, calls, config):
        name, (architecture, measured_ms) = list(networks.items())[position]
        if error is not None or isinstance(took, Refusal):
            is_whole = is_whole and error is None
            say(f"profile: {target.name}: not of {name}: {took.reason if error is None else error}")
            continue
        ops = {one.layer: one.op for one in workspace.space.chosen(architecture)}
        all_ms = sum(took.values())
        rows[name] = [
            ProfileRow(network=name, layer=layer, op=ops.get(layer, ""), ms=ms / all_ms * measured_ms)
            for layer, ms in took.items()
        ]
    return [row for of_network in rows.values() for row in of_network], is_whole


def _profile(config: Config, target: Target, classes: int, architecture: Architecture) -> dict[str, float]:
    """Profiles a network of untrained weights on this node."""
    space = structural_students(config, classes, LayerwiseSpace.name)
    return profile(space.build(architecture), target, [layer.name for layer in space.layers])


def plan(planned: Planned) -> list[str]:
    """The targets whose runtimes have a profile."""
    able = [t.name for t in planned.config.targets if RUNTIMES[t.runtime].profile is not None]
    return [f"the teacher and every student on {', '.join(able)}" if able else "no target has a profile"]
