"""LANA's space: one candidate for every layer of the teacher (arXiv 2107.10624, section 3)."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lana_ray.ids import Architecture, CandidateId, Choices, read_label, write_label
from lana_ray.networks.layers import Layer, replace
from lana_ray.ops import Op, build_op, candidates, is_trained
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.spaces.space import StudentSpace


class LayerwiseSpace(StudentSpace):
    """All students that replace layers of a teacher by candidates of a pool.

    Args:
        network: the teacher, or its structure with any weights if only costs matter; left unchanged.
        layers: its replaceable layers, in the order they run.
        pool: a preset's name or names of operations.
        seed: seed of the candidates' initial weights.
        code: identity of the network's code, which its modules do not reveal.
    """

    name = "layers"
    keeps_layers = True

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[Layer],
        pool: str | Sequence[str],
        *,
        seed: int = 0,
        code: str = "",
    ) -> None:
        self.network, self.layers = network, tuple(layers)
        self.ops: tuple[tuple[Op, ...], ...] = tuple(
            candidates(pool, layer, network.get_submodule(layer.name)) for layer in self.layers
        )
        self.seed = seed
        shapes = [[name, list(tensor.shape)] for name, tensor in network.state_dict().items()]
        places = [[layer.name, *layer.place] for layer in self.layers]
        described = re.sub(r" at 0x[0-9a-f]+", "", str(network))  # functions print their address
        self.fingerprint = fingerprint(described, shapes, places, code)
        self._trained: dict[tuple[int, int], bool] = {}

    @property
    def teacher(self) -> Architecture:
        """The architecture that keeps every layer."""
        return (0,) * len(self.layers)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(map(len, self.ops))

    @property
    def operations(self) -> Sequence[Sequence[str]]:
        return [[op.name for op in ops] for ops in self.ops]

    @cached_property
    def _activation(self) -> type[nn.Module]:
        return activation(self.network)

    def structure(self, layer: int, choice: int) -> str:
        """Identity of a candidate without its weights, shared by layers if its structure is the same."""
        at, op = self.layers[layer], self.ops[layer][choice]
        own = (self.fingerprint, at.name) if op.of_teacher else self._activation.__name__
        return fingerprint("candidate", op.key, *at.place, own)

    def network_structure(self, architecture: Architecture) -> str:
        ops = (of_layer[choice] for of_layer, choice in zip(self.ops, architecture, strict=True))
        chosen = {layer.name: op.key for layer, op in zip(self.layers, ops, strict=True)}
        return fingerprint("network", self.fingerprint, chosen)

    @property
    def everything(self) -> Choices:
        return tuple(tuple(range(size)) for size in self.sizes)

    def random(self, rng: np.random.Generator, among: Choices | None = None) -> Architecture:
        """An architecture whose candidates are drawn uniformly, by default from all."""
        return tuple(choices[rng.integers(len(choices))] for choices in among or self.everything)

    def discretise(self, scores: Sequence[NDArray[np.floating]]) -> Architecture:
        """The candidate with the highest score at every layer, the first of equals."""
        return tuple(int(part.argmax()) for part in scores)

    def candidate(self, position: int, choice: int) -> nn.Module:
        """A new module for one layer, freshly initialised or made from the teacher's own layer."""
        layer, op = self.layers[position], self.ops[position][choice]
        own = self.network.get_submodule(layer.name)
        return build_op(op, layer, seed=self.seed, act=self._activation, teacher=own)

    def is_trained(self, position: int, choice: int) -> bool:
        """Whether a candidate has weights that distillation trains."""
        key = (position, choice)
        if key not in self._trained:
            layer, op = self.layers[position], self.ops[position][choice]
            self._trained[key] = is_trained(op, layer, self.network.get_submodule(layer.name))
        return self._trained[key]

    def build(
        self, architecture: Architecture, trained: Mapping[tuple[int, int], nn.Module] | None = None
    ) -> nn.Module:
        """The student: the teacher with the chosen candidates in place.

        Candidates in ``trained``, by (layer, choice), are copied; others are freshly initialised.
        """
        trained, modules = trained or {}, dict[str, nn.Module]()
        for i, (layer, choice) in enumerate(zip(self.layers, architecture, strict=True)):
            if choice != 0:
                own = trained.get((i, choice))
                modules[layer.name] = self.candidate(i, choice) if own is None else copy.deepcopy(own)
        return replace(self.network, modules)

    @cached_property
    def ids(self) -> tuple[tuple[CandidateId, ...], ...]:
        return tuple(
            tuple(CandidateId(layer.name, op.name) for op in ops)
            for layer, ops in zip(self.layers, self.ops, strict=True)
        )

    @cached_property
    def _places(self) -> dict[CandidateId, tuple[int, int]]:
        return {one: (i, j) for i, of_layer in enumerate(self.ids) for j, one in enumerate(of_layer)}

    def place(self, candidate: CandidateId) -> tuple[int, int]:
        """Indices of a candidate's layer and of the candidate at it; KeyError if it is not in the pool."""
        return self._places[candidate]

    def chosen(self, architecture: Architecture) -> tuple[CandidateId, ...]:
        """The ids of an architecture's candidates."""
        return tuple(of_layer[choice] for of_layer, choice in zip(self.ids, architecture, strict=True))

    def label(self, architecture: Architecture) -> str:
        return write_label(self.chosen(architecture))

    def parse(self, label: str) -> Architecture:
        candidates = read_label(label)
        layers = [layer.name for layer in self.layers]
        if [candidate.layer for candidate in candidates] != layers:
            raise ValueError(f"{label!r} does not name the layers {', '.join(layers)}")
        if unknown := [str(candidate) for candidate in candidates if candidate not in self._places]:
            raise ValueError(f"{', '.join(unknown)}: not in the pool of its layer")
        return tuple(self.place(candidate)[1] for candidate in candidates)


_ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU6,
    nn.SiLU,
    nn.Hardswish,
    nn.GELU,
    nn.LeakyReLU,
    nn.ELU,
    nn.ReLU,
)


def activation(network: nn.Module) -> type[nn.Module]:
    """The activation that a network uses most; ReLU if it uses none of ``_ACTIVATIONS``."""
    # Compares names, because timm's ConvNeXt has its own GELU.
    names = Counter(type(module).__name__.lower() for module in network.modules())
    best = max(_ACTIVATIONS, key=lambda kind: names[kind.__name__.lower()])
    return best if names[best.__name__.lower()] else nn.ReLU
