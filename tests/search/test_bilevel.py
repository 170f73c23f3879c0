"""The search: it finds known optima, keeps targets, tells a collapse, and resumes to the bit."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args

import numpy as np
import pytest
import torch

from lana_ray.ids import Architecture
from lana_ray.run_dir.resumable import Checkpoint, pack, unpack
from lana_ray.search.bilevel import Objective, SearchBatches, SearchResult, parameter_free_share, search
from lana_ray.search.cost import Way, cost_of
from lana_ray.search.mixture import Mixture
from lana_ray.search.settings import SearchSettings

from .toys import ToySpace, ToySupernet, additive, batches, output

LOSSES = [[0.0, 0.2, 0.45, 1.0], [0.1, 0.3, 0.0, 0.9]]
COSTS = [[4.0, 2.0, 1.0, 0.1], [3.0, 1.5, 5.0, 0.2]]
SPACE, COST = ToySpace(4, 4), additive(COSTS)
REFERENCE = float(np.mean([cost_of(a, SPACE, COST) for a in SPACE.everything()]))
FAST = SearchSettings(epochs=8, alpha_lr=0.1, mixture="relaxed")


def found(settings: SearchSettings, supernet: ToySupernet | None = None, **options: Any) -> SearchResult:
    return search(
        supernet or ToySupernet(LOSSES),
        Objective(cost=COST, reference=REFERENCE, loss=output),
        SearchBatches(weights=batches, alphas=batches, steps=10),
        settings,
        **options,
    )


def best(multiplier: float) -> Architecture:
    net = ToySupernet(LOSSES)
    return min(
        SPACE.everything(), key=lambda a: net.loss(a) + multiplier * cost_of(a, SPACE, COST) / REFERENCE
    )


@pytest.mark.parametrize("way", get_args(Way))
def test_the_optimum_is_found_and_its_cost_falls_with_the_price(way: Way) -> None:
    multipliers = (0.0, 0.3, 0.7, 1.3, 5.0)
    results = [found(dataclasses.replace(FAST, way=way, multiplier=m)) for m in multipliers]
    assert [result.architecture for result in results] == [best(m) for m in multipliers]
    costs = [result.cost for result in results]
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) >= 4


@pytest.mark.parametrize("mixture", get_args(Mixture))
def test_the_optimum_is_found_by_every_mixture(mixture: Mixture) -> None:
    settings = dataclasses.replace(FAST, mixture=mixture, epochs=15)
    for multiplier in (0.0, 5.0):
        result = found(dataclasses.replace(settings, multiplier=multiplier))
        assert result.architecture == best(multiplier)
        assert result.trajectory[-1].entropy < 0.5 * result.trajectory[0].entropy


@pytest.mark.parametrize("target", [2.7, 3.5, 5.0, 6.5])
def test_a_target_is_reached(target: float) -> None:
    net = ToySupernet(LOSSES)
    result = found(dataclasses.replace(FAST, target=target, epochs=20), net)
    affordable = [a for a in SPACE.everything() if cost_of(a, SPACE, COST) <= target]
    assert result.cost <= target
    assert net.loss(result.architecture) <= min(net.loss(a) for a in affordable) + 0.1  # of 1.9
    assert result.trajectory[-1].expected_cost == pytest.approx(target, rel=0.1)


def test_a_target_that_binds_nobody_costs_nothing() -> None:
    result = found(dataclasses.replace(FAST, target=20.0, multiplier=1.0, epochs=12))
    assert result.architecture == best(0.0)
    assert result.trajectory[-1].multiplier == 0


def test_entropy_falls_where_it_is_charged() -> None:
    free, charged = (found(dataclasses.replace(FAST, entropy_weight=w)) for w in (0.0, 2.0))
    assert charged.trajectory[-1].entropy < free.trajectory[-1].entropy


def test_the_trajectory_tells_what_happened() -> None:
    settings = dataclasses.replace(FAST, warmup_epochs=3, multiplier=1.0)
    result = found(settings, ToySupernet(LOSSES, learns=True))
    points = result.trajectory
    assert [point.epoch for point in points] == list(range(8))
    assert [math.isnan(point.alpha_loss) for point in points] == [True] * 3 + [False] * 5
    assert [point.entropy == pytest.approx(1) for point in points] == [True] * 3 + [False] * 5
    assert points[-1].weight_loss < points[0].weight_loss
    assert points[-1].cost == cost_of(points[-1].architecture, SPACE, COST)
    assert points[-1].architecture == result.architecture
    assert all(point.multiplier == 1 for point in points)
    still = found(settings)  # weights that do not learn need no warm-up
    assert not any(math.isnan(point.alpha_loss) for point in still.trajectory)
    assert all(math.isnan(point.weight_loss) for point in still.trajectory)


def test_weights_learn_their_part() -> None:
    net = ToySupernet(LOSSES, learns=True)
    result = found(dataclasses.replace(FAST, warmup_epochs=1, epochs=10), net)
    assert float(net.weight.detach()) == pytest.approx(1, abs=0.1)
    assert result.architecture == best(0.0)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("at", [5, 33, 40, 71])
def test_a_killed_search_goes_on_to_the_bit(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lana_ray.search.bilevel._SAVE_EVERY_S", -1.0)
    settings = dataclasses.replace(FAST, mixture="sampled", warmup_epochs=2, target=3.5)
    whole, parts = ToySupernet(LOSSES, learns=True), ToySupernet(LOSSES, learns=True)
    uninterrupted = found(settings, whole)
    kept: list[bytes] = []
    checkpoint = Checkpoint(
        load=lambda: unpack(kept[-1]) if kept else None, save=lambda state: kept.append(pack(state))
    )
    done = [0]

    def count() -> None:
        done[0] += 1
        if done[0] == at:
            raise Interrupted

    with pytest.raises(Interrupted):
        found(settings, parts, checkpoint=checkpoint, on_step=count)
    done = [100]
    fresh = ToySupernet(LOSSES, learns=True)
    resumed = found(settings, fresh, checkpoint=checkpoint, on_step=count)
    assert done == [180]
    assert repr(resumed) == repr(uninterrupted)  # NaN is what it is
    for one, other in zip(fresh.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)
    assert repr(found(settings, ToySupernet(LOSSES, learns=True), checkpoint=checkpoint)) == repr(resumed)


def test_a_collapse_is_told() -> None:
    """Skips rigged to look best, as they do where they train faster than what they bypass."""
    names = ["none", "sep_conv_3x3", "skip_connect", "avg_pool_3x3"]
    rigged = ToySupernet([[0.9, 0.5, 0.0, 0.2]] * 2)
    rigged.space.operations = [names] * 2
    result = found(FAST, rigged)
    assert result.collapsed
    assert result.architecture == (2, 2)
    shares = [point.parameter_free for point in result.trajectory]
    assert shares[-1] == 1
    honest = ToySupernet([[0.9, 0.0, 0.5, 0.2]] * 2)
    honest.space.operations = [names] * 2
    assert not found(FAST, honest).collapsed


def test_shares_of_operations_without_parameters() -> None:
    names = [["none", "conv", "skip_connect"]] * 4
    assert parameter_free_share((1, 1, 2, 1), names) == 0.25
    assert parameter_free_share((0, 0, 2, 1), names) == 0.5
    assert parameter_free_share((0, 0, 0, 1), names) == 0
    assert parameter_free_share((0, 0, 0, 0), names) == 1
