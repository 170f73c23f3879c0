"""Prepares a user's network so that every stage can run, train, copy and export it.

A forward pass on random images gives lazy modules their shapes, and shows whether the network runs in
channels-last layout (two to three times as fast on CPUs) and whether it modifies its input.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lana_ray.errors import UserError, one_line

_ANY_SIZE = 224
"""Image size, pixels, for lazy modules if none is given."""
_CHANNELS = (1, 4, 2)
_BATCHES = (1, 4, 8, 16, 32, 64)
_SIZES = (224, 32, 28, 64, 96, 128, 192, 256, 299, 384)
"""Channels, batch sizes and image sizes that are tried to explain why a network fails."""
_MOST_PIXELS = 1 << 19
"""Most pixels of a batch that is tried, since a network that fails may be large."""


@dataclass(frozen=True)
class InputHook:
    """Gives a network its images in the layout it needs, and a copy of them if it writes to its input."""

    contiguous: bool
    copied: bool

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        images = args[0].contiguous() if self.contiguous else args[0]
        return (images.clone() if self.copied else images, *args[1:])


def memory_format(network: nn.Module) -> torch.memory_format:
    """Returns the memory layout that the weights of a prepared network should have."""
    hooks = network._forward_pre_hooks.values()
    needs = any(isinstance(hook, InputHook) and hook.contiguous for hook in hooks)
    return torch.contiguous_format if needs else torch.channels_last


def example_images(size: int, *, count: int = 2) -> Tensor:
    """Returns random images [count, 3, size, size], the same ones in every call."""
    return torch.randn((count, 3, size, size), generator=torch.Generator().manual_seed(0))


def prepare(network: nn.Module, image_size: int | None) -> nn.Module:
    """Returns the network in evaluation mode, in float32, initialised, without distributed modules.

    ``DataParallel`` becomes a plain module around the same network, and ``SyncBatchNorm`` its original
    batch-norm. A network that cannot run channels-last, or writes to its input, gets an ``InputHook``, which
    its copies keep. The network is changed in place; the layout of its weights does not change.

    Args:
        image_size: size of the images, pixels; without it, the network only runs if lazy modules need it.

    Raises:
        UserError: it fails on such images in both layouts; the message says which images it runs on.
    """
    network = _without_wrappers(network).cpu().eval()
    dtypes = {p.dtype for p in network.parameters() if not is_lazy(p) and p.is_floating_point()}
    if dtypes - {torch.float32}:
        network.float()
    if any(is_lazy(tensor) for tensor in (*network.parameters(), *network.buffers())):
        run(network, example_images(image_size or _ANY_SIZE))
    dimensions = {} if image_size is None else _try(network, example_images(image_size))
    norms: dict[nn.Module, nn.Module] = {}
    for name, norm in list(network.named_modules(remove_duplicate=False)):
        if isinstance(norm, nn.SyncBatchNorm):
            norms[norm] = norms.get(norm) or _batch_norm(norm, dimensions.get(name, 4))
            network = _put(network, name, norms[norm])
    return network


def _without_wrappers(network: nn.Module) -> nn.Module:
    """Returns the network without ``torch.compile`` and with plain modules for ``DataParallel``."""
    compiled = getattr(network, "_orig_mod", None)
    if isinstance(compiled, nn.Module):
        return _without_wrappers(compiled)
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            network = _put(network, name, _PlainWrapper(module.module))
    return network


class _PlainWrapper(nn.Module):
    """Replaces ``DataParallel`` and keeps its module names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def _put(network: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """Puts ``module`` into the network under a name; returns the network, or ``module`` if it is all."""
    if not name:
        return module
    network.set_submodule(name, module)
    return network


def _try(network: nn.Module, images: Tensor) -> dict[str, int]:
    """Runs the network, adds the hook it needs, and returns the input dimensions of each SyncBatchNorm."""
    dimensions: dict[str, int] = {}

    def note(name: str) -> Any:
        return lambda _, args: dimensions.__setitem__(name, args[0].dim())

    contiguous, trial = False, images.contiguous(memory_format=torch.channels_last)
    with ExitStack() as stack:
        for name, norm in network.named_modules(remove_duplicate=False):
            if isinstance(norm, nn.SyncBatchNorm):
                stack.enter_context(norm.register_forward_pre_hook(note(name)))
        stack.callback(network.to, memory_format=torch.contiguous_format)
        try:
            run(network.to(memory_format=torch.channels_last), trial)
        except UserError:
            contiguous, trial = True, images.clone()
            run(network.to(memory_format=torch.contiguous_format), trial)
    copied = not torch.equal(trial, images)
    if contiguous or copied:
        network.register_forward_pre_hook(InputHook(contiguous, copied))
    return dimensions


def _batch_norm(norm: nn.SyncBatchNorm, dimensions: int) -> nn.Module:
    """Returns the batch-norm that a SyncBatchNorm was converted from, with the same tensors."""
    kinds: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 5: nn.BatchNorm3d}
    kind: Any = kinds.get(dimensions, nn.BatchNorm2d)
    if type(norm).__module__.startswith("timm."):
        from timm.layers.norm_act import BatchNormAct2d  # takes seconds, and only timm's networks need it

        kind = BatchNormAct2d
    with torch.device("meta"):
        plain: nn.Module = kind(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
    plain._parameters, plain._buffers = norm._parameters, norm._buffers
    for name, child in norm.named_children():  # timm's batch-norms contain an activation
        plain.add_module(name, child)
    return plain.train(norm.training)


@torch.no_grad()
def run(network: nn.Module, images: Tensor) -> Any:
    """The network's output for images [N, 3, H, W], in its present mode; raises UserError if it fails."""
    try:
        return network(images)
    except Exception as error:  # the user's code may raise anything
        shape = " x ".join(map(str, images.shape[1:]))
        reason = f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
        fix = next(_fixes(network, images), "check data.image_size")
        raise UserError(
            "unsupported_network", f"teacher: fails on images of {shape} ({reason}); {fix}"
        ) from error


def _fixes(network: nn.Module, images: Tensor) -> Iterator[str]:
    """Yields the images that a failing network runs on, with what to do about it."""
    count, _, size, _ = images.shape
    for channels in _CHANNELS:
        if runs(network, torch.zeros(count, channels, size, size)):
            only = f"it takes images of {channels} channel{'s' * (channels > 1)}"
            yield f"{only}, but images here have three; give it a first layer for three channels"
    for batch in _BATCHES:
        if batch * size**2 <= _MOST_PIXELS and runs(network, torch.zeros(batch, 3, size, size)):
            yield f"it only runs on batches of {batch}; make its forward take any number of images"
    own = getattr(network, "pretrained_cfg", None) or {}
    for other in dict.fromkeys((*(own.get("input_size") or ())[1:2], *_SIZES)):
        if other != size and runs(network, torch.zeros(count, 3, other, other)):
            yield f"it runs on images of {other} pixels; set data.image_size: {other}"


def runs(network: nn.Module, inputs: Tensor) -> bool:
    """Returns whether a network runs on inputs of that shape, on torch's ``meta`` device too."""
    try:
        network(inputs)
    except Exception:  # the user's code may raise anything
        return False
    return True
