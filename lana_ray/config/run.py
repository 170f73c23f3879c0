"""Defines the ``run`` block: the run directory and the seed."""

from __future__ import annotations

from pydantic import Field

from lana_ray.config.section import Section, location


class RunConfig(Section):
    """The run directory, and the seed."""

    dir: str = location(default="runs/default")
    """Run directory, a local path or an fsspec URL. Everything measured and trained is kept there."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Seed of every random choice: the same seed gives the same choices."""
