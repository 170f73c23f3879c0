"""Stage 4: what each candidate does to the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lana_ray.cluster.distill_worker import Ending, ending
from lana_ray.cluster.tasks import device, run_tasks, task_bytes
from lana_ray.distill.step import DIVERGED
from lana_ray.monitoring.progress import say
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.method import method_version
from lana_ray.run_dir.storage import concat_tables
from lana_ray.scoring.score import HELD_BYTES, Batches, score_layer
from lana_ray.spaces.space import Choices
from lana_ray.workspace import Workspace

FILE = "scores.parquet"
_SCHEMA = pa.schema(
    [("layer", pa.int64()), ("name", pa.string()), ("choice", pa.int64()), ("op", pa.string())]
    + [(name, pa.float64()) for name in ("loss", "loss_se", "kl", "kl_se", "distill_error")]
    + [("left_out", pa.string())]
)


def run(
    workspace: Workspace, choices: Choices, reasons: Mapping[tuple[int, int], str]
) -> list[NDArray[np.float64]]:
    """Writes ``scores/<layer>.parquet`` and all of them as ``scores.parquet``.

    Every candidate has a row; one without a score has the reason in ``left_out``: ``SLOW`` or ``FAILS`` for
    one that was not trained, or ``DIVERGED``.

    Args:
        choices: the candidates to score.
        reasons: of the others, by (layer, choice).

    Returns:
        Per layer, shape [candidates]: what ``score.by`` names, infinite for a candidate without a score.
        Both are zero for the teacher's own layer and add up over layers about as well; but the change of the
        loss has four times the standard error, and an integer program picks whatever noise has flattered.
    """
    storage, layers = workspace.storage, workspace.layers
    keys = [_key(workspace, k, choices[k]) for k in range(len(layers))]
    pending = [k for k, key in enumerate(keys) if storage.table_fingerprint(_file(workspace, k)) != key]
    say(f"score: {len(pending)} layers to score, {len(layers) - len(pending)} reused")
    memory = task_bytes(workspace, workspace.config.score.batch_size) + HELD_BYTES
    asked = [(k, choices[k], keys[k]) for k in pending]
    run_tasks(_score, asked, workspace.config, title="score", memory=memory)
    whole = concat_tables(storage.read_table(_file(workspace, k)) for k in range(len(layers)))
    assert whole is not None
    by, place = workspace.config.score.by, whole.schema.get_field_index("left_out")
    why = [reasons.get((row["layer"], row["choice"]), row["left_out"]) for row in whole.to_pylist()]
    whole = whole.set_column(place, "left_out", pa.array(why, pa.string()))
    storage.write_table(FILE, whole.append_column("score", whole[by]), fingerprint(keys, by, why))
    scores = [np.full(len(ops), np.inf) for ops in workspace.space.ops]
    for row in whole.to_pylist():
        if row[by] is not None:
            scores[row["layer"]][row["choice"]] = row[by]
    return scores


def _key(workspace: Workspace, layer: int, choices: tuple[int, ...]) -> str:
    """Identity of a layer's scores, which are kept by the candidates' numbers: their order counts."""
    candidates = [
        (op.name, workspace.candidate_key(layer, j) if j in choices else "")
        for j, op in enumerate(workspace.space.ops[layer])
    ]
    settings = workspace.config.score.model_dump(include={"images", "batch_size"})
    method = method_version("scoring.score")
    return fingerprint(candidates, settings, workspace.data.fingerprint, method)


def _file(workspace: Workspace, layer: int) -> str:
    return f"scores/{workspace.layers[layer].name}.parquet"


def _score(workspace: Workspace, layer: int, choices: tuple[int, ...], key: str) -> None:
    settings = workspace.config.score
    known = {j: _ending(workspace, layer, j) for j in choices}
    where = device(workspace)
    candidates = (
        (j, workspace.candidate(layer, j).requires_grad_(False).to(where))
        for j in choices
        if not known[j].stopped
    )

    def batches() -> Batches:
        images_of = workspace.data.batches
        for images, labels in images_of("score", batch_size=settings.batch_size, max_images=settings.images):
            yield images.to(where), labels.to(where)

    scores = score_layer(workspace.teacher.to(where), workspace.layers, layer, candidates, batches)

    def rows() -> Iterator[dict[str, Any]]:
        for j, op in enumerate(workspace.space.ops[layer]):
            row = {"layer": layer, "name": workspace.layers[layer].name, "choice": j, "op": op.name}
            if j in known and known[j].stopped:
                row["left_out"] = known[j].stopped
            elif j in scores and not math.isfinite(scores[j].loss):
                row["left_out"] = DIVERGED
            elif j in scores:
                row |= {"loss": scores[j].loss, "loss_se": scores[j].loss_se}
                row |= {"kl": scores[j].kl, "kl_se": scores[j].kl_se, "distill_error": known[j].error}
            yield row

    table = pa.Table.from_pylist(list(rows()), schema=_SCHEMA)
    workspace.storage.write_table(_file(workspace, layer), table, key)


def _ending(workspace: Workspace, layer: int, choice: int) -> Ending:
    """How the distillation of a candidate ended; what needs none has no error."""
    if not workspace.has_weights(layer, choice):
        return Ending(0.0, "", [])
    found = ending(workspace, (layer, choice))
    assert found is not None, "distillation comes first"
    return found
