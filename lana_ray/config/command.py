"""Defines a target's ``command`` block: how a device without Python measures a network."""

from __future__ import annotations

import shlex

from pydantic import Field, field_validator

from lana_ray.config.section import Seconds, Section, refusal

PROGRAM = "{program}"
"""Stands for the path of the network's file in ``run``."""


class CommandConfig(Section):
    """Command lines that reach a device without Python, for the runtime ``command``.

    They run on the target's node. They are split into words as by a shell, but no shell runs them: a pipe
    needs ``sh -c '...'``.
    """

    run: str = Field(examples=["ssh board bench {program}"])
    """Measures a network and prints the milliseconds of each call of a batch, a number a line. One line with
    the mean of several calls will do unless a budget is on p90 or p99. ``{program}`` becomes the path of the
    network's ONNX file."""
    version: str = Field(examples=["ssh board cat /etc/version"])
    """Prints one line that names the device and its software. Only measurements under equal lines are
    comparable."""
    timeout_s: Seconds = Field(default=60.0, gt=0, le=300)
    """Time limit in seconds for each call of ``run`` and ``version``, which is killed then with all that it
    started."""

    @field_validator("run", "version")
    @classmethod
    def _check_words(cls, line: str) -> str:
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise refusal(f"{line} cannot be split into words: {error}; close its quotes") from None
        if not words[0]:
            raise refusal(f"{line} has no program; begin with its name")
        return line

    @field_validator("run")
    @classmethod
    def _check_program(cls, line: str) -> str:
        if PROGRAM not in line:
            raise refusal(f"{line} does not say where the network's file goes; add {PROGRAM}")
        return line
