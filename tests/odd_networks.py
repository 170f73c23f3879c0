"""Networks as users write them, each with one peculiarity; all map images of 16 pixels to 3 classes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import FrozenBatchNormAct2d, LayerScale2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.ops import FrozenBatchNorm2d

Make = Callable[..., nn.Module]


class Block(nn.Module):
    """A residual block around what ``body`` makes for its channels."""

    def __init__(self, body: nn.Module, act: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.act = act or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(x + self.body(x))
        return y


def conv(channels: int = 8) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1)


def body(norm: Make = nn.BatchNorm2d) -> nn.Module:
    return nn.Sequential(conv(), norm(8), nn.ReLU(), conv(), norm(8))


class Odd(nn.Module):
    """A stem, two residual blocks, pooling, a head."""

    def __init__(self, norm: Make = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks: Any = nn.ModuleList([Block(body(norm)), Block(body(norm))])
        self.head = nn.Linear(8, 3)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x).mean((2, 3)))


def made(kind: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    """A factory that gives a network the same weights in every call."""

    def factory(num_classes: int) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return kind()

    return factory


# Networks that work.


class ViewHead(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.features(x), 2)
        y: Tensor = self.head(x.view(x.size(0), -1))
        return y


class ShuffledChannels(Odd):
    """``view`` between blocks, with the batch size of the images at the beginning."""

    def forward(self, x: Tensor) -> Tensor:
        count, _, height, width = x.shape
        x = self.blocks[0](self.stem(x))
        x = x.view(count, 2, 4, height // 2, width // 2).transpose(1, 2).reshape(count, 8, height // 2, -1)
        y: Tensor = self.head(self.blocks[1](x).mean((2, 3)).view(count, 8))
        return y


class WritesOnItsInput(Odd):
    def forward(self, x: Tensor) -> Tensor:
        x.sub_(0.5).mul_(2)
        y: Tensor = super().forward(x)
        return y


class NamedTwice(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(*self.blocks)
        self.stages = nn.ModuleList([self.layer1])

    def features(self, x: Tensor) -> Tensor:
        y: Tensor = self.stages[0](self.stem(x))
        return y


class TiedWeights(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[1].body[0].weight = self.blocks[0].body[0].weight


class LazyHead(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[0].body[0] = nn.LazyConv2d(8, 3, padding=1)
        self.blocks[1].body[4] = nn.LazyBatchNorm2d()
        self.head = nn.LazyLinear(3)


class MakesItsHeadInForward(Odd):
    def __init__(self) -> None:
        super().__init__()
        del self.head

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).mean((2, 3))
        if not hasattr(self, "head"):
            self.head = nn.Linear(x.shape[1], 3)
        y: Tensor = self.head(x)
        return y


class FixedPositions(Odd):
    """A parameter without gradient, an integer parameter and buffers of other types."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.ones(1, 8, 8, 8), requires_grad=False)
        self.order = nn.Parameter(torch.arange(8), requires_grad=False)
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        self.register_buffer("spectrum", torch.ones(2, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        x = (self.stem(x) + self.positions)[:, self.order]
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.head(x.mean((2, 3)))
        return y


class UnusedHead(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(8, 3)


class TwoHeadsInTraining(UnusedHead):
    def forward(self, x: Tensor) -> Any:
        x = self.features(x).mean((2, 3))
        return (self.head(x), self.auxiliary(x)) if self.training else self.head(x)


class LayerDrop(Odd):
    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if not self.training or torch.rand(()) < 0.5:
                x = block(x)
        return x


class FrozenStem(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.stem.requires_grad_(False)


class AllFrozen(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class DroppingOut(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[0].body.append(nn.Dropout2d(0.5))
        self.train()


class Subclassed(Odd):
    def __init__(self, weight: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        for block in self.blocks:
            assert isinstance(block, Block)
            block.body = nn.Sequential(weight(conv()), nn.ReLU(), weight(conv()))


def synchronised() -> nn.Module:
    network: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(Odd())  # type: ignore[no-untyped-call]
    return network


def half() -> nn.Module:
    return Odd().half()


def parallel() -> nn.Module:
    class Parallel(Odd):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.DataParallel(self.stem)  # type: ignore[assignment]

    return Parallel()


WORKING: dict[str, Callable[[], nn.Module]] = {
    "plain": Odd,
    "view in the head": ViewHead,
    "view between blocks": ShuffledChannels,
    "writes on its input": WritesOnItsInput,
    "blocks under two names": NamedTwice,
    "tied weights": TiedWeights,
    "lazy modules": LazyHead,
    "a head made in forward": MakesItsHeadInForward,
    "fixed parameters": FixedPositions,
    "an unused head": UnusedHead,
    "two heads in training": TwoHeadsInTraining,
    "layer drop": LayerDrop,
    "a frozen stem": FrozenStem,
    "all frozen": AllFrozen,
    "dropout": DroppingOut,
    "SyncBatchNorm": synchronised,
    "half precision": half,
    "double precision": lambda: Odd().double(),
    "DataParallel": parallel,
    "group norm": functools.partial(Odd, functools.partial(nn.GroupNorm, 2)),
    "instance norm": functools.partial(Odd, nn.InstanceNorm2d),
    "no norm": functools.partial(Odd, lambda _: nn.Identity()),
    "frozen batch-norm": functools.partial(Odd, FrozenBatchNorm2d),
    "timm's frozen batch-norm": functools.partial(Odd, FrozenBatchNormAct2d),
    "batch-norm without parameters": functools.partial(Odd, functools.partial(nn.BatchNorm2d, affine=False)),
    "batch-norm without momentum": functools.partial(Odd, functools.partial(nn.BatchNorm2d, momentum=None)),
    "weight norm": functools.partial(Subclassed, parametrizations.weight_norm),
    "weight norm of the old style": functools.partial(Subclassed, nn.utils.weight_norm),
    "spectral norm": functools.partial(Subclassed, parametrizations.spectral_norm),
    "spectral norm of the old style": functools.partial(Subclassed, nn.utils.spectral_norm),
    "orthogonal weights": functools.partial(Subclassed, parametrizations.orthogonal),
    "layer scale": functools.partial(Subclassed, lambda c: nn.Sequential(c, LayerScale2d(8))),
}


fixed_positions = made(FixedPositions)
all_frozen = made(AllFrozen)


# Networks that are refused.


@dataclass
class Output:
    logits: Tensor


class Answering(Odd):
    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(super().forward(x))


class OneChannel(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, 2, 1)


class OneSize(Odd):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8 * 16 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.features(x).flatten(1))
        return y


class OneBatchSize(Odd):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.features(x).reshape(1, 8, 8, 8).mean((2, 3)))
        return y


class ExampleBatchSize(Odd):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.features(x).reshape(8, 8, 8, 8).mean((2, 3)))
        return y


class Checking(Odd):
    def forward(self, x: Tensor) -> Any:
        if torch.isnan(x).any():
            raise ValueError("the images hold NaN")
        return super().forward(x)


class MixingImages(Odd):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x - x.mean(0, keepdim=True))


class LongShortcut(Odd):
    def features(self, x: Tensor) -> Tensor:
        first: Tensor = self.blocks[0](self.stem(x))
        y: Tensor = self.blocks[1](first) + 3 * first
        return y


class ShortcutFromTheImages(Odd):
    def forward(self, x: Tensor) -> Any:
        return self.head(self.features(x).mean((2, 3))) + x.argmax(1).float().mean((1, 2))[:, None]


class Remembering(Odd):
    """The stem's output is kept in an attribute and added to the last block's input."""

    def features(self, x: Tensor) -> Tensor:
        self.kept = self.stem(x)
        x = self.blocks[0](self.kept)
        y: Tensor = self.blocks[1](x + self.kept)
        return y


class WithoutGradient(Odd):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


class DetachedInTraining(Odd):
    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x.detach() if self.training else x)
        return x


class FailingInTraining(Odd):
    def forward(self, x: Tensor) -> Any:
        if self.training:
            raise RuntimeError("no training here")
        return super().forward(x)


class OverwritingWhatGradientsNeed(Odd):
    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        y = x.exp()
        y.mul_(2)
        return y.sin().add_(y.sigmoid_()) if self.training else y


class Overflowing(Odd):
    def __init__(self) -> None:
        super().__init__()
        nn.init.constant_(self.stem.weight, 1e20)
        nn.init.constant_(self.head.weight, 1e30)


class NotANumber(Odd):
    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.stem.weight[0, 0, 0, 0] = float("nan")


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "a tuple": (lambda: Answering(lambda x: (x, x)), ("tuple", "[images, 3]")),
    "a dictionary": (lambda: Answering(lambda x: {"logits": x}), ("dict with logits", "[images, 3]")),
    "a dataclass": (lambda: Answering(Output), ("Output", "[images, 3]")),
    "None": (lambda: Answering(lambda _: None), ("NoneType", "[images, 3]")),
    "maps": (lambda: Answering(lambda x: x[:, :, None, None]), ("[2, 3, 1, 1]", "3 classes", "[2, 3]")),
    "labels": (lambda: Answering(lambda x: (10 * x).long()), ("torch.int64", "logits")),
    "one channel": (OneChannel, ("images of 1 channel,", "three channels")),
    "one size": (OneSize, ("images of 3 x 16 x 16 ", "set data.image_size: 32")),
    "one image at a time": (OneBatchSize, ("batches of 1;",)),
    "eight images at a time": (ExampleBatchSize, ("batches of 8;",)),
    "images that mix": (MixingImages, ("other images in the batch",)),
    "statistics of the batch": (
        lambda: Odd(functools.partial(nn.BatchNorm2d, track_running_stats=False)),
        ("other images in the batch", "norm blocks.0.body.1 "),
    ),
    "a long shortcut": (LongShortcut, ("layer blocks.1 ", "the output of blocks.0;", "teacher.layers")),
    "a shortcut from the images": (ShortcutFromTheImages, ("layer blocks.0 ", "the images;")),
    "a shortcut through an attribute": (Remembering, ("layer blocks.0 ", "the images;")),
    "no gradient": (WithoutGradient, ("no gradient", "its parameters")),
    "no gradient in training": (DetachedInTraining, ("stem.weight, stem.bias", "training mode")),
    "a failure in training": (FailingInTraining, ("training mode", "no training here")),
    "a failure in the backward pass": (OverwritingWhatGradientsNeed, ("training mode", "inplace")),
    "infinite answers": (Overflowing, ("NaN or infinity", "first in module head;")),
    "weights that are no numbers": (NotANumber, ("tensor stem.weight has 1 values",)),
}
"""Networks and what the messages that refuse them name."""
