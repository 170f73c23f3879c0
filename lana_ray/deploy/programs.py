"""Exports the candidates and networks of a space for a target, each candidate only once."""

from __future__ import annotations

from typing import Any

from cachetools import LRUCache
from torch import fx, nn

from lana_ray.config import Target
from lana_ray.deploy.assemble import OnnxFrame, OnnxModel, fill_program, open_layers
from lana_ray.deploy.inputs import example_input, layer_input
from lana_ray.deploy.runtimes import RUNTIMES, program
from lana_ray.errors import Unsupported, is_fault
from lana_ray.ids import Architecture
from lana_ray.ops import count_weights
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.spaces.space import StudentSpace

_KEPT_BYTES = 1 << 30
"""Size of each of the two caches: candidates' programs, and the same prepared for a position in a network."""
_FEW = 1 << 20
"""Number of weights that is never too large."""


class Programs:
    """Makes programs with random weights in the form that the target's runtime deploys.

    A network is assembled from its candidates' programs; if it cannot be exported with open layers, every
    network is exported from scratch.

    Args:
        target: with ``input_shape`` set.
    """

    def __init__(self, space: StudentSpace, target: Target) -> None:
        self._space = space
        self._target = target
        self._frame = self._open_network()
        self._candidates: LRUCache[str, Any] = LRUCache(_KEPT_BYTES, getsizeof=_bytes)
        self._parts: LRUCache[tuple[int, int], Any] = LRUCache(_KEPT_BYTES, getsizeof=_bytes)

    @property
    def _pool(self) -> LayerwiseSpace:
        """The space; only a layerwise space has candidates."""
        assert isinstance(self._space, LayerwiseSpace)
        return self._space

    def ops(self, layer: int) -> list[tuple[str, str]]:
        """Returns the name and the structure of each candidate of a layer."""
        pool = self._pool
        return [(op.name, pool.structure(layer, choice)) for choice, op in enumerate(pool.ops[layer])]

    def candidate(self, layer: int, choice: int) -> nn.Module | bytes:
        """Returns the ``runtimes.program`` of one candidate; layers with the same structure share it.

        Raises:
            Unsupported: as ``runtimes.program``, and for a candidate with more weights than the teacher.
                The paper's widest candidates take gigabytes at a late layer, where they cannot be faster.
        """
        structure = self._pool.structure(layer, choice)
        exported: nn.Module | bytes | None = self._candidates.get(structure)
        if exported is None:
            self._check_size(layer, choice)
            images = layer_input(self._space, layer, self._target)
            exported = program(self._pool.candidate(layer, choice), images, self._target)
            _keep(self._candidates, structure, exported)
        return exported

    def _check_size(self, layer: int, choice: int) -> None:
        weights = count_weights(self._pool.ops[layer][choice], self._space.layers[layer])
        teacher = sum(weight.numel() for weight in self._space.network.parameters())
        if weights > max(teacher, _FEW):
            raise Unsupported(
                "refused",
                f"{weights / 1e6:.0f} million weights, but the teacher has only {teacher / 1e6:.1f} million",
            )

    def network(self, architecture: Architecture) -> nn.Module | bytes:
        """The ``runtimes.program`` of the network that the space builds; raises Unsupported as that does."""
        if self._frame is None:
            return program(self._space.build(architecture), example_input(self._target), self._target)
        if isinstance(self._frame, OnnxFrame):
            return self._frame.fill([self._part(self._frame, i, j) for i, j in enumerate(architecture)])
        parts: list[Any] = [self.candidate(i, j) for i, j in enumerate(architecture)]
        return fill_program(self._frame, parts)

    def _part(self, frame: OnnxFrame, layer: int, choice: int) -> OnnxModel:
        part = self._parts.get((layer, choice))
        if part is None:
            exported: Any = self.candidate(layer, choice)
            part = frame.part(layer, exported)
            _keep(self._parts, (layer, choice), part)
        return part

    def _open_network(self) -> OnnxFrame | fx.GraphModule | None:
        if not self._space.keeps_layers:
            return None
        opened = open_layers(self._space.network, self._space.layers, self._target.batch_size)
        try:
            exported: Any = program(opened, example_input(self._target), self._target)
            return OnnxFrame(exported) if RUNTIMES[self._target.runtime].loads_onnx else exported
        except Exception as error:  # the network's code may use more of a layer than its outputs
            if is_fault(error):
                raise
            return None


def _keep(cache: LRUCache[Any, Any], key: Any, value: Any) -> None:
    if _bytes(value) <= cache.maxsize:
        cache[key] = value


def _bytes(exported: Any) -> int:
    """Returns the size of an ONNX program (bytes or model) or of a PyTorch program."""
    if isinstance(exported, bytes):
        return len(exported)
    if isinstance(exported, nn.Module):
        return sum(tensor.nbytes for tensor in exported.state_dict().values())
    return int(exported.ByteSize())
