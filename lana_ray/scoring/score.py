"""Scores candidates by the change in loss when a single one replaces its layer in the teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lana_ray.networks.layers import Layer, batch_statistics, observe
from lana_ray.scoring.suffixes import Suffix

Batches = Iterable[tuple[Tensor, Tensor]]
"""Batches of (images [N, 3, H, W], labels [N])."""
HELD_BYTES = 256 << 20
"""Bytes of candidates' weights that are scored on a batch before the next batch is loaded."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Change of the loss against the teacher, per image, with standard errors over the images."""

    loss: float
    loss_se: float
    kl: float
    """Change of the divergence from the teacher's outputs, KL(teacher ‖ network); needs no labels."""
    kl_se: float


@torch.no_grad()
def score_layer(
    teacher: nn.Module,
    layers: Sequence[Layer],
    position: int,
    candidates: Iterable[tuple[int, nn.Module]],
    batches: Callable[[], Batches],
    *,
    held_bytes: int = HELD_BYTES,
) -> dict[int, Score]:
    """Scores candidates of one layer: LANA's a_i (arXiv 2107.10624, section 3.3).

    Only the network after the layer is recomputed. Batch-norms use the statistics of the current batch, in
    the teacher and in the candidates, since nothing is fine-tuned yet. The effect of batch statistics alone
    on the loss and on the divergence is subtracted, so that the teacher's own layer scores zero. The
    divergence is from the teacher's outputs in evaluation mode. Other ways rank students worse:
    ``jobs/RESULTS.md``, "Statistics of batch-norms in scores".

    Args:
        candidates: choices and their modules, loaded a few at a time and then released.
        batches: returns the batches of the scoring split, the same ones at every call.
        held_bytes: bytes of candidates' weights loaded at a time. The teacher runs once for them and a batch.
    """
    scores: dict[int, Score] = {}
    for few in _portions(candidates, held_bytes):
        scores |= _score_few(teacher, layers, position, few, batches())
    return scores


def _portions(candidates: Iterable[tuple[int, nn.Module]], held_bytes: int) -> Iterator[dict[int, nn.Module]]:
    """Yields candidates in order, as many as have at most ``held_bytes`` of weights, but at least one."""
    few: dict[int, nn.Module] = {}
    held = 0
    for choice, module in candidates:
        size = sum(tensor.nbytes for tensor in module.state_dict().values())
        if few and held + size > held_bytes:
            yield few
            few, held = {}, 0
        few[choice] = module
        held += size
    if few:
        yield few


def _score_few(
    teacher: nn.Module,
    layers: Sequence[Layer],
    position: int,
    candidates: dict[int, nn.Module],
    batches: Batches,
) -> dict[int, Score]:
    """Scores candidates together, with one teacher pass for each batch."""
    differences: dict[int, list[Tensor]] = {choice: [] for choice in candidates}
    divergences: dict[int, list[Tensor]] = {choice: [] for choice in candidates}
    suffix: Suffix | None = None
    for images, labels in batches:
        suffix = suffix or Suffix(teacher, layers, position, images[:8])
        answers = F.log_softmax(teacher(images), dim=1)
        with batch_statistics(teacher), batch_statistics(suffix.network):
            inputs, own = observe(teacher, [layers[position].name], images)[layers[position].name]
            unchanged = suffix(own)
            loss, divergence = _losses(unchanged, labels), _divergences(unchanged, answers)
            for choice, module in candidates.items():
                with batch_statistics(module.eval()):
                    output = suffix(module(inputs))
                differences[choice].append(_losses(output, labels) - loss)
                divergences[choice].append(_divergences(output, answers) - divergence)
    return {choice: _score(differences[choice], divergences[choice]) for choice in candidates}


def _score(differences: list[Tensor], divergences: list[Tensor]) -> Score:
    loss, kl = torch.cat(differences), torch.cat(divergences)
    root = len(loss) ** 0.5
    return Score(
        loss=float(loss.mean()),
        loss_se=float(loss.std() / root),
        kl=float(kl.mean()),
        kl_se=float(kl.std() / root),
    )


@torch.no_grad()
def batch_statistics_loss(network: nn.Module, batches: Batches) -> float:
    """Returns the mean cross-entropy of a student that is not fine-tuned, with each batch's statistics."""
    with batch_statistics(network.eval()):
        losses = [_losses(network(images), labels) for images, labels in batches]
    return float(torch.cat(losses).mean())


def _losses(output: Tensor, labels: Tensor) -> Tensor:
    """Returns the cross-entropy of each image."""
    return F.cross_entropy(output, labels, reduction="none")


def _divergences(output: Tensor, answers: Tensor) -> Tensor:
    """Returns KL(answers ‖ output) of each image; ``answers`` are log-probabilities."""
    return F.kl_div(F.log_softmax(output, dim=1), answers, reduction="none", log_target=True).sum(1)
