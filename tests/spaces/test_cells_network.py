"""Networks of cells: shapes, operations, programs, drop-path and the auxiliary head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lana_ray.config import Target
from lana_ray.deploy import deployed, runtimes
from lana_ray.spaces import DartsSpace, NasBench201Space
from lana_ray.spaces.cells import CellNetwork, CellSpace, darts, nasbench201
from lana_ray.spaces.cells.blocks import FactorizedReduce, StemName, operation

NASBENCH201 = NasBench201Space(width=4, cells=1)
DARTS = DartsSpace(width=4, cells=3)
DRAWN = DARTS.random(np.random.default_rng(1))
ALL_OPERATIONS = (3, 2, 4, 1, 2, 3)
CASES = [
    pytest.param(NASBENCH201, ALL_OPERATIONS, id="nasbench201"),
    pytest.param(NASBENCH201, (0,) * 6, id="nasbench201-dead"),
    pytest.param(DARTS, DRAWN, id="darts"),
]


def images(count: int = 2, height: int = 16, width: int = 16) -> Tensor:
    return torch.randn((count, 3, height, width), generator=torch.Generator().manual_seed(0))


def trained(space: CellSpace, architecture: tuple[int, ...], *, like: Tensor) -> CellNetwork:
    """Batch-norms have statistics of their own, as after training."""
    torch.manual_seed(0)
    network = space.build(architecture)
    with torch.no_grad():
        for _ in range(3):
            network(2 * torch.randn(8, *like.shape[1:]) + 1)
    return network.eval()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", sorted({*darts.OPERATIONS, *nasbench201.OPERATIONS} - {"none"}))
def test_operations_keep_channels_and_halve_any_size(name: str, stride: int) -> None:
    made = operation(name, 6, stride)
    for height, width in ((16, 16), (17, 5), (1, 2)):
        out = made(torch.randn(2, 6, height, width))
        assert out.shape == (2, 6, -(-height // stride), -(-width // stride))


def test_an_unknown_operation_is_named() -> None:
    with pytest.raises(ValueError, match="unknown operation 'conv_3x3'"):
        operation("conv_3x3", 4)


def test_a_factorized_reduction_sees_the_pixels_between_as_well() -> None:
    """Against its definition: the second convolution is given the image from its second row and column on."""
    module = FactorizedReduce(4, 6).eval()
    x = torch.randn(2, 4, 8, 6)
    with torch.no_grad():
        halves = [
            F.conv2d(F.relu(x), module.first.weight, stride=2),
            F.conv2d(F.relu(x)[:, :, 1:, 1:], module.second.weight, stride=2),
        ]
        torch.testing.assert_close(module(x), module.norm(torch.cat(halves, 1)))


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 22)])
def test_networks_map_images_of_any_size_to_logits(stem: StemName, height: int, width: int) -> None:
    spaces: list[CellSpace] = [
        NasBench201Space(classes=7, width=4, cells=1, stem=stem),
        DartsSpace(classes=7, width=4, cells=5, stem=stem),
    ]
    for space in spaces:
        network = space.build(space.random(np.random.default_rng(0)))
        assert network(images(2, height, width)).shape == (2, 7)


def test_cells_of_darts_reduce_at_a_third_and_two_thirds() -> None:
    space = DartsSpace(width=4, cells=8)
    network = space.build(space.random(np.random.default_rng(0))).eval()
    shapes: list[tuple[int, ...]] = []
    for cell in network.cells:
        cell.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    network(images(1))
    small, middle, large = (64, 4, 4), (32, 8, 8), (16, 16, 16)
    assert shapes == [large, large, middle, middle, middle, small, small, small]


def test_the_same_seed_makes_the_same_network() -> None:
    def made(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return DARTS.build(DRAWN).eval()(images())

    assert torch.equal(made(0), made(0))
    assert not torch.equal(made(0), made(1))


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
@pytest.mark.parametrize(("space", "architecture"), CASES)
def test_runtimes_answer_as_the_network(
    space: CellSpace, architecture: tuple[int, ...], runtime: str
) -> None:
    if mend := runtimes.RUNTIMES[runtime].missing:
        pytest.skip(mend)
    target = Target.model_validate({"name": "here", "runtime": runtime, "batch_size": 2})
    example = images(2, 17, 18)
    network = trained(space, architecture, like=example)
    session = runtimes.load(runtimes.program(network, example, target), example, target)
    others = example.flip(0)
    with torch.no_grad():
        torch.testing.assert_close(session.predict(others), network(others), rtol=1e-4, atol=1e-5)


def test_paths_are_dropped_in_training_only() -> None:
    network = DARTS.build(DRAWN, drop_path=0.9)
    plain = DARTS.build(DRAWN)
    plain.load_state_dict(network.state_dict())
    network.train()
    plain.train()
    batch = images(8)
    assert not torch.equal(network(batch), network(batch))
    assert torch.equal(plain(batch), plain(batch))
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network.eval()(batch), plain.eval()(batch))


def test_paths_are_dropped_as_often_as_the_schedule_says() -> None:
    """An edge's answer is dropped for an image, or scaled up; what only passes its input on stays."""
    network = NASBENCH201.build((3, 0, 0, 1, 1, 0), drop_path=0.5)
    cell = network.cells[0]
    seen: list[Tensor] = []
    cell.get_submodule("drop_path").register_forward_hook(lambda _, __, output: seen.append(output.detach()))
    for progress, expected in ((0.0, 0.0), (0.5, 0.25), (1.0, 0.5)):
        network.ramp_drop_path(progress)
        seen.clear()
        torch.manual_seed(0)
        cell(torch.randn(2000, 4, 2, 2))
        (first,) = seen
        assert float((first == 0).flatten(1).all(1).float().mean()) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("probability", [-0.1, 1.0])
def test_an_impossible_probability_is_refused(probability: float) -> None:
    with pytest.raises(ValueError, match="drop_path"):
        NASBENCH201.build(ALL_OPERATIONS, drop_path=probability)


@pytest.mark.parametrize(("space", "architecture"), CASES)
def test_the_auxiliary_head_trains_and_is_not_deployed(
    space: CellSpace, architecture: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    network = space.build(architecture, auxiliary=True)
    logits, auxiliary = network(images())
    assert logits.shape == auxiliary.shape == (2, 10)
    auxiliary.sum().backward()
    assert all(p.grad is not None for name, p in network.named_parameters() if name.startswith("auxiliary"))
    assert next(network.head[-1].parameters()).grad is None
    network.eval()
    small, plain = deployed(network), space.build(architecture)
    assert {name for name, _ in small.named_parameters()} == {name for name, _ in plain.named_parameters()}
    assert torch.equal(small(images()), network(images()))
    assert network.auxiliary is not None


def test_batch_norms_scale_and_shift() -> None:
    norms = [m for m in DARTS.build(DRAWN).modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(norm.affine for norm in norms)
