"""Defines the ``select`` block: how students are chosen."""

from __future__ import annotations

from pydantic import Field

from lana_ray.config.section import Fraction, Seconds, Section, Share


class SelectConfig(Section):
    """How one student per target and budget is chosen."""

    count: int = Field(default=10, ge=1)
    """Number of diverse students measured and evaluated per target and budget (LANA: 100)."""
    max_overlap: Share = Field(default=0.7, gt=0, le=1)
    """Largest share of layers on which two of these students may agree."""
    time_limit_s: Seconds = Field(default=10.0, gt=0)
    """Time limit in seconds of the solver for all students of one target and budget. A student that is not
    proven optimal in time is reported with its gap."""
    joint: bool = False
    """Also choose one architecture per budget that meets it on all targets."""
    force: tuple[str, ...] = ()
    """Glob patterns ``LAYER=OPERATION``: these layers may only become these operations."""
    forbid: tuple[str, ...] = ()
    """Glob patterns ``LAYER=OPERATION``: these layers may not become these operations."""
    max_ops: int | None = Field(default=None, ge=0)
    """Maximum number of different operations in a student; the teacher's own layers do not count."""
    rounds: int = Field(default=4, ge=1)
    """Number of times that the integer program is solved. Each round calibrates the cost table with the
    students measured before. A budget that no student meets gets twice as many rounds."""
    margin: Fraction = 0.01
    """Least share of the budget that is kept free, because measurements of a network vary."""
    confidence: Share | None = Field(default=0.95, ge=0.5, lt=1)
    """Probability that a later measurement in another process stays within the budget. The share kept free
    follows from it and from the spread of a target's sessions; null for ``margin`` alone."""
