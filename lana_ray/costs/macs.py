"""How much a network multiplies."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lana_ray.config import Target
from lana_ray.costs.meter import Meter
from lana_ray.deploy import to_program


def unavailable(target: Target) -> None:
    """Counted anywhere."""


def read(module: nn.Module, example: Tensor, target: Target) -> float:
    """Multiply-accumulates of one input, not of the batch.

    Counted are convolutions (grouped and transposed ones too), linear layers and matrix products, the two
    of attention among them: whatever torch's FlopCounterMode knows, at half its count, since it takes a
    multiplication and an addition for two. Not counted are biases, normalisations, activations, pooling,
    softmax and sums; batch-norms are folded into convolutions in deployment anyway. So counted, networks
    have the figures of torchvision (ResNet-18: 1.814 G, ViT-B/32: 4.409 G); where more is counted they have
    more, as EfficientNet-Lite0 with 407 M in its authors' table and 385 M here.

    The flat program is run, not the module: what eager mode fuses, as nn.MultiheadAttention does, stands
    there operator by operator. For the same reason attention is run as its matrix products.

    Raises:
        UserError: where torch.export cannot express the network.
    """
    one = example[:1]
    return count(to_program(module, one, dynamic_batch=False), one)


def count(network: nn.Module, one: Tensor) -> float:
    """The same of a network as it stands, in a pass of one input and without exporting it.

    Less where eager mode fuses, as said above; equal in convolutional networks.
    """
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network(one)
    return counter.get_total_flops() / 2


METER = Meter(
    name="macs",
    unit="multiply-accumulates per input",
    axis="multiply-accumulates per input",
    counted=True,
    unavailable=unavailable,
    read=read,
)
