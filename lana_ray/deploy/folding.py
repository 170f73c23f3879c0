"""What a network becomes where it is deployed."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from lana_ray.networks.layers import replace


@runtime_checkable
class Foldable(Protocol):
    """A module that is trained in another form than it is deployed in, as RepVGG's stages are."""

    def folded(self) -> nn.Module:
        """A smaller module that answers as this one does in evaluation mode; this one stays as it is."""


def deployed(network: nn.Module) -> nn.Module:
    """A copy in which every module that can be folded is; the network itself where there is none."""
    folded = {name: m.folded() for name, m in network.named_modules() if isinstance(m, Foldable)}
    return replace(network, folded) if folded else network
