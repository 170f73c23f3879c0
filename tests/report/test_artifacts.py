"""What the report makes of the files of a run."""

from __future__ import annotations

import itertools
import math

import pytest

from lana_ray.report.artifacts import RunFiles, family, read_architecture
from lana_ray.run_dir.storage import Storage


def test_the_front_is_that_of_every_selection(run: Storage) -> None:
    files = RunFiles.read(run)
    costs = files.costs["ort-1t"]
    assert files.scores is not None
    known = {(row["name"], row["op"]): math.inf if row["left_out"] else row["score"] for row in files.scores}
    points = []
    for choices in itertools.product(*(range(len(ops)) for ops in costs.ops)):
        chosen = [
            known[layer, ops[j]] for layer, ops, j in zip(costs.layers, costs.ops, choices, strict=True)
        ]
        points.append((costs.predict(choices), math.fsum(chosen)))
    front: list[tuple[float, float]] = []
    for ms, score in sorted(p for p in points if math.isfinite(sum(p))):
        if not front or score < front[-1][1]:
            front.append((ms, score))
    assert files.front_of("ort-1t") == [pytest.approx(point) for point in front]


def test_a_student_proposed_for_two_budgets_is_one_student(finished: Storage) -> None:
    run = RunFiles.read(finished)
    assert run.selections is not None
    first = next(row for row in run.selections if row["target"] == "ort-1t" and not row["chosen"])
    again = {**first, "budget": "90%", "loss": 0.5, "chosen": True}
    unmeasured = {**first, "architecture": "other", "measured_ms": None}
    before = run.measured_of("ort-1t")
    run.selections.extend([again, unmeasured])
    after = run.measured_of("ort-1t")
    assert len(after) == len(before)
    assert next(row for row in after if row["architecture"] == first["architecture"])["chosen"]


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("teacher", "teacher"),
        ("mbconv_e3_k3", "mbconv"),
        ("fused_mbconv_e1_k3_se0.25", "fused_mbconv"),
        ("conv_pair_w0.25_k3", "conv_pair"),
    ],
)
def test_families(op: str, name: str) -> None:
    assert family(op) == name


def test_an_architecture_is_read_in_order() -> None:
    assert list(read_architecture("b.1=teacher|a.0=mbconv_e1_k3").items()) == [
        ("b.1", "teacher"),
        ("a.0", "mbconv_e1_k3"),
    ]
