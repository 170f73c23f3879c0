"""Sentences about everything that a reader needs to judge the numbers."""

from __future__ import annotations

from collections.abc import Iterator

from lana_ray.costs.samples import Sample
from lana_ray.report.artifacts import RunFiles
from lana_ray.report.numbers import count, percent, standard_error
from lana_ray.run_dir.summary import Summary

SPLITS = {
    "train": "the teacher's own training if it needs one, distillation of the candidates, fine-tuning of the "
    "students",
    "score": "scores of the candidates, and the choice among the measured students",
    "validation": "the best epoch of every training",
    "test": "the accuracies of this report, and nothing else",
}
"""The use of each split of the images."""


def notes(run: RunFiles) -> list[str]:
    """Everything that limits the meaning of the results."""
    return [*_about_images(run.summary), *_about_latencies(run)]


def _about_images(summary: Summary) -> Iterator[str]:
    teacher, data = summary.teacher, summary.data
    if teacher.trained:
        yield (
            f"The teacher was trained on this data first, since {teacher.trained}. Compare the students "
            "with this teacher, not with published accuracies."
        )
    images = data.sizes.get("test", 0)
    if images:
        error = standard_error(teacher.accuracy, images)
        yield (
            f"Accuracies come from {count(images)} test images: one standard error is about "
            f"{100 * error:.1f} percentage points, and smaller differences mean little."
        )
    if data.skipped:
        yield f"Images that could not be decoded and were left out: {count(data.skipped)}."


def _about_latencies(run: RunFiles) -> Iterator[str]:
    yield from run.summary.unmet
    for row in run.summary.results:
        if row.problem:
            yield f"{row.target}, budget {row.budget}: the student is not registered: {row.problem}."
    for target in run.summary.targets:
        name = target.name
        if target.stand_in:
            yield (
                f"No node carries the label of target {name}, so the driver's machine stood in for it: its "
                f"latencies are those of {target.processor}."
            )
        yield from _about_samples(name, run.samples_of(target))
        labelled = run.latency_of(name)
        failed = labelled.errors if labelled else ()
        if failed:
            yield f"{name}: candidates that do not run there: {len(failed)}; first {failed[0]}."
    for reason in run.damaged:
        yield f"Samples left out: {reason}."


def _about_samples(name: str, samples: list[Sample]) -> Iterator[str]:
    timed = [sample for sample in samples if sample.error is None]
    unsettled = sum(not sample.settled for sample in timed)
    if unsettled:
        share = percent(unsettled / len(timed), 0)
        yield (
            f"{name}: {unsettled} of {len(timed)} measurements ({share}) did not settle within their time "
            "limit; their medians are less certain than measure.rel_error requires."
        )
    drifts = [sample.drift for sample in timed if sample.kind != "reference"]
    if drifts:
        low, high = min(drifts), max(drifts)
        yield (
            f"{name}: during the measurements the teacher took {low:.2f} to {high:.2f} times as long as at "
            "the start; every latency is corrected for this drift."
        )
