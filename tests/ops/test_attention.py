"""What attention and lambda layers compute, and on which layers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lana_ray.deploy import to_onnx, to_program
from lana_ray.networks.layers import Layer
from lana_ray.ops import build_op, fits, parse_op
from lana_ray.ops.attention import RelativeAttention
from lana_ray.ops.lambdas import LambdaLayer
from lana_ray.testing.layers import STRIDED, TOKENS, layer

FAMILIES = ["vit_d32_h8_n2", "bot_w0.5", "lambda_bottleneck_w0.5"]


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _brought_to_life(module: nn.Module) -> nn.Module:
    """In evaluation mode, batch-norms with parameters and statistics of a training."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.weight.data, part.running_var):
                assert tensor is not None
                tensor.copy_(_random(*tensor.shape).abs() + 0.5)
            part.bias.data.copy_(_random(*part.bias.shape))
    return module.eval()


@pytest.mark.parametrize(
    ("at", "vit", "bottlenecks"),
    [
        (layer((8, 32, 32), (8, 32, 32)), True, True),
        (layer((8, 33, 32), (8, 33, 32)), False, False),
        (layer((8, 64, 64), (8, 32, 32)), True, False),  # the bottlenecks attend before they stride
        (layer((1024, 8), (1024, 8)), True, False),
        (layer((1025, 8), (1025, 8)), False, False),
        (layer((10, 8), (10, 12)), True, False),
        (layer((10, 8), (5, 8)), False, False),
        (layer((8, 4, 4), (16, 8)), False, False),
        (layer((8,), (8,)), False, False),
    ],
)
def test_layers_with_too_much_to_attend_to_are_refused(at: Layer, vit: bool, bottlenecks: bool) -> None:
    assert [fits(parse_op(name), at) for name in FAMILIES] == [vit, bottlenecks, bottlenecks]


@torch.no_grad()
def test_relative_attention_is_what_the_paper_draws() -> None:
    height, width, channels, heads, depth = 3, 2, 8, 4, 2
    attention = RelativeAttention(channels, (height, width))
    x = _random(2, channels, height, width)
    places = list(itertools.product(range(height), range(width)))
    q, k, v = attention.qkv(x).unflatten(1, (3, heads, depth)).unbind(1)
    expected = torch.zeros(2, heads, depth, height, width)
    for i, j in places:
        logits = []
        for row, column in places:
            position = attention.rows[row - i + height - 1] + attention.columns[column - j + width - 1]
            compared = k[..., row, column] + position
            logits.append((q[..., i, j] * compared).sum(-1) / depth**0.5)
        weights = torch.stack(logits, -1).softmax(-1)
        expected[..., i, j] = (weights[:, :, None] * v.flatten(3)).sum(-1)
    assert torch.allclose(attention(x), expected.flatten(1, 2), atol=1e-6)


@torch.no_grad()
def test_a_lambda_layer_is_what_the_paper_writes() -> None:
    height, width, channels, heads, depth, scope = 4, 9, 8, 4, 2, 7
    module = _brought_to_life(LambdaLayer(channels, (height, width)))
    assert isinstance(module, LambdaLayer)
    x = _random(2, channels, height, width)
    queries, values = module.queries(x).unflatten(1, (heads, 16)), module.values(x)
    keys = module.keys(x).flatten(2).softmax(-1)
    content = torch.einsum("nkm,nvm->nkv", keys, values.flatten(2))
    around = F.pad(values, [scope // 2] * 4)
    expected = torch.zeros(2, heads, depth, height, width)
    for i, j in itertools.product(range(height), range(width)):
        seen = around[:, :, i : i + scope, j : j + scope]
        position = torch.einsum("kyx,nvyx->nkv", module.embeddings[:, 0], seen)
        expected[..., i, j] = torch.einsum("nkv,nhk->nhv", content + position, queries[..., i, j])
    assert torch.allclose(module(x), expected.flatten(1, 2), atol=1e-5)


@torch.no_grad()
def test_on_tokens_the_residual_is_kept_and_the_width_may_change() -> None:
    module = build_op(parse_op("vit_d32_h8_n2"), TOKENS, seed=0)
    for parameter in module.parameters():
        parameter.zero_()
    x = _random(3, *TOKENS.input_shape)
    assert torch.equal(module(x), x)
    wider = build_op(parse_op("vit_d32_h8_n2"), layer((10, 16), (10, 24)), seed=0)
    assert wider(x).shape == (3, 10, 24)


@pytest.mark.parametrize("op", FAMILIES)
def test_programs_take_any_batch(op: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    module = _brought_to_life(build_op(parse_op(op), STRIDED, seed=0))
    x = _random(3, *STRIDED.input_shape)
    program = to_program(module, x[:1], dynamic_batch=True)
    session = onnxruntime.InferenceSession(
        to_onnx(module, x[:1], dynamic_batch=True), providers=["CPUExecutionProvider"]
    )
    with torch.no_grad():
        assert torch.allclose(program(x), module(x), atol=1e-4)
        np.testing.assert_allclose(session.run(None, {"input": x.numpy()})[0], module(x).numpy(), atol=1e-4)
