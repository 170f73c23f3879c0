"""Operations from files of the user's own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lana_ray.errors import UserError
from lana_ray.ops import build_op, families, parse_op, register_files, registry

from .layers import STRIDED

CONV = """
from torch import nn

from lana_ray.layers import Layer
from lana_ray.ops.registry import Activation, odd, register


@register("conv", parameters={"k": odd})
def conv(layer: Layer, *, act: Activation, k: int) -> nn.Module:
    '''One convolution.'''
    return nn.Conv2d(layer.in_channels, layer.out_channels, k, layer.stride, k // 2)
"""


@pytest.fixture(autouse=True)
def _forgotten_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    monkeypatch.setattr(registry, "_FILES", set())


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
    assert {"conv", "other"} < set(families())


def test_what_the_file_says_is_part_of_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = dict(registry._FAMILIES)
    register_files([_file(tmp_path, CONV)])
    before = parse_op("conv_k3").key
    assert parse_op("mbconv_e3_k3").key == "mbconv_e3_k3"
    monkeypatch.setattr(registry, "_FAMILIES", ours)
    monkeypatch.setattr(registry, "_FILES", set())
    register_files([_file(tmp_path, CONV.replace("k // 2)", "k // 2, bias=False)"))])
    assert parse_op("conv_k3").key != before
    assert parse_op("conv_k3").name == "conv_k3"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (CONV.replace('"conv"', '"mbconv"'), "ValueError: operation 'mbconv' is registered already"),
        (CONV + "import nowhere_to_be_found\n", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        (CONV + "def (", "SyntaxError: "),
        (CONV + "raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
    ],
)
def test_a_file_that_fails_is_named_and_leaves_nothing(tmp_path: Path, text: str, says: str) -> None:
    before, modules = families(), set(sys.modules)
    file = _file(tmp_path, text)
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            register_files([file])
        assert str(caught.value).startswith(f"pool.modules: {file}: {says}")
        assert "\n" not in str(caught.value)
    assert families() == before
    assert set(sys.modules) == modules


@pytest.mark.parametrize(
    ("name", "says"),
    [("gone.py", "No such file or directory"), ("ops.txt", "ImportError: not a Python file")],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, name: str, says: str) -> None:
    _file(tmp_path, CONV, "ops.txt")
    with pytest.raises(UserError, match=says) as caught:
        register_files([str(tmp_path / name)])
    assert str(caught.value).startswith(f"pool.modules: {tmp_path / name}: ")
