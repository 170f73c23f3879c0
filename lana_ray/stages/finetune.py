"""Stage 6: the chosen students learn from the teacher as whole networks, and are judged beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lana_ray.latency.sampler import student_work
from lana_ray.latency.store import Sample
from lana_ray.method import method_version
from lana_ray.progress import say
from lana_ray.spaces.layerwise import Architecture
from lana_ray.stages import confirm
from lana_ray.stages.choice import Choice, keeps
from lana_ray.stages.counts import count_network
from lana_ray.stages.evaluate import accuracies, accuracies_before
from lana_ray.stages.sample import SESSIONS, TargetCosts, judge
from lana_ray.storage import fingerprint
from lana_ray.training.driver import run_training, worker_group
from lana_ray.training.loop import steps_of
from lana_ray.training.worker import TrainJob, is_trained, train_worker
from lana_ray.workspace import TEACHER_FILE, Workspace

Again = Callable[[Sequence[Choice], int], None]
"""Gives students to choices that have none, where it can, the how many-th time."""
MAX_REPLACED = 2
"""How often a student over its budget may be replaced by the next best."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A fine-tuned student and what it came to; accuracies are of the test split."""

    target: str
    budget: str
    """Its name, which says whether the student keeps it on all targets."""
    budget_ms: float
    architecture: str
    """As people read it."""
    job: TrainJob
    predicted_ms: float | None
    """None where latencies were not predicted."""
    sample: Sample
    """Of the student with its final weights, measured in turn with the teacher."""
    teacher_ms: float
    counts: Mapping[str, float]
    """What is counted of the student: ``params`` and ``macs``."""
    accuracy_before: float | None
    """As distilled; None where it was not."""
    accuracy: float
    teacher_accuracy: float

    @property
    def problem(self) -> str | None:
        """Why it must not be registered; None when it may."""
        if self.sample.error is not None:
            return self.sample.error
        if not keeps(self.sample, self.budget_ms):
            return f"measured {self.sample.median_ms:.3f} ms, over the budget of {self.budget_ms:.3f} ms"
        return None


def student_job(workspace: Workspace, architecture: Architecture) -> TrainJob:
    """The fine-tuning of an architecture; targets and budgets that chose the same share it."""
    settings = (workspace.config.finetune, workspace.data.fingerprint, workspace.config.run.seed)
    key = fingerprint(workspace.student_key(architecture), *settings, method_version("training.loop"))
    return TrainJob(file=f"students/{key}.safetensors", key=key, architecture=architecture)


def run(
    workspace: Workspace, choices: Sequence[Choice], costs: Mapping[str, TargetCosts], look_again: Again
) -> list[Finished]:
    """Writes ``students/*.safetensors``, then tests and measures every student beside the teacher.

    A student that its last, longest measurement finds over its budget is given up for the next best one, or
    for one that is looked for anew.

    Args:
        look_again: as ``select.again``, of (choices, time).
    """
    choices = [choice for choice in choices if choice.architecture]
    samples = _train_and_measure(workspace, choices, costs)
    for time in range(1, MAX_REPLACED + 1):
        replaced = _replace(workspace, _over(choices, samples), costs, look_again, time)
        if not replaced:
            break
        samples |= _train_and_measure(workspace, replaced, costs)
    jobs = {c.architecture: student_job(workspace, c.architecture) for c in choices if c.architecture}
    teacher = TrainJob(file=TEACHER_FILE, key=workspace.teacher_key, architecture=None)
    tested = accuracies(workspace, [teacher, *jobs.values()])
    before = accuracies_before(workspace, list(jobs))
    counts = {a: count_network(workspace, workspace.space.build(a)) for a in jobs}
    return [
        Finished(
            target=target,
            budget=choice.name,
            budget_ms=limit.budget_ms,
            architecture=workspace.space.label(choice.architecture),
            job=jobs[choice.architecture],
            predicted_ms=choice.students[choice.architecture][1].costs[target],
            sample=samples[target, choice.architecture],
            teacher_ms=costs[target].teacher_ms,
            counts=counts[choice.architecture],
            accuracy_before=before[choice.architecture],
            accuracy=tested[jobs[choice.architecture]],
            teacher_accuracy=tested[teacher],
        )
        for choice in choices
        if choice.architecture
        for target, limit in choice.limits.items()
    ]


def _replace(
    workspace: Workspace,
    over: Sequence[Choice],
    costs: Mapping[str, TargetCosts],
    look_again: Again,
    time: int,
) -> list[Choice]:
    """Takes the next best students; returns the choices that have one.

    They are measured once more before one is trained: what made one student slower since it was chosen may
    have done so to others.
    """
    given_up = [(choice, choice.architecture) for choice in over if choice.architecture]
    for choice, architecture in given_up:
        choice.given_up.add(architecture)
        choice.architecture = None
    confirm.run(workspace, [choice for choice in over if choice.candidates()], costs, time)
    if without := [choice for choice in over if choice.architecture is None]:
        look_again(without, time)
    replaced = []
    for choice, architecture in given_up:
        who = f"finetune: {choice.place} {choice.name}: over budget with its final weights"
        if choice.architecture is None:
            say(f"{who}; no other student keeps it either")
            choice.architecture = architecture
        else:
            say(f"{who}; the next best that keeps it is taken")
            replaced.append(choice)
    return replaced


def _over(choices: Sequence[Choice], samples: Mapping[tuple[str, Architecture], Sample]) -> list[Choice]:
    """The choices whose student does not keep its budget on some target."""
    return [
        choice
        for choice in choices
        if choice.architecture
        and not all(
            keeps(samples[target, choice.architecture], limit.budget_ms)
            for target, limit in choice.limits.items()
        )
    ]


def _train_and_measure(
    workspace: Workspace, choices: Sequence[Choice], costs: Mapping[str, TargetCosts]
) -> dict[tuple[str, Architecture], Sample]:
    """Fine-tunes the chosen students that are not yet, and measures each on its target."""
    jobs = {c.architecture: student_job(workspace, c.architecture) for c in choices if c.architecture}
    train(workspace, list(jobs.values()), "finetune")
    return _measure(workspace, choices, jobs, costs)


def train(workspace: Workspace, jobs: Sequence[TrainJob], title: str) -> None:
    """Trains the networks that are not yet, through Ray Train, as ``finetune`` says."""
    config = workspace.config
    pending = [job for job in jobs if not is_trained(workspace.storage, job)]
    say(f"{title}: {len(pending)} networks to train, {len(jobs) - len(pending)} reused")
    if pending:
        total = len(pending) * steps_of(config.finetune, workspace.data.sizes["train"])
        run_training(
            train_worker,
            {"jobs": pending},
            config,
            title=title,
            total=total,
            groups=[worker_group(config.ray, config.finetune)],
            process_group=True,
        )


def _measure(
    workspace: Workspace,
    choices: Sequence[Choice],
    chosen: Mapping[Architecture, TrainJob],
    costs: Mapping[str, TargetCosts],
) -> dict[tuple[str, Architecture], Sample]:
    """The median session of every student; of twice as many where the first ones find it over its budget.

    To train another one takes long; a moment in which the machine was disturbed should not cost that.
    """

    def measured(some: Sequence[Choice], sessions: range) -> dict[tuple[str, Architecture], Sample]:
        asked = {}
        for name in dict.fromkeys(name for choice in some for name in choice.limits):
            mine = dict.fromkeys(c.architecture for c in some if name in c.limits and c.architecture)
            asked[name] = {a: student_work(workspace.space, a, chosen[a].file, chosen[a].key) for a in mine}
        found = judge(workspace, asked, costs, sessions, "measure")
        return {key: judged.sample for key, judged in found.items()}

    samples = measured(choices, SESSIONS)
    over = _over(choices, samples)
    return samples | measured(over, range(2 * len(SESSIONS))) if over else samples
