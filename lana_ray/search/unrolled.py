"""The second-order gradient of DARTS (arXiv 1806.09055, eq. 7 and 8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_DISTANCE = 0.01
"""Length of the step of the finite difference, as in the paper."""


def unrolled_gradients(
    alphas: Sequence[nn.Parameter],
    weights: Sequence[nn.Parameter],
    learnt_from: Callable[[], Tensor],
    held_apart: Callable[[], Tensor],
    rate: float,
) -> tuple[Tensor, list[Tensor]]:
    """Gradients in α of the loss that the weights would have after one more step of gradient descent.

    ``∇α L_h(w', α) − ξ (∇α L_w(w⁺, α) − ∇α L_w(w⁻, α)) / 2ε`` with ``w' = w − ξ ∇w L_w(w, α)`` and
    ``w± = w ± ε ∇w' L_h(w', α)``. As in the paper the step knows no momentum. The weights come back as they
    were, to the bit.

    Args:
        learnt_from: the loss on the weights' own images; draws the same whenever it is called.
        held_apart: the loss on the images that α learns from.
        rate: ξ, the weights' learning rate.

    Returns:
        The loss ``L_h(w', α)`` and a gradient for each α.
    """
    before = [weight.detach().clone() for weight in weights]
    try:
        _move(weights, before, gradients_of(learnt_from(), weights), -rate)
        loss = held_apart()
        found = gradients_of(loss, [*alphas, *weights])
        direct, ahead = found[: len(alphas)], found[len(alphas) :]
        length = torch.stack([gradient.norm() for gradient in ahead]).norm()
        if length == 0:
            return loss.detach(), direct
        epsilon = _DISTANCE / float(length)
        _move(weights, before, ahead, epsilon)
        above = gradients_of(learnt_from(), alphas)
        _move(weights, before, ahead, -epsilon)
        below = gradients_of(learnt_from(), alphas)
    finally:
        _move(weights, before, before, 0.0)
    factor = rate / (2 * epsilon)
    return loss.detach(), [d - factor * (up - down) for d, up, down in zip(direct, above, below, strict=True)]


@torch.no_grad()
def _move(
    weights: Sequence[nn.Parameter], origin: Sequence[Tensor], along: Sequence[Tensor], by: float
) -> None:
    for weight, start, direction in zip(weights, origin, along, strict=True):
        weight.copy_(start if by == 0 else start + by * direction)


def gradients_of(loss: Tensor, of: Sequence[nn.Parameter]) -> list[Tensor]:
    """Zeros where a parameter plays no part."""
    return list(torch.autograd.grad(loss, list(of), allow_unused=True, materialize_grads=True))
