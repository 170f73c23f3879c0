"""LAT(α): its three ways against exact values, and its gradients against exact ones."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from lana_ray.costs.table import CostTable
from lana_ray.search.cost import AdditiveCost, Cost, Way, cost_of, expected_cost, likeliest_within

from .toys import Nodes, ToySpace, additive

SPACE = ToySpace(3, 2, 4)
COSTS = [[1.0, 2.0, 4.0], [0.5, 3.0], [0.1, 0.2, 0.4, 6.0]]


def crooked(encodings: Tensor) -> Tensor:
    """A cost that does not add up: the first decision's last choice makes the last decision's dearer."""
    return additive(COSTS)(encodings) + 3 * encodings[..., 2] * encodings[..., 8]


def logits(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator).requires_grad_() for size in SPACE.sizes]


def exact(own: list[Tensor], cost: Cost) -> Tensor:
    """The expected cost, by all architectures."""
    logs = torch.cat([logit.log_softmax(0) for logit in own])
    codes = torch.from_numpy(np.stack([SPACE.encode(a) for a in SPACE.everything()]))
    return ((codes @ logs).exp() * cost(codes)).sum()


def gradient(value: Tensor, own: list[Tensor]) -> Tensor:
    return torch.cat(torch.autograd.grad(value, own))


@pytest.mark.parametrize("way", get_args(Way))
@pytest.mark.parametrize("cost", [additive(COSTS), crooked])
def test_what_is_decided_costs_what_it_costs(way: Way, cost: Cost) -> None:
    for architecture in [(0, 0, 0), (2, 1, 3), (1, 0, 2)]:
        own = [60.0 * torch.eye(n)[c] for n, c in zip(SPACE.sizes, architecture, strict=True)]
        found = expected_cost(own, SPACE, cost, way=way)
        assert float(found) == pytest.approx(cost_of(architecture, SPACE, cost), rel=1e-5)


def test_the_expectation_of_a_sum_is_exact() -> None:
    own = logits()
    found, wanted = expected_cost(own, SPACE, additive(COSTS), way="expectation"), exact(own, additive(COSTS))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradient(found, own), gradient(wanted, own))


@pytest.mark.parametrize("cost", [additive(COSTS), crooked])
def test_samples_are_unbiased(cost: Cost) -> None:
    torch.manual_seed(0)
    own = logits()
    found = [float(expected_cost(own, SPACE, cost, way="gumbel", samples=64).detach()) for _ in range(60)]
    assert abs(np.mean(found) - float(exact(own, cost).detach())) < 3 * np.std(found) / len(found) ** 0.5


def test_gradients_of_samples_of_a_sum_are_exact_without_a_temperature() -> None:
    own = logits()
    found = gradient(expected_cost(own, SPACE, additive(COSTS), way="gumbel", samples=2), own)
    torch.testing.assert_close(found, gradient(exact(own, additive(COSTS)), own))


@pytest.mark.parametrize("temperature", [None, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_samples_point_downhill(seed: int, temperature: float | None) -> None:
    torch.manual_seed(seed)
    own = logits(seed)
    found = expected_cost(own, SPACE, crooked, way="gumbel", samples=32, temperature=temperature)
    moved = [
        (logit - 0.1 * slope / slope.norm()).detach()
        for logit, slope in zip(own, torch.autograd.grad(found, own), strict=True)
    ]
    assert exact(moved, crooked) < exact(own, crooked)


def test_the_present_best_is_what_argmax_sees() -> None:
    own = logits(3)
    best = SPACE.discretise([logit.detach().numpy() for logit in own])
    found = expected_cost(own, SPACE, crooked, way="argmax")
    assert float(found.detach()) == pytest.approx(cost_of(best, SPACE, crooked))
    assert gradient(found, own).any()


def test_dropped_edges_cost_nothing_and_learn_nothing() -> None:
    space = Nodes(3, 2)  # of three edges the strongest alone is kept
    own = [torch.tensor([0.0, 1.0]), torch.tensor([0.0, 3.0]), torch.tensor([0.0, 2.0])]
    own = [logit.requires_grad_() for logit in own]
    cost = additive([[0.0, 5.0]] * 3)
    found = expected_cost(own, space, cost, way="argmax")
    assert float(found.detach()) == pytest.approx(1 + 5)
    dropped, kept, other = torch.autograd.grad(found, own)
    assert not dropped.any()
    assert not other.any()
    assert kept[1] > 0 > kept[0]
    assert float(expected_cost(own, space, cost, way="expectation").detach()) > 1 + 10


def test_choices_that_are_closed_are_neither_drawn_nor_moved() -> None:
    own = logits()
    closed = [own[0] + torch.tensor([0.0, 0.0, -torch.inf]), *own[1:]]
    for way in get_args(Way):
        found = expected_cost(closed, SPACE, crooked, way=way, samples=64)
        slope = gradient(found, own)
        assert slope.isfinite().all()
        assert slope[2] == 0
        assert float(found.detach()) < 1 + 2 + 3 + 6


def test_a_cost_table_is_a_cost() -> None:
    table = CostTable(
        rest=0.7,
        costs=(np.array([1.0, np.inf, 3.0]), np.array([0.5, 0.25])),
        error_isolated=0.0,
        error=0.0,
        networks=2,
    )
    space, cost = ToySpace(3, 2), AdditiveCost(table)
    for architecture in space.everything():
        assert cost_of(architecture, space, cost) == pytest.approx(table.predict(architecture))
    own = [torch.tensor([0.3, -torch.inf, 0.1]).requires_grad_(), torch.zeros(2).requires_grad_()]
    found = expected_cost(own, space, cost, way="gumbel")
    assert found.isfinite()
    assert gradient(found, own).isfinite().all()


def test_the_likeliest_within_a_limit() -> None:
    torch.manual_seed(0)
    own = [logit.detach().log_softmax(0) for logit in logits(1)]
    codes = {a: SPACE.encode(a) for a in SPACE.everything()}
    for limit in (3.0, 5.0, 8.0, 20.0):
        within = [a for a in codes if cost_of(a, SPACE, crooked) <= limit]
        best = max(within, key=lambda a: float(codes[a] @ torch.cat(own).numpy()))
        assert likeliest_within(own, SPACE, crooked, limit) == best
    assert likeliest_within(own, SPACE, crooked, 2.0) is None
