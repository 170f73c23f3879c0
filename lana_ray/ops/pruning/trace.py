"""Finds which channels inside a module can only be removed together, from its exported program.

Every channel that a convolution or a linear layer computes gets a label, and the program is interpreted with
labels instead of numbers: views move them, a sum ties the labels it adds, and a weight is tied to the
channels that it reads. The module's inputs and outputs are tied to one label that always stays, and so are
the operands of an operator without a rule: channels whose use is not understood are never removed. Labels
tied to one another make a unit, and units that appear in the same tensors in the same way are
interchangeable: any of them can be removed with the same resulting shapes.

Dependency graphs do the same (DepGraph, Fang et al., arXiv 2301.12900). Their package, torch-pruning 1.6, is
made for whole networks: it ignores a block's inputs, needs hints on where to stop and which parts are
attention, and leaves grouped convolutions as wide as they are.
"""

from __future__ import annotations

import math
import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, fx, nn
from torch.export import ExportedProgram


@dataclass(frozen=True)
class Axis:
    """A place where channels appear: a dimension of a tensor, or a number such as ``out_channels``."""

    module: str
    """Path of the module that owns it, empty for the outermost."""
    name: str
    """Name of a parameter, a buffer or a number."""
    dim: int = -1
    """Dimension of the tensor; -1 for a number."""
    reads: bool = field(default=False, compare=False)
    """Whether its entries are weights of the module's inputs."""
    positions: int = field(default=0, compare=False)
    """For a weight: the number of pixels or tokens it is used for."""


Hidden: TypeAlias = Mapping[Axis, Tensor]
"""A hidden dimension: the entries that each of its units has in every axis, shape [units, entries]."""


def hidden_dimensions(module: nn.Module, program: ExportedProgram) -> list[Hidden]:
    """Returns all hidden dimensions of a module, in the order in which its program reaches them.

    The narrow parts of squeeze-and-excitation and split attention, which work on one position of an image,
    are left out: they cost next to nothing.

    Args:
        program: the module's, exported in evaluation mode.
    """
    trace = _Trace(module, program)
    for node in program.graph.nodes:
        trace.visit(node)
    trace.settle_groups()
    trace.settle_views()
    return trace.interchangeable()


_aten = torch.ops.aten
_Arguments: TypeAlias = Mapping[str, Any]
"""An operator's arguments by name, including defaults."""
_Rule: TypeAlias = Callable[["_Trace", fx.Node, _Arguments], Any]

_STAYS = torch.tensor(0)
"""The label of channels that are never removed."""
_HEADS, _WIDTH = "num_heads", "attn_dim"
"""Attributes of timm's attention that count channels."""


class _Trace:
    """Interprets a program with labels instead of numbers.

    The labels of a value have its shape; ``expand`` stores labels that repeat along a dimension once.
    """

    def __init__(self, module: nn.Module, program: ExportedProgram) -> None:
        self._module = module
        self._root = program.graph_module
        signature = program.graph_signature
        self._tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        """Paths of parameters and buffers, by their names in the program."""
        self._labels: dict[fx.Node, Any] = {}
        self._count = 1
        self._axes: dict[Axis, Tensor] = {}
        self._ties: list[Tensor] = []
        """Pairs of labels, each [2, n]."""
        self._views: list[Tensor] = []
        self._grouped: list[tuple[str, int, Tensor, Tensor]] = []
        """Grouped convolutions: path, positions, channels read and made, each [groups, channels of one]."""

    def visit(self, node: fx.Node) -> None:
        """Labels the outputs of a node of the program."""
        labels: Any = None
        if node.op == "call_function":
            arguments = node.normalized_arguments(self._root, normalize_to_only_use_kwargs=True)
            labels = _rule(node)(self, node, arguments.kwargs if arguments else {})
        if labels is None:
            for tied in (tied for source in node.all_input_nodes for tied in _listed(self._of(source))):
                self._tie(tied, _STAYS)
            labels = _staying(node)
        self._labels[node] = labels

    # The rules of operators on labels; they return None if they do not understand the operator's arguments.

    def item(self, node: fx.Node, arguments: _Arguments) -> Any:
        source: Any
        source, index = node.args
        return self._labels[source][index]

    def weighing(self, node: fx.Node, arguments: _Arguments) -> Any:
        """Labels the output of a convolution or a linear layer."""
        path, name = self._place(arguments["weight"])
        owner = self._module.get_submodule(path)
        if name != "weight" or not isinstance(owner, nn.Conv2d | nn.Linear):
            return None
        image = isinstance(owner, nn.Conv2d)
        read = self._along(self._of(arguments["input"]), -3 if image else -1)
        shape = _shape(node)
        positions = math.prod(shape[-2:] if image else shape[1:-1])
        made = self._show(Axis(path, "weight", 0, positions=positions), self._new(len(owner.weight)))
        if arguments["bias"] is not None:
            self._tie(self._of(arguments["bias"]), made)
        groups = arguments.get("groups", 1)
        if groups > 1:
            each = (groups, -1)
            self._grouped.append((path, positions, read.reshape(each), made.reshape(each)))
        else:
            self._show(Axis(path, "weight", 1, True, positions), read)
        self._show(Axis(path, "in_channels" if image else "in_features"), read)
        self._show(Axis(path, "out_channels" if image else "out_features"), made)
        return (made[:, None, None] if image else made).expand(shape)

    def batch_norm(self, node: fx.Node, arguments: _Arguments) -> Any:
        x = self._of(arguments["input"])
        channels = self._along(x, 1)
        for tensor in (arguments[part] for part in ("weight", "bias", "running_mean", "running_var")):
            if tensor is not None:
                self._tie(self._of(tensor), channels)
                path, _ = self._place(tensor)
                if hasattr(self._module.get_submodule(path), "num_features"):
                    self._show(Axis(path, "num_features"), channels)
        return x

    def attention(self, node: fx.Node, arguments: _Arguments) -> Any:
        """Labels attention's output; a head is a unit, since each of its results depends on all of it."""
        q, k, v = (self._mix(self._of(arguments[part]), (-2, -1)) for part in ("query", "key", "value"))
        if arguments["attn_mask"] is not None or not q.shape == k.shape == v.shape:
            return None
        self._tie(q, k)
        self._tie(q, v)
        shape = _shape(node)
        heads = self._along(q, -3)
        path, _ = list(node.meta["nn_module_stack"].values())[-1]
        owner = self._module.get_submodule(path)
        for number, counted in ((_HEADS, heads), (_WIDTH, heads.repeat_interleave(shape[-1]))):
            if getattr(owner, number, None) == len(counted):
                self._show(Axis(path, number), counted)
        return q.expand(shape)

    def concatenation(self, node: fx.Node, arguments: _Arguments) -> Any:
        return torch.cat([self._of(part) for part in arguments["tensors"]], arguments["dim"])

    def pointwise(self, node: fx.Node, arguments: _Arguments) -> Any:
        operands = [self._of(source) for source in node.all_input_nodes]
        # A single number for all channels ties none of them.
        tied = [x for x in operands if x.numel() > 1] or operands
        for x in tied[1:]:
            self._tie(tied[0], x)
        return tied[0].expand(_shape(node))

    def mixing(self, node: fx.Node, arguments: _Arguments) -> Any:
        x, shape = self._of(arguments["input"]), _shape(node)
        dims = tuple(_MIXED[_packet(node)](arguments)) or tuple(range(x.dim()))
        mixed = self._mix(x, dims)
        return (mixed if len(shape) == x.dim() else mixed.squeeze(dims)).expand(shape)

    def view(self, node: fx.Node, arguments: _Arguments) -> Any:
        target: Any = _aten.reshape.default if node.target is _aten.view.default else node.target
        try:
            after = target(*fx.node.map_arg(node.args, self._of), **node.kwargs)
        except RuntimeError:  # a view of other than whole numbers, such as complex ones
            return None
        before = self._of(node.all_input_nodes[0])
        if len({piece.shape for piece in _listed(after)}) > 1:
            return None
        pieces = torch.stack(_listed(after))
        self._views.append(pieces)
        return after if _all_of(before) == _all_of(pieces) else None

    # Parts of the rules

    def _of(self, node: fx.Node) -> Any:
        """Returns a value's labels; a parameter that lies along one dimension has labels of its own."""
        if node.name not in self._tensors:
            return self._labels[node]
        path, name = self._place(node)
        shape = _shape(node)
        long = [dim for dim, size in enumerate(shape) if size > 1]
        if len(long) == 1:
            return self._show(Axis(path, name, long[0]), self._new(max(shape))).reshape(shape)
        for dim in long:
            self._show(Axis(path, name, dim), _STAYS.expand(shape[dim]))
        return self._labels[node]

    def _place(self, node: fx.Node) -> tuple[str, str]:
        """Returns the path of the module that owns a tensor, and its name there; empty if it is computed."""
        path, _, name = self._tensors.get(node.name, "").rpartition(".")
        return path, name

    def _new(self, count: int) -> Tensor:
        self._count += count
        return torch.arange(self._count - count, self._count)

    def _show(self, axis: Axis, labels: Tensor) -> Tensor:
        """Ties the labels of an axis to these, and returns them."""
        existing = self._axes.setdefault(axis, labels)
        self._tie(existing, labels)
        return existing

    def _tie(self, a: Tensor, b: Tensor) -> None:
        shape = np.broadcast_shapes(a.shape, b.shape)
        self._ties.append(torch.stack([x.flatten() for x in _core(a.expand(shape), b.expand(shape))]))

    def _mix(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        """Ties the labels along the dimensions, and returns one of each."""
        first = x
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        self._tie(x, first)
        return first

    def _along(self, x: Tensor, dim: int) -> Tensor:
        """Returns the labels along one dimension, shape [n], each tied to those at the same index."""
        return self._mix(x, [other for other in range(x.dim()) if other != dim % x.dim()]).flatten()

    # Conclusions from all labels

    def _units(self) -> Tensor:
        """Returns the unit of each label, shape [labels]; 0 for those that stay."""
        first, second = torch.cat(self._ties, 1).numpy()
        ones = np.ones(len(first), dtype=bool)
        graph = coo_array((ones, (first, second)), shape=(self._count, self._count))
        units = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
        return torch.where(units == units[0], 0, units + 1)

    def settle_groups(self) -> None:
        """Makes groups of a convolution narrower if they are tied to one another; else complete groups go."""
        for path, positions, read, made in self._grouped:
            units = self._units()
            if _meet(units[read]) or _meet(units[made]):
                self._tie(read, read[:1])
                self._tie(made, made[:1])
                self._show(Axis(path, "weight", 1, True, positions), read[0])
            else:
                self._tie(read, read[:, :1])
                self._tie(made, read[:, :1])
                self._show(Axis(path, "groups"), read[:, 0])

    def settle_views(self) -> None:
        """Keeps all channels of a view, unless it can be cut by rows, or in the same way in all rows."""
        changed = True
        while changed:
            changed = False
            units = self._units()
            for labels in self._views:
                seen = units[_core(labels)[0]]
                if sum(bool((seen != seen.narrow(dim, 0, 1)).any()) for dim in range(seen.dim())) > 1:
                    self._tie(labels, _STAYS)
                    changed = True

    def interchangeable(self) -> list[Hidden]:
        """Returns groups of units that appear equally often in the same axes."""
        if not self._axes:
            return []
        units = self._units()
        shown = {axis: units[labels] for axis, labels in self._axes.items()}
        counts = torch.stack([of_axis.bincount(minlength=int(units.max()) + 1) for of_axis in shown.values()])
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for unit, column in enumerate(counts.T.tolist()):
            if unit and any(column):
                alike[tuple(column)].append(unit)
        several = max(axis.positions for axis in shown) > 1
        dimensions: list[Hidden] = []
        for column, members in alike.items():
            axes = [axis for axis, count in zip(shown, column, strict=True) if count]
            cut = any(axis.reads for axis in axes) and max(axis.positions for axis in axes) > several
            if len(members) > 1 and cut:
                dimensions.append({axis: _entries(torch.tensor(members), shown[axis]) for axis in axes})
        return dimensions


def _entries(members: Tensor, units: Tensor) -> Tensor:
    """Returns the positions of each member among the units of an axis, shape [members, entries of each]."""
    at = torch.isin(units, members).nonzero().flatten()
    return at[units[at].argsort(stable=True)].reshape(len(members), -1)


def _meet(units: Tensor) -> bool:
    """Returns whether two rows have a unit in common."""
    return max(Counter(unit for row in units.tolist() for unit in set(row)).values()) > 1


def _rule(node: fx.Node) -> _Rule:
    packet, target = _packet(node), node.target
    if packet in _RULES:
        return _RULES[packet]
    if packet in _MIXED:
        return _Trace.mixing
    if torch.Tag.pointwise in getattr(target, "tags", ()):
        return _Trace.pointwise
    return _Trace.view if getattr(target, "is_view", False) else lambda *_: None


def _packet(node: fx.Node) -> Any:
    """Returns the operator without its overload."""
    return getattr(node.target, "overloadpacket", node.target)


def _named(arguments: _Arguments) -> Sequence[int]:
    dims = arguments.get("dim")
    return [dims] if isinstance(dims, int) else dims or []


_AS_THEY_ARE = ("clone", "contiguous", "to", "dropout", "dropout_", "hardswish", "hardswish_")
"""Elementwise operators that torch does not tag as such."""

_RULES: Mapping[Any, _Rule] = {
    operator.getitem: _Trace.item,
    _aten.conv2d: _Trace.weighing,
    _aten.linear: _Trace.weighing,
    _aten.batch_norm: _Trace.batch_norm,
    _aten.scaled_dot_product_attention: _Trace.attention,
    _aten.cat: _Trace.concatenation,
    **{getattr(_aten, name): _Trace.pointwise for name in _AS_THEY_ARE},
}

_MIXED: Mapping[Any, Callable[[_Arguments], Sequence[int]]] = {
    **dict.fromkeys((_aten.mean, _aten.sum, _aten.amax, _aten.softmax, _aten.linalg_vector_norm), _named),
    **dict.fromkeys(
        (_aten.avg_pool2d, _aten.max_pool2d, _aten.adaptive_avg_pool2d), lambda arguments: (-2, -1)
    ),
    _aten.pad: lambda arguments: range(-(len(arguments["pad"]) // 2), 0),
    _aten.layer_norm: lambda arguments: range(-len(arguments["normalized_shape"]), 0),
}
"""Operators that mix along some dimensions and treat the others independently; no dimensions means all."""


def _shape(node: fx.Node) -> torch.Size:
    shape: torch.Size = node.meta["val"].shape
    return shape


def _staying(node: fx.Node) -> Any:
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return [_STAYS.expand(part.shape) for part in value]
    return _STAYS.expand(value.shape) if isinstance(value, Tensor) else []


def _listed(labels: Any) -> list[Tensor]:
    return list(labels) if isinstance(labels, list | tuple) else [labels]


def _all_of(labels: Tensor) -> set[int]:
    return set(_core(labels)[0].flatten().tolist())


def _core(*tensors: Tensor) -> Sequence[Tensor]:
    """Returns the tensors without dimensions along which all of them repeat."""
    for dim in range(tensors[0].dim()):
        if all(x.stride(dim) == 0 for x in tensors):
            tensors = tuple(x.narrow(dim, 0, 1) for x in tensors)
    return tensors
