"""Weights of the choices: what is computed, and that gradients are those of the relaxed mixture."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from lana_ray.search.mixture import Mixture, entropy, mix

LOGITS = torch.tensor([0.4, -1.0, 0.1, 1.2, -torch.inf]).log_softmax(0)


def test_relaxed_weights_are_the_probabilities() -> None:
    (weights,) = mix([LOGITS], "relaxed", 1.0)
    torch.testing.assert_close(weights, LOGITS.exp())
    (doubled,) = mix([LOGITS + 0.5], "relaxed", 1.0)  # of an edge that counts more
    torch.testing.assert_close(doubled, LOGITS.exp() * torch.tensor(0.5).exp())


def drawn(mixture: Mixture, count: int) -> Tensor:
    torch.manual_seed(0)
    return torch.stack([mix([LOGITS], mixture, 0.7)[0] for _ in range(count)])


def test_sampled_weights_are_one_hot_by_the_probabilities() -> None:
    weights = drawn("sampled", 4000)
    assert ((weights == 0).sum(1) == 4).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(4000))
    torch.testing.assert_close(weights.mean(0), LOGITS.exp(), atol=0.03, rtol=0)


def test_of_a_pair_one_counts_by_the_probabilities_and_both_are_computed() -> None:
    weights = drawn("paired", 4000)
    assert ((weights != 0).sum(1) == 2).all()
    torch.testing.assert_close((weights > 0.5).float().mean(0), LOGITS.exp(), atol=0.03, rtol=0)
    assert (1.0 + weights.where(weights < 0.5, 0)).eq(1).all()
    assert not weights[:, 4].any()


def test_the_gradient_of_pairs_is_that_of_the_relaxed_mixture() -> None:
    torch.manual_seed(0)
    losses = torch.tensor([1.0, -2.0, 0.5, 3.0])
    logits = LOGITS[:4].clone().requires_grad_()
    (wanted,) = torch.autograd.grad((logits.softmax(0) * losses).sum(), logits)
    found = []
    for _ in range(4000):
        (weights,) = mix([logits.log_softmax(0)], "paired", 1.0)
        found.append(torch.autograd.grad((weights * losses).sum(), logits)[0])
    torch.testing.assert_close(torch.stack(found).mean(0), wanted, atol=0.03, rtol=0)


@pytest.mark.parametrize("mixture", get_args(Mixture))
def test_a_single_open_choice_is_taken(mixture: Mixture) -> None:
    alpha = torch.zeros(3, requires_grad=True)
    logits = alpha.masked_fill(torch.tensor([True, False, True]), -torch.inf).log_softmax(0)
    (weights,) = mix([logits], mixture, 1.0)
    assert weights.tolist() == [0, 1, 0]
    (slope,) = torch.autograd.grad((weights * torch.arange(3.0)).sum(), alpha)
    torch.testing.assert_close(slope, torch.zeros(3))


def test_entropy_is_relative_to_the_largest() -> None:
    even, closed = torch.zeros(4), torch.tensor([0.0, 0.0, -torch.inf])
    assert float(entropy([even, closed])) == pytest.approx(1)
    assert float(entropy([torch.tensor([0.0, 90.0])])) == pytest.approx(0)
    half = torch.tensor([0.0, 0.0, -90.0, -90.0])
    assert float(entropy([half, torch.zeros(1)])) == pytest.approx(0.5)
    assert float(entropy([torch.zeros(1)])) == 0
