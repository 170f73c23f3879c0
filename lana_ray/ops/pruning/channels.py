"""The hidden channels of a layer's module, how much each matters, and the module without some of them."""

from __future__ import annotations

import copy
import hashlib
import pickle
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lana_ray.networks.layers import Layer
from lana_ray.networks.layouts import on_meta
from lana_ray.networks.reach import at_random
from lana_ray.ops.pruning.trace import Axis, Hidden, hidden_dimensions
from lana_ray.run_dir.fingerprint import fingerprint

_of_modules: WeakKeyDictionary[nn.Module, list[Hidden]] = WeakKeyDictionary()
_of_structures: dict[str, list[Hidden]] = {}


def hidden_channels(module: nn.Module, layer: Layer) -> list[Hidden]:
    """The hidden dimensions of a layer's module; none where torch cannot export it.

    A unit is one channel in most of them, in ResNeXt and RegNet those of a group, in attention a head, in
    split attention one channel of each branch. All depends on the module's structure alone: every dimension
    is tried on weights drawn at random, where the module without every other unit must answer as the whole
    one does with zeros for what reads them. Found once for a structure (.15 s for a block of EfficientNet).

    Args:
        module: left unchanged.
    """
    if module not in _of_modules:
        structure = _structure(module, layer)
        if structure not in _of_structures:
            trial = at_random(module)
            example = torch.rand(2, *layer.input_shape, generator=torch.Generator().manual_seed(0)) - 0.5
            _of_structures[structure] = [
                hidden for hidden in _found(trial, example) if _holds(trial, hidden, example)
            ]
        _of_modules[module] = _of_structures[structure]
    return _of_modules[module]


def _structure(module: nn.Module, layer: Layer) -> str:
    """Identity of all that a module is but its numbers, or of the module alone where it cannot be pickled."""
    try:
        pickled = pickle.dumps(on_meta(module).eval().requires_grad_(False))
    except Exception:  # of the module's own code
        return str(uuid.uuid4())
    return fingerprint(hashlib.sha256(pickled).hexdigest(), layer.input_shape)


def unit_count(hidden: Hidden) -> int:
    """How many units a hidden dimension has."""
    return len(next(iter(hidden.values())))


def importance(module: nn.Module, hidden: Hidden, variances: Mapping[str, Tensor] | None = None) -> Tensor:
    """What each unit gives to what reads it: its variance times the squared norm of the weights; [units].

    Args:
        variances: of the channels that convolutions and linear layers read, shape [C], by their paths;
            without them, all count as one.
    """
    total = torch.zeros(unit_count(hidden))
    for axis, of_units in hidden.items():
        if axis.reads:
            weight = getattr(module.get_submodule(axis.module), axis.name).detach().cpu()
            read = weight.shape[1]  # by each group of a convolution
            given = torch.ones(read) if variances is None else variances[axis.module].cpu()
            by_group = given.reshape(-1, read)
            squares = weight.square().reshape(len(by_group), -1, read, weight[0, 0].numel()).sum((1, 3))
            total += (by_group * squares).sum(0)[of_units].sum(1)
    return total


def entries(cut: Iterable[tuple[Hidden, Tensor]]) -> dict[Axis, Tensor]:
    """What some units of hidden dimensions, given by their numbers, have of every axis."""
    parts: dict[Axis, list[Tensor]] = defaultdict(list)
    for hidden, units in cut:
        for axis, of_units in hidden.items():
            parts[axis].append(of_units[units].flatten())
    return {axis: torch.cat(found) for axis, found in parts.items()}


def without(module: nn.Module, gone: Mapping[Axis, Tensor]) -> nn.Module:
    """A copy of the module that lacks the given entries of every axis."""
    smaller = copy.deepcopy(module)
    for axis, missing in gone.items():
        owner = smaller.get_submodule(axis.module)
        value = getattr(owner, axis.name)
        if axis.dim < 0:
            setattr(owner, axis.name, value - len(missing))
            continue
        rest = value.detach().index_select(axis.dim, others(missing, value.shape[axis.dim]).to(value.device))
        setattr(owner, axis.name, nn.Parameter(rest) if isinstance(value, nn.Parameter) else rest)
    return smaller


def others(missing: Tensor, size: int) -> Tensor:
    """The numbers below ``size`` that are not missing, in order."""
    left = torch.ones(size, dtype=torch.bool)
    left[missing] = False
    return left.nonzero().flatten()


@torch.no_grad()
def _found(trial: nn.Module, example: Tensor) -> list[Hidden]:
    try:
        program = torch.export.export(trial, (example,))
    except Exception:  # torch.export has no common base for what it cannot express
        return []
    return hidden_dimensions(trial, program)


@torch.no_grad()
def _holds(trial: nn.Module, hidden: Hidden, example: Tensor) -> bool:
    gone = entries([(hidden, torch.arange(1, unit_count(hidden), 2))])
    deaf = copy.deepcopy(trial)
    for axis, missing in gone.items():
        if axis.reads:
            getattr(deaf.get_submodule(axis.module), axis.name).index_fill_(axis.dim, missing, 0)
    expected = deaf(example)
    try:
        answer = without(trial, gone)(example)
    except Exception:  # of the layer's own code, which may count on the channels it has
        return False
    return answer.shape == expected.shape and torch.allclose(answer, expected, rtol=1e-3, atol=1e-4)
