"""Networks with parts that are trained in another form than they are deployed in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lana_ray.deploy import deployed, to_onnx, to_program
from lana_ray.networks.layers import Layer
from lana_ray.ops import build_op, parse_op

from ..small_networks import net, plain

RESIDUAL = Layer(name="same", input_shape=(8, 9, 9), output_shape=(8, 9, 9), residual=True)
PLAIN = Layer(name="plain", input_shape=(8, 9, 9), output_shape=(8, 9, 9), residual=False)
STRIDED = Layer(name="strided", input_shape=(8, 9, 9), output_shape=(16, 5, 5), residual=False)
CASES = [
    (op, layer)
    for op in ("repvgg_w1_k3", "repvgg_w0.5_k5", "repvgg_w2_k1")
    for layer in (RESIDUAL, PLAIN, STRIDED)
]
each_case = pytest.mark.parametrize(("op", "layer"), CASES, ids=[f"{op}-{at.name}" for op, at in CASES])


def _trained(op: str, layer: Layer) -> nn.Module:
    """In training mode, after a few steps."""
    module = build_op(parse_op(op), layer, seed=0)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    for step in range(4):
        module(_images(layer, step) * 2 + 1).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return module


def _images(layer: Layer, seed: int = 9) -> Tensor:
    return torch.randn(4, *layer.input_shape, generator=torch.Generator().manual_seed(seed))


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


@each_case
def test_a_folded_network_answers_as_before(op: str, layer: Layer) -> None:
    trained, images = _trained(op, layer).eval(), _images(layer)
    folded = deployed(trained)
    kinds = [type(part) for part in folded.modules()]
    assert kinds.count(nn.Conv2d) == 2
    assert nn.BatchNorm2d not in kinds
    with torch.no_grad():
        expected = trained(images)
        torch.testing.assert_close(folded(images), expected, rtol=1e-4, atol=1e-5)
        program = to_program(trained, images, dynamic_batch=False)
        torch.testing.assert_close(program(images), expected, rtol=1e-4, atol=1e-5)
    convolutions = [node for node in program.graph.nodes if "conv" in str(node.target)]
    assert len([node for node in convolutions if node.op == "call_function"]) == 2


@each_case
def test_onnx_has_one_convolution_a_stage(op: str, layer: Layer) -> None:
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    trained, images = _trained(op, layer).eval(), _images(layer)
    model = onnx.load_from_string(to_onnx(trained, images, dynamic_batch=False))
    kinds = [node.op_type for node in model.graph.node]
    assert sorted(kinds) == sorted(["Conv", "Relu", "Conv"] + ["Add"] * layer.residual)
    (found,) = reference.ReferenceEvaluator(model).run(None, {"input": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), trained(images), rtol=1e-4, atol=1e-5)


def test_what_is_trained_stays_as_it_is() -> None:
    trained = nn.Sequential(_trained("repvgg_w1_k3", RESIDUAL), _trained("repvgg_w1_k3", STRIDED).eval())
    before, modes = _state(trained), [part.training for part in trained.modules()]
    generator = torch.get_rng_state()
    folded = deployed(trained)
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.fill_(7)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [part.training for part in trained.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_a_stage_that_is_the_network_or_used_twice_is_folded() -> None:
    module = _trained("repvgg_w1_k3", PLAIN).eval()
    stage = module.get_submodule("body.0")
    assert isinstance(deployed(stage), nn.Conv2d)
    first, second = deployed(nn.Sequential(stage, nn.Sequential(stage))).children()
    assert isinstance(first, nn.Conv2d)
    assert second.get_submodule("0") is first


@pytest.mark.parametrize("make", [plain, net])
def test_a_network_without_such_parts_is_itself(make: type[nn.Module]) -> None:
    network = make(5)
    assert deployed(network) is network


def test_half_precision_is_kept() -> None:
    trained = _trained("repvgg_w1_k3", RESIDUAL).eval().bfloat16()
    folded, images = deployed(trained), _images(RESIDUAL).bfloat16()
    assert {parameter.dtype for parameter in folded.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        torch.testing.assert_close(folded(images), trained(images), rtol=0.1, atol=0.1)
