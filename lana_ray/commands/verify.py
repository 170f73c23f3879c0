"""``lana-ray verify``: does a registered version still do what is registered of it, on this machine?

Everything it needs is in the registry: the version's programs, the first test images with the outputs
recorded for them, the target's settings, and the teacher in the same form.

What is measured is what is deployed: the registered ``model.onnx``, or the registered PyTorch program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lana_ray import registry
from lana_ray.cluster.leases import leased
from lana_ray.config import Budget, Target
from lana_ray.costs.hardware import processor
from lana_ray.costs.timing import Measurement, Reference, middle, time_calls
from lana_ray.errors import UserError
from lana_ray.registry import Version
from lana_ray.registry.verification import Check, Stored, deployed_check, registered_target, student_checks

_SESSIONS = 5  # the median one counts, see costs.timing.middle
_PATIENCE = 6.0  # times the target's own time limit; a measurement that settles ends sooner


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What a version was found to be; latencies in milliseconds per batch."""

    version: Version
    checks: tuple[Check, ...]
    measured: Measurement
    """Of the student; corrected for drift against the teacher unless the hardware is another."""
    teacher_ms: float
    """The teacher's latency that the correction rests on: registered, or of this machine where the
    hardware is another."""
    limit_ms: float

    @property
    def ok(self) -> bool:
        """No check failed."""
        return all(check.ok is not False for check in self.checks)

    @property
    def difference(self) -> float:
        """Measured over registered latency, less one."""
        return self.measured.median_ms / float(self.version.tags["latency_ms"]) - 1


def verify(model_uri: str, *, tracking_uri: str, target: str | None = None) -> Verification:
    """Loads a version back, checks its outputs and accuracy, measures its latency again.

    On the processor it was registered from, latency is corrected by the registered latency of the teacher
    and must keep the registered budget. On another one it is compared with the teacher's latency there (a
    relative budget is one of that), and judged only where ``target`` says that this machine stands for the
    target. As a sampler, it leases as many CPUs as the target has threads, and is kept on them meanwhile.

    Args:
        model_uri: ``models:/NAME/VERSION`` or ``models:/NAME@ALIAS``.
        target: the target this machine serves; the version must be registered for it.

    Raises:
        UserError: no such version, one without what verifying needs or of another target, damaged files, or a
            runtime or device that this machine lacks.
    """
    version = registry.find(model_uri, tracking_uri)
    settings = _settings(version, target)
    with leased(settings.threads, model_uri, f"verify {model_uri}"), _torch_threads_kept():
        here = processor(settings)
        known = here == version.tags["processor"]
        student = Stored(version.model_uri, tracking_uri, settings)
        teacher = Stored(version.teacher_uri, tracking_uri, settings)
        teacher_ms = float(version.tags["teacher_latency_ms"])
        limit_ms = float(version.tags["budget_ms"])
        if not known:
            teacher_ms = middle([_time(teacher, settings) for _ in range(_SESSIONS)]).median_ms
            budget, *_ = version.tags["budget"].split()  # it may go on: "50% on all"
            limit_ms = Budget.parse(budget).limit(teacher_ms)
        sessions = [_time(student, settings, teacher, teacher_ms) for _ in range(_SESSIONS)]
        checks = (
            *student_checks(student),
            deployed_check(
                f"teacher's outputs in {settings.runtime}", teacher.session().predict(teacher.images), teacher
            ),
            _processor_check(version, here),
            _latency_check(sessions, limit_ms, judged=known or target is not None),
        )
    return Verification(
        version=version,
        checks=checks,
        measured=middle(sessions),
        teacher_ms=teacher_ms,
        limit_ms=limit_ms,
    )


def _settings(version: Version, target: str | None) -> Target:
    """The target a version was measured on; UserError where it cannot be measured so here."""
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
        raise UserError(f"{version.model_uri}: has no tags {', '.join(missing)}; register it with lana-ray")
    own = version.tags["target"]
    if target not in (None, own):
        raise UserError(f"{version.model_uri}: is registered for target {own!r}, not for {target!r}")
    settings = registered_target(version)
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"target {own!r}: device {settings.device} is not on this machine; verify it on one it is"
        )
    return settings


def _processor_check(version: Version, here: str) -> Check:
    registered = version.tags["processor"]
    if here == registered:
        return Check("processor", True, here)
    return Check("processor", None, f"this is {here}; what is registered was measured on {registered}")


def _latency_check(sessions: Sequence[Measurement], limit_ms: float, *, judged: bool) -> Check:
    """Kept if the median session keeps the budget, broken if no session does, and open in between."""
    measured = middle(sessions)
    found = sorted(session.median_ms for session in sessions)
    where = "within" if measured.median_ms <= limit_ms else "over"
    detail = (
        f"{measured.median_ms:.4g} ms is {where} the budget of {limit_ms:.4g} ms; "
        f"{len(sessions)} sessions took {found[0]:.4g} to {found[-1]:.4g} ms"
    )
    if not judged:
        return Check("latency", None, f"{detail}, on other hardware; --target judges it all the same")
    if found[0] <= limit_ms < measured.median_ms:
        return Check("latency", None, f"{detail}, so this machine is not quiet enough to tell")
    return Check("latency", measured.median_ms <= limit_ms, detail)


def _time(
    stored: Stored, target: Target, teacher: Stored | None = None, teacher_ms: float = 0
) -> Measurement:
    """One measurement in sessions made for it, at the speed at which the teacher takes ``teacher_ms``."""
    references = [Reference(run=teacher.session().run, baseline_ms=teacher_ms)] if teacher else []
    return time_calls(
        stored.session().run,
        rel_error=target.measure.rel_error,
        time_limit_s=target.measure.time_limit_s * _PATIENCE,
        references=references,
    )


@contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """Undoes at the end what runtimes change."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def render(verification: Verification) -> RenderableType:
    """The verification as tables for a terminal."""
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
    found = (measured.median_ms, verification.teacher_ms, verification.limit_ms)
    clock = (f"{measured.raw_ms:.4g}", f"{verification.teacher_ms * measured.drift:.4g}", "")
    for row in zip(("student", "teacher", "budget"), registered, found, clock, strict=True):
        times.add_row(row[0], f"{row[1]:.4g}", f"{row[2]:.4g}", row[3])
    verdict = Text("verified", "green") if verification.ok else Text("failed", "bold red")
    verdict.append(f": latency {100 * verification.difference:+.1f} % against registered", "default")
    return Group(checks, times, verdict)
