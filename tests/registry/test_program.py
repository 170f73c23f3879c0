"""Registered programs come back, and hostile ones are refused before anything of theirs runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lana_ray.deploy import to_program
from lana_ray.registry._program import _SIZE, load_program

from ..errors import refuses
from ..small_networks import net

MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
Records = dict[str, bytes]


def resizing() -> nn.Module:
    return nn.Sequential(nn.GroupNorm(2, 4), nn.Upsample(scale_factor=2.0), nn.Flatten())


def written(network: nn.Module, images: Tensor, path: Path) -> Path:
    program = to_program(network, images, dynamic_batch=True)
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(program, (images,), dynamic_shapes=({0: batch},)), path)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(net(3).eval(), torch.randn(2, 3, 8, 8), tmp_path_factory.mktemp("program") / "model.pt2")


@pytest.mark.parametrize(("network", "shape"), [(net(3), (3, 8, 8)), (resizing(), (4, 4, 4))])
def test_a_program_answers_as_its_network(network: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = written(network.eval(), torch.randn(2, *shape), tmp_path / "model.pt2")
    loaded = load_program(path)
    for count in (1, 5):
        images = torch.randn(count, *shape)
        torch.testing.assert_close(loaded(images), network(images))


def altered(program: Path, path: Path, change: Callable[[Records], object]) -> Path:
    with zipfile.ZipFile(program) as archive:
        records = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(records)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(f"model/{name}", content)
    return path


def in_json(record: str, change: Callable[[Any], object]) -> Callable[[Records], None]:
    def alter(records: Records) -> None:
        content = json.loads(records[record])
        change(content)
        records[record] = json.dumps(content).encode()

    return alter


def pickled(mark: Path) -> bytes:
    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(mark),)

    buffer = io.BytesIO()
    torch.save({"weight": Planted()}, buffer, pickle_module=pickle)
    return buffer.getvalue()


def size(expression: str) -> Callable[[Any], object]:
    def change(model: Any) -> None:
        graph = model["graph_module"]["graph"]
        graph["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = expression

    return change


def first_node(**changes: Any) -> Callable[[Any], object]:
    return lambda model: model["graph_module"]["graph"]["nodes"][0].update(changes)


def spec(kind: str, context: str) -> Callable[[Any], object]:
    text = json.dumps([1, {"type": kind, "context": context, "children_spec": []}])
    return lambda model: model["graph_module"]["module_call_graph"][0]["signature"].update(in_spec=text)


CODE = "__import__('os').mkdir({mark!r})"
FACTORY = json.dumps({"default_factory_module": "planted", "default_factory_name": "x"})
HOSTILE: dict[str, tuple[str, Callable[[str], Callable[[Any], object]]]] = {
    "guards": ("guards", lambda mark: lambda model: model.update(guards_code=[CODE.format(mark=mark)])),
    "size": ("mkdir", lambda mark: size(CODE.format(mark=mark))),
    "endless size": ("9**9**9**9**9", lambda mark: size("9**9**9**9**9")),
    "function of python": ("torch.os.system", lambda mark: first_node(target="torch.os.system")),
    "foreign operator": (
        "torch.ops.lana_ray",
        lambda mark: first_node(target="torch.ops.lana_ray.x.default"),
    ),
    "file": ("aten.from_file", lambda mark: first_node(target="torch.ops.aten.from_file.default")),
    "extension": ("#planted", lambda mark: first_node(target="#planted.op:x")),
    "control flow": (
        "higher_order",
        lambda mark: first_node(target="torch.ops.higher_order.cond"),
    ),
    "imported type": ("in_spec", lambda mark: spec("collections.defaultdict", FACTORY)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_graph_that_would_run_code_is_refused(kind: str, program: Path, tmp_path: Path) -> None:
    named, change = HOSTILE[kind]
    mark = tmp_path / "ran"
    path = altered(program, tmp_path / "model.pt2", in_json(MODEL, change(str(mark))))
    with refuses("damaged_file", str(path), named):
        load_program(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "record",
    [
        "data/weights/model.pt",
        "data/constants/model.pt",
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "data/aotinductor/model/model.so",
        "models/other.json",
        "extra/code.py",
        "../../outside",
    ],
)
def test_a_record_that_no_program_needs_is_refused(record: str, program: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    path = altered(program, tmp_path / "model.pt2", lambda records: records.update({record: pickled(mark)}))
    with refuses("damaged_file", str(path), record):
        load_program(path)
    assert not mark.exists()


def test_pickled_weights_are_refused(program: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    def change(records: Records) -> None:
        in_json(WEIGHTS, lambda config: config["config"]["stem_weight"].update(use_pickle=True))(records)
        records["data/weights/weight_0"] = pickled(mark)

    with refuses("damaged_file", "model.pt2", "weight_0"):
        load_program(altered(program, tmp_path / "model.pt2", change))
    assert not mark.exists()


def test_sample_inputs_are_not_read(program: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    sample = {"data/sample_inputs/model.pt": pickled(mark)}
    path = altered(program, tmp_path / "model.pt2", lambda records: records.update(sample))
    assert load_program(path)(torch.zeros(1, 3, 8, 8)).shape == (1, 3)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"PK", pickle.dumps({"a": 1})])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(content)
    with refuses("damaged_file", "model.pt2"):
        load_program(tmp_path / "model.pt2")


@pytest.mark.parametrize("lost", [MODEL, WEIGHTS, "data/weights/weight_3"])
def test_a_missing_record_is_noticed(lost: str, program: Path, tmp_path: Path) -> None:
    path = altered(program, tmp_path / "model.pt2", lambda records: records.pop(lost))
    with refuses("damaged_file", "model.pt2"):
        load_program(path)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("Symbol('s77', positive=True, integer=True)", True),
        ("2*Symbol('s0', integer=True) + 1", True),
        ("Max(1, FloorDiv(s0**2, 2))", True),
        ("Symbol('__class__')", False),
        ("s0.__class__", False),
        ("Lambda(s0, s0)", False),
        ("S('x')", False),
        ("exec", False),
        ("9**99", False),
        ("(9**9)**9", False),
    ],
)
def test_sizes_are_arithmetic(text: str, known: bool) -> None:
    assert bool(_SIZE.fullmatch(text)) == known
