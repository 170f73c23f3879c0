import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from lana_ray.deploy import anonymise_program, to_program

from ..errors import refuses

IMAGES = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(0))


def _stirred(network: nn.Module) -> nn.Module:
    """Batch-norms with statistics and factors of their own, as trained networks have."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            if module.running_mean is not None:
                module.running_mean.normal_()
            if module.running_var is not None:
                module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
    return network


class _Blocks(nn.Module):
    """Two convolutions with their batch-norms, one inside a module of its own, and one used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same", bias=False), nn.BatchNorm2d(4))
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.shared = nn.Conv2d(4, 4, 1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.grouped(self.stem(images).relu()))
        features = self.second(self.shared(self.first(self.shared(features)).relu()))
        return features.mean((2, 3))


class _Unfoldable(nn.Module):
    """Batch-norms that a convolution cannot take: its output is used twice, its weights are computed,
    it is none, or it uses the batch's own statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 4, 3)
        self.computed = nn.Conv2d(4, 4, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.batch = nn.BatchNorm2d(4, track_running_stats=False)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self.twice(images)
        features = features + self.norms[0](features)
        weight = self.computed.weight / self.computed.weight.norm()
        features = self.norms[1](nn.functional.conv2d(features, weight))
        features = self.norms[2](features.relu())
        return self.batch(self.last(features)).mean((2, 3))


def _norms(program: fx.GraphModule) -> int:
    calls = program.graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
    return len(calls)


@pytest.mark.parametrize(("make", "norms"), [(_Blocks, 0), (_Unfoldable, 4)])
def test_what_can_be_folded_is_and_the_outputs_stay(make: type[nn.Module], norms: int) -> None:
    network = _stirred(make()).eval()
    program = to_program(network, IMAGES, dynamic_batch=False)
    assert _norms(program) == norms
    with torch.no_grad():
        torch.testing.assert_close(program(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-5)


def test_convolutions_of_one_dimension_fold() -> None:
    network = _stirred(nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU())).eval()
    signals = IMAGES[:, :, 0]
    program = to_program(network, signals, dynamic_batch=False)
    assert _norms(program) == 0
    with torch.no_grad():
        torch.testing.assert_close(program(signals), network(signals), rtol=1e-4, atol=1e-5)


def test_a_program_holds_what_it_uses_itself() -> None:
    network = _stirred(_Blocks()).eval()
    program = to_program(network, IMAGES, dynamic_batch=False)
    names = dict(program.named_parameters()) | dict(program.named_buffers())
    assert not any("." in name for name in names)
    assert len(names) == 8  # weight and bias of each of four convolutions
    assert not any(True for _ in program.children())


@pytest.mark.parametrize("batch", [1, 7])
def test_a_free_batch_takes_any_number(batch: int) -> None:
    network = _stirred(_Blocks()).eval()
    program = to_program(network, IMAGES[:1], dynamic_batch=True)
    images = IMAGES[:1].expand(batch, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(program(images), network(images), rtol=1e-4, atol=1e-5)


def test_the_network_is_left_as_it_was() -> None:
    network = _stirred(_Blocks()).train()
    network.stem.eval()  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    to_program(network, IMAGES, dynamic_batch=False)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_names_that_differ_by_a_dot_only_stay_apart() -> None:
    network = nn.Module()
    network.a = nn.Sequential(nn.Linear(8, 8))
    network.register_parameter("a_0_weight", nn.Parameter(torch.ones(8)))
    network.forward = lambda tokens: network.a(tokens) * network.a_0_weight  # type: ignore[operator]
    program = to_program(network, IMAGES, dynamic_batch=False)
    with torch.no_grad():
        assert torch.equal(program(IMAGES), network(IMAGES))


class _OneBatch(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3)).reshape(2, 1)


def test_what_cannot_be_exported_is_named() -> None:
    with refuses("refused", "_OneBatch: torch.export", "forward"):
        to_program(_OneBatch(), IMAGES, dynamic_batch=True)


class _Checking(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        if images.sum() > 0:
            images = images * 2
        return images


def test_where_it_cannot_be_exported_is_told_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    with refuses("refused", "_Checking: torch.export") as error:
        to_program(_Checking(), IMAGES, dynamic_batch=True)
    assert re.search(r"test_program\.py:\d+$", str(error.value))
    assert capfd.readouterr().err == ""


class _Flattening(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.conv(images)
        return x.view(len(x), -1)


def test_a_program_runs_in_any_memory_layout() -> None:
    network = _Flattening().eval()
    with torch.no_grad():
        expected = network(IMAGES)
    program = to_program(network, IMAGES, dynamic_batch=False).to(memory_format=torch.channels_last)
    with torch.no_grad():
        given = program(IMAGES.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-5)


def test_anonymised_program_has_no_paths(tmp_path: Path) -> None:
    network = _Blocks().eval()
    path = tmp_path / "network.pt2"
    torch.export.save(torch.export.export(network, (IMAGES,)), path)
    assert torch.__path__[0].encode() in path.read_bytes()
    anonymise_program(path)
    assert torch.__path__[0].encode() not in path.read_bytes()
    assert torch.equal(torch.export.load(path).module()(IMAGES), network(IMAGES))
