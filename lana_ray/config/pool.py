"""Defines the ``pool`` block: the operations that may replace a layer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lana_ray.config.section import Section, Share, location


class PoolConfig(Section):
    """The operations that may replace a layer."""

    preset: Literal["tiny", "small", "lana"] = "tiny"
    """Named list of operations: about 8, about 24, or all operations of the LANA paper."""
    ops: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Names of operations to use instead of a preset. The layer itself is always a candidate."""
    modules: tuple[str, ...] = location(default=())
    """Python files that register your own operations. Their code runs on every node, and already when
    ``lana-ray plan`` reads them."""
    max_cost: Share | None = Field(default=1.0, gt=0)
    """Candidates that take more than this share of their layer's time on every target are dropped before
    distillation; ``null`` keeps all."""
