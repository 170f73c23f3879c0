"""What networks of cells are made of: the operations of edges, and the parts around the cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lana_ray.spaces.cells.wiring import Wiring

StemName = Literal["cifar", "imagenet"]
"""``cifar``: one convolution that keeps the image's size; ``imagenet``: three that halve it each."""


def operation(name: str, channels: int, stride: int = 1, *, affine: bool = True) -> nn.Module:
    """Returns an edge's untrained operation, [n, channels, h, w] to [n, channels, ⌈h/stride⌉, ⌈w/stride⌉].

    Activations come first, so that sums of operations are linear in the operations' outputs. Names are those
    of DARTS and NAS-Bench-201 but ``none``, which has no module; the stride is 1 or 2. Batch-norms scale and
    shift if ``affine``.
    """
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine=affine)
    kind, kernel = name[:-4], int(name[-1])
    match kind:
        case "max_pool":
            return nn.MaxPool2d(kernel, stride, kernel // 2)
        case "avg_pool":
            return nn.AvgPool2d(kernel, stride, kernel // 2, count_include_pad=False)
        case "nor_conv":
            return relu_conv_bn(channels, channels, kernel, stride=stride, affine=affine)
        case "sep_conv":
            first = _separable(channels, kernel, stride, affine=affine)
            return nn.Sequential(*first, *_separable(channels, kernel, 1, affine=affine))
        case "dil_conv":
            return _separable(channels, kernel, stride, dilation=2, affine=affine)
    raise ValueError(f"unknown operation {name!r}")


def relu_conv_bn(
    inside: int, outside: int, kernel: int = 1, *, stride: int = 1, affine: bool = True
) -> nn.Sequential:
    """Returns ReLU, convolution and batch-norm in a row."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outside, affine=affine),
    )


def _separable(channels: int, kernel: int, stride: int, *, dilation: int = 1, affine: bool) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    depthwise = nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)
    pointwise = nn.Conv2d(channels, channels, 1, bias=False)
    return nn.Sequential(nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(channels, affine=affine))


class FactorizedReduce(nn.Module):
    """Halves height and width without skipping pixels: two 1x1 convolutions of stride 2, a pixel apart.

    The second reads the pixels below and to the right of the first's. It also reads a border of zeros, whose
    results above and to the left are cut off, so that odd heights and widths are rounded up as elsewhere.
    """

    def __init__(self, inside: int, outside: int, *, affine: bool = True) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.first = nn.Conv2d(inside, outside // 2, 1, stride=2, bias=False)
        self.second = nn.Conv2d(inside, outside - outside // 2, 1, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outside, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.norm(torch.cat([self.first(x), self.second(x)[:, :, 1:, 1:]], 1))


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One place in the chain; its inputs are the outputs of earlier places."""

    kind: int | None
    """Index of the kind of cell at this place; None for the residual block that halves images."""
    before: tuple[int, ...]
    """Channels of the inputs, the latest last."""
    channels: int
    """Channels of the cell's nodes, or of the residual block's output."""
    stride: int
    older_is_larger: bool = False
    """Whether the older of two inputs is twice as high and wide as the latest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Skeleton:
    """A network without the choices of its cells."""

    classes: int
    stem: StemName
    stem_channels: int
    places: tuple[Place, ...]
    channels: int
    """Channels of the last place's output."""
    normalised: bool
    """Whether batch-norm and ReLU come before the pooling."""

    @property
    def last_reduction(self) -> int:
        """Index of the last place that halves images."""
        return max(i for i, place in enumerate(self.places) if place.stride == 2)

    @property
    def auxiliary_channels(self) -> int:
        """Channels of the last reduction's output, which is the next place's latest input."""
        following = self.places[self.last_reduction + 1 :]
        return following[0].before[-1] if following else self.channels


class Stem(nn.Module):
    """Computes the states before the first cell from images, the latest last."""

    def __init__(self, skeleton: Skeleton) -> None:
        super().__init__()
        channels = skeleton.stem_channels
        if skeleton.stem == "cifar":
            self.first = nn.Sequential(_conv(3, channels), nn.BatchNorm2d(channels))
            self.second: nn.Module = nn.Identity()
        else:
            self.first = nn.Sequential(
                _conv(3, channels // 2, 2),
                nn.BatchNorm2d(channels // 2),
                nn.ReLU(),
                _conv(channels // 2, channels, 2),
                nn.BatchNorm2d(channels),
            )
            self.second = relu_conv_bn(channels, channels, 3, stride=2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        first = self.first(images)
        return first, self.second(first)


def _conv(inside: int, outside: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, stride, padding=1, bias=False)


class ResidualReduction(nn.Module):
    """The block of stride 2 between the stages of NAS-Bench-201."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        (inside,), outside = place.before, place.channels
        self.body = nn.Sequential(
            *relu_conv_bn(inside, outside, 3, stride=2), *relu_conv_bn(outside, outside, 3)
        )
        # Keeps an odd row or column, as convolutions do.
        pool = nn.AvgPool2d(2, ceil_mode=True)
        self.shortcut = nn.Sequential(pool, nn.Conv2d(inside, outside, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.body(x)


def preprocessing(wiring: Wiring, place: Place, *, affine: bool = True) -> nn.ModuleList:
    """Returns modules that bring each input of a cell to the channels, height and width of its nodes."""
    if not wiring.preprocessed:
        return nn.ModuleList(nn.Identity() for _ in place.before)
    return nn.ModuleList(
        FactorizedReduce(inside, place.channels, affine=affine)
        if place.older_is_larger and position == 0
        else relu_conv_bn(inside, place.channels, affine=affine)
        for position, inside in enumerate(place.before)
    )


def head(skeleton: Skeleton) -> nn.Sequential:
    """Returns the classifier, [n, channels, h, w] to logits [n, classes]."""
    norm = (nn.BatchNorm2d(skeleton.channels), nn.ReLU()) if skeleton.normalised else ()
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*norm, *pool, nn.Linear(skeleton.channels, skeleton.classes))
