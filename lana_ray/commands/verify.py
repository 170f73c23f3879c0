"""``lana-ray verify``: checks that a registered version still performs as registered, on this machine.

Everything it needs is in the registry: the version's programs, the first test images with their recorded
outputs, the target's settings, and the teacher in the same form. It measures the deployed program: the
registered ``model.onnx``, or the registered PyTorch program.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lana_ray import registry
from lana_ray.cluster.leases import leased
from lana_ray.config import Config, LatencyBudget, Target
from lana_ray.costs.hardware import processor
from lana_ray.costs.session_process import SessionProcess
from lana_ray.costs.timing import Measurement, Timing, middle
from lana_ray.deploy.inputs import example_input
from lana_ray.errors import UserError
from lana_ray.registry import Version
from lana_ray.registry.verification import (
    Check,
    StoredModel,
    deployed_check,
    registered_target,
    student_checks,
)

_SESSIONS = 5
"""Sessions per measurement, of which the median one counts (``costs.timing.middle``)."""
_PATIENCE = 6.0
"""Time limit as a multiple of the target's own; a measurement that settles ends sooner."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """The results of verifying a version; latencies in milliseconds per batch."""

    version: Version
    checks: tuple[Check, ...]
    measured: Measurement
    """The student's latency; corrected for drift against the teacher on the registered processor."""
    judged_ms: float
    """What the budget bounds: a quantile of the latency, by the clock if the budget is absolute."""
    teacher_ms: float
    """The teacher's latency for the correction: the registered one, or this machine's on other hardware."""
    limit_ms: float

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(check.ok is not False for check in self.checks)

    @property
    def difference(self) -> float:
        """Measured latency divided by registered latency, minus one."""
        return self.measured.median_ms / float(self.version.tags["latency_ms"]) - 1


def verify(
    model_uri: str, *, tracking_uri: str, target: str | None = None, config: Config | None = None
) -> Verification:
    """Loads a version back, checks its outputs and accuracy, and measures its latency again.

    On the processor that it was registered from, latency is corrected by the teacher's registered latency and
    must keep the registered budget. On another processor, latency is compared with the teacher's latency
    there (and a relative budget refers to that latency); it passes or fails only if ``target`` says that this
    machine serves the target. Like a sampler, it leases one CPU per thread of the target and runs on those.

    Args:
        model_uri: ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.
        target: the target that this machine serves; the version must be registered for it.
        config: has the command line of a target with the runtime ``command``; none is read from a registry.

    Raises:
        UserError: no such version, a version of another target or without the necessary tags, damaged files,
            or a runtime or device that this machine lacks.
    """
    version = registry.find(model_uri, tracking_uri)
    settings = _settings(version, target, config)
    with leased(settings.threads, model_uri, f"verify {model_uri}"), ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())  # runtimes change it
        here = processor(settings)
        same = here == version.tags["processor"]
        student = StoredModel(version.model_uri, tracking_uri, settings)
        references = _references(version, tracking_uri, settings)
        teacher, teacher_ms = references[0]
        budget, limit_ms = _budget(version), float(version.tags["budget_ms"])
        if not same:
            here_ms = _sessions(teacher, [], settings)
            teacher_ms = middle(here_ms).median_ms
            references = [(teacher, teacher_ms)]
            limit_ms = budget.limit_ms(float(np.median(_judged(here_ms, budget))), settings.batch_size)
        sessions = _sessions(student, references, settings)
        checks = (
            *student_checks(student),
            deployed_check(
                f"teacher's outputs in {settings.runtime}", teacher.session().predict(teacher.images), teacher
            ),
            _processor_check(version, here),
            _latency_check(_judged(sessions, budget), limit_ms, judge=same or target is not None),
        )
    return Verification(
        version=version,
        checks=checks,
        measured=middle(sessions),
        judged_ms=float(np.median(_judged(sessions, budget))),
        teacher_ms=teacher_ms,
        limit_ms=limit_ms,
    )


def _settings(version: Version, target: str | None, config: Config | None) -> Target:
    """Returns the target for which a version was measured; UserError if it cannot be measured here."""
    needed = (
        "target",
        "target_settings",
        "processor",
        "budget",
        "budget_ms",
        "latency_ms",
        "teacher_latency_ms",
    )
    if missing := [tag for tag in needed if tag not in version.tags]:
        raise UserError(
            "invalid_file",
            f"{version.model_uri}: lacks the tags {', '.join(missing)}; register it with lana-ray",
        )
    own = version.tags["target"]
    if target not in (None, own):
        raise UserError(
            "invalid_setting", f"{version.model_uri}: is registered for target {own!r}, not for {target!r}"
        )
    commands = {each.name: each.command for each in config.targets} if config else {}
    settings = registered_target(version, commands.get(own)).judged_by([_budget(version)])
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            "unavailable",
            f"target {own!r}: device {settings.device} is not available on this machine; verify the model on "
            "a machine that has it",
        )
    return settings


def _budget(version: Version) -> LatencyBudget:
    # The tag may continue after the budget, as in "50% on all".
    return LatencyBudget.parse(version.tags["budget"].split()[0])


def _judged(sessions: Sequence[Measurement], budget: LatencyBudget) -> list[float]:
    """What the budget bounds, of each session."""
    slower = [max(1.0, session.drift) if budget.is_absolute else 1.0 for session in sessions]
    values = [session.at(budget.quantile) for session in sessions]
    return [value * factor for value, factor in zip(values, slower, strict=True)]


def _processor_check(version: Version, here: str) -> Check:
    if here == (registered := version.tags["processor"]):
        return Check("processor", True, here)
    return Check("processor", None, f"this is {here}; the registered latency was measured on {registered}")


def _latency_check(sessions_ms: Sequence[float], limit_ms: float, *, judge: bool) -> Check:
    """Passes if the median session keeps the budget, fails if no session does, and is open in between."""
    median_ms = float(np.median(sessions_ms))
    relation = "within" if median_ms <= limit_ms else "over"
    detail = (
        f"{median_ms:.4g} ms is {relation} the budget of {limit_ms:.4g} ms; "
        f"{len(sessions_ms)} sessions took {min(sessions_ms):.4g} to {max(sessions_ms):.4g} ms"
    )
    if not judge:
        return Check("latency", None, f"{detail}, on other hardware; --target checks it nevertheless")
    if min(sessions_ms) <= limit_ms < median_ms:
        return Check("latency", None, f"{detail}, so this machine is not quiet enough to decide")
    return Check("latency", median_ms <= limit_ms, detail)


def _references(version: Version, tracking_uri: str, target: Target) -> list[tuple[StoredModel, float]]:
    """The models that the student was measured against, the teacher first, with registered latencies, ms."""
    uris = {"teacher": version.teacher_uri, "floor": version.floor_uri}
    return [
        (StoredModel(uri, tracking_uri, target), float(version.tags[f"{name}_latency_ms"]))
        for name, uri in uris.items()
        if uri is not None
    ]


def _sessions(
    stored: StoredModel, references: Sequence[tuple[StoredModel, float]], target: Target
) -> list[Measurement]:
    """Measures a model in sessions like those it was judged by: each in a process of its own."""
    example, measure = example_input(target), target.measure
    programs = [(model.deployed, example) for model, _ in references]
    baselines_ms = [ms for _, ms in references]
    timing = Timing(
        rel_error=measure.rel_error, time_limit_s=measure.time_limit_s * _PATIENCE, calls=measure.calls
    )
    sessions = []
    for _ in range(_SESSIONS):
        with closing(SessionProcess(target, programs, baselines_ms)) as process:
            sessions.append(process.time((stored.deployed, example), timing))
    return sessions


def render(verification: Verification) -> RenderableType:
    """Returns the verification as tables for a terminal."""
    version, measured = verification.version, verification.measured
    checks = Table(title=f"{version.model_uri} for {version.tags['target']}", title_justify="left")
    for heading in ("check", "", "found"):
        checks.add_column(heading, overflow="fold")
    words = {True: Text("ok", "green"), False: Text("failed", "bold red"), None: Text("note", "yellow")}
    for check in verification.checks:
        checks.add_row(Text(check.name), words[check.ok], Text(check.detail))
    times = Table(title="Latency in ms", title_justify="left")
    for heading in ("", "registered", "now, corrected", "now, by the clock"):
        times.add_column(heading, justify="right" if heading else "left")
    registered = [float(version.tags[tag]) for tag in ("latency_ms", "teacher_latency_ms", "budget_ms")]
    corrected = (measured.median_ms, verification.teacher_ms, verification.limit_ms)
    clock = (f"{measured.raw_ms:.4g}", f"{verification.teacher_ms * measured.drift:.4g}", "")
    for row in zip(("student", "teacher", "budget"), registered, corrected, clock, strict=True):
        times.add_row(row[0], f"{row[1]:.4g}", f"{row[2]:.4g}", row[3])
    verdict = Text("verified", "green") if verification.ok else Text("failed", "bold red")
    verdict.append(f": latency {100 * verification.difference:+.1f} % against registered", "default")
    return Group(checks, times, verdict)
