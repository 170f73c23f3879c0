"""What a target runs of a space: its candidates and whole networks, each candidate exported once."""

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
"""Of candidates' programs, and of those made ready for their place in a network as many again."""
_FEW = 1 << 20
"""Weights that are never too many."""


class Programs:
    """Programs with random weights, as the target's runtime deploys them.

    A network is put together from its candidates' programs; where the network around its layers cannot be
    expressed with them left open, each is exported from the beginning.

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
        """The space, which has candidates only if it is of the teacher's layers."""
        assert isinstance(self._space, LayerwiseSpace)
        return self._space

    def ops(self, layer: int) -> list[tuple[str, str]]:
        """The name and the structure of each candidate of a layer."""
        pool = self._pool
        return [(op.name, pool.structure(layer, choice)) for choice, op in enumerate(pool.ops[layer])]

    def candidate(self, layer: int, choice: int) -> nn.Module | bytes:
        """As ``runtimes.program`` of one candidate; one program serves all layers it is the same at.

        Raises:
            Unsupported: as ``runtimes.program``, and for a candidate with more weights than the teacher.
                The paper's widest take gigabytes at a late layer, where none can be faster than the layer.
        """
        structure = self._pool.structure(layer, choice)
        known: nn.Module | bytes | None = self._candidates.get(structure)
        if known is None:
            self._check_size(layer, choice)
            images = layer_input(self._space, layer, self._target)
            known = program(self._pool.candidate(layer, choice), images, self._target)
            _keep(self._candidates, structure, known)
        return known

    def _check_size(self, layer: int, choice: int) -> None:
        weights = count_weights(self._pool.ops[layer][choice], self._space.layers[layer])
        teacher = sum(weight.numel() for weight in self._space.network.parameters())
        if weights > max(teacher, _FEW):
            raise Unsupported(
                f"{weights / 1e6:.0f} million weights, the whole teacher has {teacher / 1e6:.1f}"
            )

    def network(self, architecture: Architecture) -> nn.Module | bytes:
        """As ``runtimes.program`` of the network that the space builds.

        Raises:
            Unsupported: as ``runtimes.program``.
        """
        if self._frame is None:
            return program(self._space.build(architecture), example_input(self._target), self._target)
        if isinstance(self._frame, OnnxFrame):
            return self._frame.fill([self._part(self._frame, i, j) for i, j in enumerate(architecture)])
        parts: list[Any] = [self.candidate(i, j) for i, j in enumerate(architecture)]
        return fill_program(self._frame, parts)

    def _part(self, frame: OnnxFrame, layer: int, choice: int) -> OnnxModel:
        known = self._parts.get((layer, choice))
        if known is None:
            made: Any = self.candidate(layer, choice)
            known = frame.part(layer, made)
            _keep(self._parts, (layer, choice), known)
        return known

    def _open_network(self) -> OnnxFrame | fx.GraphModule | None:
        if not self._space.keeps_layers:
            return None
        opened = open_layers(self._space.network, self._space.layers, self._target.batch_size)
        try:
            made: Any = program(opened, example_input(self._target), self._target)
            return OnnxFrame(made) if RUNTIMES[self._target.runtime].loads_onnx else made
        except Exception as error:  # its code may use more of a layer than outputs
            if is_fault(error):
                raise
            return None


def _keep(cache: LRUCache[Any, Any], key: Any, value: Any) -> None:
    if _bytes(value) <= cache.maxsize:
        cache[key] = value


def _bytes(made: Any) -> int:
    """Size of a program: ONNX's bytes, its model, or a PyTorch program."""
    if isinstance(made, bytes):
        return len(made)
    if isinstance(made, nn.Module):
        return sum(tensor.nbytes for tensor in made.state_dict().values())
    return int(made.ByteSize())
