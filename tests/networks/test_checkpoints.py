"""The matching set of tensors is read from training scripts' files, and no code in a file runs."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import pickle
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from lana_ray.networks.checkpoints import choose_weights, load_weights, read_weights

from ..errors import refuses
from ..small_networks import Net, net

State = dict[str, Tensor]


def weights(scale: float = 1.0) -> State:
    torch.manual_seed(7)
    return {n: (scale * torch.rand_like(v.float())).to(v.dtype) for n, v in net(5).state_dict().items()}


def prefixed(prefix: str, state: State | None = None) -> State:
    return {f"{prefix}{name}": value for name, value in (state or weights()).items()}


def saved(path: Path, content: Any) -> str:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return str(path)


def loaded(path: str, network: nn.Module) -> State:
    group = choose_weights(read_weights(path), network, path)
    load_weights(network, group.tensors, path)
    return network.state_dict()


def assert_equal(state: State, expected: State) -> None:
    assert state.keys() == expected.keys()
    assert [name for name in state if not torch.equal(state[name], expected[name])] == []


def with_counters(state: State) -> State:
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


CONTENTS: dict[str, Callable[[], Any]] = {
    "alone": weights,
    "ordered": lambda: collections.OrderedDict(weights()),
    "state_dict": lambda: {"state_dict": weights(), "epoch": 3, "optimizer": {"state": {0: torch.ones(2)}}},
    "model": lambda: {"model": prefixed("module."), "best_acc1": np.float64(71.2)},
    "model_state_dict": lambda: {"model_state_dict": weights(), "optimizer_state_dict": {"param_groups": []}},
    "net": lambda: {"net": prefixed("module."), "acc": 94.0},
    "compiled": lambda: {"state_dict": prefixed("_orig_mod.")},
    "compiled and parallel": lambda: {"model": prefixed("_orig_mod.module.")},
    "wrapped inside": lambda: {n.replace("body.", "body._orig_mod."): v for n, v in weights().items()},
    "lightning": lambda: {
        "state_dict": {**prefixed("model."), "criterion.weight": torch.ones(5)},
        "hyper_parameters": {"lr": 0.1},
        "callbacks": {"ModelCheckpoint": {"best_model_path": pathlib.PosixPath("/a")}},
    },
    "deep": lambda: {"state": {"networks": {"teacher": weights()}}},
    "with numbers": lambda: {**weights(), "epoch": 4},
    "timm's arguments": lambda: {"state_dict": weights(), "args": argparse.Namespace(lr=0.1, when=None)},
    "plain values": lambda: {
        "model": weights(),
        "info": types.SimpleNamespace(a=1),
        "counts": collections.defaultdict(int, {"a": 1}),
        "time": datetime.datetime(2026, 1, 2),
        "range": range(3),
        "accuracy": np.array([1.5, 2.5]),
        "best": np.float32(1.5),
    },
    "parameters": lambda: {n: nn.Parameter(v) if v.is_floating_point() else v for n, v in weights().items()},
    "without counters": lambda: with_counters(weights()),
    "an average of the same": lambda: {"model": weights(0.5), "model_ema": prefixed("module.")},
    "timm's average": lambda: {"state_dict": weights(0.5), "state_dict_ema": weights()},
    "an averaged model": lambda: {"n_averaged": torch.tensor(3), **prefixed("module.")},
    "with averages": lambda: {"state_dict": {**prefixed("net.", weights(0.5)), **prefixed("ema_net.")}},
    "no average": lambda: {"model": weights(), "model_ema": None},
    "the same twice": lambda: {"model": weights(), "best": weights()},
}


@pytest.mark.parametrize("name", CONTENTS)
def test_files_of_training_scripts_are_read(tmp_path: Path, name: str) -> None:
    network, expected = net(5), weights()
    if name == "without counters":
        expected |= {n: v for n, v in net(5).state_dict().items() if n not in with_counters(expected)}
    assert_equal(loaded(saved(tmp_path / "w.pt", CONTENTS[name]()), network), expected)


def test_averages_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"state_dict": weights(0.5), "state_dict_ema": weights()})
    group = choose_weights(read_weights(path), net(5), path)
    assert group.is_average
    assert group.place == "state_dict_ema"
    assert not choose_weights(
        read_weights(saved(tmp_path / "s.pt", {"schema": weights()})), net(5), ""
    ).is_average


class Wrapper(nn.Module):
    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self.add_module(name, network)


@pytest.mark.parametrize("child", ["module", "_orig_mod", "model"])
@pytest.mark.parametrize("prefix", ["{}.", "", "module.{}.", "network.{}."])
def test_names_that_wrappers_have_too_may_be_the_networks_own(
    tmp_path: Path, child: str, prefix: str
) -> None:
    network = Wrapper(child, net(5))
    path = saved(tmp_path / "w.pt", prefixed(prefix.format(child)))
    assert_equal(loaded(path, network), prefixed(f"{child}."))


def test_several_sets_that_fit_are_not_guessed_among(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"student": weights(), "teacher": weights(0.5)})
    with refuses("invalid_file", path, "student, teacher"):
        loaded(path, net(5))


def test_the_set_whose_shapes_fit_is_taken(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", {"small": Net(4).state_dict(), "right": weights()})
    assert_equal(loaded(path, net(5)), weights())


@pytest.mark.parametrize("file", ["w.safetensors", "w.bin"])
def test_safetensors_are_known_by_name_or_content(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_bytes(safetensors.torch.save(weights()))
    assert_equal(loaded(str(tmp_path / file), net(5)), weights())


class _Malicious:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self._marker,))


@pytest.mark.parametrize("plain", [True, False])
def test_no_code_of_a_weights_file_runs(tmp_path: Path, plain: bool) -> None:
    path, marker = tmp_path / "w.pt", tmp_path / "ran"
    content = {**weights(), "extra": _Malicious(marker)}
    if plain:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with refuses("invalid_file", f"teacher.weights: {path}"):
        read_weights(str(path))
    assert not marker.exists()


class Settings:
    """An object of a training script."""


@pytest.mark.parametrize("old", [True, False])
def test_an_object_that_is_refused_is_named(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "w.pt"
    torch.save({"model": weights(), "settings": Settings()}, path, _use_new_zipfile_serialization=not old)
    with refuses("invalid_file", str(path), "Settings", "torch.save(network.state_dict(), FILE)") as error:
        read_weights(str(path))
    assert "\x1b" not in str(error.value)


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pt", net(5))
    with refuses("invalid_file", path, "tests.small_networks."):
        read_weights(path)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, torch.ones(3), {"state_dict": {"a": "b"}}, {}])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    path = saved(tmp_path / "w.pt", content)
    with refuses("invalid_file", f"teacher.weights: {path}", "state dict", type(content).__name__):
        read_weights(path)


@pytest.mark.parametrize("file", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("keep", [0, 30, -20])
def test_a_damaged_file_is_named(tmp_path: Path, file: str, keep: int) -> None:
    path = Path(saved(tmp_path / file, weights()))
    path.write_bytes(path.read_bytes()[:keep])
    with refuses("invalid_file", f"teacher.weights: {path}", "state dict"):
        read_weights(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with refuses("missing_file", f"teacher.weights: {tmp_path}/w.pt"):
        read_weights(str(tmp_path / "w.pt"))
