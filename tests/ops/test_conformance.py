"""What every operation must hold to; a new family joins by its name in ``OPS``."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lana_ray.networks.layers import Layer
from lana_ray.ops import Op, build_op, count_weights, families, fits, parse_op, pool
from lana_ray.ops.blocks import width

from .layers import IMAGES, LAST, LAST_STRIDED, PLAIN, RESIDUAL, SAME, SEQUENCE, TOKENS, UNEVEN, WIDER

OPS = [
    *pool("tiny"),
    *map(
        parse_op,
        [
            "mbconv_e6_k5",
            "mbconv_e0.5_k1",
            "mbconv_e1_k3_se0.25",
            "mbconv_e3_k3_se0.04",
            "fused_mbconv_e3_k5_se0.25",
            "bottleneck_w0.0625_k7",
            "bottleneck_w2_k1",
            "conv_pair_w1_k1",
            "conv_pair_w0.5_k5",
            "conv_stack_w0.5_k3",
            "residual_pair_w0.5_k3",
            "repvgg_w1_k3",
            "repvgg_w0.25_k1",
            "split_attention_w0.5_k3",
            "grouped_bottleneck_w1_k3_g4",
            "grouped_bottleneck_w0.25_k5_g16",
            "transformer_a1_m4",
            "vit_d32_h4_n1",
            "bot_w0.5",
            "lambda_bottleneck_w0.5",
            "pruned_w0.5",
        ],
    ),
]


def _ids(cases: list[tuple[Op, Layer]]) -> list[str]:
    return [f"{op}-{'x'.join(map(str, layer.input_shape + layer.output_shape))}" for op, layer in cases]


@cache
def _teacher(layer: Layer) -> nn.Module:
    if not layer.is_image:
        return build_op(parse_op("vit_d32_h4_n1"), layer, seed=7)
    return build_op(parse_op("mbconv_e2_k3"), layer, seed=7)


def _at(layers: Sequence[Layer]) -> list[tuple[Op, Layer]]:
    return [(op, layer) for op in OPS for layer in layers if fits(op, layer, _teacher(layer))]


CASES = _at([*IMAGES, SAME, LAST, LAST_STRIDED, TOKENS, SEQUENCE])


def _build(op: Op, layer: Layer, seed: int = 0) -> nn.Module:
    return build_op(op, layer, seed=seed, act=nn.ReLU6, teacher=_teacher(layer))


def _batch(layer: Layer, size: int = 4) -> Tensor:
    return torch.randn(size, *layer.input_shape, generator=torch.Generator().manual_seed(1))


def _trained_a_little(op: Op, layer: Layer) -> nn.Module:
    """In evaluation mode, with running statistics that are not those of the start."""
    module = _build(op, layer)
    module(_batch(layer, 8) * 2 + 1)
    return module.eval()


def test_every_family_is_tried() -> None:
    assert {op.family for op in OPS} == set(families())


@pytest.mark.parametrize(("op", "layer"), CASES, ids=_ids(CASES))
def test_shapes_and_gradients(op: Op, layer: Layer) -> None:
    module = _build(op, layer)
    assert module.training
    output = module(_batch(layer))
    assert output.shape == (4, *layer.output_shape)
    if output.requires_grad:
        output.square().mean().backward()
    for name, parameter in module.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(("op", "layer"), CASES, ids=_ids(CASES))
def test_weights_come_from_op_layer_and_seed_alone(op: Op, layer: Layer) -> None:
    teacher = _teacher(layer)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = build_op(op, layer, seed=5, teacher=teacher).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    second = build_op(op, layer, seed=5, teacher=teacher).state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    if not op.of_teacher:
        built = build_op(op, layer, seed=5).parameters()
        assert count_weights(op, layer) == sum(weight.numel() for weight in built)
    if not op.of_teacher and op.family != "identity":
        other = build_op(op, layer, seed=6).state_dict()
        assert any(not torch.equal(first[key], other[key]) for key in first)


RESIDUALS = _at([RESIDUAL, LAST, TOKENS, SEQUENCE])


@pytest.mark.parametrize(("op", "layer"), RESIDUALS, ids=_ids(RESIDUALS))
def test_the_residual_is_kept(op: Op, layer: Layer) -> None:
    module = _trained_a_little(op, layer)
    x = _batch(layer)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        assert torch.equal(module(x), x)


@pytest.mark.parametrize("op", OPS, ids=str)
def test_ops_travel_between_processes(op: Op) -> None:
    again = pickle.loads(pickle.dumps(op))
    assert again == op
    assert hash(again) == hash(op)


EXPORTS = _at([RESIDUAL, UNEVEN, SAME, LAST_STRIDED, TOKENS, SEQUENCE])


@pytest.mark.parametrize(("op", "layer"), EXPORTS, ids=_ids(EXPORTS))
def test_torch_export_gives_equal_outputs(op: Op, layer: Layer) -> None:
    module, x = _trained_a_little(op, layer), _batch(layer)
    program = torch.export.export(module, (x,))
    with torch.no_grad():
        assert torch.allclose(program.module()(x), module(x), atol=1e-5)


@pytest.mark.parametrize(("op", "layer"), EXPORTS, ids=_ids(EXPORTS))
def test_onnx_gives_equal_outputs(op: Op, layer: Layer, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    module, x = _trained_a_little(op, layer), _batch(layer)
    file = str(tmp_path / "op.onnx")
    torch.onnx.export(module, (x,), file, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(output, module(x).numpy(), atol=1e-4)


def test_the_teacher_is_copied() -> None:
    teacher = _teacher(RESIDUAL)
    copy = build_op(Op("teacher"), RESIDUAL, seed=0, teacher=teacher)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    assert all(parameter.any() for parameter in teacher.parameters() if parameter.dim() == 4)


def test_the_teacher_must_be_given() -> None:
    with pytest.raises(ValueError, match=r"blocks\.0: the operation 'teacher' needs the layer's module"):
        build_op(Op("teacher"), RESIDUAL, seed=0)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"blocks\.0: identity cannot be made for it, which maps"):
        build_op(Op("identity"), WIDER, seed=0)


def test_the_activation_is_the_callers() -> None:
    module = build_op(parse_op("mbconv_e3_k3_se0.25"), PLAIN, seed=0, act=nn.SiLU)
    kinds = {type(part) for part in module.modules()}
    assert nn.SiLU in kinds
    assert nn.ReLU not in kinds


@pytest.mark.parametrize(
    ("channels", "factor", "expected"),
    [(16, 6, 96), (20, 6, 120), (16, 0.0625, 8), (40, 0.25, 16), (27, 1, 32)],
)
def test_widths_are_multiples_of_eight(channels: int, factor: float, expected: int) -> None:
    assert width(channels, factor) == expected


@pytest.mark.parametrize(("channels", "expected"), [(16, 24), (40, 48), (100, 96)])
def test_widths_are_multiples_of_what_is_asked_for(channels: int, expected: int) -> None:
    assert width(channels, 1, 24) == expected
