"""What a reader is told beside the numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lana_ray.report.artifacts import RunFiles
from lana_ray.report.notes import notes
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.summary import Summary

from .rundir import PROCESSOR


@pytest.mark.parametrize(
    "note",
    [
        "The teacher was trained on this data first, since its head has 1000 classes and the data 10.",
        "Accuracies come from 360 test images: one standard error is about 1.3 percentage points",
        "Images that could not be decoded and were left out: 3.",
        "No node carries the label of target ort-1t, so the driver's machine stood in for it: its "
        f"latencies are those of {PROCESSOR}.",
        "torch-2t: 3 of 40 measurements (8 %) did not settle",
        "torch-2t: during the measurements the teacher took 0.97 to 1.12 times as long as at the start",
        "torch-2t, budget 50%: the student is not registered: measured 0.961 ms, over the budget",
        "do not run there: 1; first blocks.0.0=bottleneck_w0.25_k3: RuntimeError: no such kernel.",
    ],
)
def test_notes_say_what_limits_the_results(finished: Storage, note: str) -> None:
    assert any(note in found for found in notes(RunFiles.read(finished)))


def test_what_went_as_it_should_is_not_mentioned(run: Storage) -> None:
    summary = Summary.read(run)
    replace(
        summary,
        teacher=replace(summary.teacher, trained=None),
        data=replace(summary.data, skipped=0),
        targets=tuple(replace(target, stand_in=False) for target in summary.targets),
        results=tuple(replace(row, problem=None) for row in summary.results),
    ).write(run)
    for file in (*run.list("samples"), *run.list("costs")):
        run.remove(file)
    assert len(notes(RunFiles.read(run))) == 1  # the standard error


def test_samples_of_other_hardware_are_not_counted(run: Storage) -> None:
    assert any("did not settle" in note for note in notes(RunFiles.read(run)))
    summary = Summary.read(run)
    [target] = summary.targets
    replace(summary, targets=(replace(target, processor="another"),)).write(run)
    assert not any("did not settle" in note for note in notes(RunFiles.read(run)))


def test_a_damaged_file_of_samples_is_named(run: Storage) -> None:
    [file] = run.list("samples")
    run.write_bytes(file, run.read_bytes(file)[:50])
    assert any(file in note for note in notes(RunFiles.read(run)))
