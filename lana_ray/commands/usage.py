"""What is wrong with a command line, in one line."""

from __future__ import annotations

import difflib
import sys
from typing import Any

import typer

UsageError: type[Any] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")
"""What typer raises for a wrong option, argument or command: click's class, or typer's own copy of it."""


def explain(error: Any) -> str:
    """The command, what was given, and the nearest option or command."""
    context = error.ctx
    command = context.command_path if context else " ".join(("lana-ray", *sys.argv[1:2]))
    words = [option for parameter in context.command.params for option in parameter.opts] if context else []
    names = list(getattr(context.command, "commands", {})) if context else []
    if hasattr(error, "possibilities"):
        what, meant = f"no option {error.option_name}", _nearest(error.option_name, [*words, "--help"])
    elif names and error.message.startswith("No such command"):
        given = error.message.split("'")[1]
        what, meant = f"no command {given}", _nearest(given, names)
    else:
        text = " ".join(error.format_message().split()).rstrip(".").replace("'", "")
        text = text.replace("argument(s)", "argument").replace("Got unexpected", "unexpected")
        what, meant = text[:1].lower() + text[1:], ""
        if "extra argument" in text and "=" in text:
            meant = "; settings are given as --set KEY.PATH=VALUE"
    return f"{command}: {what}{meant or f'; see {command} --help'}"


def _nearest(given: str, known: list[str]) -> str:
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
