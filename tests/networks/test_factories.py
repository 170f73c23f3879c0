"""Functions that the configuration names are imported under unique names, or refused in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lana_ray.networks.factories import call_factory, factory_files, import_object, seeded

from ..errors import refuses
from ..small_networks import Net

NETWORK = "from torch import nn\n\ndef build(num_classes):\n    return nn.Linear(num_classes, 2)\n"


def written(file: Path, source: str) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    return f"{file}:build"


@pytest.mark.parametrize("name", ["timm", "test", "net", "json", "numpy"])
def test_a_file_may_be_named_like_any_module(tmp_path: Path, name: str) -> None:
    before = sys.modules.get(name)
    path = written(tmp_path / f"{name}.py", f"import timm, json, numpy\nassert timm.create_model\n{NETWORK}")
    assert call_factory(path, 3).in_features == 3
    assert sys.modules.get(name) is before


@pytest.mark.parametrize("line", ["from .{0} import size", "from {0} import size", "from . import {0}"])
def test_a_file_may_import_its_neighbours(tmp_path: Path, line: str) -> None:
    neighbour = f"neighbour_{tmp_path.name}".lower()
    written(tmp_path / "folder" / f"{neighbour}.py", "size = 7\n")
    use = f"getattr({neighbour}, 'size')" if line.endswith("import {0}") else "size"
    source = f"{line.format(neighbour)}\nfrom torch import nn\ndef build(): return nn.Linear({use}, 2)\n"
    assert call_factory(written(tmp_path / "folder" / "net.py", source), 3).in_features == 7


def test_a_file_is_executed_once_and_again_when_it_changes(tmp_path: Path) -> None:
    path = written(tmp_path / "net.py", NETWORK)
    first = import_object(path, "k")
    assert import_object(path, "k") is first
    written(tmp_path / "net.py", NETWORK.replace("2)", "4)"))
    assert call_factory(path, 3).out_features == 4


@pytest.mark.parametrize("line", ["from .{0} import size", "from {0} import size"])
def test_a_neighbour_that_changes_is_executed_again(tmp_path: Path, line: str) -> None:
    neighbour = f"neighbour_{tmp_path.name}".lower()
    source = f"{line.format(neighbour)}\nfrom torch import nn\ndef build(): return nn.Linear(size, 2)\n"
    path, sizes = written(tmp_path / "net.py", source), []
    for size in (7, 70):
        written(tmp_path / f"{neighbour}.py", f"size = {size}\n")
        sizes.append(call_factory(path, 3).in_features)
    assert sizes == [7, 70]


@pytest.mark.parametrize(
    ("factory", "holds", "lacks"),
    [
        ("tests.small_networks:net", {"small_networks.py"}, set()),
        ("torchvision.models:resnet18", {"resnet.py", "_api.py"}, {"torch.py"}),
        ("json:loads", {"decoder.py"}, {"re.py", "functools.py"}),
        ("math:sqrt", set(), set()),
    ],
)
def test_the_files_of_a_factory(factory: str, holds: set[str], lacks: set[str]) -> None:
    files, folder = factory_files(factory)
    names = {file.name for file in files}
    assert names >= holds
    assert not names & lacks
    assert all(file.is_relative_to(folder) for file in files)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("from .nowhere import x", ("No module named 'nowhere'",)),
        ("1 / 0", ("ZeroDivisionError: division by zero",)),
        ("import sys\nsys.exit(3)", ("SystemExit: 3",)),
        ("def build(classes): pass", ("num_classes",)),
        ("def build(num_classes, width): pass", ("num_classes", "width")),
        ("def build(num_classes): raise KeyError('w')", ("num_classes=3", "KeyError: 'w'")),
        ("def build(num_classes): return [].x", ("num_classes=3", "AttributeError: ")),
        ("def build(num_classes):\n    import sys\n    sys.exit('no')", ("SystemExit: no",)),
        ("def build(num_classes): return None", ("NoneType",)),
    ],
)
def test_mistakes_in_a_factory_are_refused(tmp_path: Path, source: str, named: tuple[str, ...]) -> None:
    with refuses("invalid_extension", f"teacher.factory: {tmp_path}/net.py:build", *named):
        call_factory(written(tmp_path / "net.py", source), 3)


def test_a_factory_that_a_file_lacks_is_named(tmp_path: Path) -> None:
    with refuses("unknown_name", f"teacher.factory: {tmp_path}/net.py:build", "'build'"):
        call_factory(written(tmp_path / "net.py", "def other(): pass"), 3)


def test_classes_and_catch_all_arguments_are_factories(tmp_path: Path) -> None:
    assert isinstance(call_factory("tests.small_networks:Net", 4), Net)
    source = "from torch import nn\ndef build(**kwargs): return nn.Linear(kwargs['num_classes'], 2)\n"
    assert call_factory(written(tmp_path / "net.py", source), 6).in_features == 6


def test_seeds_hold_inside_only() -> None:
    def draw() -> tuple[float, float]:
        return float(torch.rand(())), float(np.random.rand())

    torch.manual_seed(1)
    np.random.seed(1)
    expected = [draw(), draw()]
    torch.manual_seed(1)
    np.random.seed(1)
    first = draw()
    with seeded(5):
        inside = draw()
    assert [first, draw()] == expected
    with seeded(5):
        assert draw() == inside
