"""The supernet of distilled candidates: its students are the space's, and the cheaper of equals wins."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lana_ray.costs.table import CostTable
from lana_ray.networks.layers import batch_statistics, find_layers
from lana_ray.run_dir.resumable import pack, unpack
from lana_ray.search.bilevel import Objective, SearchBatches, SearchState, search
from lana_ray.search.cost import AdditiveCost, cost_of
from lana_ray.search.layerwise import LayerwiseSupernet, divergence
from lana_ray.search.mixture import Mixture
from lana_ray.search.settings import SearchSettings
from lana_ray.spaces import Architecture, LayerwiseSpace

from ..small_networks import net

IMAGES = torch.randn((6, 3, 16, 16), generator=torch.Generator().manual_seed(1))
CONSIDERED = ((0, 2, 3), (0, 1), (0, 1, 5))


@pytest.fixture(scope="module")
def space() -> LayerwiseSpace:
    """Of a teacher that is sure of its answers and whose batch-norms know such images."""
    network = net(5).train().requires_grad_(False)
    network.get_parameter("head.weight").mul_(20)
    for _, (images, _) in zip(range(30), batches(0, 0), strict=False):
        network(images)
    network.eval()
    return LayerwiseSpace(network, find_layers(network, IMAGES), "tiny", seed=3)


def one_hot(space: LayerwiseSpace, architecture: Architecture) -> list[Tensor]:
    return [torch.eye(size)[choice] for size, choice in zip(space.sizes, architecture, strict=True)]


def batches(epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    for step in itertools.count(start):
        generator = torch.Generator().manual_seed(100 * epoch + step)
        yield torch.randn((6, 3, 16, 16), generator=generator), torch.zeros(6, dtype=torch.long)


def test_one_hot_weights_are_the_spaces_students(space: LayerwiseSpace) -> None:
    supernet = LayerwiseSupernet(space, space.candidate).train()
    for architecture in [space.teacher, (2, 3, 5), (6, 6, 1)]:
        student = space.build(architecture).eval()
        with batch_statistics(student):
            wanted = student(IMAGES)
        assert torch.equal(supernet(IMAGES, one_hot(space, architecture)), wanted)
    assert torch.equal(student(IMAGES), space.build((6, 6, 1)).eval()(IMAGES))  # statistics were left alone


def test_weights_count_and_have_gradients(space: LayerwiseSpace) -> None:
    supernet = LayerwiseSupernet(space, space.candidate)
    weights = [torch.full((size,), 1 / size, requires_grad=True) for size in space.sizes]
    supernet(IMAGES, weights).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.all() for weight in weights)
    assert all(p.grad is None for p in supernet.network.parameters())


def test_what_weighs_nothing_is_not_computed(space: LayerwiseSpace) -> None:
    supernet = LayerwiseSupernet(space, space.candidate)
    ran: list[str] = []
    for name, module in supernet.network.named_modules():
        if name.split(".")[-2:-1] == ["candidates"]:
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    supernet(IMAGES, one_hot(space, (1, 0, 4)))
    assert ran == ["blocks.0.candidates.1", "blocks.1.candidates.0", "blocks.2.candidates.4"]


def test_only_what_is_considered_is_made_and_chosen(space: LayerwiseSpace) -> None:
    made: list[tuple[int, int]] = []

    def candidate(layer: int, choice: int) -> nn.Module:
        made.append((layer, choice))
        return space.candidate(layer, choice)

    supernet = LayerwiseSupernet(space, candidate, CONSIDERED)
    assert made == [(layer, choice) for layer, own in enumerate(CONSIDERED) for choice in own]
    for logit, own in zip(supernet.logits(), CONSIDERED, strict=True):
        assert tuple(np.flatnonzero(logit.isfinite())) == own
        assert float(logit.exp().sum().detach()) == pytest.approx(1)


def test_weights_learn_only_where_asked(space: LayerwiseSpace) -> None:
    assert LayerwiseSupernet(space, space.candidate, CONSIDERED).weight_parameters() == []
    supernet = LayerwiseSupernet(space, space.candidate, CONSIDERED, train_candidates=True)
    learnt = {name for name, p in supernet.named_parameters() if p.requires_grad}
    assert {name.split(".")[1] for name in learnt if not name.startswith("alphas")} == {"blocks"}
    assert not space.network.get_submodule("blocks.0").training
    assert len(supernet.weight_parameters()) == len(learnt) - 3


@pytest.mark.parametrize("mixture", ["relaxed", "paired"])
def test_the_cheaper_of_equals_is_found(space: LayerwiseSpace, mixture: Mixture) -> None:
    """The first layer's third candidate is the layer itself at half the cost; the others are strangers."""
    considered = ((0, 2), (0, 1), (0, 5))

    def candidate(layer: int, choice: int) -> nn.Module:
        return space.candidate(layer, 0 if (layer, choice) == (0, 2) else choice)

    costs = [np.ones(size) for size in space.sizes]
    costs[0][2] = 0.5
    cost = AdditiveCost(CostTable(rest=1.0, costs=tuple(costs), error_isolated=0.0, error=0.0, networks=2))
    supernet, loss = LayerwiseSupernet(space, candidate, considered), divergence(space.network)
    result = search(
        supernet,
        Objective(cost=cost, reference=4.0, loss=loss),
        SearchBatches(weights=batches, alphas=batches, steps=10),
        SearchSettings(epochs=8, alpha_lr=0.05, mixture=mixture, multiplier=1.0),
    )
    images = torch.cat([images for _, (images, _) in zip(range(10), batches(9, 0), strict=False)])

    @torch.no_grad()
    def objective(architecture: Architecture) -> float:
        answer = supernet(images, one_hot(space, architecture))
        return float(loss(answer, images, images)) + cost_of(architecture, space, cost) / 4

    best = min(itertools.product(*considered), key=objective)
    assert result.architecture == best
    assert best[0] == 2
    assert result.cost == pytest.approx(3.5)


def test_the_state_leaves_frozen_weights_out(space: LayerwiseSpace) -> None:
    kept: list[bytes] = []
    for train in (False, True):
        supernet = LayerwiseSupernet(space, space.candidate, CONSIDERED, train_candidates=train)
        state = SearchState.begin(supernet, SearchSettings(), 10)
        kept.append(pack(state.dump()))
        before = [alpha.detach().clone() for alpha in supernet.alphas]
        for alpha in supernet.alphas:
            nn.init.normal_(alpha)
        state.restore(unpack(kept[-1]))
        assert all(torch.equal(a, b) for a, b in zip(supernet.alphas, before, strict=True))
    assert len(kept[0]) < 0.5 * len(kept[1])
