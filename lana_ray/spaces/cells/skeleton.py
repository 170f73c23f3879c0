"""The parts of a network around its cells: stem, the chain of places for cells, head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from lana_ray.spaces.cells.operations import FactorizedReduce, relu_conv_bn
from lana_ray.spaces.cells.wiring import Wiring

StemName = Literal["cifar", "imagenet"]
"""``cifar``: one convolution that keeps the image's size; ``imagenet``: three that halve it each."""


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
