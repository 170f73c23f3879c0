"""RepVGG: convolutions that are trained as three branches and deployed as one."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lana_ray.networks.layers import Layer
from lana_ray.ops.blocks import Block, Sum, conv_bn, width
from lana_ray.ops.registry import Activation, odd, positive, register


# Not timm's RepVggBlock: it pads alike on both sides and contains the activation.
class RepConv(Sum):
    """A stage of RepVGG without its activation: k x k, 1x1 and, if the shapes are equal, the input.

    Each branch has its own batch-norm. ``deploy.deployed`` replaces the stage by ``folded()``.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, strided: Layer | None = None
    ) -> None:
        same = in_channels == out_channels and (strided is None or strided.stride == 1)
        super().__init__(
            conv_bn(in_channels, out_channels, kernel, strided=strided),
            conv_bn(in_channels, out_channels, strided=strided),
            *([nn.BatchNorm2d(in_channels)] if same else []),
        )

    @torch.no_grad()
    def folded(self) -> nn.Conv2d:
        """Returns one convolution with a bias that computes what the stage does in evaluation mode."""
        conv = copy.deepcopy(cast(nn.Conv2d, self.main[0])).requires_grad_(False)
        kernels, biases = zip(*map(_as_convolution, (self.main, *self.others)), strict=True)
        grown = [F.pad(kernel, [(conv.kernel_size[0] - kernel.shape[-1]) // 2] * 4) for kernel in kernels]
        conv.weight.copy_(torch.stack(grown).sum(0))
        conv.bias = nn.Parameter(torch.stack(biases).sum(0).to(conv.weight.dtype), requires_grad=False)
        return conv


def _as_convolution(branch: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns kernel [out, in, k, k] and bias [out], in float64, of a batch-norm after any convolution."""
    norm = branch[-1] if isinstance(branch, nn.Sequential) else branch
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    same = torch.ones_like(scale).diag()[:, :, None, None]
    kernel = cast(nn.Conv2d, branch[0]).weight if isinstance(branch, nn.Sequential) else same
    return kernel * scale[:, None, None, None], norm.bias - norm.running_mean * scale


@register("repvgg", parameters={"w": positive, "k": odd})
def repvgg(layer: Layer, *, act: Activation, w: float, k: int) -> nn.Module:
    """Two stages of RepVGG (Ding et al., arXiv 2101.03697): trained in branches, deployed like ``conv_pair``.

    The first stage carries the stride. The last has no activation, so the output is linear, as MBConv's.

    Args:
        w: inner width relative to the output's channels.
        k: kernel of the widest branch of both stages.
    """
    hidden = width(layer.out_channels, w)
    return Block(
        layer,
        RepConv(layer.in_channels, hidden, k, strided=layer),
        act(),
        RepConv(hidden, layer.out_channels, k),
    )
