"""Frames: a network with open layers, filled with the programs of layers, is the network's own program."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from lana_ray.deploy import to_onnx, to_program
from lana_ray.deploy.assemble import OnnxFrame, fill_program, open_layers
from lana_ray.networks.layers import Layer, find_layers, replace

BATCH = 2
IMAGES = torch.randn((BATCH, 3, 8, 8), generator=torch.Generator().manual_seed(0))


class _Trunk(nn.Module):
    """Layers one behind another and apart; a batch-norm behind one, a shortcut around all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.ModuleList(
            [nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 6, 1), nn.Linear(6, 5)]
        )
        self.norm = nn.BatchNorm2d(6)
        self.aside = nn.Linear(4, 6)

    def forward(self, images: Tensor) -> Tensor:
        start = self.stem(images).relu()
        features = self.blocks[1](self.blocks[0](start))
        features = self.blocks[2](self.norm(features).relu())
        out: Tensor = self.blocks[3](features.mean((2, 3)) + self.aside(start.mean((2, 3))))
        return out


class _Branch(nn.Module):
    """A value used twice, in names that other parts have too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = images + self.body(images)
        return out


def _network() -> tuple[nn.Module, list[Layer]]:
    torch.manual_seed(0)
    network = _Trunk().eval()
    nn.init.normal_(network.norm.bias)
    layers = find_layers(network, IMAGES, ["blocks.*"])
    assert [layer.name for layer in layers] == [f"blocks.{i}" for i in range(4)]
    return network, layers


def _choices(network: nn.Module) -> list[nn.ModuleList]:
    own = list(network.get_submodule("blocks").children())
    return [
        nn.ModuleList(own),
        nn.ModuleList([nn.Identity(), own[1], nn.Identity(), own[3]]),
        nn.ModuleList([_Branch(4), own[1], _Branch(6), nn.Sequential(own[3], nn.ReLU())]),
    ]


def _inputs(layers: list[Layer]) -> list[Tensor]:
    return [torch.randn(BATCH, *layer.input_shape) for layer in layers]


def _whole(network: nn.Module, layers: list[Layer], chosen: nn.ModuleList) -> nn.Module:
    return replace(network, {layer.name: module.eval() for layer, module in zip(layers, chosen, strict=True)})


def _operators(program: fx.GraphModule) -> Counter[str]:
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


@pytest.mark.parametrize("which", range(3))
def test_a_filled_pytorch_program_is_that_of_the_whole_network(which: int) -> None:
    network, layers = _network()
    frame = to_program(open_layers(network, layers, BATCH), IMAGES, dynamic_batch=False)
    chosen = _choices(network)[which]
    inputs = _inputs(layers)
    parts = [to_program(m, x, dynamic_batch=False) for m, x in zip(chosen, inputs, strict=True)]
    filled = fill_program(frame, parts)
    whole = _whole(network, layers, chosen)
    exported = to_program(whole, IMAGES, dynamic_batch=False)

    assert _operators(filled) == _operators(exported)
    assert sum(p.numel() for p in filled.parameters()) == sum(p.numel() for p in exported.parameters())
    with torch.no_grad():
        torch.testing.assert_close(filled(IMAGES), whole(IMAGES))
        again = fill_program(frame, parts)  # filling has changed neither the frame nor the parts
        torch.testing.assert_close(again(IMAGES), whole(IMAGES))


def test_layers_of_one_program_have_weights_of_their_own() -> None:
    """Otherwise the caches would hold them, and the network would be faster than a trained one."""
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))).eval()
    layers = find_layers(network, IMAGES, ["*"])
    frame = to_program(open_layers(network, layers, BATCH), IMAGES, dynamic_batch=False)
    part = to_program(nn.Conv2d(3, 3, 5, padding=2).eval(), IMAGES, dynamic_batch=False)
    filled = fill_program(frame, [part] * 3)
    weights = list(filled.state_dict().values())
    assert sum(weight.numel() for weight in weights) == 3 * (3 * 3 * 5 * 5 + 3)
    assert len({weight.data_ptr() for weight in weights}) == 6


@pytest.mark.parametrize("which", range(3))
def test_a_filled_onnx_program_is_that_of_the_whole_network(which: int) -> None:
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    network, layers = _network()
    frame = OnnxFrame(to_onnx(open_layers(network, layers, BATCH), IMAGES, dynamic_batch=False))
    chosen = _choices(network)[which]
    programs = [to_onnx(m, x, dynamic_batch=False) for m, x in zip(chosen, _inputs(layers), strict=True)]
    parts = [frame.part(position, program) for position, program in enumerate(programs)]
    filled = frame.fill(parts)
    assert filled == frame.fill(parts)
    onnx.checker.check_model(filled, full_check=True)
    whole = _whole(network, layers, chosen)
    exported = onnx.load_from_string(to_onnx(whole, IMAGES, dynamic_batch=False))

    model = onnx.load_from_string(filled)
    kinds = [Counter(n.op_type for n in m.graph.node if n.op_type != "Identity") for m in (model, exported)]
    seams = Counter(BatchNormalization=1)  # the exporter folds it, in a filled program the runtime does
    assert kinds[0] == kinds[1] + seams
    (found,) = reference.ReferenceEvaluator(model).run(None, {model.graph.input[0].name: IMAGES.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, whole(IMAGES).numpy(), rtol=1e-4, atol=1e-5)


def test_names_inside_control_flow_follow() -> None:
    """The body of a condition uses the layer's input from outside of it."""
    onnx = pytest.importorskip("onnx")
    network, layers = _network()
    frame = OnnxFrame(to_onnx(open_layers(network, layers, BATCH), IMAGES, dynamic_batch=False))
    body = "g () => (float[2,4,8,8] y) { y = %s(input) }"
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    main (float[2,4,8,8] input) => (float[2,4,8,8] output) {{
        yes = Constant <value = bool {{1}}> ()
        output = If (yes) <then_branch = {body % "Relu"}, else_branch = {body % "Neg"}>
    }}"""
    part = onnx.parser.parse_model(text).SerializeToString()
    own = network.get_submodule("blocks")
    others = [
        to_onnx(own.get_submodule(str(i)), x, dynamic_batch=False)
        for i, x in enumerate(_inputs(layers))
        if i > 0
    ]
    filled = frame.fill([frame.part(i, program) for i, program in enumerate([part, *others])])
    onnx.checker.check_model(filled, full_check=True)
