"""The best cells that a sweep found, one for every target and budget: trained in full and registered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lana_ray.cluster.train_worker import TrainJob
from lana_ray.costs.samples import Sample
from lana_ray.costs.work import student_work
from lana_ray.monitoring.progress import say
from lana_ray.networks.teachers import Teacher
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.method import method_version
from lana_ray.spaces.cells import CellStudents
from lana_ray.spaces.space import Architecture
from lana_ray.stages import register, summary
from lana_ray.stages.choice import keeps
from lana_ray.stages.counts import count_network
from lana_ray.stages.deployed import tested
from lana_ray.stages.finetune import MAX_REPLACED, Finished, train
from lana_ray.stages.sample import SESSIONS, Sampled, judge
from lana_ray.workspace import Workspace

FILE = "cells.json"
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A target's budget, and the trials whose cells may serve it."""

    target: str
    budget: str
    budget_ms: float
    trials: list[Row]
    """Within the budget less its margin, the most accurate first; those that failed it are taken off."""

    @property
    def architecture(self) -> Architecture:
        return tuple(self.trials[0]["choices"])


def run(
    workspace: Workspace, teacher: Teacher, rows: Sequence[Row], sampled: Mapping[str, Sampled]
) -> list[Finished]:
    """Trains, tests, measures and registers the cells chosen among a sweep's trials; writes ``cells.json``.

    A network that its last measurement finds over its budget gives way to the next most accurate trial's.

    Args:
        rows: of ``search.parquet``.
        sampled: by target.
    """
    wanted, unmet = _wanted(workspace, rows, sampled)
    for reason in unmet:
        say(f"search: {reason}")
    samples: dict[tuple[str, Architecture], Sample] = {}
    for _ in range(MAX_REPLACED + 1):
        samples |= _train_and_measure(workspace, wanted, sampled)
        over = [w for w in wanted if not keeps(samples[w.target, w.architecture], w.budget_ms)]
        replaced = [w for w in over if len(w.trials) > 1]
        if not replaced:
            break
        for w in replaced:
            say(f"search: {w.target} {w.budget}: over budget with its final weights; the next best is taken")
            del w.trials[0]
    finished = _finished(workspace, wanted, sampled, samples)
    uris = register.run(workspace, teacher, finished, sampled, {"search.parquet": "search.parquet"})
    found = {
        "teacher": {"name": teacher.name},
        "results": [summary.result(f, uris) for f in finished],
        "unmet": unmet,
    }
    workspace.storage.write_json(FILE, found)
    return finished


def _wanted(
    workspace: Workspace, rows: Sequence[Row], sampled: Mapping[str, Sampled]
) -> tuple[list[_Wanted], list[str]]:
    """What can be had, and in a line each what cannot."""
    margin, wanted, unmet = workspace.config.select.margin, [], []
    for name, known in sampled.items():
        trials = sorted(
            (row for row in rows if row["target"] == name), key=lambda row: (-row["accuracy"], row["key"])
        )
        fastest_ms = min(row["measured_ms"] for row in trials)
        for budget in workspace.config.budgets.latency_ms:
            budget_ms = budget.limit(known.teacher_ms)
            limit_ms = (1 - margin) * budget_ms
            within: dict[Architecture, Row] = {}
            for row in trials:
                if row["measured_ms"] <= limit_ms:
                    within.setdefault(tuple(row["choices"]), row)
            if within:
                found = list(within.values())
                wanted.append(_Wanted(target=name, budget=str(budget), budget_ms=budget_ms, trials=found))
            else:
                unmet.append(
                    f"target {name!r}: budget {budget} ({limit_ms:.3f} ms with the margin): none of "
                    f"{len(trials)} trials keeps it, the fastest cells take {fastest_ms:.3f} ms; raise the "
                    "budget or search.lambdas, or make search.cells narrower"
                )
    return wanted, unmet


def job_of(workspace: Workspace, architecture: Architecture) -> TrainJob:
    """The full training of cells."""
    cells = workspace.config.search.cells
    assert cells is not None
    key = fingerprint(
        workspace.cells.network_structure(architecture),
        workspace.teacher_key,
        workspace.data.fingerprint,
        workspace.config.finetune,
        cells.drop_path,
        cells.auxiliary_weight,
        workspace.config.run.seed,
        method_version("training.loop", "spaces.cells.students"),
    )
    return TrainJob(
        file=f"students/{key}.safetensors", key=key, architecture=architecture, space=CellStudents.name
    )


def _train_and_measure(
    workspace: Workspace, wanted: Sequence[_Wanted], sampled: Mapping[str, Sampled]
) -> dict[tuple[str, Architecture], Sample]:
    jobs = {w.architecture: job_of(workspace, w.architecture) for w in wanted}
    train(workspace, list(jobs.values()), "cells")
    asked: dict[str, dict[Architecture, Any]] = {}
    for w in wanted:
        job = jobs[w.architecture]
        work = student_work(workspace.cells, w.architecture, job.file, job.key)
        asked.setdefault(w.target, {})[w.architecture] = work
    found = judge(workspace, asked, sampled, SESSIONS, "measure")
    return {key: judged.sample for key, judged in found.items()}


def _finished(
    workspace: Workspace,
    wanted: Sequence[_Wanted],
    sampled: Mapping[str, Sampled],
    samples: Mapping[tuple[str, Architecture], Sample],
) -> list[Finished]:
    jobs = {w.architecture: job_of(workspace, w.architecture) for w in wanted}
    students = {(w.target, jobs[w.architecture]): samples[w.target, w.architecture] for w in wanted}
    found = tested(workspace, sampled, students)
    counts = {a: count_network(workspace, workspace.cells.build(a)) for a in jobs}
    return [
        Finished(
            target=w.target,
            budget=w.budget,
            budget_ms=w.budget_ms,
            architecture=workspace.cells.label(w.architecture),
            job=jobs[w.architecture],
            predicted_ms=w.trials[0]["predicted_ms"],
            calibration=None,
            sample=samples[w.target, w.architecture],
            teacher_ms=sampled[w.target].teacher_ms,
            counts=counts[w.architecture],
            accuracy_before=None,
            tested=found[w.target, jobs[w.architecture]],
        )
        for w in wanted
    ]
