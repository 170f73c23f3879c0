"""Stage 6: fine-tunes the chosen students, then tests and measures them together with the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lana_ray.cluster.train_worker import is_trained, train_worker
from lana_ray.cluster.trainers import Training, run_training, worker_group
from lana_ray.costs.table import MeasuredCost
from lana_ray.costs.work import Work, student_work
from lana_ray.evaluation.deployed import StudentAccuracy, student_accuracies
from lana_ray.evaluation.networks import accuracies_before
from lana_ray.ids import Architecture, CostId
from lana_ray.measurement.counts import count_network
from lana_ray.measurement.latencies import FINAL_SESSIONS, Sampled
from lana_ray.measurement.students import measure_students
from lana_ray.monitoring.progress import say
from lana_ray.preflight.planned import Planned, in_words
from lana_ray.selection.choice import Choice, Limit
from lana_ray.selection.loop import Loop, Measurements, World, replace_missed
from lana_ray.spaces.layerwise import LayerwiseSpace
from lana_ray.spaces.space import StudentSpace
from lana_ray.training.job import TrainJob
from lana_ray.training.loop import steps_of
from lana_ray.workspace import Workspace

MAX_REPLACED = 2
"""How many times a student over its budget may be replaced by the next best."""


@dataclass(frozen=True, kw_only=True)
class FinishedStudent:
    """A fine-tuned student, with its measurements on one target."""

    target: Sampled
    budget: str
    """Name of the budget; says if the student must keep it on all targets."""
    limits: Mapping[CostId, Limit]
    """The budget of every measured cost."""
    teacher_ms: float
    """The teacher's latency at the quantile that the budget bounds."""
    architecture: str
    """Label of the architecture."""
    job: TrainJob
    predicted: Mapping[CostId, float]
    calibration: int | None
    """Number of the cost table behind the predicted latency; None without a table."""
    costs: Mapping[CostId, MeasuredCost]
    """Costs with the final weights; latency, also the median, was measured alternately with the teacher's."""
    counts: Mapping[str, float]
    """Counted costs: ``params`` and ``macs``."""
    accuracy_before: float | None
    """Test accuracy before fine-tuning; None for a student that was not distilled."""
    tested: StudentAccuracy

    @property
    def bounded(self) -> CostId:
        """The quantile of latency that the budget bounds."""
        return next(of for of in self.limits if of.is_latency)

    @property
    def latency(self) -> MeasuredCost:
        return self.costs[self.bounded]

    @property
    def budget_ms(self) -> float:
        return self.limits[self.bounded].budget

    @property
    def problem(self) -> str | None:
        """Why the student must not be registered; None if it may."""
        for of, limit in self.limits.items():
            cost = self.costs[of]
            if cost.error is not None:
                return cost.error
            if limit.of(cost) > limit.budget:
                took = of.written(limit.of(cost))
                return f"measured {took}, over the budget of {of.written(limit.budget)}"
        return None


def run(
    workspace: Workspace, space: StudentSpace, sampled: Mapping[str, Sampled], loop: Loop, world: World
) -> tuple[list[FinishedStudent], Loop]:
    """Writes ``students/*.safetensors``; returns the finished students and the final loop.

    A student that proves to be over its budget is replaced by the next best one, or by one that another round
    proposes (``selection.loop.replace_missed``).
    """
    measured = _train_and_measure(workspace, space, sampled, loop.choices)
    for attempt in range(1, MAX_REPLACED + 1):
        missed = {
            k: choice.chosen
            for k, choice in enumerate(loop.choices)
            if choice.chosen is not None and _is_over(choice, measured)
        }
        if not missed:
            break
        loop = replace_missed(loop, missed, world, attempt)
        replaced = [k for k in missed if loop.choices[k].chosen != missed[k]]
        for k in missed:
            _say_replaced(loop.choices[k], k in replaced)
        if not replaced:
            break
        new = _train_and_measure(workspace, space, sampled, [loop.choices[k] for k in replaced])
        measured = _merged(measured, new)
    return _finished(workspace, space, sampled, loop, measured), loop


def _finished(
    workspace: Workspace,
    space: StudentSpace,
    sampled: Mapping[str, Sampled],
    loop: Loop,
    measured: Measurements,
) -> list[FinishedStudent]:
    chosen = [(c, c.chosen, target) for c in loop.choices if c.chosen is not None for target in c.targets]
    jobs = {a: workspace.student_job(space, a) for _, a, _ in chosen}
    ran = {
        (target, jobs[a]): all(measured[of][a].error is None for of in _of_target(choice, target))
        for choice, a, target in chosen
    }
    results = student_accuracies(workspace, sampled, ran)
    before = accuracies_before(workspace, list(jobs)) if isinstance(space, LayerwiseSpace) else {}
    counts = {a: count_network(workspace, space.build(a)) for a in jobs}
    return [
        FinishedStudent(
            target=sampled[target],
            budget=choice.name,
            limits={of: choice.limits[of] for of in _of_target(choice, target)},
            teacher_ms=loop.tables[_bounded(choice, target)].teacher,
            architecture=space.label(a),
            job=jobs[a],
            predicted=choice.students[a].predicted,
            calibration=choice.students[a].calibrations.get(_bounded(choice, target)),
            costs={
                of: measured[of][a]
                for of in dict.fromkeys((*_of_target(choice, target), sampled[target].latency))
            },
            counts=counts[a],
            accuracy_before=before.get(a),
            tested=results[target, jobs[a]],
        )
        for choice, a, target in chosen
    ]


def _of_target(choice: Choice, target: str) -> list[CostId]:
    return [of for of in choice.limits if of.target == target]


def _bounded(choice: Choice, target: str) -> CostId:
    return next(of for of in _of_target(choice, target) if of.is_latency)


def _is_over(choice: Choice, measured: Measurements) -> bool:
    """Whether the chosen student misses its budget on some target."""
    student = choice.chosen
    return student is not None and not all(
        limit.kept_at_last(measured[of][student]) for of, limit in choice.limits.items()
    )


def _say_replaced(choice: Choice, is_replaced: bool) -> None:
    who = f"finetune: {choice.place} {choice.name}: over budget with its final weights"
    then = "the next best that keeps it is taken" if is_replaced else "no other student keeps it either"
    say(f"{who}; {then}")


def _train_and_measure(
    workspace: Workspace, space: StudentSpace, sampled: Mapping[str, Sampled], choices: Sequence[Choice]
) -> Measurements:
    """Trains the chosen students that are not trained yet, and measures each on its targets."""
    choices = [choice for choice in choices if choice.chosen is not None]
    jobs = {c.chosen: workspace.student_job(space, c.chosen) for c in choices if c.chosen is not None}
    train(workspace, list(jobs.values()))
    work: dict[str, dict[Architecture, Work]] = {}
    for choice in choices:
        for target in choice.targets:
            student = choice.chosen
            assert student is not None
            job = jobs[student]
            work.setdefault(target, {})[student] = student_work(space, student, job.file, job.key)
    return measure_students(workspace, space, sampled, work, FINAL_SESSIONS, "measure")


def _merged(first: Measurements, then: Measurements) -> Measurements:
    return {of: {**first.get(of, {}), **then.get(of, {})} for of in {**first, **then}}


def train(workspace: Workspace, jobs: Sequence[TrainJob]) -> None:
    """Trains networks that are not trained yet in Ray Train, with the settings in ``finetune``."""
    config = workspace.config
    pending = [job for job in jobs if not is_trained(workspace.storage, job)]
    say(f"finetune: {len(pending)} networks to train, {len(jobs) - len(pending)} reused")
    if pending:
        training = Training(
            title="finetune",
            worker=train_worker,
            setting={"jobs": pending},
            groups=[worker_group(config.ray, config.finetune)],
            total=len(pending) * steps_of(config.finetune, workspace.data.sizes["train"]),
        )
        run_training(training, config)


def plan(planned: Planned) -> list[str]:
    """The numbers of students and steps."""
    config = planned.config
    most = len(config.budgets.latencies) * (len(config.targets) + planned.is_joint)
    row = f"at most {most} students for {config.finetune.epochs:g} epochs"
    if planned.sizes is None:
        return [row]
    steps = steps_of(config.finetune, planned.sizes["train"])
    images = steps * config.finetune.batch_size
    return [
        f"{row}, {steps} steps each: {in_words(images)} images through the student, forward and back, and "
        f"through the teacher, {in_words(images * planned.teacher_macs)} multiply-accumulates"
    ]
