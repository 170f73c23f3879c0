"""A network to be trained as a whole, and where its weights are kept."""

from __future__ import annotations

from dataclasses import dataclass

from lana_ray.ids import Architecture


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One network to train; its weights go to ``file``, with ``key`` as their fingerprint."""

    file: str
    key: str
    architecture: Architecture | None
    """None for the teacher itself."""
    space: str = "layers"
    """Name of the space of students that the architecture belongs to."""
