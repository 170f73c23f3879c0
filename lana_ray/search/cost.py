"""LAT(α): the cost of a supernet's architecture parameters, differentiable.

LA-DNAS minimises ``L + λ·LAT(α)`` with LAT a regressor of the encoding [paper, arXiv 2001.06392]; how α
becomes the encoding is not published. All three ways below are [ours]:

- ``expectation``: the probabilities themselves are the encoding. This is exact if the cost is a sum over
  decisions and all decisions count; otherwise the regressor gets encodings it was not trained on, and edges
  that the discretisation drops are charged.
- ``gumbel``: the mean over architectures drawn by Gumbel noise, each discretised by the space so that the
  regressor gets real architectures, with straight-through gradients. A decision whose choice in the
  architecture is not its own strongest, because the edge is dead or not kept, enters as a constant: it costs
  nothing and gets no gradient. The value is unbiased. The gradient goes to the probabilities, not to the
  Gumbel-softmax of the sample: it is exact for sums, and no temperature scales it against the task's.
- ``argmax``: like ``gumbel``, but for the one architecture of the present scores, without noise. The value is
  the cost of what the search would return if it ended now; the gradient sees no other architecture.

Measurements: ``jobs/RESULTS.md``, "Ways of the latency term".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from lana_ray.costs.table import CostTable
from lana_ray.ids import Architecture
from lana_ray.search.mixture import gumbel
from lana_ray.search.supernet import SearchSpace

Way = Literal["expectation", "gumbel", "argmax"]
Cost = Callable[[Tensor], Tensor]
"""Differentiable cost: encodings [..., d] → [...], for instance ``LatencyPredictor.as_module()``."""


class AdditiveCost(nn.Module):
    """A cost table as a differentiable function: encodings [..., d] → cost [...], in its unit.

    It is infinite if a candidate that cannot run has any share, with no gradient away from that, so such
    candidates must be kept out of the search.
    """

    costs: Tensor
    impossible: Tensor

    def __init__(self, table: CostTable) -> None:
        super().__init__()
        costs = torch.from_numpy(np.concatenate(table.costs)).float()
        self.rest = table.rest
        self.register_buffer("costs", costs.masked_fill(costs.isinf(), 0.0))
        self.register_buffer("impossible", costs.isinf().float())

    def forward(self, encodings: Tensor) -> Tensor:
        total = self.rest + encodings @ self.costs
        return total.masked_fill(encodings.detach() @ self.impossible > 0, torch.inf)


def expected_cost(
    logits: Sequence[Tensor],
    space: SearchSpace,
    cost: Cost,
    *,
    way: Way,
    samples: int = 8,
    temperature: float | None = None,
) -> Tensor:
    """Returns LAT(α) in the cost's unit, a scalar with a gradient.

    Args:
        logits: per decision [sizes[i]], as returned by a supernet.
        samples: architectures drawn by ``gumbel``, from torch's global generator.
        temperature: for ``gumbel``'s gradient. By default the probabilities are used as they are.
    """
    if way == "expectation":
        return cost(torch.cat([logit.softmax(0) for logit in logits]))
    flat = torch.cat(list(logits)).expand(samples if way == "gumbel" else 1, -1)
    scores = flat + gumbel(flat.shape).to(flat) if way == "gumbel" else flat
    softened = flat if temperature is None else scores / temperature
    return cost(_real_architectures(scores, softened, space)).mean()


def cost_of(
    architecture: Architecture, space: SearchSpace, cost: Cost, device: torch.device | None = None
) -> float:
    """Returns the cost of one architecture, computed on ``device``."""
    with torch.no_grad():
        return float(cost(torch.from_numpy(space.encode(architecture)[None]).to(device))[0])


@torch.no_grad()
def likeliest_within(
    logits: Sequence[Tensor], space: SearchSpace, cost: Cost, limit: float, *, draws: int = 1024
) -> Architecture | None:
    """Returns the architecture with the highest sum of logits among those drawn within the limit.

    Half of the draws are flatter than the probabilities, since decided choices hardly vary otherwise. The
    architecture that the logits stand for is among the draws. Returns None if all cost more than the limit.
    """
    flat = torch.cat(list(logits))
    spread = torch.linspace(0, 4, draws)[:, None]
    scores = flat + (spread * gumbel((draws, len(flat)))).to(flat)
    architectures = list(dict.fromkeys(_discretised(scores, space)))
    encoded = torch.from_numpy(np.stack([space.encode(a) for a in architectures])).to(flat)
    # Choices of probability 0 are never drawn, and 0 · −∞ would be NaN.
    likely = encoded @ flat.nan_to_num(neginf=0.0)
    likely[cost(encoded) > limit] = -torch.inf
    best = int(likely.argmax())
    return None if likely[best].isneginf() else architectures[best]


def _discretised(scores: Tensor, space: SearchSpace) -> list[Architecture]:
    ends = np.cumsum([0, *space.sizes])
    rows = scores.detach().cpu().numpy()
    return [space.discretise([row[a:b] for a, b in pairwise(ends)]) for row in rows]


def _real_architectures(scores: Tensor, softened: Tensor, space: SearchSpace) -> Tensor:
    """Returns encodings of the discretised scores, with the gradients of a softmax: [n, d] twice → [n, d]."""
    sizes = list(space.sizes)
    encoded = torch.from_numpy(np.stack([space.encode(a) for a in _discretised(scores, space)])).to(scores)
    parts = []
    for hard, score, soft in zip(
        *(torch.split(x, sizes, 1) for x in (encoded, scores, softened)), strict=True
    ):
        # 1 if the decision's own strongest choice is in the architecture.
        takes_part = hard.gather(1, score.argmax(1, keepdim=True))
        probabilities = soft.softmax(1)
        parts.append(hard + takes_part * (probabilities - probabilities.detach()))
    return torch.cat(parts, 1)
