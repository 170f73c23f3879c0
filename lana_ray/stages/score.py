"""Stage 4: scores how much each candidate changes the loss, and tests how well scores add up."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau

from lana_ray.cluster.distill_worker import Ending, ending
from lana_ray.cluster.tasks import device, run_tasks, task_bytes
from lana_ray.distill.step import DIVERGED
from lana_ray.evaluation.networks import losses
from lana_ray.ids import Architecture, CandidateId, Choices
from lana_ray.monitoring.progress import say
from lana_ray.preflight.planned import Planned
from lana_ray.run_dir import layout
from lana_ray.run_dir.code_version import method_version
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.tables import (
    LAYER_SCORES,
    PROXY,
    SCORES,
    LayerScoreRow,
    ProxyRow,
    ScoreRow,
    layer_scores,
)
from lana_ray.scoring.score import HELD_BYTES, Batches, score_layer
from lana_ray.workspace import Workspace


def run(
    workspace: Workspace, choices: Choices, reasons: Mapping[CandidateId, str]
) -> list[NDArray[np.float64]]:
    """Writes ``scores/<layer>.parquet``, and all of them as ``scores.parquet``.

    Every candidate has a row; ``left_out`` says why one has no score: ``SLOW`` or ``FAILS`` if it was not
    trained, or ``DIVERGED``.

    Args:
        choices: the candidates to score.
        reasons: why the others are not scored.

    Returns:
        The column ``score.by`` per layer, shape [candidates]; infinite for a candidate without a score.
        ``kl`` and ``loss`` are both zero for the teacher's own layer and add up about equally well, but
        ``loss`` has four times the standard error, and an integer program exploits noise.
    """
    storage, layers = workspace.storage, workspace.layers
    keys = [_key(workspace, k, choices[k]) for k in range(len(layers))]
    kept = [layer_scores(storage, layer.name, key) for layer, key in zip(layers, keys, strict=True)]
    pending = [k for k, rows in enumerate(kept) if rows is None]
    say(f"score: {len(pending)} layers to score, {len(layers) - len(pending)} reused")
    memory = task_bytes(workspace, workspace.config.score.batch_size) + HELD_BYTES
    asked = [(k, choices[k], keys[k]) for k in pending]
    run_tasks(_score, asked, workspace.config, title="score", memory=memory)
    by = workspace.config.score.by
    rows = [
        ScoreRow(
            **{**dataclasses.asdict(row), "left_out": reasons.get(row.candidate, row.left_out)},
            score=getattr(row, by),
        )
        for layer in layers
        for row in LAYER_SCORES.read(storage, layout.scores(layer.name))
    ]
    SCORES.write(storage, layout.SCORES, rows, fingerprint(keys, by, [row.left_out for row in rows]))
    scores = [np.full(len(ops), np.inf) for ops in workspace.space.ops]
    for row in rows:
        if row.score is not None:
            scores[row.layer][row.choice] = row.score
    return scores


def _key(workspace: Workspace, layer: int, choices: tuple[int, ...]) -> str:
    """Identity of a layer's scores, including the order of its candidates."""
    candidates = [
        (candidate.op, workspace.candidate_key(candidate) if j in choices else "")
        for j, candidate in enumerate(workspace.space.ids[layer])
    ]
    settings = workspace.config.score.model_dump(include={"images", "batch_size"})
    method = method_version("scoring.score")
    return fingerprint(candidates, settings, workspace.data.fingerprint, method)


def _score(workspace: Workspace, layer: int, choices: tuple[int, ...], key: str) -> None:
    settings, ids = workspace.config.score, workspace.space.ids[layer]
    ends = {j: _ending(workspace, ids[j]) for j in choices}
    where = device(workspace)
    candidates = (
        (j, workspace.candidate(ids[j]).requires_grad_(False).to(where))
        for j in choices
        if not ends[j].stopped
    )

    def batches() -> Batches:
        images_of = workspace.data.batches
        for images, labels in images_of("score", batch_size=settings.batch_size, max_images=settings.images):
            yield images.to(where), labels.to(where)

    scores = score_layer(workspace.teacher.to(where), workspace.layers, layer, candidates, batches)

    def row(j: int) -> LayerScoreRow:
        begin: dict[str, Any] = {"layer": layer, "name": ids[j].layer, "choice": j, "op": ids[j].op}
        if j in ends and ends[j].stopped:
            return LayerScoreRow(**begin, left_out=ends[j].stopped)
        if j in scores and not math.isfinite(scores[j].loss):
            return LayerScoreRow(**begin, left_out=DIVERGED)
        if j not in scores:
            return LayerScoreRow(**begin)
        score = {name: getattr(scores[j], name) for name in ("loss", "loss_se", "kl", "kl_se")}
        return LayerScoreRow(**begin, **score, distill_error=ends[j].error)

    rows = [row(j) for j in range(len(ids))]
    LAYER_SCORES.write(workspace.storage, layout.scores(workspace.layers[layer].name), rows, key)


def _ending(workspace: Workspace, candidate: CandidateId) -> Ending:
    """The distillation result of a candidate; with error 0 if it needs none."""
    if not workspace.has_weights(candidate):
        return Ending(0.0, "", [])
    end = ending(workspace, candidate)
    assert end is not None, "distillation comes first"
    return end


def rank(workspace: Workspace, scores: Sequence[NDArray[np.float64]]) -> None:
    """Evaluates random students and writes ``proxy.parquet`` with the summed score and true loss of each.

    LANA reports Kendall's τ = 0.966 between the two (arXiv 2107.10624, section 4.3).
    """
    count = workspace.config.score.students
    if not count:
        return
    students = random_students(scores, count, np.random.default_rng(workspace.config.run.seed))
    loss = losses(workspace, students)
    summed = [float(sum(of_layer[j] for of_layer, j in zip(scores, a, strict=True))) for a in students]
    rows = [
        ProxyRow(architecture=workspace.space.label(a), choices=a, score=score, loss=loss[a])
        for a, score in zip(students, summed, strict=True)
    ]
    tau = float(kendalltau(summed, [row.loss for row in rows]).statistic)
    PROXY.write(workspace.storage, layout.PROXY, rows, fingerprint(rows), {"tau": f"{tau:.4f}"})
    say(f"score: Kendall's tau {tau:.3f} between summed scores and losses of {len(rows)} random students")


def random_students(
    scores: Sequence[NDArray[np.float64]], count: int, rng: np.random.Generator
) -> list[Architecture]:
    """Up to ``count`` different students between the teacher and one with every layer replaced.

    Each student draws its own probability of keeping a layer; other layers draw a candidate that has a
    score. If every layer drew uniformly, students would be farther from the teacher than any budget requires.
    """
    usable = [np.flatnonzero(np.isfinite(of_layer)) for of_layer in scores]
    drawn: dict[Architecture, None] = {}
    for _ in range(20 * count):
        keep = rng.random()
        student = tuple(0 if rng.random() < keep else int(rng.choice(choices)) for choices in usable)
        if any(student):
            drawn[student] = None
        if len(drawn) == count:
            break
    return list(drawn)


def plan(planned: Planned) -> list[str]:
    """The numbers of candidates and images."""
    count = sum(map(len, planned.space.ops))
    return [f"{count} candidates on {planned.config.score.images} images each"]
