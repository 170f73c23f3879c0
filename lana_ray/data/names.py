"""Interprets and formats the names of files, folders and classes."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("validation", "validate", "valid", "val", "dev", "eval", "evaluation"), "validation"),
}
_SUFFIX = re.compile(r"(set|sets|data|images?|imgs?|split)$")
"""Suffixes of words such as testset and trainimages."""


def split_named(name: str) -> str | None:
    """Returns the split that a file or folder is named after: ``train``, ``validation`` or ``test``.

    Such names are ``Train``, ``val2017``, ``seg_test``, ``training_set`` and
    ``train-00000-of-00001.parquet``. Returns None for names of no split and of several.
    """
    words = (word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name))
    splits = {_WORDS.get(word) or _WORDS.get(_SUFFIX.sub("", word)) for word in words} - {None}
    return splits.pop() if len(splits) == 1 else None


def class_name(raw: str) -> str:
    """Returns a folder's or label's name as a class name: composed Unicode, stripped, printable."""
    return printable(unicodedata.normalize("NFC", raw).strip())


def printable(name: str) -> str:
    """Returns a name on one line; control characters and bytes other than UTF-8 become escapes (``\\n``)."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in ("Cc", "Cs") else char
        for char in name
    )


def counted(count: int, noun: str) -> str:
    """Returns a count with its noun: ``1 image``, ``2 images``."""
    return f"{count} {noun}" + "s" * (count != 1)


def listed(names: Sequence[str], most: int = 5) -> str:
    """Returns the first names as a list in words: ``a, b and 2 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
