"""Half precision: cast after folding, so that no batch-norm's statistics overflow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lana_ray.config import Target
from lana_ray.deploy.runtimes import prepare
from lana_ray.deploy.runtimes.runtime import typed_onnx

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
GPU = Target(name="gpu", runtime="tensorrt", device="cuda", precision="fp16")
ERROR = {"fp16": 0.01, "bf16": 0.05}
IMAGES = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class _Loud(nn.Module):
    """Batch-norms of a variance that fp16 does not hold: after a convolution, and before one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.first, self.plain = nn.BatchNorm2d(3), nn.BatchNorm2d(4, affine=False)
        with torch.no_grad():
            self.conv.weight.mul_(300.0)
            for norm in (self.first, self.norm, self.plain):
                norm.running_var = torch.full((norm.num_features,), 90_000.0)
                norm.running_mean = torch.full((norm.num_features,), 5.0)
            self.first.weight.fill_(300.0)
            self.norm.weight.fill_(4.0)
            self.eval()

    def forward(self, images: Tensor) -> Tensor:
        loud = 30.0 * F.relu(self.norm(self.conv(self.first(images))))
        resized = F.interpolate(self.plain(loud), scale_factor=4 / 3, mode="bilinear")
        return resized.mean((2, 3))


class _Masked(_Loud):
    """Casts, and has a number of its own that fp16 does not hold."""

    def forward(self, images: Tensor) -> Tensor:
        answer = super().forward(images).to(torch.float32)
        return answer.masked_fill(answer > 60_000.0, -1e30)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_loud_batch_norm_survives_in_torch(precision: str) -> None:
    network = _Loud()
    expected = network(IMAGES)
    target = Target.model_validate({"name": "here", "precision": precision})
    found = prepare(network, IMAGES, target).predict(IMAGES)
    assert float((found - expected).abs().max() / expected.abs().max()) < ERROR[precision]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_loud_batch_norm_survives_in_onnx(precision: str) -> None:
    network = _Masked()
    target = GPU.model_copy(update={"precision": precision})
    program = typed_onnx(network, IMAGES, target)
    onnx.checker.check_model(onnx.load_from_string(program), full_check=precision == "fp16")
    if precision == "bf16":
        return  # neither ONNX Runtime nor the reference computes in it on a CPU
    session = ort.InferenceSession(program, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(None, {"input": IMAGES.half().numpy()})[0])
    expected = network(IMAGES)
    assert float((found - expected).abs().max() / expected.abs().max()) < ERROR["fp16"]


def test_everything_is_of_the_asked_type_but_the_factors_of_resizing() -> None:
    model = onnx.load_from_string(typed_onnx(_Masked(), IMAGES, GPU))
    tensors = [*model.graph.initializer]
    tensors += [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    floats = [t for t in tensors if t.data_type == onnx.TensorProto.FLOAT]
    (resize,) = (node for node in model.graph.node if node.op_type == "Resize")
    constants = {n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant"}
    named = constants | {tensor.name: tensor for tensor in model.graph.initializer}
    assert [onnx.numpy_helper.to_array(t).tolist() for t in floats] == [
        onnx.numpy_helper.to_array(named[resize.input[2]]).tolist()
    ]
    half = onnx.TensorProto.FLOAT16
    ends = (*model.graph.input, *model.graph.output)
    assert {value.type.tensor_type.elem_type for value in ends} == {half}
    numbers = [onnx.numpy_helper.to_array(t) for t in tensors if t.data_type == half]
    assert all(np.isfinite(values).all() for values in numbers)
