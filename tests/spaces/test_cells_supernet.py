"""The supernet: what it computes, what learns, and how its logits stand for architectures."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lana_ray.spaces import CellSupernet, DartsSpace, NasBench201Space
from lana_ray.spaces.cells import CellSpace
from lana_ray.spaces.cells.supernet import MixedCell, MixedOperation

from ..errors import refuses

NASBENCH201 = NasBench201Space(width=8, cells=1)
DARTS = DartsSpace(width=8, cells=3)
both = pytest.mark.parametrize("space", [NASBENCH201, DARTS], ids=["nasbench201", "darts"])


def images(size: int = 16) -> Tensor:
    return torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(0))


def one_hot(space: CellSpace, architecture: tuple[int, ...]) -> list[Tensor]:
    return list(torch.split(torch.from_numpy(space.encode(architecture)), list(space.sizes)))


def relaxed(supernet: CellSupernet) -> list[Tensor]:
    return [logits.exp() for logits in supernet.logits()]


def mixed_cells(supernet: CellSupernet) -> list[tuple[int, MixedCell]]:
    """With the kind of each."""
    places = supernet.space.skeleton.places
    cells = zip(places, supernet.cells, strict=True)
    return [(place.kind or 0, cell) for place, cell in cells if isinstance(cell, MixedCell)]


@both
@pytest.mark.parametrize("partial", [1, 4])
def test_only_what_is_chosen_is_computed(space: CellSpace, partial: int) -> None:
    supernet = CellSupernet(space, partial=partial)
    ran: set[str] = set()
    operations = {
        f"{number} {edge} {name}": module
        for number, (_, cell) in enumerate(mixed_cells(supernet))
        for edge, mixture in cell.edges.items()
        for name, module in mixture.get_submodule("operations").named_children()
    }
    for label, module in operations.items():
        module.register_forward_hook(lambda *_, label=label: ran.add(label))
    for seed in range(3):
        chosen = space.live(space.random(np.random.default_rng(seed)))
        ran.clear()
        assert supernet(images(), one_hot(space, chosen)).shape == (2, 10)
        expected = {
            f"{number} {source}_{to} {space.wiring.operations[op]}"
            for number, (kind, _) in enumerate(mixed_cells(supernet))
            for (source, to), op in zip(space.wiring.edges, space.cells(chosen)[kind], strict=True)
            if op
        }
        assert ran == expected


@both
def test_one_hot_weights_make_the_network_of_the_architecture(space: CellSpace) -> None:
    """With the supernet's weights in it; without pooling, which the supernet alone normalises."""
    rng = np.random.default_rng(0)
    pools = {i for i, name in enumerate(space.wiring.operations) if "pool" in name}
    drawn = (space.random(rng) for _ in range(10_000))
    architecture = next(a for a in drawn if not pools & set(a) and space.live(a) == a)
    supernet = CellSupernet(space, partial=1).eval()
    network = space.build(architecture).eval()
    for part in ("stem", "head"):
        network.get_submodule(part).load_state_dict(supernet.get_submodule(part).state_dict())
    for place, own, shared in zip(space.skeleton.places, network.cells, supernet.cells, strict=True):
        if place.kind is None:
            own.load_state_dict(shared.state_dict())
            continue
        own.get_submodule("preprocessing").load_state_dict(
            shared.get_submodule("preprocessing").state_dict(), strict=False
        )
        cell = space.cells(architecture)[place.kind]
        for (source, to), op in zip(space.wiring.edges, cell, strict=True):
            if op:
                name = space.wiring.operations[op]
                weights = shared.get_submodule(f"edges.{source}_{to}.operations.{name}").state_dict()
                own.get_submodule(f"operations.{source}_{to}").load_state_dict(weights, strict=False)
    with torch.no_grad():
        expected = network(images())
        torch.testing.assert_close(supernet(images(), one_hot(space, architecture)), expected)
        assert float(expected.std()) > 0


@both
def test_nothing_but_none_still_answers(space: CellSpace) -> None:
    none = [F.one_hot(torch.tensor(0), size).float() for size in space.sizes]
    logits = CellSupernet(space)(images(), none)
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[0], logits[1])


@both
@pytest.mark.parametrize("partial", [1, 2, 8])
@pytest.mark.parametrize("size", [16, 19])
def test_relaxed_weights_reach_every_parameter(space: CellSpace, partial: int, size: int) -> None:
    torch.manual_seed(0)
    supernet = CellSupernet(space, partial=partial)
    loss = F.cross_entropy(supernet(images(size), relaxed(supernet)), torch.tensor([0, 1]))
    loss.backward()  # type: ignore[no-untyped-call]
    for parameter in supernet.architecture_parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).all()
    assert all(parameter.grad is not None for parameter in supernet.weight_parameters())


@both
def test_parameters_are_of_the_architecture_or_weights(space: CellSpace) -> None:
    supernet = CellSupernet(space)
    architecture, weights = supernet.architecture_parameters(), supernet.weight_parameters()
    assert {id(p) for p in chain(architecture, weights)} == {id(p) for p in supernet.parameters()}
    assert len(architecture) + len(weights) == len(list(supernet.parameters()))
    assert all(1e-4 < float(p.detach().std()) < 1e-2 for p in architecture)
    assert any("betas" in name for name, _ in supernet.named_parameters()) == (space is DARTS)


@both
def test_weights_are_shares_of_a_node_or_an_edge(space: CellSpace) -> None:
    supernet = CellSupernet(space)
    assert tuple(len(logits) for logits in supernet.logits()) == space.sizes
    shares = torch.stack(relaxed(supernet)).sum(1)
    if space is DARTS:
        nodes = [part.sum() for part in torch.split(shares, [2, 3, 4, 5] * 2)]
        torch.testing.assert_close(torch.stack(nodes), torch.ones(8))
    else:
        torch.testing.assert_close(shares, torch.ones(6))


def test_edge_parameters_decide_which_edges_are_kept() -> None:
    supernet = CellSupernet(DARTS)

    def kept() -> list[int]:
        """Nodes that node 5 of the reduction cell reads."""
        found = DARTS.discretise([logits.detach().numpy() for logits in supernet.logits()])
        return [source for source in range(5) if found[14 + 9 + source]]

    for wanted in ([0, 3], [2, 4]):
        with torch.no_grad():
            supernet.betas[1][9:] = 0.0
            for source in wanted:
                supernet.betas[1][9 + source] = 1.0
        assert kept() == wanted


def test_operations_that_gain_everywhere_are_derived() -> None:
    """Scores of edges compare although each edge's operations have a softmax of their own."""
    supernet = CellSupernet(NASBENCH201)
    wanted = (3, 2, 4, 1, 2, 3)
    with torch.no_grad():
        for edge, choice in enumerate(wanted):
            supernet.alphas[0][edge, choice] = 1.0
    assert NASBENCH201.discretise([logits.detach().numpy() for logits in supernet.logits()]) == wanted


@pytest.mark.parametrize("stride", [1, 2])
def test_most_channels_bypass_the_operations(stride: int) -> None:
    """A quarter is mixed; the others pass, as strong as all operations but none are together."""
    names = NASBENCH201.wiring.operations
    mixture = MixedOperation(names, 8, stride, 4)
    weights = torch.tensor([0.5, 0.0, 0.0, 0.25, 0.0])
    x = torch.randn(2, 8, 6, 6)
    made = mixture(x, weights, [bool(weight) for weight in weights])
    assert made is not None
    passed = 0.25 * (F.max_pool2d(x, 2) if stride == 2 else x)
    mixed = 0.25 * mixture.operations["nor_conv_3x3"](x[:, :2])
    parts = [mixed, passed[:, 2:4], passed[:, 4:6], passed[:, 6:8]]
    torch.testing.assert_close(made, torch.stack(parts, 2).flatten(1, 2))  # one channel of each part in turn


def test_batch_norms_of_cells_have_no_factors() -> None:
    for _, cell in mixed_cells(CellSupernet(DARTS)):
        norms = [m for m in cell.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) > 14 * 7
        assert not any(norm.affine for norm in norms)


@pytest.mark.parametrize("partial", [0, 3])
def test_a_width_that_cannot_be_parted_is_refused(partial: int) -> None:
    with refuses("invalid_setting", "width 8", "partial"):
        CellSupernet(DARTS, partial=partial)


def test_the_same_seed_makes_the_same_supernet() -> None:
    def made(seed: int) -> Tensor:
        torch.manual_seed(seed)
        supernet = CellSupernet(NASBENCH201).eval()
        return supernet(images(), relaxed(supernet)).detach()

    assert torch.equal(made(0), made(0))
    assert not torch.equal(made(0), made(1))
