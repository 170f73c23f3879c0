"""The replaceable layers of a network: found, verified, observed, replaced, and run from the middle on."""

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
from lana_ray.networks.layouts import Layout, Rearranged, find_layouts
from lana_ray.networks.reach import find_offset

# Block structures of timm's families, tried in this order: EfficientNet and MobileNetV3, ConvNeXt, ResNet
# and ResNeSt, RegNet, ViT and DeiT.
_BLOCK_PATTERNS = (
    r"blocks\.\d+\.\d+",
    r"stages\.\d+\.blocks\.\d+",
    r"layer\d+\.\d+",
    r"s\d+\.b\d+",
    r"blocks\.\d+",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One replaceable block of the teacher and the shapes a candidate for it must keep."""

    name: str
    """Module name in the teacher, for example ``blocks.1.0``."""
    input_shape: tuple[int, ...]
    """Without the batch dimension. Images are [C, H, W] or [H, W, C], tokens [T, D], sequences [C, L]."""
    output_shape: tuple[int, ...]
    residual: bool
    """The layer adds its input to its output."""
    layout: Layout = Layout.CHANNELS_FIRST
    """Which axis of both shapes holds the channels."""
    offset: tuple[float, float] | None = (0.0, 0.0)
    """The middle of what output pixel (0, 0) of a strided layer reads, in rows and columns of its input.

    (0, 0) where convolutions pad kernel // 2 on every side, (1, 1) where a stride of 2 pads as TensorFlow
    does, one pixel more behind than before. None where the layer's stride is not what its sizes suggest.
    """

    @property
    def is_image(self) -> bool:
        """Maps images to images, of a layout that is known."""
        return self._has(dimensions=3)

    @property
    def is_tokens(self) -> bool:
        """Maps tokens, or sequences, to as many, of a layout that is known."""
        return self._has(dimensions=2) and self.input_size == self.output_size

    def _has(self, dimensions: int) -> bool:
        lengths = {len(self.input_shape), len(self.output_shape)}
        return lengths == {dimensions} and self.layout is not Layout.UNKNOWN

    @property
    def in_channels(self) -> int:
        return self.input_shape[self._channels]

    @property
    def out_channels(self) -> int:
        return self.output_shape[self._channels]

    @property
    def input_size(self) -> tuple[int, ...]:
        """The input's shape without its channels: (height, width), or (tokens,)."""
        return self.input_shape[:-1] if self._channels else self.input_shape[1:]

    @property
    def output_size(self) -> tuple[int, ...]:
        """The output's shape without its channels."""
        return self.output_shape[:-1] if self._channels else self.output_shape[1:]

    @property
    def _channels(self) -> int:
        return -1 if self.layout is Layout.CHANNELS_LAST else 0

    @property
    def stride(self) -> int:
        """How much smaller the output image is than the input image."""
        return max(1, round(self.input_size[0] / self.output_size[0]))

    @property
    def usual(self) -> Layer:
        """The layer as operations see it: with images [C, H, W], or tokens [T, D]."""
        layout = Layout.CHANNELS_FIRST if self.is_image else Layout.CHANNELS_LAST
        if self.layout in (layout, Layout.UNKNOWN):
            return self
        shapes = (
            (channels, *size) if self.is_image else (*size, channels)
            for channels, size in (
                (self.in_channels, self.input_size),
                (self.out_channels, self.output_size),
            )
        )
        before, after = shapes
        return changed(self, input_shape=before, output_shape=after, layout=layout)

    @property
    def place(self) -> tuple[Any, ...]:
        """What candidates for the layer depend on, whatever its name and weights."""
        return (self.input_shape, self.output_shape, self.residual, self.layout, self.offset)


def find_layers(network: nn.Module, example: Tensor, patterns: Sequence[str] | None = None) -> list[Layer]:
    """Finds the layers of a network in the order they run, and verifies them by a forward pass.

    Args:
        network: left unchanged.
        example: an input batch, shape [N, ...] with N >= 2.
        patterns: glob patterns of module names (``*`` stands for anything but a dot); by default the
            block structures of timm's families are tried.

    Raises:
        UserError: when nothing matches, or when a module is not called exactly once with exactly one
            tensor and answers with one tensor; it names the module and the reason.
    """
    names = [name for name, _ in network.named_modules(remove_duplicate=False)]
    if patterns:
        expressions = [_glob(pattern) for pattern in patterns]
        for pattern, expression in zip(patterns, expressions, strict=True):
            if not any(expression.fullmatch(name) for name in names):
                raise UserError(f"teacher.layers: no module is named like {pattern!r}; {_known(network)}")
        chosen = [n for n in names if any(e.fullmatch(n) for e in expressions)]
    else:
        groups = ([n for n in names if re.fullmatch(p, n)] for p in _BLOCK_PATTERNS)
        chosen = next((group for group in groups if group), [])
        if not chosen:
            raise UserError(
                f"{type(network).__name__} has no block structure that is known; "
                f"give teacher.layers, glob patterns of module names; {_known(network)}"
            )
    by_module = {network.get_submodule(name): name for name in reversed(chosen)}
    chosen = [name for name in chosen if name in by_module.values()]  # a module may have several names
    for inner, outer in itertools.permutations(chosen, 2):
        if inner.startswith(f"{outer}."):
            raise misfit(inner, f"it is a part of layer {outer}")
    return _verify(network, example, chosen)


def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(r"[^.]+".join(re.escape(part) for part in pattern.split("*")))


def _known(network: nn.Module) -> str:
    """The modules of the top, and as patterns those that stand in a row at any depth."""
    names = (re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name, _ in network.named_modules())
    shown = list(dict.fromkeys(n for n in names if n and (n.endswith("*") or "." not in n)))
    return "its modules: " + ", ".join(shown[:20]) + (", …" if len(shown) > 20 else "")


def misfit(name: str, why: str) -> UserError:
    return UserError(f"layer {name} does not fit: {why}; give teacher.layers without it")


def _verify(network: nn.Module, example: Tensor, names: Sequence[str]) -> list[Layer]:
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    versions: dict[str, int] = {}  # of a layer's input, then of its output: writing in place raises them

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
                given = [type(a).__name__ for a in args] + sorted(kwargs)
                raise misfit(name, f"it takes {given}, not one tensor")
            if not isinstance(output, Tensor):
                raise misfit(name, f"it returns {type(output).__name__}, not a tensor")
            if len(args[0]) != len(example) or len(output) != len(example):
                raise misfit(name, "its first dimension is not the batch")
            if args[0]._version != versions[name]:
                raise misfit(name, "it changes its input in place")
            calls[name] = (args[0].detach().clone(), output)
            versions[name] = output._version

        return hook

    with torch.no_grad(), evaluating(network):
        with contextlib.ExitStack() as stack:
            for name in names:
                module = network.get_submodule(name)
                stack.callback(module.register_forward_pre_hook(note(name)).remove)
                stack.callback(module.register_forward_hook(record(name), with_kwargs=True).remove)
            network(example)
        for name in names:
            if name not in calls:
                raise misfit(name, "it does not run in a forward pass")
            if calls[name][1]._version != versions[name]:
                raise misfit(name, "what follows it changes its output in place")
        layouts = find_layouts(network, example, {name: inputs for name, (inputs, _) in calls.items()})
        layers = [
            Layer(
                name=name,
                input_shape=tuple(inputs.shape[1:]),
                output_shape=tuple(output.shape[1:]),
                residual=_is_residual(network.get_submodule(name), inputs, output),
                layout=layouts[name],
            )
            for name, (inputs, output) in calls.items()
        ]
        return [_with_offset(layer, network.get_submodule(layer.name)) for layer in layers]


def _with_offset(layer: Layer, module: nn.Module) -> Layer:
    if not layer.is_image or layer.stride == 1:
        return layer
    usual = layer.usual
    trial = module if usual is layer else Rearranged(module, usual.layout)
    return changed(layer, offset=find_offset(trial, usual.in_channels, usual.input_size, layer.stride))


def _is_residual(module: nn.Module, inputs: Tensor, output: Tensor) -> bool:
    """Whether the input passes the layer when its weights say nothing, as it does along a shortcut.

    Parameters are set to zero; and, since weight normalisation divides by them and norms without parameters
    subtract a mean, the answers of whatever has weights or statistics too. The activations that may follow a
    sum leave large positive numbers as they are.
    """
    if output.shape != inputs.shape or not inputs.is_floating_point():
        return False
    trial = copy.deepcopy(module)  # weight normalisation of the old style leaves what it computed
    generator = torch.Generator().manual_seed(0)
    given = 4 + 2 * torch.rand(inputs[:1].shape, generator=generator).to(inputs)
    zero = inputs.new_zeros(())
    silent = {name: zero.to(p.dtype).expand(p.shape) for name, p in trial.named_parameters()}

    def passes() -> bool:
        answer = functional_call(trial, silent, (given.clone(),))
        return bool(torch.allclose(answer, given, rtol=0.05))

    if passes():
        return True
    for part in trial.modules():
        if part is not trial and _has_weights(part):
            part.register_forward_hook(lambda *call: tree_map_only(Tensor, torch.zeros_like, call[-1]))
    return passes()


def _has_weights(part: nn.Module) -> bool:
    """Parameters or statistics of its own, and no parts but those that compute its weights."""
    parts = [name for name, _ in part.named_children() if name != "parametrizations"]
    own = bool(part._parameters or part._buffers or is_parametrized(part))
    return own and not parts and not isinstance(part, nn.PReLU)


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode; every module's own mode comes back afterwards."""
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
    """Batch-norms normalise with the current batch and leave their running statistics alone.

    LANA evaluates students that are not fine-tuned yet in this way (arXiv 2107.10624, section 3.3).
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
    """A copy of ``network`` with the named modules in place of its own; the network stays as it is."""
    kept = {id(network.get_submodule(name)): module for name, module in modules.items()}
    return copy.deepcopy(network, kept)  # the memo puts each module where its original stood


@torch.no_grad()
def observe(network: nn.Module, names: Sequence[str], images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """A pass of the network as far as its last named layer, giving each one's (input, output)."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            seen[name] = (args[0], output)
            if len(seen) == len(names):
                raise _AllSeen

        return hook

    with contextlib.ExitStack() as stack, contextlib.suppress(_AllSeen):
        for name in names:
            stack.callback(network.get_submodule(name).register_forward_hook(record(name)).remove)
        network(images)
    return seen


class _AllSeen(Exception):
    """Ends a pass whose rest nobody asked for."""
