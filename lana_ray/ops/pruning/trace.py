"""Which channels inside a module can only go together, read off its program.

Every channel that a convolution or a linear layer makes gets a label, and labels run through the program in
place of numbers: views move them, a sum ties those that meet, what reads a channel ties it to its weights.
Whatever the module is given and answers is tied to one label that stays, and so is what meets an operator
without a rule: nothing is cut that is not understood. Labels tied to one another make a unit, and units that
show in the same tensors in the same way are interchangeable: any of them can go, and the shapes left are the
same.

So do dependency graphs (DepGraph, Fang et al., arXiv 2301.12900). Their package, torch-pruning 1.6, is made
for whole networks: it takes no account of what a block is given, must be told where to stop and what
attention is, and leaves grouped convolutions as wide as they are.
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
    """Where channels show: along a dimension of a tensor, or in a number such as ``out_channels``."""

    module: str
    """Path of the module that has it, empty for the outermost."""
    name: str
    """Of a parameter, a buffer or a number."""
    dim: int = -1
    """-1 for a number."""
    reads: bool = field(default=False, compare=False)
    """Its entries weigh what the module reads."""
    positions: int = field(default=0, compare=False)
    """Of a weight: the pixels or tokens that it is used for."""


Hidden: TypeAlias = Mapping[Axis, Tensor]
"""A hidden dimension: the entries that each of its units has of every axis, shape [units, entries]."""


def hidden_dimensions(module: nn.Module, program: ExportedProgram) -> list[Hidden]:
    """All that can be cut of a module, in the order in which its program comes to it.

    The narrow parts of squeeze-and-excitation and split attention, which see one position of an image, are
    none of it: they cost next to nothing.

    Args:
        program: of the module in evaluation mode.
    """
    trace = _Trace(module, program)
    for node in program.graph.nodes:
        trace.visit(node)
    trace.settle_groups()
    trace.settle_views()
    return trace.interchangeable()


_aten = torch.ops.aten
_Given: TypeAlias = Mapping[str, Any]
"""An operator's arguments by name, defaults among them."""
_Rule: TypeAlias = Callable[["_Trace", fx.Node, _Given], Any]

_STAYS = torch.tensor(0)
"""The label of what is never cut."""
_HEADS, _WIDTH = "num_heads", "attn_dim"
"""Numbers that timm's attention keeps."""


class _Trace:
    """Labels on their way through a program.

    The labels of a value have its shape; ``expand`` keeps those that repeat along a dimension once.
    """

    def __init__(self, module: nn.Module, program: ExportedProgram) -> None:
        self._module = module
        self._root = program.graph_module
        signature = program.graph_signature
        self._tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        """Paths of parameters and buffers by their names in the program."""
        self._labels: dict[fx.Node, Any] = {}
        self._count = 1
        self._axes: dict[Axis, Tensor] = {}
        self._ties: list[Tensor] = []
        """Pairs of labels, each [2, n]."""
        self._views: list[Tensor] = []
        self._grouped: list[tuple[str, int, Tensor, Tensor]] = []
        """Grouped convolutions: path, positions, what they read and make, each [groups, channels of one]."""

    def visit(self, node: fx.Node) -> None:
        """Labels what a node of the program makes."""
        found: Any = None
        if node.op == "call_function":
            given = node.normalized_arguments(self._root, normalize_to_only_use_kwargs=True)
            found = _rule(node)(self, node, given.kwargs if given else {})
        if found is None:
            for labels in (labels for source in node.all_input_nodes for labels in _listed(self._of(source))):
                self._tie(labels, _STAYS)
            found = _staying(node)
        self._labels[node] = found

    # What operators do to labels; None for a use of them that is not understood.

    def item(self, node: fx.Node, given: _Given) -> Any:
        source: Any
        source, index = node.args
        return self._labels[source][index]

    def weighing(self, node: fx.Node, given: _Given) -> Any:
        """A convolution or a linear layer."""
        path, name = self._place(given["weight"])
        owner = self._module.get_submodule(path)
        if name != "weight" or not isinstance(owner, nn.Conv2d | nn.Linear):
            return None
        image = isinstance(owner, nn.Conv2d)
        read = self._along(self._of(given["input"]), -3 if image else -1)
        shape = _shape(node)
        positions = math.prod(shape[-2:] if image else shape[1:-1])
        made = self._show(Axis(path, "weight", 0, positions=positions), self._new(len(owner.weight)))
        if given["bias"] is not None:
            self._tie(self._of(given["bias"]), made)
        groups = given.get("groups", 1)
        if groups > 1:
            each = (groups, -1)
            self._grouped.append((path, positions, read.reshape(each), made.reshape(each)))
        else:
            self._show(Axis(path, "weight", 1, True, positions), read)
        self._show(Axis(path, "in_channels" if image else "in_features"), read)
        self._show(Axis(path, "out_channels" if image else "out_features"), made)
        return (made[:, None, None] if image else made).expand(shape)

    def batch_norm(self, node: fx.Node, given: _Given) -> Any:
        x = self._of(given["input"])
        channels = self._along(x, 1)
        for tensor in (given[part] for part in ("weight", "bias", "running_mean", "running_var")):
            if tensor is not None:
                self._tie(self._of(tensor), channels)
                path, _ = self._place(tensor)
                if hasattr(self._module.get_submodule(path), "num_features"):
                    self._show(Axis(path, "num_features"), channels)
        return x

    def attention(self, node: fx.Node, given: _Given) -> Any:
        """A head is a unit: what it computes for each position depends on all of it."""
        q, k, v = (self._mix(self._of(given[part]), (-2, -1)) for part in ("query", "key", "value"))
        if given["attn_mask"] is not None or not q.shape == k.shape == v.shape:
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

    def concatenation(self, node: fx.Node, given: _Given) -> Any:
        return torch.cat([self._of(part) for part in given["tensors"]], given["dim"])

    def pointwise(self, node: fx.Node, given: _Given) -> Any:
        operands = [self._of(source) for source in node.all_input_nodes]
        tied = [x for x in operands if x.numel() > 1] or operands  # one number for all channels ties none
        for x in tied[1:]:
            self._tie(tied[0], x)
        return tied[0].expand(_shape(node))

    def mixing(self, node: fx.Node, given: _Given) -> Any:
        x, shape = self._of(given["input"]), _shape(node)
        dims = tuple(_MIXED[_packet(node)](given)) or tuple(range(x.dim()))
        mixed = self._mix(x, dims)
        return (mixed if len(shape) == x.dim() else mixed.squeeze(dims)).expand(shape)

    def view(self, node: fx.Node, given: _Given) -> Any:
        target: Any = _aten.reshape.default if node.target is _aten.view.default else node.target
        try:
            after = target(*fx.node.map_arg(node.args, self._of), **node.kwargs)
        except RuntimeError:  # not of whole numbers, as that of complex ones
            return None
        before = self._of(node.all_input_nodes[0])
        if len({piece.shape for piece in _listed(after)}) > 1:
            return None
        pieces = torch.stack(_listed(after))
        self._views.append(pieces)
        return after if _all_of(before) == _all_of(pieces) else None

    # Their parts

    def _of(self, node: fx.Node) -> Any:
        """The labels of a value; a parameter that lies along one dimension has labels of its own."""
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
        """The path of the module that has a tensor, and its name there; empty for what is computed."""
        path, _, name = self._tensors.get(node.name, "").rpartition(".")
        return path, name

    def _new(self, count: int) -> Tensor:
        self._count += count
        return torch.arange(self._count - count, self._count)

    def _show(self, axis: Axis, labels: Tensor) -> Tensor:
        """The labels of an axis, tied to these."""
        known = self._axes.setdefault(axis, labels)
        self._tie(known, labels)
        return known

    def _tie(self, a: Tensor, b: Tensor) -> None:
        shape = np.broadcast_shapes(a.shape, b.shape)
        self._ties.append(torch.stack([x.flatten() for x in _core(a.expand(shape), b.expand(shape))]))

    def _mix(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        """Ties what lies along the dimensions, and leaves one of each."""
        first = x
        for dim in dims:
            first = first.narrow(dim, 0, 1)
        self._tie(x, first)
        return first

    def _along(self, x: Tensor, dim: int) -> Tensor:
        """The labels along one dimension, shape [n], tied to those beside them."""
        return self._mix(x, [other for other in range(x.dim()) if other != dim % x.dim()]).flatten()

    # What all labels together say

    def _units(self) -> Tensor:
        """The unit of each label, shape [labels]; 0 for what stays."""
        first, second = torch.cat(self._ties, 1).numpy()
        ones = np.ones(len(first), dtype=bool)
        graph = coo_array((ones, (first, second)), shape=(self._count, self._count))
        units = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
        return torch.where(units == units[0], 0, units + 1)

    def settle_groups(self) -> None:
        """Groups of a convolution that are tied to one another get narrower; of others, whole ones go."""
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
        """What a view lays out in rows is cut alike in all of them or by whole rows, or else stays."""
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
        """The units that show in the same axes as often as one another."""
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
        found: list[Hidden] = []
        for column, members in alike.items():
            axes = [axis for axis, count in zip(shown, column, strict=True) if count]
            cut = any(axis.reads for axis in axes) and max(axis.positions for axis in axes) > several
            if len(members) > 1 and cut:
                found.append({axis: _entries(torch.tensor(members), shown[axis]) for axis in axes})
        return found


def _entries(members: Tensor, units: Tensor) -> Tensor:
    """Where each of the members stands among the units of an axis, shape [members, entries of each]."""
    at = torch.isin(units, members).nonzero().flatten()
    return at[units[at].argsort(stable=True)].reshape(len(members), -1)


def _meet(units: Tensor) -> bool:
    """Whether two rows have a unit in common."""
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
    """The operator, whichever of its overloads is called."""
    return getattr(node.target, "overloadpacket", node.target)


def _named(given: _Given) -> Sequence[int]:
    dims = given.get("dim")
    return [dims] if isinstance(dims, int) else dims or []


_AS_THEY_ARE = ("clone", "contiguous", "to", "dropout", "dropout_", "hardswish", "hardswish_")
"""Operators on each number alone that torch does not tag as such."""

_RULES: Mapping[Any, _Rule] = {
    operator.getitem: _Trace.item,
    _aten.conv2d: _Trace.weighing,
    _aten.linear: _Trace.weighing,
    _aten.batch_norm: _Trace.batch_norm,
    _aten.scaled_dot_product_attention: _Trace.attention,
    _aten.cat: _Trace.concatenation,
    **{getattr(_aten, name): _Trace.pointwise for name in _AS_THEY_ARE},
}

_MIXED: Mapping[Any, Callable[[_Given], Sequence[int]]] = {
    **dict.fromkeys((_aten.mean, _aten.sum, _aten.amax, _aten.softmax, _aten.linalg_vector_norm), _named),
    **dict.fromkeys((_aten.avg_pool2d, _aten.max_pool2d, _aten.adaptive_avg_pool2d), lambda given: (-2, -1)),
    _aten.pad: lambda given: range(-(len(given["pad"]) // 2), 0),
    _aten.layer_norm: lambda given: range(-len(given["normalized_shape"]), 0),
}
"""Operators that mix what lies along some dimensions, and treat it alike along the others; none for all."""


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
    """The tensors without what repeats in all of them."""
    for dim in range(tensors[0].dim()):
        if all(x.stride(dim) == 0 for x in tensors):
            tensors = tuple(x.narrow(dim, 0, 1) for x in tensors)
    return tensors
