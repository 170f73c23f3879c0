"""Pictures of awkward data: one point, touching budgets, many layers."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lana_ray.ids import CostId
from lana_ray.report.artifacts import MeasuredStudent
from lana_ray.report.maps import architecture_map, cost_map, score_map
from lana_ray.report.plots import (
    accuracy_plot,
    curves_plot,
    front_plot,
    loss_plot,
    median_error,
    prediction_plot,
)
from lana_ray.run_dir.summary import Result

STUDENT = MeasuredStudent(choices=(1,), score=0.2, predicted=1.1, measured=1.0, loss=0.5, chosen=True)
RESULT = Result(
    target="ort-1t",
    budget="50%",
    budget_ms=1.0,
    predicted_ms=None,
    calibration=None,
    measured_ms=1.0,
    iqr_ms=0.0,
    teacher_ms=1.0,
    speedup=1.0,
    costs={},
    params=1.0,
    macs=1.0,
    accuracy=1.0,
    validation_accuracy=1.0,
    accuracy_before=None,
    teacher_accuracy=1.0,
    architecture="a=teacher",
    model_uri=None,
    problem=None,
)
LATENCY = CostId("latency_ms", "ort-1t")


@pytest.mark.parametrize(
    "svg",
    [
        accuracy_plot([RESULT], 10),
        loss_plot([STUDENT], {"50%": 1.0}),
        front_plot([(1.0, 0.0)], 1.0, [], {}),
        curves_plot({"mbconv": [[0.5]]}),
        prediction_plot([replace(STUDENT, predicted=1.0)]),
        score_map(["a"], ["teacher"], np.zeros((1, 1))),
        cost_map(["a"], ["teacher"], np.zeros((1, 1)), LATENCY),
        architecture_map({"x": {"a": "teacher"}}),
    ],
    ids=["accuracy", "loss", "front", "curves", "prediction", "scores", "costs", "architecture"],
)
def test_a_single_point_is_drawn(svg: str) -> None:
    assert ElementTree.fromstring(svg).tag.endswith("svg")


def test_names_of_budgets_that_touch_stand_at_different_heights() -> None:
    svg = loss_plot(
        [STUDENT, replace(STUDENT, measured=2.0)], {"50%": 1.0, "1.01ms": 1.01, "1.02ms": 1.02, "2ms": 2.0}
    )
    assert len({_height(svg, name) for name in ("50%", "1.01ms", "1.02ms")}) == 3
    assert _height(svg, "2ms") == _height(svg, "50%")


def _height(svg: str, text: str) -> float:
    found = re.search(rf"<!-- {re.escape(text)} -->\s*<g [^>]*translate\([\d.]+ ([\d.]+)\)", svg)
    assert found is not None
    return float(found[1])


def test_a_stopped_candidate_does_not_shorten_the_curve_of_its_family() -> None:
    whole = [1 / (1 + step) for step in range(100)]
    assert curves_plot({"mbconv": [whole, whole, whole[:10]]}) == curves_plot({"mbconv": [whole]})


def test_the_median_error_is_relative_and_absolute() -> None:
    students = [replace(STUDENT, predicted=p, measured=2.0) for p in (1.8, 2.02, 2.1)]
    assert median_error(students) == pytest.approx(0.05)


@pytest.mark.parametrize("layers", [16, 46])
def test_an_architecture_of_many_layers_stays_as_wide_as_a_page(layers: int) -> None:
    ops = ["teacher", "identity", "fused_mbconv_e1_k3", "bottleneck_w0.25_k3"]
    row = {f"blocks.{i}.0": ops[i % 4] for i in range(layers)}
    svg = architecture_map({"ort-1t, 50%": row, "torch-2t, 70%": row})
    width = re.search(r'width="([\d.]+)pt"', svg)
    assert width is not None
    assert float(width[1]) / 72 < 13
    assert all(f"<!-- {name} -->" in svg for name in row)
    for line in ("fused_", "mbconv", "e1_k3", "bottleneck", "w0.25_k3", "identity"):
        assert f"<!-- {line} -->" in svg


def test_scores_are_written_where_there_is_room() -> None:
    scores = np.array([[0.0, 0.0], [0.25, np.nan], [np.inf, 123.0]])
    svg = score_map(["a", "b"], ["teacher", "identity", "mbconv_e1_k3"], scores)
    assert all(f"<!-- {text} -->" in svg for text in ("0.00", "0.25", "div.", "123"))
    assert "<!-- 0.25 -->" not in score_map([str(i) for i in range(30)], ["x"], np.full((1, 30), 0.25))


def test_costs_below_a_millisecond_are_told_in_microseconds() -> None:
    costs = np.array([[0.21, 0.0096], [np.nan, 0.00996], [np.inf, 0.0]])
    svg = cost_map(["a", "b"], ["teacher", "identity", "mbconv_e1_k3"], costs, LATENCY)
    assert all(
        f"<!-- {text} -->" in svg for text in ("210", "9.6", "10", "fails", "0.00", "cost in place (µs)")
    )
    assert "<!-- cost in place (ms) -->" in cost_map(["a"], ["teacher"], np.full((1, 1), 2.0), LATENCY)


def test_costs_of_another_kind_keep_their_unit() -> None:
    svg = cost_map(["a"], ["teacher"], np.full((1, 1), 0.21), CostId("energy_mj", "ort-1t"))
    assert all(f"<!-- {text} -->" in svg for text in ("0.21", "cost in place (mJ)"))


def test_a_candidate_that_is_far_too_slow_leaves_the_others_their_colours() -> None:
    def colours(slowest_ms: float) -> NDArray[np.uint8]:
        svg = cost_map(["a", "b"], ["teacher", "bot"], np.array([[0.03, 0.06], [slowest_ms, 0.01]]), LATENCY)
        assert f"<!-- {1e3 * slowest_ms:g} -->" in svg
        encoded = re.findall(r"data:image/png;base64,([^\"]+)", svg)[0]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"))

    image = colours(7.0)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) == 4
    assert np.array_equal(image, colours(0.9))


def test_log_axes_have_plain_numbers() -> None:
    svg = curves_plot({"mbconv": [[10.0 ** -(step / 50) for step in range(100)]]})
    assert "<!-- 0.1 -->" in svg
    assert "mathdefault" not in svg
