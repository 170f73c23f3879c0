"""All architectures of a cell space at once, sharing weights, for a differentiable search."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from lana_ray.errors import UserError
from lana_ray.spaces.cells.blocks import Place, ResidualReduction, Stem, head, operation, preprocessing
from lana_ray.spaces.cells.space import CellSpace
from lana_ray.spaces.cells.wiring import NONE, Edge, Wiring, edge_name

_SPREAD = 1e-3
"""Standard deviation of architecture parameters at the start."""


class MixedOperation(nn.Module):
    """All operations of an edge, weighted, on the first of ``partial`` parts of the channels (PC-DARTS).

    The other parts bypass them and are pooled if the stride is 2; all are shuffled afterwards, so that the
    next edge works on other channels. PC-DARTS does not weight the bypass; here it has the total weight of
    all operations but ``none``, so that ``none`` means no edge, as it will in the network.
    """

    def __init__(self, names: Sequence[str], channels: int, stride: int, partial: int) -> None:
        super().__init__()
        self._channels, self._partial = channels // partial, partial
        self.operations = nn.ModuleDict(
            {name: _normalised(name, self._channels, stride) for name in names if name != "none"}
        )
        self.bypass = nn.MaxPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.shuffle = nn.ChannelShuffle(partial)

    def forward(self, x: Tensor, weights: Tensor, used: Sequence[bool]) -> Tensor | None:
        """Maps [n, channels, h, w] to the same shape, or half the size; None if only ``none`` is used."""
        part = x[:, : self._channels]
        choices = enumerate(self.operations.values(), 1)
        mixture = [weights[choice] * operate(part) for choice, operate in choices if used[choice]]
        if not mixture:
            return None
        mixed = reduce(torch.add, mixture)
        if self._partial == 1:
            return mixed
        rest = weights[NONE + 1 :].sum() * self.bypass(x[:, self._channels :])
        return self.shuffle(torch.cat([mixed, rest], 1))


def _normalised(name: str, channels: int, stride: int) -> nn.Module:
    """Returns an operation with normalised pools and no learnt scales, which could replace the weights."""
    made = operation(name, channels, stride, affine=False)
    if "pool" in name:
        return nn.Sequential(made, nn.BatchNorm2d(channels, affine=False))
    return made


class MixedCell(nn.Module):
    """A cell with all operations on every edge."""

    def __init__(self, wiring: Wiring, place: Place, partial: int) -> None:
        super().__init__()
        self._wiring, self._stride = wiring, place.stride
        self.preprocessing = preprocessing(wiring, place, affine=False)
        self.edges = nn.ModuleDict()
        for edge in wiring.edges:
            stride = place.stride if edge[0] < wiring.inputs else 1
            mixed = MixedOperation(wiring.operations, place.channels, stride, partial)
            self.edges[edge_name(edge)] = mixed

    def forward(
        self, states: Sequence[Tensor], weights: Sequence[Tensor], used: Sequence[Sequence[bool]]
    ) -> Tensor:
        inputs = [prepare(x) for prepare, x in zip(self.preprocessing, states, strict=True)]
        of_edge = dict(zip(self._wiring.edges, zip(weights, used, strict=True), strict=True))

        def operate(edge: Edge, x: Tensor) -> Tensor | None:
            return self.edges[edge_name(edge)](x, *of_edge[edge])

        return self._wiring.run(inputs, self._stride, operate)


class CellSupernet(nn.Module):
    """Supernet with partial channels and edge normalisation as in PC-DARTS (Xu et al., arXiv 1907.05737).

    Edges have their own parameters if nodes keep only some of them; batch-norms in cells have no scales. The
    space's width and number of cells may differ from the final network's. ``partial`` divides the channels
    that go through the mixture; 1 for all of them. Raises UserError if the width is not a multiple of it.
    """

    def __init__(self, space: CellSpace, *, partial: int = 4) -> None:
        super().__init__()
        wiring, skeleton = space.wiring, space.skeleton
        width = skeleton.places[0].channels
        if partial < 1 or width % partial:
            raise UserError(
                "invalid_setting",
                f"width {width} is not a multiple of partial {partial}; choose a width that is",
            )
        self.space = space
        self.stem = Stem(skeleton)
        self.cells = nn.ModuleList(
            ResidualReduction(place) if place.kind is None else MixedCell(wiring, place, partial)
            for place in skeleton.places
        )
        self.head = head(skeleton)
        shape = (len(wiring.edges), len(wiring.operations))
        self.alphas = nn.ParameterList(_SPREAD * torch.randn(shape) for _ in wiring.kinds)
        competing = wiring.kinds if wiring.kept is not None else ()
        self.betas = nn.ParameterList(_SPREAD * torch.randn(shape[0]) for _ in competing)

    def architecture_parameters(self) -> list[nn.Parameter]:
        """Returns the parameters of operations, then those of edges, by kind of cell."""
        return [*self.alphas, *self.betas]

    def weight_parameters(self) -> list[nn.Parameter]:
        architecture = {id(parameter) for parameter in self.architecture_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in architecture]

    def logits(self) -> list[Tensor]:
        """Returns the logarithms of the relaxed mixture's weights, [operations] for each edge.

        A weight is the softmax over the edge's operations, times the softmax over all edges that lead to the
        same node if nodes keep only some of them.
        """
        alphas = [alpha.log_softmax(1) for alpha in self.alphas]
        if not self.betas:
            return [logits for alpha in alphas for logits in alpha]
        counts = [len(incoming) for incoming in self.space.wiring.incoming]
        betas = [torch.cat([part.log_softmax(0) for part in beta.split(counts)]) for beta in self.betas]
        return [logits for alpha, beta in zip(alphas, betas, strict=True) for logits in alpha + beta[:, None]]

    def forward(self, images: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Returns logits [n, classes] of images [n, 3, h, w].

        Args:
            weights: [operations] for each decision; an operation whose weight is exactly 0 is not computed.
        """
        # One transfer for all weights, since each waits for the GPU.
        flat = torch.cat(tuple(weights)).ne(0).tolist()
        count = len(self.space.wiring.operations)
        used = [flat[start : start + count] for start in range(0, len(flat), count)]
        by_kind = list(zip(self.space.by_kind(weights), self.space.by_kind(used), strict=True))
        states: tuple[Tensor, ...] = self.stem(images)[-self.space.wiring.inputs :]
        for place, cell in zip(self.space.skeleton.places, self.cells, strict=True):
            output = cell(*states) if place.kind is None else cell(states, *by_kind[place.kind])
            states = (*states[1:], output)
        return self.head(states[-1])
