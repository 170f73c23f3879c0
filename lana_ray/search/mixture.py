"""Weights that mix the choices of a supernet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Mixture = Literal["relaxed", "sampled", "paired"]
"""How choices are mixed.

- ``relaxed``: all choices, by their probabilities (DARTS, arXiv 1806.09055; PC-DARTS, arXiv 1907.05737).
- ``sampled``: one choice, drawn by the straight-through Gumbel-softmax (GDAS, arXiv 1910.04465).
- ``paired``: two choices are drawn; the first is computed, and the gradient compares the two
  (ProxylessNAS, arXiv 1812.00332, section 3.2).

A loss's slope in the weight of a single drawn choice is not relative to any other choice, and on held-out
images it is mostly positive, since smaller activations lower the loss of an overconfident network. So
``sampled`` drifts towards ``none`` (``jobs/RESULTS.md``, "Mixtures of a search")."""

_UNHEARD = 1e-20
"""A weight that is not 0, so that a choice is computed and gets a gradient, but too small to change another
choice's output in fp32."""


def mix(logits: Sequence[Tensor], mixture: Mixture, temperature: float) -> list[Tensor]:
    """Returns the weights of every decision's choices, [sizes[i]] each, differentiable in the logits.

    Logits are logarithms of the relaxed weights. Choices that were not drawn and those of logit −∞ get
    exactly 0. Uses torch's global generator; only ``sampled`` uses the temperature.
    """
    if mixture == "relaxed":
        return [logit.exp() for logit in logits]
    weights = []
    for logit in logits:
        scores = logit + gumbel(logit.shape).to(logit)
        drawn = straight_through(scores, temperature) if mixture == "sampled" else _paired(logit, scores)
        # The factor is 1, or the weight of the decision as a whole.
        weights.append(logit.exp().sum() * drawn)
    return weights


def gumbel(shape: Sequence[int]) -> Tensor:
    """Returns standard Gumbel noise, drawn on the CPU so that a seed gives the same on every device."""
    return -torch.empty(shape).exponential_().log()


def straight_through(scores: Tensor, temperature: float) -> Tensor:
    """Returns the one-hot of the largest score, with a softmax's gradient: [n] → [n], zeros exact."""
    soft = (scores / temperature).softmax(0)
    return F.one_hot(scores.argmax(), len(scores)) + (soft - soft.detach())


def _paired(logits: Tensor, scores: Tensor) -> Tensor:
    """Returns weights of two choices drawn without replacement, the first by the probabilities.

    The gradient of the softmax of the two is weighted so that its mean over all pairs is that of the softmax
    of all, if the loss is linear in the weights [ours]; otherwise λ would weigh costs on another scale.
    """
    drawn = scores.detach().topk(min(2, len(scores))).indices
    drawn = drawn[~logits[drawn].isneginf()]
    soft = logits[drawn].softmax(0)
    value = torch.full_like(soft, _UNHEARD)
    value[0] = 1.0
    p = logits.detach().softmax(0)[drawn].double()
    rest = (1 - p).clamp_min(1e-12)
    # Probability of drawing these two, in either order.
    likelihood = p.prod() * rest.reciprocal().sum()
    moved = (p.sum().square() / likelihood).to(soft) * (soft - soft.detach())
    return torch.zeros_like(logits).scatter(0, drawn, value + moved)


def entropy(logits: Sequence[Tensor]) -> Tensor:
    """Returns the probabilities' entropy relative to the largest possible, a mean over decisions.

    It is 1 if nothing is decided and 0 if everything is. Decisions with a single choice do not count.
    """
    shares = []
    for logit in logits:
        open_logits = logit[~logit.isneginf()]
        if len(open_logits) > 1:
            logs = open_logits.log_softmax(0)
            shares.append(-(logs.exp() * logs).sum() / torch.tensor(float(len(open_logits))).log().to(logit))
    return torch.stack(shares).mean() if shares else torch.zeros(())
