"""Checks that the files of a registered version produce the outputs recorded with them.

These checks run before a version gets an alias, and in ``lana-ray verify``. They cover the deployed program:
the registered ``model.onnx``, or the registered PyTorch program.
"""

from __future__ import annotations

import json
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
from lana_ray.config import CommandConfig, Target
from lana_ray.deploy import runtimes
from lana_ray.deploy.inputs import example_input
from lana_ray.deploy.runtimes import Session
from lana_ray.errors import UserError
from lana_ray.registry import ONNX_FILE, VERIFICATION_FILE, Version

_TOLERANCE = {
    "fp32": {"cpu": 1e-3, "cuda": 1e-2},  # GPUs convolve in TF32
    "fp16": {"cpu": 2e-2, "cuda": 2e-2},  # 11 bits, of which every layer loses some
    "bf16": {"cpu": 1e-1, "cuda": 1e-1},  # 8 bits
}
"""Allowed difference from the outputs in float32, relative to the largest logit."""
_FLIPPED = {"fp32": 0.0, "fp16": 0.01, "bf16": 0.02}
"""Share of images whose class may change."""


class Check(NamedTuple):
    """The result of one check."""

    name: str
    ok: bool | None
    """None if the check only informs."""
    detail: str


def registered_target(version: Version, command: CommandConfig | None = None) -> Target:
    """The target of a version, from its tags.

    Args:
        command: the command line of a target with the runtime ``command``. It is the user's: what a registry
            says must not be run.

    Raises:
        UserError: another version of this package wrote the tags, or the command line is missing.
    """
    try:
        settings = {**json.loads(version.tags["target_settings"]), "command": command}
        if settings.get("runtime") == "command" and command is None:
            raise UserError(
                "invalid_setting",
                f"{version.model_uri}: was measured by a command line, which is not read from a registry; "
                "name the configuration that has it with --config",
            )
        return Target.model_validate(settings)
    except (TypeError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(
            "invalid_file",
            f"{version.model_uri}: its tag target_settings does not fit this version of lana-ray ({reason}); "
            "register it again",
        ) from None


class StoredModel:
    """A registered student or its teacher, with the recorded images, labels and logits."""

    def __init__(self, uri: str, tracking_uri: str, target: Target) -> None:
        self._uri, self._tracking_uri, self.target = uri, tracking_uri, target
        try:
            recorded = safetensors.torch.load(self._read(VERIFICATION_FILE))
        except safetensors.SafetensorError as error:
            raise UserError(
                "damaged_file", f"{uri}: damaged {VERIFICATION_FILE} ({error}); register it again"
            ) from None
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
        """Loads the deployed program into the target's runtime; every call returns a new session."""
        return runtimes.load(self.deployed, example_input(self.target), self.target)


def problem(version: Version, tracking_uri: str, command: CommandConfig | None = None) -> str | None:
    """Loads a version's files and checks its outputs; returns a line with the problem, None if it passes.

    These are the checks of ``verify`` for the student, without its latency. If this machine lacks the
    target's runtime or device, only the PyTorch program is checked.

    Args:
        command: see ``registered_target``.

    Raises:
        UserError: the registry is unreachable.
    """
    try:
        target = registered_target(version, command)
        checks = student_checks(StoredModel(version.model_uri, tracking_uri, target), here=runs_here(target))
        failed = [f"{check.name}: {check.detail}" for check in checks if check.ok is False]
    except (UserError, RuntimeError) as error:  # torch raises RuntimeError for a program that cannot run
        # Raises if the registry itself is unreachable, which is not a problem of the version.
        registry.find(version.model_uri, tracking_uri)
        failed = [" ".join(str(error).split())]
    return "; ".join(failed) or None


def runs_here(target: Target) -> bool:
    """Whether this machine has the target's runtime and device, or what answers in the place of both."""
    lacks_device = target.device != "cpu" and not torch.cuda.is_available()
    answering = "onnxruntime" if runtimes.RUNTIMES[target.runtime].is_remote else target.runtime
    return runtimes.RUNTIMES[answering].missing is None and not lacks_device


def student_checks(student: StoredModel, *, here: bool = True) -> Iterator[Check]:
    """Checks outputs and accuracy; only of the PyTorch program if the deployed one cannot run ``here``."""
    target = student.target
    with torch.inference_mode():
        answers = student.network(student.images)
    yield _outputs_check("outputs of model.pt2", answers, student.logits, _TOLERANCE["fp32"]["cpu"])
    if here:
        answers = student.session().predict(student.images)
        yield deployed_check(f"outputs in {target.runtime}", answers, student)
    count = len(student.labels)
    right, recorded = (_right(logits, student.labels) for logits in (answers, student.logits))
    detail = f"{100 * right / count:.2f} % of {count} test images, recorded {100 * recorded / count:.2f} %"
    yield Check("accuracy", abs(right - recorded) <= ceil(_FLIPPED[target.precision] * count), detail)


def deployed_check(name: str, outputs: Tensor, stored: StoredModel) -> Check:
    """Checks the outputs [n, classes] of a deployed program against the recorded ones."""
    target = stored.target
    allowed = _TOLERANCE[target.precision][torch.device(target.device).type]
    return _outputs_check(name, outputs, stored.logits, allowed)


def _outputs_check(name: str, outputs: Tensor, recorded: Tensor, allowed: float) -> Check:
    error = float((outputs - recorded).abs().max() / recorded.abs().max())
    detail = f"differ from the recorded outputs by {error:.1e} of the largest, allowed {allowed:.0e}"
    # The comparison is false for NaN.
    return Check(name, error <= allowed, detail)


def _right(logits: Tensor, labels: Tensor) -> int:
    """Returns how many images are classified correctly."""
    return int((logits.argmax(1) == labels).sum())
