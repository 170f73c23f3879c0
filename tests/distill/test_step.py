"""Distillation of candidates side by side: each learns, none disturbs another or the teacher."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lana_ray.distill.step import DIVERGED, RECENT, Distiller, Recipe, Trainee, cosine
from lana_ray.networks.layers import find_layers, observe
from lana_ray.spaces import LayerwiseSpace

from ..small_networks import net

STEPS = 12
POOL = ["identity", "mbconv_e1_k3", "conv_pair_w0.25_k3", "bottleneck_w0.25_k3"]


@pytest.fixture(scope="module")
def space() -> LayerwiseSpace:
    """A teacher whose batch-norms have seen data."""
    network = net(5).train()
    with torch.no_grad():
        for images in batches(80, seed=9):
            network(images)
    network.eval().requires_grad_(False)
    return LayerwiseSpace(network, find_layers(network, next(batches(1))), POOL)


def batches(count: int, seed: int = 0) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn((16, 3, 16, 16), generator=generator)


def trainee(space: LayerwiseSpace, layer: int, choice: int) -> Trainee:
    op = space.ops[layer][choice].name
    return Trainee(layer=space.layers[layer], op=op, module=space.candidate(layer, choice))


def train(space: LayerwiseSpace, trainees: list[Trainee], steps: int = STEPS, lr: float = 2e-3) -> None:
    distiller = Distiller(space.network, trainees, Recipe(lr=lr, steps=steps))
    for images in batches(steps):
        distiller.step(images)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_every_candidate_learns(space: LayerwiseSpace) -> None:
    trainees = [trainee(space, i, j) for i in range(3) for j in range(1, len(space.ops[i]))]
    trainees = [t for t in trainees if t.op != "identity"]
    train(space, trainees, steps=40, lr=1e-2)
    for t in trainees:
        assert len(t.curve) == 40
        assert t.stopped is None
        assert sum(t.curve[-5:]) < 0.9 * sum(t.curve[:5]), (t.layer.name, t.op)


def test_a_copy_of_the_layer_starts_at_its_error_in_training_mode_and_learns(space: LayerwiseSpace) -> None:
    """Only the batch's statistics part it from the teacher at the start; a shaken copy comes back."""
    same, shaken = trainee(space, 0, 0), trainee(space, 0, 0)
    for t in (same, shaken):
        t.module.requires_grad_(True)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in shaken.module.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter) if parameter.ndim > 1 else 0)
    train(space, [same, shaken], steps=40, lr=1e-2)
    assert same.curve[0] < 0.05
    assert sum(shaken.curve[-5:]) < 0.3 * sum(shaken.curve[:5])


def test_errors_are_relative_to_the_layers_answer(space: LayerwiseSpace) -> None:
    silent = trainee(space, 1, 1)
    with torch.no_grad():
        for parameter in silent.module.parameters():
            parameter.zero_()
    train(space, [silent], steps=1)
    assert silent.curve == [pytest.approx(1.0)]  # ‖t − 0‖² / ‖t‖²


def test_the_teacher_stays_as_it_is(space: LayerwiseSpace) -> None:
    before = state(space.network)
    train(space, [trainee(space, 0, 2), trainee(space, 2, 2)])
    assert_equal(state(space.network), before)
    assert all(parameter.grad is None for parameter in space.network.parameters())
    assert not any(module._forward_hooks for module in space.network.modules())
    assert not space.network.training


def test_gradients_of_one_candidate_reach_no_other(space: LayerwiseSpace) -> None:
    first, second = trainee(space, 0, 2), trainee(space, 0, 3)
    distiller = Distiller(space.network, [first, second], Recipe(lr=1e-2, steps=STEPS))
    second.stopped = DIVERGED  # takes no part
    before = state(second.module)
    for images in batches(STEPS):
        distiller.step(images)
    assert_equal(state(second.module), before)
    assert second.curve == []
    assert first.curve[-1] < first.curve[0]


def test_a_candidate_learns_the_same_alone_and_in_company(space: LayerwiseSpace) -> None:
    company = [trainee(space, i, j) for i, j in [(0, 2), (0, 3), (1, 1), (2, 2), (2, 4)]]
    train(space, company)
    for position, (i, j) in enumerate([(0, 2), (0, 3), (1, 1), (2, 2), (2, 4)]):
        alone = trainee(space, i, j)
        train(space, [alone])
        assert alone.curve == company[position].curve
        assert_equal(state(alone.module), state(company[position].module))


class _Explodes(nn.Module):
    """Answers with infinity from its third step on."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.scale / (0 if self.calls > 2 else 1)


def test_a_diverging_candidate_is_marked_and_the_others_go_on(space: LayerwiseSpace) -> None:
    bad = Trainee(layer=space.layers[0], op="explodes", module=_Explodes())
    good, alone = trainee(space, 0, 2), trainee(space, 0, 2)
    train(space, [bad, good])
    train(space, [alone])
    assert bad.stopped == DIVERGED
    assert len(bad.curve) == 3
    assert isinstance(bad.module, _Explodes)
    assert bad.module.calls == 3
    assert bad.module.scale.isfinite()
    assert good.stopped is None
    assert good.curve == alone.curve


def test_a_learning_rate_that_is_too_high_is_seen(space: LayerwiseSpace) -> None:
    """Weights that overflow show in the next step's error."""
    bad, good = trainee(space, 1, 2), trainee(space, 1, 1)
    distiller = Distiller(space.network, [bad, good], Recipe(lr=2e-3, steps=STEPS))
    for number, images in enumerate(batches(STEPS)):
        if number == 4:
            with torch.no_grad():
                next(iter(bad.module.parameters())).fill_(float("inf"))
        distiller.step(images)
    assert bad.stopped == DIVERGED
    assert len(bad.curve) == 5
    assert len(good.curve) == STEPS


def test_an_error_that_grows_is_seen_before_it_overflows(space: LayerwiseSpace) -> None:
    bad, good = trainee(space, 1, 2), trainee(space, 1, 1)
    distiller = Distiller(space.network, [bad, good], Recipe(lr=2e-3, steps=3 * RECENT))
    for number, images in enumerate(batches(3 * RECENT)):
        if number == RECENT:
            norms = [part for part in bad.module.modules() if isinstance(part, nn.BatchNorm2d)]
            with torch.no_grad():
                norms[-1].weight.fill_(100.0)
        distiller.step(images)
    assert bad.stopped == DIVERGED
    assert len(bad.curve) < 3 * RECENT
    assert torch.isfinite(torch.tensor(bad.curve)).all()
    assert (good.stopped, len(good.curve)) == (None, 3 * RECENT)


def test_a_batch_in_parts_gives_the_same_gradients_where_no_batch_norm_looks_at_it(
    space: LayerwiseSpace,
) -> None:
    def linear(parts: int) -> Trainee:
        torch.manual_seed(0)
        return Trainee(layer=space.layers[0], op="conv", module=nn.Conv2d(8, 8, 1), parts=parts)

    whole, parted = linear(1), linear(5)
    train(space, [whole, parted])
    assert parted.curve == pytest.approx(whole.curve, rel=1e-3)


def test_half_precision_keeps_weights_and_errors_whole(space: LayerwiseSpace) -> None:
    half, whole = trainee(space, 0, 2), trainee(space, 0, 2)
    for t, autocast in ((half, torch.bfloat16), (whole, None)):
        distiller = Distiller(space.network, [t], Recipe(lr=2e-3, steps=STEPS, autocast=autocast))
        for images in batches(STEPS):
            distiller.step(images)
    assert {p.dtype for p in half.module.parameters()} == {torch.float32}
    assert half.curve == pytest.approx(whole.curve, rel=0.1)
    assert half.curve != whole.curve


def test_candidates_read_the_teachers_activation(space: LayerwiseSpace) -> None:
    """The error is that of the layer's input in the teacher, not in a student."""
    images = next(batches(1))
    t = trainee(space, 2, 2)
    inputs, output = observe(space.network, ["blocks.2"], images)["blocks.2"]
    with torch.no_grad():
        answer = trainee(space, 2, 2).module(inputs)
    expected = float((answer - output).square().sum() / output.square().sum())
    Distiller(space.network, [t], Recipe(lr=1e-3, steps=STEPS)).step(images)
    assert t.curve == [pytest.approx(expected, rel=1e-4)]


@pytest.mark.parametrize("steps", [1, 2, 10, 333])
def test_the_schedule_rises_and_falls(steps: int) -> None:
    factors = [cosine(k, steps, 0.1) for k in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert max(factors) == pytest.approx(1.0)
    assert cosine(steps + 1, steps, 0.1) == pytest.approx(0.0, abs=1e-9)
