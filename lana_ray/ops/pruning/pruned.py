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
    """How many units stay: those of the tensor that has fewest of their channels are a multiple of 8."""
    units = unit_count(hidden)
    channels = min(of_units.shape[1] for axis, of_units in hidden.items() if axis.dim >= 0)
    return min(units, width(units, share, 8 // math.gcd(8, channels)))


def _has_channels_to_cut(layer: Layer, *, teacher: nn.Module, w: float) -> bool:
    return any(_left(hidden, w) < unit_count(hidden) for hidden in hidden_channels(teacher, layer))


@register("pruned", parameters={"w": _share}, fits=_has_channels_to_cut, of_teacher=True)
def pruned(layer: Layer, *, act: Activation, teacher: nn.Module, w: float) -> nn.Module:
    """The layer's own module with a share of its hidden channels, those that matter most, and their weights.

    Cut are the expanded channels of an MBConv, squeeze-and-excitation with them, the inner ones of basic
    blocks and bottlenecks, whole groups of a grouped convolution, the same channels of every branch of split
    attention, a transformer block's heads and the inside of its MLP: see ``hidden_channels``. What is left is
    rounded as ``width`` rounds. What the layer is given and answers stays as it is, and so does what is not
    understood; where that leaves nothing to cut, there is no such candidate. Shapes depend on the layer's
    structure alone; which channels go, on the weights that read them and, in a warm start, on how much they
    vary.

    Measured with EfficientNet-Lite0 after three epochs of CIFAR-10 at 64 x 64: ‖t−s‖²/‖t‖² in training mode
    on images not trained on, at the start and after 80 steps of distillation (Adam 2e-3, batches of 64),
    warm-started on 64 images. The depthwise kernels are 3, 5 and 5 wide.

    ==============================  ============  ============  ============
    candidate                       blocks.1.0    blocks.2.1    blocks.4.0
    ==============================  ============  ============  ============
    pruned_w0.75                    .073 → .069   .027 → .025   .088 → .069
    pruned_w0.5                     .148 → .118   .045 → .037   .146 → .111
    without solving what reads      .322 → .154   .066 → .041   .275 → .121
    and chosen by weights alone     .395 → .189   .091 → .054   .319 → .138
    pruned_w0.25                    .356 → .294   .075 → .063   .270 → .208
    mbconv_e3_k5                                  .045 → .037   .147 → .111
    mbconv_e3_k3                                  .060 → .049   .177 → .134
    mbconv_e1_k3                                  .121 → .113   .785 → .635
    ==============================  ============  ============  ============

    So a warm-started MBConv of the layer's kernel is the same as the layer at that width, unless the layer
    excites, or is no MBConv. That holds for strided layers too: see ``jobs/RESULTS.md``.

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
    """The units of each hidden dimension of a layer that are not among the ``counts`` most important.

    Args:
        teacher: the layer's own module.
        variances: as ``importance`` takes them.
    """
    cut = []
    for hidden, count in zip(hidden_channels(teacher, layer), counts, strict=True):
        ranked = importance(teacher, hidden, variances).argsort(stable=True)
        cut.append((hidden, ranked[: len(ranked) - count]))
    return cut


def kept_units(candidate: nn.Module) -> Sequence[int] | None:
    """How many units of each hidden dimension a candidate made by ``pruned`` has; None for others."""
    return getattr(candidate, "kept_units", None)
