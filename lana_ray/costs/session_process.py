"""A process of its own for the sessions of a target's networks.

How a program lies in memory differs from process to process, and changes its latency by 2 to 5 % where the
sessions of one process agree. So networks that are judged by a budget are timed in several processes.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO, Any

import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.costs.remote_timing import time_session
from lana_ray.costs.timing import Measurement, Reference, Timing, soak
from lana_ray.deploy.program import portable
from lana_ray.deploy.runtimes import load
from lana_ray.errors import UserError, one_line

Program = tuple[nn.Module | bytes, Tensor]
"""A result of ``runtimes.program``, and an example of its input."""
_PR_SET_PDEATHSIG = 1
_LENGTH = struct.Struct("<Q")


class SessionProcess:
    """A process that loads and times programs; ends with ``close``, or with the process that started it.

    It runs on the CPUs that this process is pinned to.

    Args:
        references: the programs that measure drift.
        baselines_ms: their latencies.

    Raises:
        UserError: this machine cannot run the references.
        RuntimeError: the process died.
    """

    def __init__(self, target: Target, references: Sequence[Program], baselines_ms: Sequence[float]) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # as a Ray worker has it
            "OMP_NUM_THREADS": str(target.threads),
        }
        command = [sys.executable, "-c", f"from {__name__} import main; main()"]
        # A pipe that nobody reads would block the process; the file is closed with it.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )
        known = [(portable(program), example) for program, example in references]
        answer = self._ask((target, known, list(baselines_ms)))
        if answer is not None:
            self.close()
            raise answer

    @property
    def pid(self) -> int:
        return self._process.pid

    def time(self, program: Program, timing: Timing) -> Measurement:
        """Times one session of a program.

        Raises:
            Unsupported: the runtime refuses the program.
            DeviceError: its device is away.
            RuntimeError: the process died, or cannot measure.
        """
        deployed, example = program
        answer = self._ask((portable(deployed), example, timing))
        if isinstance(answer, Measurement):
            return answer
        raise answer

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _ask(self, message: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _send(self._process.stdin, message)
            return _receive(self._process.stdout)
        except (EOFError, BrokenPipeError):
            status = self._process.wait()
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            last = lines[-1] if lines else "no message"
            raise RuntimeError(f"a session's process ended with status {status}: {last}") from None


def main() -> None:
    """Answers the messages of ``SessionProcess`` until its pipe is closed."""
    _end_with_parent()
    # Runtimes print to standard output, which carries the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    requests = sys.stdin.buffer
    target, programs, baselines_ms = _receive(requests)
    torch.set_num_threads(target.threads)
    try:
        sessions = [load(program, example, target) for program, example in programs]
        if sessions:
            soak(sessions[0].run, target.measure.soak_s)
    except UserError as error:
        _send(answers, error)
        return
    references = [
        Reference(run=session.run, baseline_ms=baseline_ms)
        for session, baseline_ms in zip(sessions, baselines_ms, strict=True)
    ]
    _send(answers, None)
    while True:
        try:
            program, example, timing = _receive(requests)
        except EOFError:
            return
        _send(answers, _timed(program, example, timing, target, references))


def _end_with_parent() -> None:
    """Has Linux end this process with the one that started it, even in the middle of a session."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _timed(
    program: nn.Module | bytes,
    example: Tensor,
    timing: Timing,
    target: Target,
    references: Sequence[Reference],
) -> Measurement | Exception:
    try:
        session = load(program, example, target)
        return time_session(session, target, timing, references)
    except UserError as error:
        return error
    except Exception as error:
        return RuntimeError(f"{type(error).__name__}: {one_line(error)}")


def _send(stream: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    """The next message, which our own parent or child process pickled; EOFError if there is none."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    return pickle.loads(stream.read(*_LENGTH.unpack(head)))
