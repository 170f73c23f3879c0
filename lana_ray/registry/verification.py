"""Whether a registered version's files answer as was recorded with them.

That is asked before it gets an alias, and by ``lana-ray verify``.

What is looked at is what is deployed: the registered ``model.onnx``, or the registered PyTorch program.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from lana_ray import registry
from lana_ray.config import Target
from lana_ray.deploy import runtimes
from lana_ray.deploy.inputs import example_input
from lana_ray.deploy.runtimes import Session
from lana_ray.errors import UserError
from lana_ray.registry import ONNX_FILE, VERIFICATION_FILE, Version

_TOLERANCE = {  # of the largest logit, against the outputs in float32
    "fp32": {"cpu": 1e-3, "cuda": 1e-2},  # GPUs convolve in TF32
    "fp16": {"cpu": 2e-2, "cuda": 2e-2},  # of 11 bits, some lost in every layer
    "bf16": {"cpu": 1e-1, "cuda": 1e-1},  # of 8 bits
}
_FLIPPED = {"fp32": 0.0, "fp16": 0.01, "bf16": 0.02}  # share of the images whose class may change


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    ok: bool | None
    """None: no verdict, only something to know."""
    detail: str


def registered_target(version: Version) -> Target:
    try:
        return Target.model_validate_json(version.tags["target_settings"])
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UserError(
            f"{version.model_uri}: tag target_settings is not of this lana-ray ({reason}); register it again"
        ) from None


class Stored:
    """A registered model, the student's or the teacher's, with what was recorded for it."""

    def __init__(self, uri: str, tracking_uri: str, target: Target) -> None:
        self._uri, self._tracking_uri, self.target = uri, tracking_uri, target
        try:
            recorded = safetensors.torch.load(self._read(VERIFICATION_FILE))
        except safetensors.SafetensorError as error:
            raise UserError(f"{uri}: damaged {VERIFICATION_FILE} ({error}); register it again") from None
        self.images, self.labels, self.logits = (recorded[key] for key in ("images", "labels", "logits"))

    def _read(self, file: str) -> bytes:
        with tempfile.TemporaryDirectory() as scratch:
            return registry.download(self._uri, file, Path(scratch), self._tracking_uri).read_bytes()

    @cached_property
    def network(self) -> nn.Module:
        """The PyTorch program."""
        return registry.load(self._uri, self._tracking_uri)

    @cached_property
    def deployed(self) -> nn.Module | bytes:
        """The program that the target's runtime runs."""
        return self._read(ONNX_FILE) if runtimes.RUNTIMES[self.target.runtime].loads_onnx else self.network

    def session(self) -> Session:
        """What is deployed, loaded anew into the target's runtime."""
        return runtimes.load(self.deployed, example_input(self.target), self.target)


def problem(version: Version, tracking_uri: str) -> str | None:
    """What is wrong with a version's files, in a line: they are loaded back and must answer as recorded.

    The same checks as ``verify``, of the student alone and without its latency. Where this machine lacks the
    target's runtime or device, only the PyTorch program is checked.

    Raises:
        UserError: registry unreachable.
    """
    try:
        target = registered_target(version)
        checks = student_checks(Stored(version.model_uri, tracking_uri, target), here=runs_here(target))
        failed = [f"{check.name}: {check.detail}" for check in checks if check.ok is False]
    except (UserError, RuntimeError) as error:  # the latter is torch's, of what cannot be run
        registry.find(version.model_uri, tracking_uri)  # else nobody knows what is wrong with it
        failed = [" ".join(str(error).split())]
    return "; ".join(failed) or None


def runs_here(target: Target) -> bool:
    """Whether this machine has the target's runtime and device."""
    lacks_device = target.device != "cpu" and not torch.cuda.is_available()
    return runtimes.RUNTIMES[target.runtime].missing is None and not lacks_device


def student_checks(student: Stored, *, here: bool = True) -> Iterator[Check]:
    """Outputs and accuracy of a student; of its PyTorch program alone unless it can be deployed ``here``."""
    target = student.target
    with torch.inference_mode():
        answers = student.network(student.images)
    yield _outputs_check("outputs of model.pt2", answers, student.logits, _TOLERANCE["fp32"]["cpu"])
    if here:
        answers = student.session().predict(student.images)
        yield deployed_check(f"outputs in {target.runtime}", answers, student)
    count = len(student.labels)
    found, recorded = (_right(logits, student.labels) for logits in (answers, student.logits))
    detail = f"{100 * found / count:.2f} % of {count} test images, recorded {100 * recorded / count:.2f} %"
    yield Check("accuracy", abs(found - recorded) <= ceil(_FLIPPED[target.precision] * count), detail)


def deployed_check(name: str, found: Tensor, stored: Stored) -> Check:
    target = stored.target
    allowed = _TOLERANCE[target.precision][torch.device(target.device).type]
    return _outputs_check(name, found, stored.logits, allowed)


def _outputs_check(name: str, found: Tensor, recorded: Tensor, allowed: float) -> Check:
    error = float((found - recorded).abs().max() / recorded.abs().max())
    detail = f"differ from the recorded by {error:.1e} of the largest, allowed {allowed:.0e}"
    return Check(name, error <= allowed, detail)  # false for NaN


def _right(logits: Tensor, labels: Tensor) -> int:
    """How many images are classified as they are labelled."""
    return int((logits.argmax(1) == labels).sum())
