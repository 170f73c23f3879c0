"""The supernet of LANA's space: the teacher with a weighted mixture of distilled candidates at each layer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lana_ray.ids import Choices
from lana_ray.networks.layers import batch_statistics, replace
from lana_ray.spaces.layerwise import LayerwiseSpace


class LayerwiseSupernet(nn.Module):
    """A teacher whose layers are mixtures of candidates; the search starts from trained operations.

    Stem and head are the teacher's and stay unchanged. Everything runs in evaluation mode except batch-norms,
    which use the current batch as in the candidates' scores (``scoring.score``), since no student is
    fine-tuned yet. Only candidates that may be chosen are loaded, and only those of non-zero weight run.

    Args:
        candidate: returns a distilled module for (layer, choice), not shared; ``space.candidate`` returns
            untrained ones.
        considered: per layer, the choices that may be taken; defaults to all.
        train_candidates: also train the candidates' weights, including the teacher's own layers.
    """

    def __init__(
        self,
        space: LayerwiseSpace,
        candidate: Callable[[int, int], nn.Module],
        considered: Choices | None = None,
        *,
        train_candidates: bool = False,
    ) -> None:
        super().__init__()
        self.space = space
        everything = considered or space.everything
        names = [layer.name for layer in space.layers]
        self._mixed = [
            _Mixed({choice: candidate(position, choice) for choice in choices})
            for position, choices in enumerate(everything)
        ]
        self.network = replace(space.network, dict(zip(names, self._mixed, strict=True)))
        self.network.requires_grad_(False)
        for mixed in self._mixed:
            mixed.requires_grad_(train_candidates)
        self.alphas = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in space.sizes)
        for position, (choices, size) in enumerate(zip(everything, space.sizes, strict=True)):
            closed = torch.tensor([choice not in choices for choice in range(size)])
            self.register_buffer(f"closed_{position}", closed, persistent=False)
        self.train(False)

    def train(self, mode: bool = True) -> LayerwiseSupernet:
        """Ignores ``mode``: the supernet manages its modes itself and stays in evaluation mode."""
        return super().train(False)

    def logits(self) -> list[Tensor]:
        """Returns log-probabilities, −∞ for choices that may not be taken."""
        return [
            alpha.masked_fill(self.get_buffer(f"closed_{position}"), -torch.inf).log_softmax(0)
            for position, alpha in enumerate(self.alphas)
        ]

    def architecture_parameters(self) -> list[nn.Parameter]:
        return list(self.alphas)

    def weight_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.network.parameters() if p.requires_grad]

    def forward(self, images: Tensor, weights: Sequence[Tensor]) -> Tensor:
        for mixed, weight in zip(self._mixed, weights, strict=True):
            mixed.weights = weight
        with batch_statistics(self.network):
            output: Tensor = self.network(images)
        return output


class _Mixed(nn.Module):
    """A layer whose output is the weighted sum of its candidates' outputs."""

    def __init__(self, candidates: Mapping[int, nn.Module]) -> None:
        super().__init__()
        self.candidates = nn.ModuleDict({str(choice): module for choice, module in candidates.items()})
        self.weights = torch.zeros(0)
        """Weights of all choices of the layer, set before it runs."""

    def forward(self, x: Tensor) -> Tensor:
        chosen = [choice for choice, weight in enumerate(self.weights.tolist()) if weight]
        parts = (self.weights[choice] * self.candidates[str(choice)](x) for choice in chosen)
        return functools.reduce(torch.add, parts)


def divergence(teacher: nn.Module) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Returns a loss that needs no labels: KL(teacher ‖ supernet).

    The teacher runs in its current mode, which is evaluation, as in ``scoring.score``.
    """

    def loss(output: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            answers = F.log_softmax(teacher(images), dim=1)
        return F.kl_div(F.log_softmax(output, dim=1), answers, reduction="batchmean", log_target=True)

    return loss
