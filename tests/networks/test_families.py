"""timm's families: their layers are those of the published definitions, and students of them work.

What is expected of a network is computed from the tables of its paper, never read off its modules.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

import pytest
import timm
import torch
from torch import nn

from lana_ray.config import TeacherConfig
from lana_ray.deploy import to_onnx, to_program
from lana_ray.networks.layers import Layer, find_layers
from lana_ray.networks.layouts import Layout
from lana_ray.networks.teachers import load_teacher
from lana_ray.ops import Op, pool
from lana_ray.spaces import Architecture, LayerwiseSpace

SIZE = 48
"""Of the images; the networks make it 24, 12, 6, 3 and, rounding up, 2."""
VIT_SIZE = 224
PATCH = 16

Stage = tuple[int, int, int]
"""Output channels, blocks, stride of the first of them."""
Strided = tuple[Layer, int]
"""A layer and its stride."""


def chain(
    channels: int,
    size: int,
    name: str,
    stages: Iterable[Stage],
    *,
    first: tuple[int, int] = (0, 0),
    same: bool = False,
) -> list[Strided]:
    """Padded blocks one after the other, with a shortcut wherever nothing changes the shape.

    Args:
        channels: of what the first block reads.
        size: of the square images it reads.
        name: of each, with places for the number of the stage and of the block in it.
        first: the numbers of the first stage and of the first block in each.
        same: they pad as TensorFlow does: where a stride of 2 halves the image, one pixel more behind.
    """
    layers = []
    for stage, (out, repeats, stage_stride) in enumerate(stages, first[0]):
        for block in range(repeats):
            stride = 1 if block else stage_stride
            after = -(-size // stride)
            layer = Layer(
                name=name.format(stage, first[1] + block),
                input_shape=(channels, size, size),
                output_shape=(out, after, after),
                residual=stride == 1 and channels == out,
                offset=(1.0, 1.0) if same and stride == 2 and size % 2 == 0 else (0.0, 0.0),
            )
            layers.append((layer, stride))
            channels, size = out, after
    return layers


def in_eights(channels: float, least: float) -> int:
    """The nearest multiple of 8 that is at least ``least`` of the channels."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= least * channels else rounded + 8


# EfficientNet, arXiv 1905.11946, table 1; EfficientNetV2, arXiv 2104.00298, table 4 and, for the larger
# ones and B0, the authors' configurations; MobileNetV2, arXiv 1801.04381, table 2; MobileNetV3, arXiv
# 1905.02244, tables 1 and 2, with the 1x1 convolution before the pooling as a stage of its own.
B0 = ((16, 1, 1), (24, 2, 2), (40, 2, 2), (80, 3, 2), (112, 3, 1), (192, 4, 2), (320, 1, 1))
V2_B0 = ((16, 1, 1), (32, 2, 2), (48, 2, 2), (96, 3, 2), (112, 5, 1), (192, 8, 2))
V2_S = ((24, 2, 1), (48, 4, 2), (64, 4, 2), (128, 6, 2), (160, 9, 1), (256, 15, 2))
V2_M = ((24, 3, 1), (48, 5, 2), (80, 5, 2), (160, 7, 2), (176, 14, 1), (304, 18, 2), (512, 5, 1))
V2_L = ((32, 4, 1), (64, 7, 2), (96, 7, 2), (192, 10, 2), (224, 19, 1), (384, 25, 2), (640, 7, 1))
MOBILE_V2 = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
MOBILE_V3_LARGE = ((16, 1, 1), (24, 2, 2), (40, 3, 2), (80, 4, 2), (112, 2, 1), (160, 3, 2), (960, 1, 1))
MOBILE_V3_SMALL = ((16, 1, 2), (24, 2, 2), (40, 3, 2), (48, 2, 1), (96, 3, 2), (576, 1, 1))


def inverted_residuals(
    table: Sequence[Stage],
    stem: int,
    width: float = 1,
    depth: float = 1,
    *,
    least: float = 0.9,
    same: bool = False,
) -> list[Strided]:
    """EfficientNet's compound scaling: channels to eights, blocks upwards. V2 rounds to the nearest."""
    stages = [(in_eights(out * width, least), math.ceil(n * depth), stride) for out, n, stride in table]
    return chain(in_eights(stem * width, least), SIZE // 2, "blocks.{}.{}", stages, same=same)


def lite(width: float, depth: float) -> list[Strided]:
    """EfficientNet-Lite scales neither the stem nor how often the first and the last stage are repeated."""
    first, *middle, last = ((in_eights(out * width, 0.9), n, stride) for out, n, stride in B0)
    stages = [first, *((out, math.ceil(n * depth), stride) for out, n, stride in middle), last]
    return chain(32, SIZE // 2, "blocks.{}.{}", stages, same=True)


def resnet(*repeats: int, expansion: int = 4, stem: int = 64) -> list[Strided]:
    """ResNet, arXiv 1512.03385, table 1; ResNeSt's deep stem (arXiv 2004.08955) is as wide, or twice."""
    stages = [(expansion * 64 * 2**i, n, 2 if i else 1) for i, n in enumerate(repeats)]
    return chain(stem, SIZE // 4, "layer{}.{}", stages, first=(1, 0))


def regnet(slope: float, initial: int, factor: float, depth: int, group: int) -> list[Strided]:
    """RegNet, arXiv 2003.13678, section 3.3: widths on a line, made powers of a factor, then of groups."""
    powers = [round(math.log(1 + slope * i / initial, factor)) for i in range(depth)]
    stages = []
    for power, blocks in itertools.groupby(powers):
        width = round(initial * factor**power / 8) * 8
        narrow = min(group, width)
        stages.append((round(width / narrow) * narrow, len(list(blocks)), 2))
    return chain(32, SIZE // 2, "s{}.b{}", stages, first=(1, 1))


def convnext(width: int, *repeats: int) -> list[Strided]:
    """ConvNeXt, arXiv 2201.03545: what halves the image, rounding down, stands between the stages."""
    return [
        layer
        for i, n in enumerate(repeats)
        for layer in chain(
            width * 2**i, SIZE // 4 // 2**i, "stages.{}.blocks.{}", [(width * 2**i, n, 1)], first=(i, 0)
        )
    ]


def vit(width: int, extra: int = 1) -> list[Strided]:
    """Twelve blocks on patches and ``extra`` tokens: ViT, arXiv 2010.11929, and DeiT, arXiv 2012.12877."""
    shape = ((VIT_SIZE // PATCH) ** 2 + extra, width)
    layer = Layer(name="", input_shape=shape, output_shape=shape, residual=True, layout=Layout.CHANNELS_LAST)
    return [(replace(layer, name=f"blocks.{i}"), 1) for i in range(12)]


SCALES = [(1, 1), (1, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8), (1.6, 2.2), (1.8, 2.6), (2, 3.1)]
NETWORKS = {
    **{f"efficientnet_b{i}": inverted_residuals(B0, 32, *scale) for i, scale in enumerate(SCALES)},
    **{f"tf_efficientnet_lite{i}": lite(*scale) for i, scale in enumerate(SCALES[:5])},
    **{
        f"tf_efficientnetv2_b{i}": inverted_residuals(V2_B0, 32, *scale, least=0, same=True)
        for i, scale in enumerate(SCALES[:4])
    },
    "efficientnetv2_s": inverted_residuals(V2_S, 24),
    "tf_efficientnetv2_m": inverted_residuals(V2_M, 24, same=True),
    "tf_efficientnetv2_l": inverted_residuals(V2_L, 32, same=True),
    "mobilenetv3_large_100": inverted_residuals(MOBILE_V3_LARGE, 16),
    "mobilenetv3_large_075": inverted_residuals(MOBILE_V3_LARGE, 16, 0.75),
    "mobilenetv3_small_100": inverted_residuals(MOBILE_V3_SMALL, 16),
    "resnest14d": resnet(1, 1, 1, 1),
    "resnest26d": resnet(2, 2, 2, 2),
    "resnest50d": resnet(3, 4, 6, 3),
    "resnest101e": resnet(3, 4, 23, 3, stem=128),
    "resnest200e": resnet(3, 24, 36, 3, stem=128),
    "resnest269e": resnet(3, 30, 48, 8, stem=128),
    "resnet18": resnet(2, 2, 2, 2, expansion=1),
    "resnet34": resnet(3, 4, 6, 3, expansion=1),
    "resnet50": resnet(3, 4, 6, 3),
    "resnet101": resnet(3, 4, 23, 3),
    "wide_resnet50_2": resnet(3, 4, 6, 3),
    "resnext50_32x4d": resnet(3, 4, 6, 3),
    "regnetx_002": regnet(36.44, 24, 2.49, 13, 8),
    "regnetx_032": regnet(26.31, 88, 2.25, 25, 48),
    "regnety_004": regnet(27.89, 48, 2.09, 16, 8),
    "regnety_320": regnet(115.89, 232, 2.53, 20, 232),
    "convnext_atto": convnext(40, 2, 2, 6, 2),
    "convnext_tiny": convnext(96, 3, 3, 9, 3),
    "vit_tiny_patch16_224": vit(192),
    "deit_tiny_patch16_224": vit(192),
    "deit_small_distilled_patch16_224": vit(384, extra=2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_are_those_of_the_definition(name: str) -> None:
    expected = NETWORKS[name]
    size = SIZE if expected[0][0].is_image else VIT_SIZE
    layers = find_layers(timm.create_model(name), torch.randn(2, 3, size, size))
    assert [(layer, layer.stride) for layer in layers] == expected


TEACHERS = (
    "efficientnet_b0",
    "tf_efficientnet_lite0",
    "tf_efficientnetv2_b0",
    "resnest14d",
    "resnet18",
    "mobilenetv3_small_050",
    "regnety_002",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
)
"""One small network of each family."""
IMAGES = torch.randn((4, 3, 32, 32), generator=torch.Generator().manual_seed(1))


@cache
def space(name: str) -> LayerwiseSpace:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(
            name, num_classes=5, **({"img_size": 32} if "patch" in name else {})
        ).eval()
    return LayerwiseSpace(network, find_layers(network, IMAGES), "lana")


def mixed(space: LayerwiseSpace, turn: int) -> Architecture:
    """Family after family, layer after layer, of each one of the cheaper operations; some layers are kept."""
    choices = []
    for position, ops in enumerate(space.ops):
        families: dict[str, list[int]] = {}
        for choice, op in enumerate(ops[1:], 1):
            families.setdefault(op.family, []).append(choice)
        own = list(families.values())[(position + turn) % len(families)]
        choices.append(0 if position % 4 == 3 else own[len(own) // 4])
    return tuple(choices)


def trained_a_little(student: nn.Module) -> nn.Module:
    """In evaluation mode, with running statistics of its own activations."""
    with torch.no_grad():
        for _ in range(20):
            student.train()(IMAGES)
    return student.eval()


def assert_learns(own: LayerwiseSpace, architecture: Architecture) -> None:
    student = own.build(architecture).train()
    output = student(IMAGES)
    assert output.shape == (4, 5)
    assert output.isfinite().all()
    output.square().mean().backward()
    for layer, ops, choice in zip(own.layers, own.ops, architecture, strict=True):
        if ops[choice].name in ("teacher", "identity"):
            continue
        where = f"{layer.name} {ops[choice]}"
        gradients = [parameter.grad for parameter in student.get_submodule(layer.name).parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients), where
        assert any(gradient is not None and gradient.any() for gradient in gradients), where


@pytest.mark.parametrize("turn", [0, 5])
@pytest.mark.parametrize("name", TEACHERS)
def test_students_learn(name: str, turn: int) -> None:
    architecture = mixed(space(name), turn)
    strided = [i for i, layer in enumerate(space(name).layers) if layer.stride > 1]
    assert architecture[strided[0]] != 0 if strided else name.startswith(("convnext", "vit", "deit"))
    assert_learns(space(name), architecture)


def test_a_network_of_ones_own_has_students() -> None:
    """One that timm does not have, by its factory and the names of its blocks."""
    names = [f"features.{i}" for i in range(1, 18)]
    config = TeacherConfig(factory="torchvision.models:mobilenet_v2", layers=tuple(names))
    network = load_teacher(config, num_classes=5).network
    layers = find_layers(network, IMAGES, config.layers)
    definition = chain(32, 16, "{}.{}", MOBILE_V2)
    assert layers == [replace(layer, name=n) for n, (layer, _) in zip(names, definition, strict=True)]
    own = LayerwiseSpace(network, layers, "lana")
    assert_learns(own, mixed(own, 0))


@pytest.mark.parametrize("name", TEACHERS[:-1])  # DeiT is a ViT
def test_students_are_exported(name: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    student = trained_a_little(space(name).build(mixed(space(name), 1)))
    session = onnxruntime.InferenceSession(
        to_onnx(student, IMAGES[:2], dynamic_batch=True), providers=["CPUExecutionProvider"]
    )
    with torch.no_grad():
        expected = student(IMAGES)
        tolerance = 0.01 * expected.std(0).max()  # far below how much images differ
        program = to_program(student, IMAGES[:2], dynamic_batch=True)
        assert (program(IMAGES) - expected).abs().max() < tolerance
        (answer,) = session.run(None, {"input": IMAGES.numpy()})
        assert (torch.from_numpy(answer) - expected).abs().max() < tolerance


Kind = tuple[str, int]
"""A teacher's name and the position of the first of its layers with these shapes."""


@cache
def kinds() -> tuple[Kind, ...]:
    """All layers of all small networks, but those that differ from one before in nothing but the name."""
    first: dict[tuple[object, ...], Kind] = {}
    for name in TEACHERS:
        for position, layer in enumerate(space(name).layers):
            first.setdefault((name, *layer.place), (name, position))
    return tuple(first.values())


def _is_small(op: Op, layer: Layer) -> bool:
    """Leaves out dense convolutions of hundreds of millions of weights, which others stand for."""
    return op.parameters.get("w", 0) * op.parameters.get("k", 1) * layer.out_channels < 6000


@cache
def tried() -> dict[str, list[tuple[str, int, int]]]:
    """By operation, two of the places it fits, other ones for the next: teacher, position and choice."""
    fit: dict[str, list[tuple[str, int, int]]] = {}
    for name, position in kinds():
        own = space(name)
        for choice, op in enumerate(own.ops[position]):
            if _is_small(op, own.layers[position]):
                fit.setdefault(op.name, []).append((name, position, choice))
    return {
        op: [places[(start + further) % len(places)] for further in (0, len(places) // 2)]
        for start, (op, places) in enumerate(fit.items())
    }


@pytest.mark.parametrize("op", [op.name for op in pool("lana")])
def test_operations_keep_the_shape_of_the_layers_they_fit(op: str) -> None:
    for name, position, choice in tried()[op]:
        layer = space(name).layers[position]
        images = torch.randn((2, *layer.input_shape), generator=torch.Generator().manual_seed(1))
        answer = space(name).candidate(position, choice)(images)
        assert answer.shape == (2, *layer.output_shape), f"{name} {layer}"
        assert answer.isfinite().all(), f"{name} {layer}"


def test_every_layer_is_tried_by_some_operation() -> None:
    places = [place for places in tried().values() for place in places]
    assert {(name, position) for name, position, _ in places} == set(kinds())
