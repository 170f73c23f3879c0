"""The interface of a cost: a module with a ``Meter``, listed in ``METERS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from lana_ray.config import Target


@dataclass(frozen=True, kw_only=True)
class Meter:
    """How a cost of a network is read on a target's node."""

    name: str
    """Name in ``search.cost`` and ``budgets``, which ends with the unit."""
    unit: str
    axis: str
    """Title in plots and tables, with the unit."""
    unavailable: Callable[[Target], str | None]
    """Returns the reason why this node cannot read the meter for a target, in one line; None if it can."""
    counted: bool = False
    """Whether the cost is exact, the same on every target and a sum over layers."""
    read: Callable[[nn.Module, Tensor, Target], float]
    """Takes one reading, in the unit, of a module that maps a batch [N, ...] to a tensor; leaves the module
    unchanged. Called only if ``unavailable`` returns None."""
