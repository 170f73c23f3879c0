"""Stage 6: the chosen students learn from the teacher as whole networks, and are judged beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from lana_ray.cluster.train_worker import TrainJob, is_trained, train_worker
from lana_ray.cluster.trainers import run_training, worker_group
from lana_ray.costs.samples import Sample
from lana_ray.costs.work import student_work
from lana_ray.monitoring.progress import say
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.method import method_version
from lana_ray.spaces.space import Architecture
from lana_ray.stages import confirm
from lana_ray.stages.choice import Choice, keeps
from lana_ray.stages.counts import count_network
from lana_ray.stages.deployed import Tested, tested
from lana_ray.stages.evaluate import accuracies_before
from lana_ray.stages.sample import SESSIONS, TargetCosts, judge
from lana_ray.stages.select import Selected
from lana_ray.training.loop import steps_of
from lana_ray.workspace import Workspace

Again = Callable[[Selected, int], Selected]
"""Callback (missed, attempt): looks for new students for the choices."""
MAX_REPLACED = 2
"""How often a student over its budget may be replaced by the next best."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A fine-tuned student and what it came to."""

    target: str
    budget: str
    """Its name, which says whether the student keeps it on all targets."""
    budget_ms: float
    architecture: str
    """As people read it."""
    job: TrainJob
    predicted_ms: float | None
    """None where latencies were not predicted."""
    calibration: int | None
    """Which of the target's cost tables predicted it; None where none did."""
    sample: Sample
    """Of the student with its final weights, measured in turn with the teacher."""
    teacher_ms: float
    counts: Mapping[str, float]
    """What is counted of the student: ``params`` and ``macs``."""
    accuracy_before: float | None
    """On the test split, as distilled; None where it was not."""
    tested: Tested

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


def run(workspace: Workspace, selected: Selected, look_again: Again) -> tuple[list[Finished], Selected]:
    """Writes ``students/*.safetensors``, then tests and measures every student together with the teacher.

    A student that its last, longest measurement finds over its budget is given up for the next best one, or
    for one that is looked for anew.

    Args:
        look_again: as ``select.again``, of (missed, time).

    Returns:
        The finished students, and the selection as it is in the end.
    """
    samples = _train_and_measure(workspace, selected.choices, selected.costs)
    for time in range(1, MAX_REPLACED + 1):
        selected, replaced = _replace(workspace, selected, samples, look_again, time)
        if not replaced:
            break
        samples |= _train_and_measure(workspace, replaced, selected.costs)
    return _finished(workspace, selected, samples), selected


def _finished(
    workspace: Workspace, selected: Selected, samples: Mapping[tuple[str, Architecture], Sample]
) -> list[Finished]:
    costs = selected.costs
    chosen = [
        (choice, choice.architecture, target)
        for choice in selected.choices
        if choice.architecture
        for target in choice.limits
    ]
    jobs = {a: student_job(workspace, a) for _, a, _ in chosen}
    found = tested(workspace, costs, {(target, jobs[a]): samples[target, a] for _, a, target in chosen})
    before = accuracies_before(workspace, list(jobs))
    counts = {a: count_network(workspace, workspace.space.build(a)) for a in jobs}
    return [
        Finished(
            target=target,
            budget=choice.name,
            budget_ms=choice.limits[target].budget_ms,
            architecture=workspace.space.label(a),
            job=jobs[a],
            predicted_ms=choice.students[a].selection.costs[target],
            calibration=choice.students[a].calibrations[target],
            sample=samples[target, a],
            teacher_ms=costs[target].teacher_ms,
            counts=counts[a],
            accuracy_before=before[a],
            tested=found[target, jobs[a]],
        )
        for choice, a, target in chosen
    ]


def _replace(
    workspace: Workspace,
    selected: Selected,
    samples: Mapping[tuple[str, Architecture], Sample],
    look_again: Again,
    time: int,
) -> tuple[Selected, list[Choice]]:
    """Takes the next best students for those over their budget.

    They are measured once more before one is trained: what made one student slower since it was chosen may
    have done so to others.

    Returns:
        The selection with them, and its choices that have another student now.
    """
    choices, costs = copy.deepcopy(selected.choices), selected.costs
    over = {k: choice.architecture for k, choice in enumerate(choices) if _is_over(choice, samples)}
    for k, architecture in over.items():
        assert architecture is not None
        choices[k].given_up.add(architecture)
        choices[k].architecture = None
    if over:
        given_up = [choices[k] for k in over]
        confirmed = confirm.run(workspace, given_up, costs, lambda choice: choice.candidates(), time)
        choices = _placed(choices, over, confirmed)
    if without := [k for k in over if choices[k].architecture is None]:
        missed = Selected(choices=[choices[k] for k in without], costs=costs)
        found = look_again(missed, time)
        choices, costs = _placed(choices, without, found.choices), found.costs
    for k, architecture in over.items():
        choice = choices[k]
        who = f"finetune: {choice.place} {choice.name}: over budget with its final weights"
        if choice.architecture is None:
            say(f"{who}; no other student keeps it either")
            choice.architecture = architecture
        else:
            say(f"{who}; the next best that keeps it is taken")
    replaced = [choices[k] for k, architecture in over.items() if choices[k].architecture != architecture]
    return Selected(choices=choices, costs=costs), replaced


def _placed(choices: Sequence[Choice], places: Iterable[int], new: Sequence[Choice]) -> list[Choice]:
    """The choices with new ones in some places."""
    by_place = dict(zip(places, new, strict=True))
    return [by_place.get(k, choice) for k, choice in enumerate(choices)]


def _is_over(choice: Choice, samples: Mapping[tuple[str, Architecture], Sample]) -> bool:
    """Whether the student of a choice does not keep its budget on some target."""
    return choice.architecture is not None and not all(
        keeps(samples[target, choice.architecture], limit.budget_ms)
        for target, limit in choice.limits.items()
    )


def _train_and_measure(
    workspace: Workspace, choices: Sequence[Choice], costs: Mapping[str, TargetCosts]
) -> dict[tuple[str, Architecture], Sample]:
    """Fine-tunes the chosen students that are not yet, and measures each on its target."""
    choices = [choice for choice in choices if choice.architecture]
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
    over = [choice for choice in choices if _is_over(choice, samples)]
    return samples | measured(over, range(2 * len(SESSIONS))) if over else samples
