"""Finds, verifies, observes and replaces the layers of a network."""

from __future__ import annotations

import contextlib
import copy
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import tree_map_only

from lana_ray.errors import UserError
from lana_ray.networks.layouts import Layout, Rearranged, find_layouts, find_offset

# Block structures of timm's families in the order in which they are tried: EfficientNet and MobileNetV3,
# ConvNeXt, ResNet and ResNeSt, RegNet, ViT and DeiT.
_BLOCK_PATTERNS = (
    r"blocks\.\d+\.\d+",
    r"stages\.\d+\.blocks\.\d+",
    r"layer\d+\.\d+",
    r"s\d+\.b\d+",
    r"blocks\.\d+",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A replaceable block of the teacher, with the shapes that its candidates must have."""

    name: str
    """Module name in the teacher, for example ``blocks.1.0``."""
    input_shape: tuple[int, ...]
    """Shape without the batch: images are [C, H, W] or [H, W, C], tokens [T, D], sequences [C, L]."""
    output_shape: tuple[int, ...]
    """Shape without the batch."""
    residual: bool
    """Whether the layer adds its input to its output."""
    layout: Layout = Layout.CHANNELS_FIRST
    """Axis of the channels in both shapes."""
    offset: tuple[float, float] | None = (0.0, 0.0)
    """Centre of the input region that output pixel (0, 0) of a strided layer reads, as (row, column).

    It is (0, 0) if convolutions pad kernel // 2 on every side, and (1, 1) if a stride of 2 pads as TensorFlow
    does, one pixel more at the end than at the beginning. None if the layer's stride is not the ratio of its
    sizes.
    """

    @property
    def is_image(self) -> bool:
        """Whether the layer maps images to images, with a known layout."""
        return self._dimensions == {3} and self.layout is not Layout.UNKNOWN

    @property
    def is_tokens(self) -> bool:
        """Whether the layer maps tokens or sequences to equally many, with a known layout."""
        is_known = self._dimensions == {2} and self.layout is not Layout.UNKNOWN
        return is_known and self.input_size == self.output_size

    @property
    def _dimensions(self) -> set[int]:
        return {len(self.input_shape), len(self.output_shape)}

    @property
    def in_channels(self) -> int:
        return self.input_shape[self._channels]

    @property
    def out_channels(self) -> int:
        return self.output_shape[self._channels]

    @property
    def input_size(self) -> tuple[int, ...]:
        """Input shape without the channels: (height, width), or (tokens,)."""
        return self.input_shape[:-1] if self._channels else self.input_shape[1:]

    @property
    def output_size(self) -> tuple[int, ...]:
        """Output shape without the channels."""
        return self.output_shape[:-1] if self._channels else self.output_shape[1:]

    @property
    def _channels(self) -> int:
        return -1 if self.layout is Layout.CHANNELS_LAST else 0

    @property
    def stride(self) -> int:
        """Ratio of the input's to the output's height."""
        return max(1, round(self.input_size[0] / self.output_size[0]))

    @property
    def usual(self) -> Layer:
        """The layer with the shapes that operations use: images [C, H, W], or tokens [T, D]."""
        layout = Layout.CHANNELS_FIRST if self.is_image else Layout.CHANNELS_LAST
        if self.layout in (layout, Layout.UNKNOWN):
            return self
        before, after = (
            (shape[-1], *shape[:-1]) if self.is_image else (*shape[1:], shape[0])
            for shape in (self.input_shape, self.output_shape)
        )
        return changed(self, input_shape=before, output_shape=after, layout=layout)

    @property
    def place(self) -> tuple[Any, ...]:
        """Everything that its candidates depend on, except name and weights."""
        return self.input_shape, self.output_shape, self.residual, self.layout, self.offset


def find_layers(network: nn.Module, example: Tensor, patterns: Sequence[str] | None = None) -> list[Layer]:
    """Returns the layers of a network in the order they run, and verifies them with a forward pass.

    Args:
        network: remains unchanged.
        example: an input batch, shape [N, ...] with N >= 2.
        patterns: glob patterns of module names (``*`` matches anything but a dot); defaults to the block
            structures of timm's families.

    Raises:
        UserError: no module matches, or a module is not called exactly once with one tensor as its only
            argument, or does not return one tensor.
    """
    names = [name for name, _ in network.named_modules(remove_duplicate=False)]
    if patterns:
        matched = {pattern: set(filter(_glob(pattern).fullmatch, names)) for pattern in patterns}
        if unmatched := [pattern for pattern, some in matched.items() if not some]:
            raise UserError(
                "unknown_name",
                f"teacher.layers: no module matches {unmatched[0]!r}; {_list_modules(network)}",
            )
        union = set.union(*matched.values())
        chosen = [name for name in names if name in union]
    else:
        groups = ([n for n in names if re.fullmatch(p, n)] for p in _BLOCK_PATTERNS)
        chosen = next((group for group in groups if group), [])
        if not chosen:
            raise UserError(
                "unsupported_network",
                f"{type(network).__name__}: its block structure is unknown; set teacher.layers to glob "
                f"patterns of module names; {_list_modules(network)}",
            )
    by_module = {network.get_submodule(name): name for name in reversed(chosen)}
    chosen = [name for name in chosen if name in by_module.values()]  # a module may have several names
    for inner, outer in itertools.permutations(chosen, 2):
        if inner.startswith(f"{outer}."):
            raise misfit(inner, f"it is part of layer {outer}")
    with torch.no_grad(), evaluating(network):
        return _verify(network, example, chosen)


def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(r"[^.]+".join(re.escape(part) for part in pattern.split("*")))


def _list_modules(network: nn.Module) -> str:
    """Returns the top-level modules, and patterns of the numbered modules at any depth, for messages."""
    names = (re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name, _ in network.named_modules())
    shown = list(dict.fromkeys(n for n in names if n and (n.endswith("*") or "." not in n)))
    return "its modules: " + ", ".join(shown[:20]) + (", …" if len(shown) > 20 else "")


def misfit(name: str, why: str) -> UserError:
    """Returns the error to raise for a layer that cannot be replaced."""
    return UserError(
        "unsupported_network", f"layer {name} does not fit: {why}; set teacher.layers without it"
    )


def _verify(network: nn.Module, example: Tensor, names: Sequence[str]) -> list[Layer]:
    """Runs the network and returns the named modules as layers; raises UserError for one that cannot be."""
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    # Version counters of each layer's input, then of its output: writing in place increases them.
    versions: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                versions[name] = args[0]._version

        return hook

    def record(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if name in calls:
                raise misfit(name, "it runs more than once in a forward pass")
            if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
                arguments = [type(a).__name__ for a in args] + sorted(kwargs)
                raise misfit(name, f"it takes {arguments}, not one tensor")
            if not isinstance(output, Tensor):
                raise misfit(name, f"it returns {type(output).__name__}, not a tensor")
            if len(args[0]) != len(example) or len(output) != len(example):
                raise misfit(name, "its first dimension is not the batch")
            if args[0]._version != versions[name]:
                raise misfit(name, "it changes its input in place")
            calls[name] = (args[0].detach().clone(), output)
            versions[name] = output._version

        return hook

    with contextlib.ExitStack() as stack:
        for name in names:
            module = network.get_submodule(name)
            stack.enter_context(module.register_forward_pre_hook(note(name)))
            stack.enter_context(module.register_forward_hook(record(name), with_kwargs=True))
        network(example)
    for name in names:
        if name not in calls:
            raise misfit(name, "it does not run in a forward pass")
        if calls[name][1]._version != versions[name]:
            raise misfit(name, "a later module changes its output in place")
    layouts = find_layouts(network, example, {name: inputs for name, (inputs, _) in calls.items()})
    return [
        _layer(name, network.get_submodule(name), *tensors, layouts[name]) for name, tensors in calls.items()
    ]


def _layer(name: str, module: nn.Module, inputs: Tensor, output: Tensor, layout: Layout) -> Layer:
    layer = Layer(
        name=name,
        input_shape=tuple(inputs.shape[1:]),
        output_shape=tuple(output.shape[1:]),
        residual=_is_residual(module, inputs, output),
        layout=layout,
    )
    if not layer.is_image or layer.stride == 1:
        return layer
    usual = layer.usual
    trial = module if usual is layer else Rearranged(module, usual.layout)
    return changed(layer, offset=find_offset(trial, usual.in_channels, usual.input_size, layer.stride))


def _is_residual(module: nn.Module, inputs: Tensor, output: Tensor) -> bool:
    """Returns whether a module returns its input if its weights have no effect, as a shortcut makes it.

    Its parameters are set to zero. If that is not enough, so are the outputs of all parts with weights or
    statistics, because weight normalisation divides by weights, and norms without parameters subtract a mean.
    Activations after the sum keep large positive numbers.
    """
    if output.shape != inputs.shape or not inputs.is_floating_point():
        return False
    trial = copy.deepcopy(module)  # the older weight normalisation stores the weights that it computes
    generator = torch.Generator().manual_seed(0)
    probe = 4 + 2 * torch.rand(inputs[:1].shape, generator=generator).to(inputs)
    zero = inputs.new_zeros(())
    silent = {name: zero.to(p.dtype).expand(p.shape) for name, p in trial.named_parameters()}

    def passes() -> bool:
        output = functional_call(trial, silent, (probe.clone(),))
        return bool(torch.allclose(output, probe, rtol=0.05))

    if passes():
        return True
    for part in trial.modules():
        if part is not trial and _has_weights(part):
            part.register_forward_hook(lambda *call: tree_map_only(Tensor, torch.zeros_like, call[-1]))
    return passes()


def _has_weights(part: nn.Module) -> bool:
    """Returns whether a module has its own parameters or statistics and no parts except parametrizations."""
    parts = [name for name, _ in part.named_children() if name != "parametrizations"]
    own = bool(part._parameters or part._buffers or is_parametrized(part))
    return own and not parts and not isinstance(part, nn.PReLU)


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Puts the network in evaluation mode; restores every module's mode afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@contextlib.contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Makes batch-norms use the statistics of the current batch without updating their running statistics.

    LANA evaluates students before fine-tuning in this way (arXiv 2107.10624, section 3.3).
    """
    norms = [module for module in network.modules() if isinstance(module, _BATCH_NORMS)]
    before = [(module, module.training, module.track_running_stats, module.momentum) for module in norms]
    for module in norms:
        module.training, module.track_running_stats = True, False
    try:
        yield
    finally:
        for module, mode, track, momentum in before:
            module.training, module.track_running_stats, module.momentum = mode, track, momentum


def replace(network: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """Returns a copy of ``network`` with the named modules replaced; the network remains unchanged."""
    # deepcopy takes the copies of these modules from its memo.
    memo = {id(network.get_submodule(name)): module for name, module in modules.items()}
    return copy.deepcopy(network, memo)


def removable(layers: Sequence[Layer]) -> list[Layer]:
    """The layers that can be left out: those that keep the shape."""
    return [layer for layer in layers if layer.input_shape == layer.output_shape]


@torch.no_grad()
def observe(network: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Runs the network up to the last of the named layers; returns the (input, output) of each."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            seen[name] = (args[0], output)
            if len(seen) == len(names):
                raise _AllSeen

        return hook

    with contextlib.ExitStack() as stack, contextlib.suppress(_AllSeen):
        for name in names:
            stack.enter_context(network.get_submodule(name).register_forward_hook(record(name)))
        network(images)
    return seen


class _AllSeen(Exception):
    """Ends a forward pass after the last observed layer."""
