"""Defines the ``score`` block: how candidates are scored."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lana_ray.config.section import Section


class ScoreConfig(Section):
    """How candidates are scored by the change that each one alone makes to the network's answers."""

    by: Literal["kl", "loss"] = "kl"
    """Score of a candidate: ``kl`` is the divergence from the teacher's answers, ``loss`` the change of the
    loss."""
    images: int = Field(default=512, ge=2)
    """Number of images to score on."""
    batch_size: int = Field(default=128, ge=2)
    """Images per forward pass."""
    students: int = Field(default=32, ge=0)
    """Number of random students evaluated as entire networks, to report how well summed scores rank them
    (Kendall's tau)."""
