"""Convolutions that pad each side by itself, and what becomes of their padding in a program."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lana_ray.deploy import to_onnx, to_program
from lana_ray.networks.padding import PaddedConv2d, with_fixed_padding

CASES = [
    (3, (0, 1), (0, 1)),
    (5, (1, 2), (2, 2)),
    (1, (-1, 0), (-1, 0)),
    (1, (-1, 0), (0, 0)),
    (1, (1, 0), (0, 0)),
    (3, (-2, 0), (0, 3)),
]


def _conv(kernel: int, rows: tuple[int, int], columns: tuple[int, int]) -> PaddedConv2d:
    torch.manual_seed(0)
    return PaddedConv2d(8, 8, kernel, 2, groups=4, rows=rows, columns=columns).eval()


def _images(size: int = 10) -> Tensor:
    return torch.randn(3, 8, size, size, generator=torch.Generator().manual_seed(1))


def _onnx(network: nn.Module, images: Tensor, *, dynamic_batch: bool = False) -> tuple[list[Any], Tensor]:
    """The operators of a program and what it answers."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    program = to_onnx(network, images, dynamic_batch=dynamic_batch)
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"input": images.numpy()})
    return list(onnx.load_from_string(program).graph.node), torch.from_numpy(answer)


@pytest.mark.parametrize(("kernel", "rows", "columns"), CASES)
@torch.no_grad()
def test_it_pads_and_cuts_each_side(kernel: int, rows: tuple[int, int], columns: tuple[int, int]) -> None:
    conv, x = _conv(kernel, rows, columns), _images()
    padded = F.pad(x, (*columns, *rows))  # torch cuts off what is negative
    expected = F.conv2d(padded, conv.weight, conv.bias, 2, groups=4)
    torch.testing.assert_close(conv(x), expected)
    program = to_program(conv, x, dynamic_batch=True)
    torch.testing.assert_close(program(x), expected)
    nodes, answer = _onnx(conv, x, dynamic_batch=True)
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
    assert not any(node.op_type == "Pad" for node in nodes)


def test_onnx_has_the_padding_in_the_convolution() -> None:
    nodes, _ = _onnx(_conv(5, (1, 2), (2, 3)), _images())
    (conv,) = [node for node in nodes if node.op_type not in ("Constant", "Identity")]
    attributes = {attribute.name: list(attribute.ints) or attribute.i for attribute in conv.attribute}
    assert conv.op_type == "Conv"
    assert attributes["pads"] == [1, 2, 2, 3]
    assert attributes["strides"] == [2, 2]
    assert attributes["kernel_shape"] == [5, 5]
    assert attributes["group"] == 4


@pytest.mark.parametrize("size", [32, 36])
@pytest.mark.parametrize("dynamic_batch", [False, True])
@torch.no_grad()
def test_timms_padding_is_counted_once(size: int, dynamic_batch: bool) -> None:
    """Nothing is left of its arithmetic on shapes, and the teacher stays as it is."""
    network = timm.create_model("tf_efficientnet_lite0", num_classes=5).eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    expected = network(images)
    kinds = [type(part) for part in network.modules()]
    fixed = with_fixed_padding(network, images)
    torch.testing.assert_close(fixed(images), expected, rtol=1e-4, atol=1e-5)
    nodes, answer = _onnx(network, images, dynamic_batch=dynamic_batch)
    torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-4)
    assert {"Pad", "Ceil", "Shape"}.isdisjoint(node.op_type for node in nodes)
    assert [type(part) for part in network.modules()] == kinds


def test_a_network_without_timms_padding_is_itself() -> None:
    network = nn.Sequential(nn.Conv2d(8, 8, 3), _conv(3, (0, 1), (0, 1)))
    assert with_fixed_padding(network, _images()) is network
