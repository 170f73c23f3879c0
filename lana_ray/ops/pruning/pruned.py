"""The layer itself with fewer hidden channels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lana_ray.networks.layers import Layer
from lana_ray.ops.blocks import width
from lana_ray.ops.pruning.channels import entries, hidden_channels, importance, unit_count, without
from lana_ray.ops.pruning.trace import Hidden
from lana_ray.ops.registry import Activation, register


def _share(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{value:g} must be greater than 0 and less than 1")
    return value


def _left(hidden: Hidden, share: float) -> int:
    """Returns how many units stay: 8 channels or a multiple in the tensor with the fewest of them."""
    units = unit_count(hidden)
    channels = min(of_units.shape[1] for axis, of_units in hidden.items() if axis.dim >= 0)
    return min(units, width(units, share, 8 // math.gcd(8, channels)))


def _has_channels_to_cut(layer: Layer, *, teacher: nn.Module, w: float) -> bool:
    return any(_left(hidden, w) < unit_count(hidden) for hidden in hidden_channels(teacher, layer))


@register("pruned", parameters={"w": _share}, fits=_has_channels_to_cut, of_teacher=True)
def pruned(layer: Layer, *, act: Activation, teacher: nn.Module, w: float) -> nn.Module:
    """The layer's own module with the most important share of its hidden channels, and their weights.

    It removes the expanded channels of an MBConv, including those of squeeze-and-excitation, the inner ones
    of basic blocks and bottlenecks, complete groups of a grouped convolution, the same channels of every
    branch of split attention, and a transformer block's heads and inner MLP channels: see
    ``hidden_channels``. The rest is rounded as by ``width``. The layer's input and output channels stay, and
    so do channels whose use is not understood; if that leaves nothing to remove, there is no such candidate.
    Shapes depend only on the layer's structure; which channels are removed depends on the weights that read
    them and, in a warm start, on their variance.

    A warm-started MBConv of the layer's kernel is the same as the layer at that width, unless the layer has
    squeeze-and-excitation or is no MBConv. Measurements: ``jobs/RESULTS.md``, "Pruned layers" and "Padding of
    strided layers".

    Args:
        w: hidden width relative to the layer's own.
    """
    counts = [_left(hidden, w) for hidden in hidden_channels(teacher, layer)]
    smaller: Any = without(teacher, entries(weakest(teacher, layer, counts)))
    smaller.kept_units = counts
    return smaller.train().requires_grad_(True)


def weakest(
    teacher: nn.Module, layer: Layer, counts: Sequence[int], variances: Mapping[str, Tensor] | None = None
) -> list[tuple[Hidden, Tensor]]:
    """The units of each hidden dimension but the ``counts`` most important ones, see ``importance``."""
    cut = []
    for hidden, count in zip(hidden_channels(teacher, layer), counts, strict=True):
        ranked = importance(teacher, hidden, variances).argsort(stable=True)
        cut.append((hidden, ranked[: len(ranked) - count]))
    return cut


def kept_units(candidate: nn.Module) -> Sequence[int] | None:
    """Returns how many units each hidden dimension has if ``pruned`` made the candidate; None for others."""
    return getattr(candidate, "kept_units", None)
