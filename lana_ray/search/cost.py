"""LAT(α): what a supernet's architecture parameters cost, differentiably.

LA-DNAS minimises ``L + λ·LAT(α)`` with LAT a regressor of the encoding [paper, arXiv 2001.06392]; how α
becomes the encoding is not published. All three ways below are [ours]:

- ``expectation``: the probabilities themselves are the encoding. Exact where the cost is a sum over decisions
  and all decisions count; otherwise the regressor is asked about encodings it never saw, and edges that the
  discretisation drops are charged.
- ``gumbel``: the mean over architectures drawn by Gumbel noise, each discretised by the space, so that the
  regressor sees real architectures, with straight-through gradients. A decision whose choice in the
  architecture is not its own strongest, because the edge is dead or not kept, enters as a constant: it costs
  nothing there and learns nothing from it. The value is unbiased. The gradient passes to the probabilities,
  not to the Gumbel-softmax of the sample: exact for sums, and no temperature scales it against the task's.
- ``argmax``: the same for the one architecture of the present scores, without noise. The value is what the
  search would return if it ended now; the gradient sees no other architecture.

Measured by ``jobs/experiment_latency_term.py`` on NAS-Bench-201, regressors of 900 cells. First how far LAT
is off the true latency of the cell that α stands for (median), and their rank correlation: along nine
searches by that way itself, of 200 steps, for 0.4 to 1 times the mean cell's latency. Then one gradient of 8
samples at random α beside that of the exact mean over all 15,625 cells.

                     raspi4                              1080ti_256 (batch 256)
                     off     Spearman  cosine  length    off     Spearman  cosine  length
    expectation      25.9 %  .71       .92     1.12      10.6 %  .82       .91     .96
    gumbel           12.2 %  .82       .94     .65       10.9 %  .92       .94     .85
    argmax           17.5 %  .95       .86     .74        0.3 %  .995      .93     .88
    gumbel, τ = 10                     .81     .07                         .79     .10
    gumbel, τ = 1                      .90     .57                         .88     .67
    gumbel, τ = 0.1                    .53     .89                         .62     1.29

The last three are Gumbel-softmax gradients. That ``argmax`` follows the found cell is no merit in itself: it
is the regressor's prediction of that cell. What the searches returned took .94 of the target on raspi4 and
.86 on the GPU in the median; at most 1.05 and .95 with ``gumbel``, 1.46 with ``argmax`` once.
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
"""Differentiable: encodings [..., d] → [...], ``LatencyPredictor.as_module()`` for instance."""


class AdditiveCost(nn.Module):
    """A cost table as a differentiable function: encodings [..., d] → cost [...], in its unit.

    Infinite where a candidate that cannot run has any share; there is no gradient away from it, so such
    candidates have to be kept out of the search.
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
    """LAT(α) in the cost's unit, a scalar with a gradient.

    Args:
        logits: per decision [sizes[i]], as a supernet gives them.
        samples: architectures drawn by ``gumbel``, from torch's global generator.
        temperature: of ``gumbel``'s gradient. The other two take the probabilities as they are.
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
    """What one architecture costs, on the cost's device."""
    with torch.no_grad():
        return float(cost(torch.from_numpy(space.encode(architecture)[None]).to(device))[0])


@torch.no_grad()
def likeliest_within(
    logits: Sequence[Tensor], space: SearchSpace, cost: Cost, limit: float, *, draws: int = 1024
) -> Architecture | None:
    """The architecture of the highest sum of logits among those drawn that cost no more than the limit.

    Half of the draws are flatter than the probabilities, since what is decided hardly varies by itself. The
    architecture that the logits stand for is among them. None where all cost more.
    """
    flat = torch.cat(list(logits))
    spread = torch.linspace(0, 4, draws)[:, None]
    scores = flat + (spread * gumbel((draws, len(flat)))).to(flat)
    architectures = list(dict.fromkeys(_discretised(scores, space)))
    encoded = torch.from_numpy(np.stack([space.encode(a) for a in architectures])).to(flat)
    # What must not be chosen is not drawn; 0 · −∞ is no number.
    likely = encoded @ flat.nan_to_num(neginf=0.0)
    likely[cost(encoded) > limit] = -torch.inf
    best = int(likely.argmax())
    return None if likely[best].isneginf() else architectures[best]


def _discretised(scores: Tensor, space: SearchSpace) -> list[Architecture]:
    ends = np.cumsum([0, *space.sizes])
    rows = scores.detach().cpu().numpy()
    return [space.discretise([row[a:b] for a, b in pairwise(ends)]) for row in rows]


def _real_architectures(scores: Tensor, softened: Tensor, space: SearchSpace) -> Tensor:
    """Encodings of what scores discretise to, with the gradients of a softmax: [n, d] twice → [n, d]."""
    sizes = list(space.sizes)
    encoded = torch.from_numpy(np.stack([space.encode(a) for a in _discretised(scores, space)])).to(scores)
    parts = []
    for hard, score, soft in zip(
        *(torch.split(x, sizes, 1) for x in (encoded, scores, softened)), strict=True
    ):
        takes_part = hard.gather(1, score.argmax(1, keepdim=True))  # 1 where its own strongest was taken
        probabilities = soft.softmax(1)
        parts.append(hard + takes_part * (probabilities - probabilities.detach()))
    return torch.cat(parts, 1)
