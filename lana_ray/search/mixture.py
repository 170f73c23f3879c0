"""With which weights the choices of a supernet are mixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Mixture = Literal["relaxed", "sampled", "paired"]
"""``relaxed``: all choices, by their probabilities (DARTS, arXiv 1806.09055; PC-DARTS, arXiv 1907.05737).
``sampled``: one choice, drawn by the straight-through Gumbel-softmax (GDAS, arXiv 1910.04465).
``paired``: two choices drawn, the first of which counts, while the gradient weighs one against the other
(ProxylessNAS, arXiv 1812.00332, section 3.2).

The slope of a loss in a single drawn choice's weight has nothing to be compared with, and on held-out images
it is mostly positive, since whatever makes an overconfident network's activations smaller lowers its loss:
``sampled`` then drifts towards ``none``. In short searches of NAS-Bench-201's cells on digits it ended with
two to four edges of six without operation, ``paired`` with none to two (400 steps, two seeds, no latency in
the loss)."""

_UNHEARD = 1e-20
"""A weight that is not 0, so that a choice is computed and its gradient known, but adds nothing that fp32
keeps beside another choice's output."""


def mix(logits: Sequence[Tensor], mixture: Mixture, temperature: float) -> list[Tensor]:
    """Weights of every decision's choices, [sizes[i]] each, differentiable in the logits.

    Exactly 0 for what was not drawn and for choices of logit −∞. Draws from torch's global generator.

    Args:
        logits: logarithms of the relaxed weights.
        temperature: of ``sampled``; the other two need none.
    """
    if mixture == "relaxed":
        return [logit.exp() for logit in logits]
    weights = []
    for logit in logits:
        scores = logit + gumbel(logit.shape).to(logit)
        drawn = straight_through(scores, temperature) if mixture == "sampled" else _paired(logit, scores)
        weights.append(logit.exp().sum() * drawn)  # 1, or what the decision as a whole weighs
    return weights


def gumbel(shape: Sequence[int]) -> Tensor:
    """Standard Gumbel noise on the CPU, so that a seed gives the same on every device."""
    return -torch.empty(shape).exponential_().log()


def straight_through(scores: Tensor, temperature: float) -> Tensor:
    """One-hot of the largest score, with the gradient of the softmax: [n] → [n], zeros exact."""
    soft = (scores / temperature).softmax(0)
    return F.one_hot(scores.argmax(), len(scores)) + (soft - soft.detach())


def _paired(logits: Tensor, scores: Tensor) -> Tensor:
    """The two largest scores are two choices drawn without replacement, the first by the probabilities.

    The gradient of the two's softmax is weighted so that its mean over all pairs is that of the softmax of
    all, wherever the loss is linear in the weights [ours]: else λ would weigh costs by another measure.
    """
    drawn = scores.detach().topk(min(2, len(scores))).indices
    drawn = drawn[~logits[drawn].isneginf()]
    soft = logits[drawn].softmax(0)
    value = torch.full_like(soft, _UNHEARD)
    value[0] = 1.0
    p = logits.detach().softmax(0)[drawn].double()
    rest = (1 - p).clamp_min(1e-12)
    likelihood = p.prod() * rest.reciprocal().sum()  # of the two, in either order
    moved = (p.sum().square() / likelihood).to(soft) * (soft - soft.detach())
    return torch.zeros_like(logits).scatter(0, drawn, value + moved)


def entropy(logits: Sequence[Tensor]) -> Tensor:
    """Mean over the decisions with a choice of the entropy of their probabilities, relative to the largest
    possible: 1 where nothing is decided, 0 where all is."""
    shares = []
    for logit in logits:
        known = logit[~logit.isneginf()]
        if len(known) > 1:
            logs = known.log_softmax(0)
            shares.append(-(logs.exp() * logs).sum() / torch.tensor(float(len(known))).log().to(logit))
    return torch.stack(shares).mean() if shares else torch.zeros(())
