"""Explains a wrong command line in one line."""

from __future__ import annotations

import difflib
import sys
from typing import Any

import typer

UsageError: type[Any] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")
"""The exception that typer raises for a wrong option, argument or command: click's, or typer's copy of it."""


def explain(error: Any) -> str:
    """Returns a line with the command, what is wrong with it, and the nearest option or command."""
    context = error.ctx
    command = context.command_path if context else " ".join(("lana-ray", *sys.argv[1:2]))
    words = [option for parameter in context.command.params for option in parameter.opts] if context else []
    names = list(getattr(context.command, "commands", {})) if context else []
    if hasattr(error, "possibilities"):
        what, hint = f"no option {error.option_name}", _nearest(error.option_name, [*words, "--help"])
    elif names and error.message.startswith("No such command"):
        word = error.message.split("'")[1]
        what, hint = f"no command {word}", _nearest(word, names)
    else:
        text = " ".join(error.format_message().split()).rstrip(".").replace("'", "")
        text = text.replace("argument(s)", "argument").replace("Got unexpected", "unexpected")
        what, hint = text[:1].lower() + text[1:], ""
        if "extra argument" in text and "=" in text:
            hint = "; override settings with --set KEY.PATH=VALUE"
    return f"{command}: {what}{hint or f'; see {command} --help'}"


def _nearest(word: str, names: list[str]) -> str:
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; use one of {', '.join(names)}"
