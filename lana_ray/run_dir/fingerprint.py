"""Short stable hashes of plain values: what results are kept and found by."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def fingerprint(*parts: Any) -> str:
    """A short stable hash of JSON-like values (pydantic models, mappings, sequences, scalars)."""
    text = json.dumps(parts, sort_keys=True, default=plain, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """A pydantic model or a collection as JSON has it."""
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else list(value)
