"""Stage 8: what the run came to, for machines: ``summary.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lana_ray.cluster.train_worker import TrainJob
from lana_ray.monitoring.provenance import versions
from lana_ray.networks.teachers import Teacher
from lana_ray.stages.counts import count_network
from lana_ray.stages.evaluate import accuracies
from lana_ray.stages.finetune import Finished
from lana_ray.stages.sample import TargetCosts
from lana_ray.stages.select import Selected
from lana_ray.workspace import TEACHER_FILE, Workspace

FILE = "summary.json"


def write(
    workspace: Workspace,
    teacher: Teacher,
    selected: Selected,
    finished: Sequence[Finished],
    uris: Mapping[tuple[str, str], str],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Writes and returns the summary; latencies in milliseconds, accuracies as shares of the test split."""
    data, counts = workspace.data, count_network(workspace, workspace.teacher)
    itself = TrainJob(file=TEACHER_FILE, key=workspace.teacher_key, architecture=None)
    summary = {
        "teacher": {
            "name": teacher.name,
            "layers": len(workspace.layers),
            "parameters": int(counts["params"]),
            "macs": counts["macs"],
            "accuracy": accuracies(workspace, [itself])[itself],
            "trained": teacher.untrained,
            "fingerprint": workspace.teacher_key,
        },
        "data": {"classes": list(data.classes), "sizes": data.sizes, "skipped": data.skipped},
        "targets": [_target(known) for known in selected.costs.values()],
        "results": [result(f, uris) for f in finished],
        "unmet": [choice.unmet for choice in selected.choices if choice.unmet],
        "versions": versions(),
        "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
    }
    workspace.storage.write_json(FILE, summary)
    return summary


def _target(known: TargetCosts) -> dict[str, Any]:
    target = known.target
    return {
        "name": target.name,
        "runtime": target.runtime,
        "threads": target.threads,
        "batch_size": target.batch_size,
        "processor": next(iter(known.networks.values())).processor,
        "teacher_ms": known.teacher_ms,
        "error": known.table.error,
        "error_isolated": known.table.error_isolated,
        "networks": known.table.networks,
        "stand_in": known.placement.stand_in,
    }


def result(f: Finished, uris: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """What a finished student came to, with its ``models:/`` URI where it was registered."""
    return {
        "target": f.target,
        "budget": f.budget,
        "budget_ms": f.budget_ms,
        "predicted_ms": f.predicted_ms,
        "calibration": f.calibration,
        "measured_ms": f.sample.median_ms,
        "iqr_ms": f.sample.iqr_ms,
        "teacher_ms": f.teacher_ms,
        "speedup": f.teacher_ms / f.sample.median_ms,
        **f.counts,
        "accuracy": f.tested.accuracy,
        "validation_accuracy": f.tested.validation_accuracy,
        "accuracy_before": f.accuracy_before,
        "teacher_accuracy": f.tested.teacher_accuracy,
        "architecture": f.architecture,
        "model_uri": uris.get((f.target, f.budget)),
        "problem": f.problem,
    }
