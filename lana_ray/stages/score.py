"""Stage 4: what each candidate does to the loss."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lana_ray.distill.score import score_layer
from lana_ray.progress import say
from lana_ray.storage import FINGERPRINT_KEY, concat_tables, fingerprint
from lana_ray.tasks import device, run_tasks
from lana_ray.workspace import Workspace, candidate_file

FILE = "scores.parquet"


def run(workspace: Workspace) -> list[NDArray[np.float64]]:
    """Writes ``scores/<layer>.parquet`` and all of them as ``scores.parquet``.

    Returns:
        Per layer, shape [candidates]: change of the loss, infinite for a candidate that diverged.
    """
    storage, layers = workspace.storage, workspace.layers
    pending = [
        k for k in range(len(layers)) if storage.table_fingerprint(_file(workspace, k)) != key(workspace, k)
    ]
    say(f"score: {len(pending)} layers to score, {len(layers) - len(pending)} reused")
    run_tasks(_score, [(k,) for k in pending], workspace.config, title="score")
    whole = concat_tables(storage.read_table(_file(workspace, k)) for k in range(len(layers)))
    assert whole is not None
    storage.write_table(FILE, whole, fingerprint([key(workspace, k) for k in range(len(layers))]))
    scores = [np.full(len(ops), np.inf) for ops in workspace.space.ops]
    for row in whole.to_pylist():
        scores[row["layer"]][row["choice"]] = row["score"]
    return scores


def key(workspace: Workspace, layer: int) -> str:
    """Identity of a layer's scores."""
    candidates = [workspace.candidate_key(layer, j) for j in range(len(workspace.space.ops[layer]))]
    return fingerprint(candidates, workspace.config.score, workspace.data.fingerprint)


def _file(workspace: Workspace, layer: int) -> str:
    return f"scores/{workspace.layers[layer].name}.parquet"


def _score(workspace: Workspace, layer: int) -> None:
    settings, place, ops = workspace.config.score, workspace.layers[layer], workspace.space.ops[layer]
    errors = {j: _distillation_error(workspace, layer, j) for j in range(len(ops))}
    where = device(workspace)
    candidates = {
        j: workspace.candidate(layer, j).requires_grad_(False).to(where)
        for j in range(len(ops))
        if np.isfinite(errors[j])
    }
    batches = workspace.data.batches("score", batch_size=settings.batch_size, max_images=settings.images)
    scores = score_layer(
        workspace.teacher.to(where),
        workspace.layers,
        layer,
        candidates,
        ((images.to(where), labels.to(where)) for images, labels in batches),
    )
    rows = [
        {
            "layer": layer,
            "name": place.name,
            "choice": j,
            "op": ops[j].name,
            "score": score.loss,
            "score_se": score.loss_se,
            "kl": score.kl,
            "kl_se": score.kl_se,
            "distill_error": errors[j],
        }
        for j, score in scores.items()
    ]
    workspace.storage.write_table(_file(workspace, layer), pa.Table.from_pylist(rows), key(workspace, layer))


def _distillation_error(workspace: Workspace, layer: int, choice: int) -> float:
    """Normalised error at the end of distillation; NaN marks a candidate that diverged."""
    if not workspace.has_weights(layer, choice):
        return 0.0
    name = candidate_file(workspace.layers[layer].name, workspace.space.ops[layer][choice].name)
    metadata = workspace.storage.tensor_metadata(name)
    assert metadata is not None
    assert FINGERPRINT_KEY in metadata
    return float(metadata["error"])
