"""How much the loss changes when one candidate alone replaces its layer in the teacher."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lana_ray.layers import Layer, Suffixes, batch_statistics, observe


@dataclass(frozen=True, kw_only=True)
class Score:
    """Change of the loss against the teacher, per image, with standard errors over the images."""

    loss: float
    loss_se: float
    kl: float
    """Divergence from the teacher's answers, KL(teacher ‖ student); needs no labels."""
    kl_se: float


@torch.no_grad()
def score_layer(
    teacher: nn.Module,
    layers: Sequence[Layer],
    position: int,
    candidates: Mapping[int, nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
) -> dict[int, Score]:
    """Scores candidates of one layer: LANA's a_i (arXiv 2107.10624, section 3.3).

    Only what follows the layer is recomputed. Batch-norms use the statistics of the current batch, in the
    teacher as in the candidates, since nothing is fine-tuned yet. The teacher's own layer scores zero.

    Args:
        candidates: modules by choice.
        batches: (images [N, 3, H, W], labels [N]) of the scoring split.
    """
    differences: dict[int, list[Tensor]] = {choice: [] for choice in candidates}
    divergences: dict[int, list[Tensor]] = {choice: [] for choice in candidates}
    suffixes: Suffixes | None = None
    for images, labels in batches:
        if suffixes is None:
            suffixes = Suffixes(teacher, layers, images[:8], only=position)
        rest = suffixes.network(position)
        with batch_statistics(teacher), batch_statistics(rest):
            inputs, own = observe(teacher, [layers[position].name], images)[layers[position].name]
            expected = suffixes(position, own)
            target = F.log_softmax(expected, dim=1)
            base = F.cross_entropy(expected, labels, reduction="none")
            for choice, module in candidates.items():
                with batch_statistics(module.eval()):
                    output = suffixes(position, module(inputs))
                differences[choice].append(F.cross_entropy(output, labels, reduction="none") - base)
                log_probabilities = F.log_softmax(output, dim=1)
                divergences[choice].append(
                    F.kl_div(log_probabilities, target, reduction="none", log_target=True).sum(1)
                )
    return {
        choice: Score(
            loss=_mean(differences[choice]),
            loss_se=_standard_error(differences[choice]),
            kl=_mean(divergences[choice]),
            kl_se=_standard_error(divergences[choice]),
        )
        for choice in candidates
    }


@torch.no_grad()
def batch_statistics_loss(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Mean cross-entropy of a student that is not fine-tuned, with each batch's own statistics."""
    losses = []
    network.eval()
    with batch_statistics(network):
        for images, labels in batches:
            losses.append(F.cross_entropy(network(images), labels, reduction="none"))
    return _mean(losses)


def _mean(values: list[Tensor]) -> float:
    return float(torch.cat(values).mean())


def _standard_error(values: list[Tensor]) -> float:
    whole = torch.cat(values)
    return float(whole.std() / len(whole) ** 0.5)
