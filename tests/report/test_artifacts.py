"""What the report makes of the files of a run."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from lana_ray.ids import CostId
from lana_ray.report.artifacts import RunFiles
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.tables import COSTS


def test_the_front_is_that_of_every_selection(run: Storage) -> None:
    files = RunFiles.read(run)
    labelled = files.latency_of("ort-1t")
    assert labelled is not None
    assert files.scores is not None
    known = {row.candidate: math.inf if row.score is None else row.score for row in files.scores}
    assert {row.left_out for row in files.scores if row.score is None} == {"diverged", "slow"}
    points = []
    for choices in itertools.product(*(range(len(of_layer)) for of_layer in labelled.ids)):
        chosen = [known[of_layer[j]] for of_layer, j in zip(labelled.ids, choices, strict=True)]
        points.append((labelled.table.predict(choices), math.fsum(chosen)))
    front: list[tuple[float, float]] = []
    for ms, score in sorted(p for p in points if math.isfinite(sum(p))):
        if not front or score < front[-1][1]:
            front.append((ms, score))
    assert files.front_of("ort-1t") == [pytest.approx(point) for point in front]


def test_a_student_proposed_for_two_budgets_is_one_student(finished: Storage) -> None:
    run = RunFiles.read(finished)
    assert run.selections is not None
    first = next(row for row in run.selections if row.target == "ort-1t" and not row.chosen)
    again = replace(first, budget="90%", predicted=9.0, loss=0.5, chosen=True)
    unmeasured = replace(first, choices=(), measured=None)
    of_another_cost = replace(first, choices=(), cost="energy_mj")
    before = run.measured_of("ort-1t")
    run.selections.extend([again, unmeasured, of_another_cost])
    after = run.measured_of("ort-1t")
    assert len(after) == len(before)
    student = next(row for row in after if row.choices == first.choices)
    assert student.chosen
    assert student.predicted == first.predicted


def test_the_last_table_of_every_cost_is_read(run: Storage) -> None:
    file = layout.costs("ort-1t")
    rows = COSTS.read(run, file)
    energy = [
        replace(row, cost="energy_mj", value=2 * row.value, rest=7.0) for row in rows if row.calibration == 0
    ]
    before = RunFiles.read(run).latency_of("ort-1t")
    COSTS.write(run, file, energy + rows, "key")
    files = RunFiles.read(run)
    assert files.tables.keys() == {CostId("latency_ms", "ort-1t"), CostId("energy_mj", "ort-1t")}
    after, other = files.latency_of("ort-1t"), files.tables[CostId("energy_mj", "ort-1t")]
    assert before is not None
    assert after is not None
    assert (after.ids, after.errors, after.table.networks) == (before.ids, before.errors, 41)
    assert (other.table.rest, other.table.networks) == (7.0, 40)
    assert other.table.costs[0].tolist() == [row.value for row in energy if row.layer == 0]
    assert files.latency_of("torch-2t") is None
