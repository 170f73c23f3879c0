"""Devices without Python: the user's command line measures an ONNX program there, e.g. over ssh or adb.

What the command prints counts, not the time that it takes.
"""

from __future__ import annotations

import math
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cached_property
from typing import IO

from torch import Tensor

from lana_ray.config import CommandConfig, Target
from lana_ray.config.command import PROGRAM
from lana_ray.deploy.runtimes import onnxruntime
from lana_ray.deploy.runtimes.runtime import Runtime, Session, typed_onnx
from lana_ray.errors import DeviceError, UserError, one_line, refusals

_READ_BYTES = 1 << 20
"""The longest output of a command."""
_QUOTED = 80
"""Most characters of an output that a message repeats."""
_BOUND = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"
"""Has Linux kill it with the process that started it (PR_SET_PDEATHSIG), then becomes the command."""


class CommandSession:
    """An ONNX program that a device measures, as often as it is run."""

    def __init__(self, program: bytes, example: Tensor, target: Target) -> None:
        self._program, self._example, self._target = program, example, target

    def run(self) -> list[float]:
        """Returns the milliseconds of each call, or of each mean of several, as printed."""
        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            file.write(self._program)
            file.flush()
            lines = _lines(self._target, "run", program=file.name)
        if not lines:
            raise _failure(self._target, "run", "printed nothing instead of milliseconds per call")
        return [self._milliseconds(line) for line in lines]

    def _milliseconds(self, line: str) -> float:
        try:
            number = float(line)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise _failure(
                self._target, "run", f"printed {line[:_QUOTED]!r} instead of milliseconds per call"
            )
        return number

    def predict(self, images: Tensor) -> Tensor:
        """Runs the same program in ONNX Runtime on this node, since a command returns no outputs."""
        return self._here.predict(images)

    @cached_property
    def _here(self) -> Session:
        if fix := onnxruntime.RUNTIME.missing:
            raise UserError(
                "unavailable", f"target {self._target.name!r}: predictions need ONNX Runtime; {fix}"
            )
        with refusals(f"target {self._target.name!r}: {onnxruntime.RUNTIME.title}"):
            return onnxruntime.RUNTIME.load(self._program, self._example, self._target)


def load(program: bytes, example: Tensor, target: Target) -> CommandSession:
    return CommandSession(program, example, target)


def identity(target: Target) -> str:
    """Returns the line that the command ``version`` prints; raises DeviceError if it fails."""
    lines = _lines(target, "version")
    if len(lines) != 1 or not lines[0].isprintable():
        raise _failure(target, "version", f"printed {len(lines)} lines instead of one of plain text")
    return lines[0]


def _lines(target: Target, key: str, program: str = "") -> list[str]:
    """Runs a command line of the target and returns what it printed, without blank lines and ends of lines.

    Raises:
        DeviceError: it fails or hangs.
        UserError: this node does not have its program.
    """
    command = _command(target)
    words = [word.replace(PROGRAM, program) for word in shlex.split(getattr(command, key))]
    if shutil.which(words[0]) is None:
        raise UserError(
            "unavailable",
            f"target {target.name!r}: command.{key}: {words[0]} is not a program on node {platform.node()}; "
            "install it there or give its path",
        )
    # A process that the command leaves behind, such as a shared connection of ssh, would keep a pipe open.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        status = _status(words, output, errors, command.timeout_s)
        if status is None:
            raise _failure(target, key, f"did not end within {command.timeout_s:g} s")
        if status:
            last = ["no message", *_last_lines(errors)][-1]
            raise _failure(target, key, f"ended with status {status} ({one_line(last)})")
        if output.seek(0, os.SEEK_END) > _READ_BYTES:
            raise _failure(target, key, f"printed more than {_READ_BYTES >> 20} MiB")
        return _last_lines(output)


def _status(words: Sequence[str], output: IO[bytes], errors: IO[bytes], timeout_s: float) -> int | None:
    """Runs a command to its end and returns its exit status; None if it was killed at the time limit."""
    bound = [sys.executable, "-I", "-S", "-c", _BOUND] if sys.platform == "linux" else []
    process = subprocess.Popen(
        [*bound, *words], stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
    )
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _last_lines(file: IO[bytes]) -> list[str]:
    """The lines of the last ``_READ_BYTES`` of a file, without blank ones."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - _READ_BYTES))
    lines = file.read().decode(errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _failure(target: Target, key: str, what: str) -> DeviceError:
    line = getattr(_command(target), key)
    return DeviceError(
        "failed", f"target {target.name!r}: command.{key} {what}; try it on node {platform.node()}: {line}"
    )


def _command(target: Target) -> CommandConfig:
    assert target.command is not None, "the configuration requires it"
    return target.command


RUNTIME = Runtime(
    name="command",
    title="a command line",
    packages=(),
    extra="onnx",
    precisions={"cpu": ("fp32",)},
    loads_onnx=True,
    program=typed_onnx,
    load=load,
    identity=identity,
)
