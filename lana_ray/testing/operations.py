"""The suite that every operation must pass, at layers of images and of tokens."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lana_ray.networks.layers import Layer
from lana_ray.ops import Op, build_op, count_weights, fits, parse_op
from lana_ray.testing.layers import IMAGES, LAST, LAST_STRIDED, RESIDUAL, SAME, SEQUENCE, TOKENS, UNEVEN

_AT: dict[str, Sequence[Layer]] = {
    "case": (*IMAGES, SAME, LAST, LAST_STRIDED, TOKENS, SEQUENCE),
    "residual": (RESIDUAL, LAST, TOKENS, SEQUENCE),
    "exported": (RESIDUAL, UNEVEN, SAME, LAST_STRIDED, TOKENS, SEQUENCE),
}
"""The layers to test, by the name of a test's argument."""
Case = tuple[Op, Layer]


@cache
def teacher_of(layer: Layer) -> nn.Module:
    """Returns a module that replaces a layer of a teacher."""
    return build_op(parse_op("mbconv_e2_k3" if layer.is_image else "vit_d32_h4_n1"), layer, seed=7)


def built(case: Case) -> nn.Module:
    """Builds the operation for its layer, in training mode."""
    op, layer = case
    return build_op(op, layer, seed=0, act=nn.ReLU6, teacher=teacher_of(layer))


def batch_for(layer: Layer, size: int = 4) -> Tensor:
    """Returns inputs of a layer, the same at every call."""
    return torch.randn(size, *layer.input_shape, generator=torch.Generator().manual_seed(1))


def trained_a_little(case: Case) -> nn.Module:
    """Builds the operation in evaluation mode, with running statistics other than the initial ones."""
    module = built(case)
    module(batch_for(case[1], 8) * 2 + 1)
    return module.eval()


class OperationSuite:
    """Tests of operations: set ``operations`` to names as in ``pool.ops``; each is tested where it fits."""

    operations: ClassVar[Sequence[str]] = ()

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Parametrizes a test by every operation and every layer that it fits."""
        for argument in _AT.keys() & set(metafunc.fixturenames):
            cases = [
                (op, layer)
                for op in map(parse_op, self.operations)
                for layer in _AT[argument]
                if fits(op, layer, teacher_of(layer))
            ]
            ids = [f"{op}-{'x'.join(map(str, at.input_shape + at.output_shape))}" for op, at in cases]
            metafunc.parametrize(argument, cases, ids=ids)
        if "operation" in metafunc.fixturenames:
            metafunc.parametrize("operation", self.operations)

    def test_it_fits_some_layer(self, operation: str) -> None:
        op = parse_op(operation)
        assert any(fits(op, layer, teacher_of(layer)) for layer in _AT["case"])

    def test_it_travels_between_processes(self, operation: str) -> None:
        op = parse_op(operation)
        again = pickle.loads(pickle.dumps(op))
        assert again == op
        assert hash(again) == hash(op)
        assert parse_op(op.name) == op

    def test_shapes_and_gradients(self, case: Case) -> None:
        layer, module = case[1], built(case)
        assert module.training
        output = module(batch_for(layer))
        assert output.shape == (4, *layer.output_shape)
        if output.requires_grad:
            output.square().mean().backward()
        for name, parameter in module.named_parameters():
            assert parameter.isfinite().all(), name
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name

    def test_weights_come_from_operation_layer_and_seed_alone(self, case: Case) -> None:
        op, layer = case
        teacher = teacher_of(layer)
        torch.manual_seed(3)
        state = torch.get_rng_state()
        first = build_op(op, layer, seed=5, teacher=teacher).state_dict()
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(4)
        second = build_op(op, layer, seed=5, teacher=teacher).state_dict()
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
        if not op.of_teacher:
            weights = sum(weight.numel() for weight in build_op(op, layer, seed=5).parameters())
            assert count_weights(op, layer) == weights
            other = build_op(op, layer, seed=6).state_dict()
            assert not weights or any(not torch.equal(first[key], other[key]) for key in first)

    def test_the_residual_is_kept(self, residual: Case) -> None:
        module, x = trained_a_little(residual), batch_for(residual[1])
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
            assert torch.equal(module(x), x)

    def test_torch_export_gives_equal_outputs(self, exported: Case) -> None:
        module, x = trained_a_little(exported), batch_for(exported[1])
        program = torch.export.export(module, (x,))
        with torch.no_grad():
            assert torch.allclose(program.module()(x), module(x), atol=1e-5)

    def test_onnx_gives_equal_outputs(self, exported: Case, tmp_path: Path) -> None:
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnx")
        module, x = trained_a_little(exported), batch_for(exported[1])
        file = str(tmp_path / "op.onnx")
        torch.onnx.export(module, (x,), file, dynamo=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(output, module(x).numpy(), atol=1e-4)
