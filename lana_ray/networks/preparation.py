"""Makes of whatever a user's network is one that every stage can run, train, copy and export.

A forward pass on random images tells how: it gives lazy modules their shapes, and shows whether the network
runs in channels-last layout (which is two to three times as fast on CPUs) and leaves its input alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lana_ray.errors import UserError, one_line

_ANY_SIZE = 224
_CHANNELS = (1, 4, 2)
_BATCHES = (1, 4, 8, 16, 32, 64)
_SIZES = (224, 32, 28, 64, 96, 128, 192, 256, 299, 384)
"""What is tried to explain why a network fails."""
_MOST_PIXELS = 1 << 19
"""Of a batch that is tried for it: a network that fails may be a large one."""


@dataclass(frozen=True)
class InputHook:
    """Hands a network its images in the layout it needs, and a copy if it writes on them."""

    contiguous: bool
    copied: bool

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        images, *more = args
        images = images.contiguous() if self.contiguous else images
        return (images.clone() if self.copied else images, *more)


def memory_format(network: nn.Module) -> torch.memory_format:
    """The layout that a prepared network's weights are to have."""
    hooks = network._forward_pre_hooks.values()
    needs = any(isinstance(hook, InputHook) and hook.contiguous for hook in hooks)
    return torch.contiguous_format if needs else torch.channels_last


def example_images(size: int, *, count: int = 2) -> Tensor:
    """Random images [count, 3, size, size], the same whenever they are asked for."""
    return torch.randn((count, 3, size, size), generator=torch.Generator().manual_seed(0))


def prepare(network: nn.Module, image_size: int | None) -> nn.Module:
    """The network in evaluation mode, in float32, initialised and without modules of distributed training.

    ``DataParallel`` becomes a plain module around the same network, ``SyncBatchNorm`` the batch-norm it was.
    A network that cannot run channels-last, or writes on its input, gets an ``InputHook``, which copies of
    it keep. The weights' layout stays as it is.

    Args:
        network: changed in place.
        image_size: of the images, pixels; without it, the pass is left out unless lazy modules need one.

    Raises:
        UserError: if it fails on such images in either layout, saying what it does run on.
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
    compiled = getattr(network, "_orig_mod", None)
    if isinstance(compiled, nn.Module):
        return _without_wrappers(compiled)
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            network = _put(network, name, _Plain(module.module))
    return network


class _Plain(nn.Module):
    """What ``DataParallel`` is on one device, with its names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def _put(network: nn.Module, name: str, module: nn.Module) -> nn.Module:
    """The network with ``module`` under a name; ``module`` itself if the name is empty."""
    if not name:
        return module
    network.set_submodule(name, module)
    return network


def _try(network: nn.Module, images: Tensor) -> dict[str, int]:
    """Runs the network and adds its hook; the dimensions of what each SyncBatchNorm reads."""
    dimensions: dict[str, int] = {}
    handles = [
        norm.register_forward_pre_hook(lambda _, args, name=name: dimensions.__setitem__(name, args[0].dim()))
        for name, norm in network.named_modules(remove_duplicate=False)
        if isinstance(norm, nn.SyncBatchNorm)
    ]
    try:
        contiguous, given = False, images.contiguous(memory_format=torch.channels_last)
        try:
            network.to(memory_format=torch.channels_last)
            run(network, given)
        except UserError:
            contiguous, given = True, images.clone()
            run(network.to(memory_format=torch.contiguous_format), given)
    finally:
        network.to(memory_format=torch.contiguous_format)
        for handle in handles:
            handle.remove()
    copied = not torch.equal(given, images)
    if contiguous or copied:
        network.register_forward_pre_hook(InputHook(contiguous, copied))
    return dimensions


def _batch_norm(norm: nn.SyncBatchNorm, dimensions: int) -> nn.Module:
    """The batch-norm that a SyncBatchNorm was converted from, with the same tensors."""
    kinds: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 5: nn.BatchNorm3d}
    kind: Any = kinds.get(dimensions, nn.BatchNorm2d)
    if type(norm).__module__.startswith("timm."):
        from timm.layers.norm_act import BatchNormAct2d  # takes seconds, and is needed for timm's alone

        kind = BatchNormAct2d
    with torch.device("meta"):
        plain: nn.Module = kind(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
    plain._parameters, plain._buffers = norm._parameters, norm._buffers
    for name, child in norm.named_children():  # timm's have an activation
        plain.add_module(name, child)
    return plain.train(norm.training)


@torch.no_grad()
def run(network: nn.Module, images: Tensor) -> Any:
    """The network's answer to images [N, 3, H, W] in the mode it is in.

    Raises:
        UserError: if it fails, with the reason and with what it does run on.
    """
    try:
        return network(images)
    except Exception as error:  # whatever the user's code raises
        shape = " x ".join(map(str, images.shape[1:]))
        reason = f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")
        cure = next(_cures(network, images), "check data.image_size")
        raise UserError(f"teacher: fails on images of {shape} ({reason}); {cure}") from error


def _cures(network: nn.Module, images: Tensor) -> Iterator[str]:
    count, _, size, _ = images.shape
    for channels in _CHANNELS:
        if _runs(network, (count, channels, size, size)):
            yield (
                f"it takes images of {channels} channel{'s' * (channels > 1)}, and images here have three; "
                "give it a first layer for three channels"
            )
    for batch in _BATCHES:
        if batch * size**2 <= _MOST_PIXELS and _runs(network, (batch, 3, size, size)):
            yield f"it runs on batches of {batch} only; its forward must take any number of images"
    own = getattr(network, "pretrained_cfg", None) or {}
    for other in dict.fromkeys((*(own.get("input_size") or ())[1:2], *_SIZES)):
        if other != size and _runs(network, (count, 3, other, other)):
            yield f"it runs on images of {other} pixels; set data.image_size: {other}"


def _runs(network: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        network(torch.zeros(shape))
    except Exception:  # the same: it is only asked whether
        return False
    return True
