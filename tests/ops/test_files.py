"""Operations from files of the user's own."""

from __future__ import annotations

import sys
from copy import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from lana_ray.networks.factories import import_object
from lana_ray.ops import (
    build_op,
    candidates,
    check,
    count_weights,
    is_trained,
    parse_op,
    register_files,
    registry,
)
from lana_ray.testing.layers import LAST, RESIDUAL, SEQUENCE, STRIDED

from ..errors import refuses

CONV = """
from torch import nn

from lana_ray.networks.layers import Layer
from lana_ray.ops.registry import Activation, odd, register


@register("conv", parameters={"k": odd})
def conv(layer: Layer, *, act: Activation, k: int) -> nn.Module:
    '''One convolution.'''
    return nn.Conv2d(layer.in_channels, layer.out_channels, k, layer.stride, k // 2)
"""


@pytest.fixture(autouse=True)
def _forgotten_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FAMILIES", copy(registry.FAMILIES))
    monkeypatch.setattr(registry, "_FILES", set())
    monkeypatch.setattr(check, "_checked", set())


def _file(folder: Path, text: str, name: str = "my_ops.py") -> str:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return str(file)


def test_a_file_of_ten_lines_adds_a_family(tmp_path: Path) -> None:
    file = _file(tmp_path, CONV)
    register_files([file])
    register_files([file, f"{tmp_path}/../{tmp_path.name}/my_ops.py"])
    module = build_op(parse_op("conv_k3"), STRIDED, seed=0)
    assert [list(p.shape) for p in module.parameters()] == [[24, 16, 3, 3], [24]]


def test_files_of_one_name_stand_side_by_side(tmp_path: Path) -> None:
    register_files([_file(tmp_path, CONV), _file(tmp_path, CONV.replace('"conv"', '"other"'), "b/my_ops.py")])
    assert {"conv", "other"} < set(registry.FAMILIES)


def test_what_the_file_says_is_part_of_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = copy(registry.FAMILIES)
    register_files([_file(tmp_path, CONV)])
    before = parse_op("conv_k3").key
    assert parse_op("mbconv_e3_k3").key == "mbconv_e3_k3"
    monkeypatch.setattr(registry, "FAMILIES", ours)
    monkeypatch.setattr(registry, "_FILES", set())
    register_files([_file(tmp_path, CONV.replace("k // 2)", "k // 2, bias=False)"))])
    assert parse_op("conv_k3").key != before
    assert parse_op("conv_k3").name == "conv_k3"


def test_a_file_that_makes_the_teacher_too_is_known_by_what_it_says(tmp_path: Path) -> None:
    file = _file(tmp_path, CONV)
    import_object(f"{file}:conv", "teacher.factory")
    register_files([file])
    assert parse_op("conv_k3").key != "conv_k3"


def test_a_neighbour_is_part_of_the_identity_and_shadows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, keys = copy(registry.FAMILIES), []
    for size in (1, 2):
        monkeypatch.setattr(registry, "FAMILIES", copy(ours))
        monkeypatch.setattr(registry, "_FILES", set())
        _file(tmp_path, f"size = {size}\n", "timm.py")
        register_files([_file(tmp_path, f"from .timm import size\nimport timm\ntimm.create_model\n{CONV}")])
        keys.append(parse_op("conv_k3").key)
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (CONV.replace('"conv"', '"mbconv"'), "ValueError: operation 'mbconv' is registered already"),
        (CONV + "import nowhere_to_be_found\n", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        (CONV.replace('"conv"', '"conv_k3"'), "ValueError: operation 'conv_k3': write its name as"),
        (CONV.replace('"conv"', '"Conv"'), "ValueError: operation 'Conv': write its name as"),
        (CONV.replace('"conv"', '"my-conv"'), "ValueError: operation 'my-conv': write its name as"),
        (CONV.replace('"conv"', '"a/../b"'), "ValueError: operation 'a/../b': write its name as"),
        (CONV.replace('{"k": odd}', '{"k2": odd}'), "ValueError: operation 'conv': parameter 'k2' must"),
        (CONV.replace('{"k": odd}', '{"K": odd}'), "ValueError: operation 'conv': parameter 'K' must"),
        (CONV.replace('{"k": odd}', '{"k": 3}'), "ValueError: operation 'conv': the check of 'k' is 3"),
        (CONV.replace('{"k": odd}', '{"w": odd}'), "ValueError: operation 'conv': its constructor cannot"),
        (
            CONV.replace('{"k": odd}', '{"k": odd, "act": odd}'),
            "ValueError: operation 'conv': its constructor",
        ),
        (
            CONV.replace(", k: int", ", k: int, g: int"),
            "ValueError: operation 'conv': its constructor cannot",
        ),
        (CONV.replace("k: int", "k: int = None"), "ValueError: operation 'conv': the default k=None"),
        (
            CONV.replace("act: Activation, ", ""),
            "ValueError: operation 'conv': its constructor cannot be called",
        ),
        (CONV + "def (", "SyntaxError: "),
        (CONV + "raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
    ],
)
def test_a_file_that_fails_is_named_and_leaves_nothing(tmp_path: Path, text: str, says: str) -> None:
    before, modules = list(registry.FAMILIES), set(sys.modules)
    file = _file(tmp_path, text)
    for _ in range(2):
        with refuses("invalid_extension", f"pool.modules: {file}: {says}"):
            register_files([file])
    assert list(registry.FAMILIES) == before
    assert set(sys.modules) == modules


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("gone.py", "missing_file", "No such file or directory"),
        ("ops.txt", "invalid_extension", "ImportError: not a Python file"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, name: str, code: str, says: str) -> None:
    _file(tmp_path, CONV, "ops.txt")
    with refuses(code, f"pool.modules: {tmp_path / name}: ", says):
        register_files([str(tmp_path / name)])


HEADER = """
import torch
from torch import nn

from lana_ray.ops.registry import is_image_layer, register


class Of(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.forward = forward


def keeps_shape(layer):
    return layer.input_shape == layer.output_shape


"""


def _declared(body: str, name: str = "mine", fits: str = "keeps_shape") -> str:
    return f"""{HEADER}
@register("{name}", fits={fits})
def build(layer, *, act):
    {body}
"""


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return 3", "its constructor returned int"),
        ("raise RuntimeError('no such\\nthing')", "its constructor fails: RuntimeError: no such thing"),
        (
            "return nn.Linear(layer.in_channels + 1, 4)",
            "fails on an input of shape [3, 16, 8, 8]: RuntimeError",
        ),
        (
            "return nn.Conv2d(layer.in_channels, 3, 1)",
            "to shape [3, 3, 8, 8]; the layer's output is [3, 16, 8, 8]",
        ),
        ("return Of(lambda x: x[:1])", "to shape [1, 16, 8, 8]; the layer's output is [3, 16, 8, 8]"),
        ("return Of(lambda x: (x, x))", "returns tuple, not a tensor"),
        ("return Of(lambda x: x / 0)", "not finite"),
        ("return Of(lambda x: x + torch.rand_like(x))", "different outputs"),
        ("return Of(lambda x: x.double())", "torch.float64"),
        ("return nn.ReLU(inplace=True)", "changes its input"),
        (
            "m = Of(lambda x: x); m.unused = nn.Linear(2, 2); return m",
            "does not depend on its weights",
        ),
    ],
)
def test_what_a_constructor_makes_is_tried_at_once(tmp_path: Path, body: str, says: str) -> None:
    register_files([_file(tmp_path, _declared(body))])
    with refuses("invalid_extension", "operation 'mine'", "layer blocks.0", says):
        candidates(["identity", "mine"], RESIDUAL, nn.Identity())


def test_a_fits_that_fails_is_named(tmp_path: Path) -> None:
    register_files([_file(tmp_path, _declared("return nn.Identity()", fits="lambda layer: 1 / 0"))])
    with refuses("invalid_extension", "operation 'mine'", "layer blocks.0", "fits()", "ZeroDivision"):
        candidates(["mine"], RESIDUAL, nn.Identity())


def test_what_has_no_weights_is_not_trained(tmp_path: Path) -> None:
    pool = _declared("return nn.AvgPool2d(3, 1, 1)", "pool", "is_image_layer")
    fixed = _declared("return nn.Conv2d(16, 16, 1).requires_grad_(False)", "fixed", "is_image_layer")
    conv = _declared("return nn.Conv2d(16, 16, 1)", "dense", "is_image_layer")
    counted = _declared("m = nn.Conv2d(16, 16, 1); m.bias.data += float(m.bias.sum()); return m", "counted")
    for name, text in (("pool", pool), ("fixed", fixed), ("dense", conv), ("counted", counted)):
        register_files([_file(tmp_path, text, f"{name}.py")])
    teacher = build_op(parse_op("mbconv_e2_k3"), RESIDUAL, seed=0)
    trained = {
        name: is_trained(parse_op(name), RESIDUAL, teacher)
        for name in (
            "teacher",
            "identity",
            "pool",
            "fixed",
            "dense",
            "counted",
            "pruned_w0.5",
            "mbconv_e1_k3",
        )
    }
    assert trained == {
        "teacher": False,
        "identity": False,
        "pool": False,
        "fixed": False,
        "dense": True,
        "counted": True,
        "pruned_w0.5": True,
        "mbconv_e1_k3": True,
    }
    assert count_weights(parse_op("counted"), RESIDUAL) == 16 * 16 + 16


def test_a_file_sees_channels_first_and_tokens_only(tmp_path: Path) -> None:
    """And its modules stand in layers of the other layouts all the same."""
    text = f"""{HEADER}
@register("conv")
def conv(layer, *, act):
    return nn.Conv2d(layer.in_channels, layer.out_channels, 3, 1, 1)


@register("linear", fits=lambda layer: layer.is_tokens)
def linear(layer, *, act):
    return nn.Linear(layer.in_channels, layer.out_channels)
"""
    register_files([_file(tmp_path, text)])
    for name, at, shape in (("conv", LAST, [16, 16, 3, 3]), ("linear", SEQUENCE, [16, 16])):
        assert [op.name for op in candidates([name], at, nn.Identity())] == ["teacher", name]
        module = build_op(parse_op(name), at, seed=0)
        assert list(next(module.parameters()).shape) == shape
        assert module(torch.randn(2, *at.input_shape)).shape == (2, *at.output_shape)
