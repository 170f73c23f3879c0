"""Folds networks into the form in which they are deployed."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from lana_ray.networks.layers import replace


@runtime_checkable
class Foldable(Protocol):
    """A module that is trained in another form than it is deployed in, such as RepVGG's stages."""

    def folded(self) -> nn.Module:
        """Returns a smaller module with the same outputs in evaluation mode; leaves this one unchanged."""


def deployed(network: nn.Module) -> nn.Module:
    """Returns a copy with every foldable module folded; the network itself if there is none."""
    folded = {name: m.folded() for name, m in network.named_modules() if isinstance(m, Foldable)}
    return replace(network, folded) if folded else network
