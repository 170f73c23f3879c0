"""Convolutions that pad the sides of an image by different numbers of pixels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lana_ray.networks.layers import evaluating, replace

Sides = tuple[int, int]
"""Pixels added before the first and after the last one; negative numbers remove pixels."""


class PaddedConv2d(nn.Conv2d):
    """A convolution with different padding on each side, which is exported as a single ONNX convolution.

    Args:
        rows: rows added above and below.
        columns: columns added left and right. Only the first rows and columns can be removed.
    """

    def __init__(self, *args: Any, rows: Sides, columns: Sides, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rows, self.columns = rows, columns

    def extra_repr(self) -> str:
        usual: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{usual}, rows={self.rows}, columns={self.columns}"

    def surrounded(self, x: Tensor) -> Tensor:
        """Returns the padded images [N, C, H, W], without the rows and columns that are removed."""
        (top, bottom), (left, right) = self.rows, self.columns
        return F.pad(self._cut(x), (max(0, left), right, max(0, top), bottom))

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = self.rows, self.columns
        if self.kernel_size == (1, 1) and min(top, left) < 0 and max(top, bottom, left, right) <= 0:
            # Slicing with the stride makes runtimes copy only the pixels that are read.
            rows, columns = self.stride
            return F.conv2d(x[:, :, -top::rows, -left::columns], self.weight, self.bias, groups=self.groups)
        if not torch.onnx.is_in_onnx_export():
            return super().forward(self.surrounded(x))
        pads = [max(0, top), max(0, left), bottom, right]
        tensors = (self.weight,) if self.bias is None else (self.weight, self.bias)
        answer: Tensor = _OnnxConvolution.apply(
            (pads, self.stride, self.dilation, self.groups), self._cut(x), *tensors
        )
        return answer

    def _cut(self, x: Tensor) -> Tensor:
        top, left = -self.rows[0], -self.columns[0]
        return x[:, :, max(0, top) :, max(0, left) :] if max(top, left) > 0 else x


class _OnnxConvolution(torch.autograd.Function):
    """Exports uneven padding as part of ONNX's convolution; tracing would make it a separate operator."""

    @staticmethod
    def forward(_: Any, options: Any, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        (top, left, bottom, right), stride, dilation, groups = options
        surrounded = F.pad(x, (left, right, top, bottom))
        return F.conv2d(surrounded, weight, bias, stride, 0, dilation, groups)

    @staticmethod
    def symbolic(graph: Any, options: Any, *tensors: Any) -> Any:
        pads, stride, dilation, groups = options
        kernel = tensors[1].type().sizes()[2:]
        geometry = {"kernel_shape_i": kernel, "pads_i": pads, "strides_i": stride, "dilations_i": dilation}
        return graph.op("Conv", *tensors, **geometry, group_i=groups)


@torch.no_grad()
def with_fixed_padding(network: nn.Module, example: Tensor) -> nn.Module:
    """Returns a copy in which each ``Conv2dSame`` of timm has constant padding; the network if it has none.

    timm computes the padding from the image size in every call, and so would an exported program. The copy
    takes images of the size of ``example``, shape [N, ...], only.
    """
    sizes: dict[str, set[Sequence[int]]] = {}
    convs = {
        name: part
        for name, part in network.named_modules()
        if (type(part).__module__.partition(".")[0], type(part).__name__) == ("timm", "Conv2dSame")
    }
    if not convs:
        return network

    def note(name: str) -> Any:
        return lambda _, args: sizes.setdefault(name, set()).add(tuple(args[0].shape[2:]))

    with ExitStack() as stack:
        for name, conv in convs.items():
            stack.enter_context(conv.register_forward_pre_hook(note(name)))
        stack.enter_context(evaluating(network))
        network(example[:1])
    fixed = {name: _with_constant_padding(convs[name], *own) for name, own in sizes.items() if len(own) == 1}
    return replace(network, fixed)


def _with_constant_padding(conv: Any, size: Sequence[int]) -> PaddedConv2d:
    from timm.layers.padding import get_same_padding  # takes seconds, and only timm's networks need it

    sides = []
    for axis, side in enumerate(size):
        total = get_same_padding(side, conv.kernel_size[axis], conv.stride[axis], conv.dilation[axis])
        sides.append((total // 2, total - total // 2))
    channels = conv.in_channels, conv.out_channels
    geometry = {"kernel_size": conv.kernel_size, "stride": conv.stride, "dilation": conv.dilation}
    options = {"groups": conv.groups, "bias": conv.bias is not None, "device": "meta"}
    fixed = PaddedConv2d(*channels, **geometry, **options, rows=sides[0], columns=sides[1])
    fixed.weight, fixed.bias = copy.copy(conv.weight), copy.copy(conv.bias)
    return fixed.train(conv.training)
