"""One optimiser step over micro-batches, with the same result however many workers share them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Rank:
    """This process's position among those that train the same network."""

    index: int = 0
    size: int = 1


def micro_batches(batch_size: int, at_least: int) -> int:
    """Returns how many equal micro-batches of ``at_least`` images or more a batch has; 1 if it is smaller."""
    most = max(1, batch_size // at_least)
    return next(count for count in range(most, 0, -1) if batch_size % count == 0)


class StepTotal:
    """Sums of gradients, running statistics and losses over the micro-batches of one step.

    Every micro-batch sees the weights and the running statistics of the step's beginning; the step ends with
    the mean over all of them. Sums are float64, so that they round to the same float32 in any order and with
    any number of workers. The network is in training mode; its gradients and buffers are changed.
    """

    def __init__(self, network: nn.Module) -> None:
        self._parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self._begin = [(buffer, buffer.clone()) for buffer in network.buffers()]
        self._sizes = [_real(x).numel() for x in (*self._parameters, *self._buffers)]
        device = next(network.parameters()).device
        extra = len(self._parameters) + 1
        self._sum = torch.zeros(sum(self._sizes) + extra, dtype=torch.float64, device=device)

    def add(self, loss: Tensor) -> None:
        """Adds the gradients of a micro-batch's mean loss and the buffers after its forward pass."""
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        reached = [float(p.grad is not None) for p in self._parameters]
        parts = [_real(x.detach()).flatten().double() for x in (*gradients, *self._buffers)]
        ends = torch.tensor([*reached, float(loss.detach())], dtype=torch.float64, device=self._sum.device)
        self._sum += torch.cat([*parts, ends])
        for parameter in self._parameters:
            parameter.grad = None

    def restart(self) -> None:
        """Resets the buffers to the step's beginning, before another micro-batch."""
        for buffer, value in self._begin:
            buffer.copy_(value)

    def finish(self, count: int, rank: Rank) -> float:
        """Sets gradients and buffers to the mean over all ``count`` micro-batches; returns the mean loss.

        A parameter that no micro-batch reached gets no gradient.
        """
        all_reduce(self._sum, rank)
        sizes = [*self._sizes, len(self._parameters), 1]
        *parts, reached, loss = torch.split(self._sum / count, sizes)
        gradients, buffers = parts[: len(self._parameters)], parts[len(self._parameters) :]
        for parameter, gradient, share in zip(self._parameters, gradients, reached.tolist(), strict=True):
            if share:
                shaped = gradient.to(_real(parameter).dtype).reshape(_real(parameter).shape)
                parameter.grad = torch.view_as_complex(shaped) if parameter.is_complex() else shaped
        with torch.no_grad():
            for buffer, mean in zip(self._buffers, buffers, strict=True):
                buffer.copy_(mean.reshape(buffer.shape))
        return float(loss)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def all_reduce(values: Tensor, rank: Rank) -> None:
    """Replaces the values by their sum over all workers."""
    if rank.size > 1:
        torch.distributed.all_reduce(values)


def broadcast(tensors: Iterable[Tensor], rank: Rank) -> None:
    """Copies the first worker's tensors to all, since different processors may round updates differently."""
    if rank.size > 1:
        for tensor in tensors:
            torch.distributed.broadcast(tensor, src=0)
