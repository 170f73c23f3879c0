"""A device for tests: a shell script that says how long a program takes by its size, and can be broken."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lana_ray.config import CommandConfig, Target

_SCRIPT = """#!/bin/sh
cd "$(dirname "$0")"
echo "$1" >> asked
[ -e there ] || { echo "ssh: no route to the device" >&2; exit 255; }
[ "$1" = version ] && { cat firmware; exit; }
[ -e broken ] && { . ./broken; exit; }
[ -e refused ] && grep -q "$(cat refused)" "$1" && { echo "unsupported operator" >&2; exit 1; }
for round in 1 2 3 4 5 6 7 8 9 10; do expr "$(wc -c < "$1")" + 1000; done
"""


@dataclass(frozen=True)
class Device:
    """A device whose programs take a second, and a millisecond for each of their bytes."""

    folder: Path

    def __post_init__(self) -> None:
        script = self.folder / "device.sh"
        script.write_text(_SCRIPT)
        script.chmod(0o755)
        (self.folder / "asked").touch()
        self.returns()
        self.update("board 1, firmware 1.0\n")

    @property
    def command(self) -> CommandConfig:
        script = self.folder / "device.sh"
        return CommandConfig(run=f"{script} {{program}}", version=f"{script} version")

    def target(self, **settings: Any) -> Target:
        fixed = {"name": "board", "runtime": "command", "command": self.command, "input_shape": (3, 16, 16)}
        return Target.model_validate({**fixed, **settings})

    def update(self, printed: str) -> None:
        """Changes what its version is."""
        (self.folder / "firmware").write_text(printed)

    def disappears(self) -> None:
        (self.folder / "there").unlink()

    def returns(self) -> None:
        (self.folder / "there").touch()

    def breaks(self, instead: str) -> None:
        """Has a line of shell run instead of every measurement."""
        (self.folder / "broken").write_text(f"{instead}\n")

    def refuses(self, operator: str) -> None:
        """Has it fail for programs with an ONNX operator."""
        (self.folder / "refused").write_text(operator)

    @property
    def runs(self) -> int:
        """How many programs it has been asked to measure."""
        asked = (self.folder / "asked").read_text().splitlines()
        return sum(line != "version" for line in asked)
