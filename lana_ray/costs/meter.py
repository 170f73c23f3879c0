"""What a cost offers: a new one is a module with a ``Meter``, listed in ``METERS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from lana_ray.config import Target


@dataclass(frozen=True, kw_only=True)
class Meter:
    """How a cost of a network is read on a target's node."""

    name: str
    """As in ``search.cost``, with the unit at its end."""
    unit: str
    axis: str
    """What plots and tables call it, with its unit."""
    unavailable: Callable[[Target], str | None]
    """Why this node cannot read it for a target, on one line; None where it can."""
    counted: bool = False
    """Whether it is exact, the same on every target, and adds up over layers, so that it can be budgeted."""
    read: Callable[[nn.Module, Tensor, Target], float]
    """One reading, in the unit, of a module that maps one tensor to one tensor, for an input batch
    [N, ...]. Called where ``unavailable`` says None; leaves the module unchanged."""
