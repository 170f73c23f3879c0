"""Counts the multiply-accumulates of a network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lana_ray.config import Target
from lana_ray.costs.meter import Meter
from lana_ray.deploy import to_program


def unavailable(target: Target) -> None:
    """Returns None: they can be counted on any machine."""


def read(module: nn.Module, example: Tensor, target: Target) -> float:
    """Returns the multiply-accumulates of one input, not of the batch.

    The count includes convolutions (also grouped and transposed ones), linear layers and matrix products,
    including the two of attention: everything that torch's FlopCounterMode counts, divided by two because
    that counts a multiplication and an addition separately. It excludes biases, normalisations, activations,
    pooling, softmax and sums; deployment folds batch-norms into convolutions anyway. The results equal
    torchvision's figures (ResNet-18: 1.814 G, ViT-B/32: 4.409 G); sources that count more have larger
    figures, such as 407 M in the table of EfficientNet-Lite0's authors, against 385 M here.

    The count runs the flat program, not the module: it has operators separately that eager mode fuses, as in
    nn.MultiheadAttention. For the same reason attention runs as its matrix products.

    Raises:
        UserError: torch.export cannot express the network.
    """
    one = example[:1]
    return count(to_program(module, one, dynamic_batch=False), one)


def count(network: nn.Module, one: Tensor) -> float:
    """Multiply-accumulates of one input, without export; too few if eager mode fuses operators."""
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
