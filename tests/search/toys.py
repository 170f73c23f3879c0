"""Supernets whose best architecture is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lana_ray.ids import Architecture


class ToySpace:
    """Independent decisions."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = sizes
        self.operations: Sequence[Sequence[str]] = ["abcdefgh"[:size] for size in sizes]

    def discretise(self, scores: Sequence[NDArray[np.floating]]) -> Architecture:
        return tuple(int(part.argmax()) for part in scores)

    def encode(self, architecture: Architecture) -> NDArray[np.float32]:
        rows = [np.eye(n, dtype=np.float32)[c] for n, c in zip(self.sizes, architecture, strict=True)]
        return np.concatenate(rows)

    def everything(self) -> list[Architecture]:
        return list(itertools.product(*(range(n) for n in self.sizes)))


class ToySupernet(nn.Module):
    """Each choice has a loss of its own, and the network's loss is their sum.

    The images play no part in it; ``weight`` is learnt, and adds ``(weight − 1)²``.
    """

    def __init__(self, losses: Sequence[Sequence[float]], *, learns: bool = False) -> None:
        super().__init__()
        self.space = ToySpace(*(len(own) for own in losses))
        self.losses = [torch.tensor(own) for own in losses]
        self.alphas = nn.ParameterList(nn.Parameter(torch.zeros(len(own))) for own in losses)
        self.weight = nn.Parameter(torch.zeros(()), requires_grad=learns)

    def logits(self) -> list[Tensor]:
        return [alpha.log_softmax(0) for alpha in self.alphas]

    def architecture_parameters(self) -> list[nn.Parameter]:
        return list(self.alphas)

    def weight_parameters(self) -> list[nn.Parameter]:
        return [self.weight] if self.weight.requires_grad else []

    def forward(self, images: Tensor, weights: Sequence[Tensor]) -> Tensor:
        parts = [(own * weight).sum() for own, weight in zip(self.losses, weights, strict=True)]
        return torch.stack(parts).sum() + (self.weight - 1).square() + 0 * images.sum()

    def loss(self, architecture: Architecture) -> float:
        return float(sum(own[choice] for own, choice in zip(self.losses, architecture, strict=True)))


def output(answer: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """A task whose loss is what the supernet says."""
    return answer


def batches(epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Other numbers in every step."""
    for step in itertools.count(start):
        noise = torch.randn((2, 3), generator=torch.Generator().manual_seed(1000 * epoch + step))
        yield noise, torch.zeros(2, dtype=torch.long)


def additive(costs: Sequence[Sequence[float]]) -> Callable[[Tensor], Tensor]:
    flat = torch.tensor([cost for own in costs for cost in own])
    return lambda encodings: 1.0 + encodings @ flat


class Nodes(ToySpace):
    """So many edges into one node, which keeps the strongest of them; choice 0 is none."""

    def __init__(self, edges: int, choices: int) -> None:
        super().__init__(*[choices] * edges)

    def discretise(self, scores: Sequence[NDArray[np.floating]]) -> Architecture:
        kept = max(range(len(scores)), key=lambda edge: float(scores[edge][1:].max()))
        return tuple(1 + int(own[1:].argmax()) if i == kept else 0 for i, own in enumerate(scores))
