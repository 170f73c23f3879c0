"""Scores: what one candidate alone does to the loss, against the whole student computed at length."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import cast

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lana_ray.networks.layers import batch_statistics, find_layers
from lana_ray.scoring.score import batch_statistics_loss, score_layer
from lana_ray.spaces import LayerwiseSpace

from ..small_networks import Net, net

POOL = ["identity", "mbconv_e1_k3", "conv_pair_w0.25_k3"]


def batches(size: int = 32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn((12, 3, size, size), generator=generator),
            torch.randint(5, (12,), generator=generator),
        )
        for _ in range(2)
    ]


def space_of(network: nn.Module, size: int) -> LayerwiseSpace:
    network.eval().requires_grad_(False)
    return LayerwiseSpace(network, find_layers(network, batches(size)[0][0]), POOL)


@pytest.fixture(scope="module", params=["net", "mobilenetv3_small_050"])
def space(request: pytest.FixtureRequest) -> LayerwiseSpace:
    torch.manual_seed(0)
    if request.param == "net":
        return space_of(net(5), 32)
    return space_of(timm.create_model(request.param, num_classes=5), 32)


def candidates(space: LayerwiseSpace, position: int) -> dict[int, nn.Module]:
    return {choice: space.candidate(position, choice) for choice in range(len(space.ops[position]))}


@torch.no_grad()
def answers(network: nn.Module, images: Tensor) -> Tensor:
    network.eval()
    with batch_statistics(network):
        output: Tensor = network(images)
    return output


def positions(space: LayerwiseSpace) -> list[int]:
    return sorted({0, 1, len(space.layers) - 1})


def test_scores_are_those_of_the_assembled_students(space: LayerwiseSpace) -> None:
    for position in positions(space):
        scores = score_layer(
            space.network, space.layers, position, candidates(space, position).items(), batches
        )
        assert scores.keys() == set(range(len(space.ops[position])))
        for choice, score in scores.items():
            architecture = tuple(choice if i == position else 0 for i in range(len(space.layers)))
            student = space.build(architecture)
            differences, divergences = [], []
            for images, labels in batches():
                own, teachers = answers(student, images), answers(space.network, images)
                losses = [F.cross_entropy(x, labels, reduction="none") for x in (own, teachers)]
                differences.append(losses[0] - losses[1])
                true = space.network.eval()(images).softmax(1)
                divergences.append((true * (teachers.log_softmax(1) - own.log_softmax(1))).sum(1))
            difference, divergence = torch.cat(differences), torch.cat(divergences)
            assert score.loss == pytest.approx(float(difference.mean()), abs=1e-4)
            assert score.kl == pytest.approx(float(divergence.mean()), abs=1e-4)
            assert score.loss_se == pytest.approx(float(difference.std() / 24**0.5), abs=1e-4)
            assert score.kl_se == pytest.approx(float(divergence.std() / 24**0.5), abs=1e-4)


def test_the_teachers_own_layer_scores_zero(space: LayerwiseSpace) -> None:
    for position in range(len(space.layers)):
        own = {0: space.candidate(position, 0)}
        (score,) = score_layer(space.network, space.layers, position, own.items(), batches).values()
        assert (score.loss, score.loss_se) == (0.0, 0.0)
        assert score.kl == pytest.approx(0.0, abs=1e-6)


def test_scores_do_not_depend_on_who_else_is_scored(space: LayerwiseSpace) -> None:
    together = score_layer(space.network, space.layers, 1, candidates(space, 1).items(), batches)
    last = max(together)
    alone = score_layer(space.network, space.layers, 1, [(last, space.candidate(1, last))], batches)
    assert alone == {last: together[last]}


def test_candidates_are_let_go_before_others_are_taken(space: LayerwiseSpace) -> None:
    """A layer may have hundreds of candidates: only a few are held, and their scores are the same."""
    together = score_layer(space.network, space.layers, 1, candidates(space, 1).items(), batches)
    alive: list[weakref.ref[nn.Module]] = []
    most = 0

    def one_by_one() -> Iterator[tuple[int, nn.Module]]:
        nonlocal most
        for choice in range(len(space.ops[1])):
            module = space.candidate(1, choice)
            alive.append(weakref.ref(module))
            yield choice, module
            del module
            gc.collect()
            most = max(most, sum(reference() is not None for reference in alive))

    apart = score_layer(space.network, space.layers, 1, one_by_one(), batches, held_bytes=1)
    assert len(alive) > 2
    assert most <= 2
    assert apart == together


def test_a_worse_candidate_has_a_higher_divergence() -> None:
    teacher = cast(Net, net(5).train())
    for _ in range(50):  # running statistics of these images, so that its answers say something about them
        teacher(batches(16)[0][0])
    teacher.head.weight.data.mul_(10)
    space = space_of(teacher, 16)
    noisy = {}
    for choice, amount in enumerate((0.0, 0.05, 0.5)):
        module = space.candidate(0, 0)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(amount * torch.randn_like(parameter))
        noisy[choice] = module
    scores = score_layer(space.network, space.layers, 0, noisy.items(), lambda: batches(16))
    assert scores[0].kl < scores[1].kl < scores[2].kl


def test_scoring_leaves_teacher_and_candidates_as_they_were(space: LayerwiseSpace) -> None:
    modules = candidates(space, 1)
    watched = [space.network, *modules.values()]
    before = [{name: value.clone() for name, value in m.state_dict().items()} for m in watched]
    score_layer(space.network, space.layers, 1, modules.items(), batches)
    for module, state in zip(watched, before, strict=True):
        changed = [name for name, value in module.state_dict().items() if not torch.equal(value, state[name])]
        assert changed == []
    assert not any(module.training for module in space.network.modules())


def test_a_candidate_that_answers_with_infinity_spoils_nobody_elses_score() -> None:
    class Infinite(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 0

    space = space_of(net(5), 16)
    usual = score_layer(space.network, space.layers, 0, [(2, space.candidate(0, 2))], lambda: batches(16))
    before = space.network(batches(16)[0][0])
    both = {1: Infinite(), 2: space.candidate(0, 2)}
    scores = score_layer(space.network, space.layers, 0, both.items(), lambda: batches(16))
    assert scores[1].loss != scores[1].loss  # NaN
    assert scores[2] == usual[2]
    assert torch.equal(space.network(batches(16)[0][0]), before)


def test_the_loss_of_a_student_that_is_not_fine_tuned(space: LayerwiseSpace) -> None:
    student = space.build(tuple(min(1, len(ops) - 1) for ops in space.ops))
    expected = torch.cat([F.cross_entropy(answers(student, x), y, reduction="none") for x, y in batches()])
    before = {name: value.clone() for name, value in student.state_dict().items()}
    assert batch_statistics_loss(student, batches()) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
