"""The second-order gradient against one worked out by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lana_ray.search.unrolled import unrolled_gradients


def test_a_quadratic_is_exact() -> None:
    """L_w = ½|w − Aα|² and L_h = ½|w − b|²: w' = w − ξ(w − Aα), so ∇α L_h(w', α) = ξAᵀ(w' − b)."""
    torch.manual_seed(0)
    matrix, aim = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    alpha = nn.Parameter(torch.randn(3, dtype=torch.float64))
    weight = nn.Parameter(torch.randn(4, dtype=torch.float64))
    before, rate = weight.detach().clone(), 0.3

    def learnt_from() -> Tensor:
        return 0.5 * (weight - matrix @ alpha).square().sum()

    def held_apart() -> Tensor:
        return 0.5 * (weight - aim).square().sum()

    loss, (found,) = unrolled_gradients([alpha], [weight], learnt_from, held_apart, rate)
    ahead = (before - rate * (before - matrix @ alpha)).detach()
    torch.testing.assert_close(found, rate * matrix.T @ (ahead - aim))
    torch.testing.assert_close(loss, 0.5 * (ahead - aim).square().sum())
    assert torch.equal(weight, before)


def test_the_finite_difference_is_near_automatic_differentiation() -> None:
    torch.manual_seed(1)
    alpha = nn.Parameter(torch.randn(3, dtype=torch.float64))
    weight = nn.Parameter(torch.randn(3, dtype=torch.float64))
    rate = 0.1

    def learnt_from(w: Tensor = weight) -> Tensor:
        return (torch.sin(w) * alpha.exp()).sum()

    def held_apart(w: Tensor = weight) -> Tensor:
        return (w * alpha).tanh().square().sum()

    (slope,) = torch.autograd.grad(learnt_from(), weight, create_graph=True)
    (wanted,) = torch.autograd.grad(held_apart(weight - rate * slope), alpha)
    _, (found,) = unrolled_gradients([alpha], [weight], learnt_from, held_apart, rate)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)
