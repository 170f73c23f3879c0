"""Names of files, folders and classes: what they say, and how they are shown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("validation", "validate", "valid", "val", "dev", "eval", "evaluation"), "validation"),
}
_AFTER = re.compile(r"(set|sets|data|images?|imgs?|split)$")  # testset, trainimages


def split_named(name: str) -> str | None:
    """``train``, ``validation`` or ``test`` if a file or folder is named so: ``Train``, ``val2017``,
    ``seg_test``, ``training_set``, ``train-00000-of-00001.parquet``; None for other and for mixed names."""
    words = (word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name))
    splits = {_WORDS.get(word) or _WORDS.get(_AFTER.sub("", word)) for word in words} - {None}
    return splits.pop() if len(splits) == 1 else None


def class_name(raw: str) -> str:
    """A folder's or label's name as a class name: composed Unicode, without blanks around it, printable."""
    return printable(unicodedata.normalize("NFC", raw).strip())


def printable(name: str) -> str:
    """A file's name on one line; control characters and bytes that are not UTF-8 become escapes (``\\n``)."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in ("Cc", "Cs") else char
        for char in name
    )


def counted(count: int, noun: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{count} {noun}" + "s" * (count != 1)


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
