"""Runs the rest of a network from any of its layers on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lana_ray.networks.layers import Layer, misfit, observe


class _FixedOutput(nn.Module):
    """A module that returns a tensor set beforehand, whatever its input."""

    def __init__(self) -> None:
        super().__init__()
        self.output: Tensor | None = None

    def forward(self, _: Tensor) -> Tensor:
        assert self.output is not None
        return self.output


class Suffixes:
    """Runs a network from any of its layers on, so that only the part after a layer is recomputed.

    The layers up to and including the starting one are replaced by fixed outputs: the starting layer's is the
    activation of the complete batch, the others' are for two images only, so that anything between the layers
    costs next to nothing. A network that uses its input's batch size gets outputs for the complete batch.

    Args:
        network: left unchanged; shares its parameters.
        layers: the layers in the order they run.
        images: three or more images, shape [N, C, H, W]; also used to check the result once.
        only: the one layer to start from; defaults to any.

    Raises:
        UserError: naming the layer, if the rest of the network needs more than the starting layer's output
            (for example a shortcut around several layers).
    """

    def __init__(
        self, network: nn.Module, layers: Sequence[Layer], images: Tensor, *, only: int | None = None
    ) -> None:
        self._names = [layer.name for layer in layers]
        self._few = images[:2]
        self._counts_images = False
        self._stand_ins = {name: _FixedOutput() for name in self._names}
        shared: dict[int, Any] = {
            id(tensor): tensor for tensor in network.state_dict(keep_vars=True).values()
        }
        self._networks = {
            position: copy.deepcopy(
                network,
                shared
                | {id(network.get_submodule(n)): self._stand_ins[n] for n in self._names[: position + 1]},
            )
            for position in (range(len(layers)) if only is None else [only])
        }
        seen = observe(network, self._names, self._few)
        self._answers = {name: output for name, (_, output) in seen.items()}
        outputs = observe(network, self._names, images)
        with torch.no_grad():
            expected = network(images)
            for position in self._networks:
                name = self._names[position]
                if not self._continues(position, outputs[name][1], expected):
                    self._counts_images = True
                if not self._continues(position, outputs[name][1], expected):
                    raise misfit(name, "what follows it needs more than its output")

    def _continues(self, position: int, activation: Tensor, expected: Tensor) -> bool:
        try:
            return torch.allclose(self(position, activation), expected, rtol=1e-3, atol=1e-4)
        except Exception:  # raised by the network's own code if outputs for two images meet those for all
            return False

    def __call__(self, position: int, activation: Tensor) -> Tensor:
        """Returns the network's output if layer ``position`` outputs ``activation``, shape [N, ...]."""
        for name in self._names[:position]:
            self._stand_ins[name].output = self._sized(self._answers[name], activation)
        self._stand_ins[self._names[position]].output = activation
        result = self._networks[position](self._sized(self._few, activation))
        assert isinstance(result, Tensor)
        return result

    def _sized(self, few: Tensor, activation: Tensor) -> Tensor:
        """Returns one entry per image of the activation if the network counts its images, else ``few``."""
        return few[:1].expand(len(activation), *few.shape[1:]) if self._counts_images else few

    def network(self, position: int) -> nn.Module:
        """Returns the network that runs after layer ``position``, to switch its modes."""
        return self._networks[position]
