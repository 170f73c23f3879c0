"""How well summed scores rank whole students, which is all that a selection can be as good as."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import kendalltau

from lana_ray.monitoring.progress import say
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.spaces.space import Architecture
from lana_ray.stages.evaluate import losses
from lana_ray.workspace import Workspace

FILE = "proxy.parquet"


def run(workspace: Workspace, scores: Sequence[NDArray[np.float64]]) -> None:
    """Evaluates random students as wholes and writes ``proxy.parquet``: summed score and true loss of each.

    LANA reports Kendall's τ = 0.966 between the two (arXiv 2107.10624, section 4.3).
    """
    count = workspace.config.score.students
    if not count:
        return
    students = random_students(scores, count, np.random.default_rng(workspace.config.run.seed))
    found = losses(workspace, students)
    summed = [float(sum(of_layer[j] for of_layer, j in zip(scores, a, strict=True))) for a in students]
    rows = [
        {
            "architecture": workspace.space.label(student),
            "choices": list(student),
            "score": score,
            "loss": found[student],
        }
        for student, score in zip(students, summed, strict=True)
    ]
    tau = float(kendalltau(summed, [row["loss"] for row in rows]).statistic)
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"tau": f"{tau:.4f}"})
    workspace.storage.write_table(FILE, table, fingerprint(rows))
    say(f"score: Kendall's tau {tau:.3f} between summed scores and losses of {len(rows)} random students")


def random_students(
    scores: Sequence[NDArray[np.float64]], count: int, rng: np.random.Generator
) -> list[Architecture]:
    """Different students that lie between the teacher and one with every layer replaced.

    Each keeps the teacher's layer with a probability of its own, drawn uniformly; other layers draw one of
    the candidates that have a score. Drawing every layer uniformly would give students as far from the
    teacher as none is that a budget asks for. Fewer come back where there are not so many.
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
