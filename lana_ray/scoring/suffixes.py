"""Runs the rest of a network from one of its layers on."""

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


class Suffix:
    """Runs the part of a network after a layer.

    The layers up to and including this one are replaced by fixed outputs: its own is the activation of the
    complete batch, the others' are for two images only, so that anything between the layers costs next to
    nothing. A network that uses its input's batch size gets outputs for the complete batch.

    Args:
        network: left unchanged; shares its parameters.
        layers: the layers in the order they run.
        position: index of the layer to start from.
        images: three or more images, shape [N, C, H, W]; also used to check the result once.

    Raises:
        UserError: naming the layer, if the rest of the network needs more than its output (for example for a
            shortcut around several layers).
    """

    def __init__(self, network: nn.Module, layers: Sequence[Layer], position: int, images: Tensor) -> None:
        *before, name = [layer.name for layer in layers[: position + 1]]
        self._few, self._counts_images = images[:2], False
        self._stand_ins = {name: _FixedOutput() for name in (*before, name)}
        memo: dict[int, Any] = {id(x): x for x in network.state_dict(keep_vars=True).values()}
        memo |= {id(network.get_submodule(n)): stand_in for n, stand_in in self._stand_ins.items()}
        self.network = copy.deepcopy(network, memo)
        """The network that runs, to switch its modes."""
        seen = observe(network, before, self._few) if before else {}
        self._answers = {name: output for name, (_, output) in seen.items()}
        self._start = self._stand_ins[name]
        activation = observe(network, [name], images)[name][1]
        with torch.no_grad():
            expected = network(images)
            if not self._continues(activation, expected):
                self._counts_images = True
                if not self._continues(activation, expected):
                    raise misfit(name, "what follows it needs more than its output")

    def _continues(self, activation: Tensor, expected: Tensor) -> bool:
        try:
            return torch.allclose(self(activation), expected, rtol=1e-3, atol=1e-4)
        except Exception:  # raised by the network's own code if outputs for two images meet those for all
            return False

    def __call__(self, activation: Tensor) -> Tensor:
        """Returns the network's output if the layer outputs ``activation``, shape [N, ...]."""
        for name, output in self._answers.items():
            self._stand_ins[name].output = self._sized(output, activation)
        self._start.output = activation
        result = self.network(self._sized(self._few, activation))
        assert isinstance(result, Tensor)
        return result

    def _sized(self, few: Tensor, activation: Tensor) -> Tensor:
        """Returns one entry per image of the activation if the network counts its images, else ``few``."""
        return few[:1].expand(len(activation), *few.shape[1:]) if self._counts_images else few
