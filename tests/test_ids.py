"""Names of candidates, architectures and costs, and values with their units."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lana_ray.ids import CandidateId, CostId, dotted, family_of, read_label, write_label

LAYERS = st.text(st.characters(codec="utf-8", exclude_characters="=|"), min_size=1)
OPS = st.text(st.characters(codec="utf-8", exclude_characters="|"), min_size=1)
CANDIDATES = st.builds(CandidateId, LAYERS, OPS)


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
    assert family_of(op) == name


@given(CANDIDATES)
def test_a_candidate_is_read_as_it_was_written(candidate: CandidateId) -> None:
    assert CandidateId.parse(str(candidate)) == candidate


def test_a_candidate_s_text_is_its_layer_and_operation() -> None:
    assert str(CandidateId("blocks.1.0", "mbconv_e3_k5")) == "blocks.1.0=mbconv_e3_k5"
    assert CandidateId.parse("blocks.1.0=mbconv_e3_k5") == ("blocks.1.0", "mbconv_e3_k5")


@pytest.mark.parametrize("text", ["", "=", "blocks.1.0", "blocks.1.0=", "=identity"])
def test_other_text_is_no_candidate(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}' is not of the form layer=operation"):
        CandidateId.parse(text)


def test_a_label_is_read_in_order() -> None:
    label = "b.1=teacher|a.0=mbconv_e1_k3"
    assert read_label(label) == (CandidateId("b.1", "teacher"), CandidateId("a.0", "mbconv_e1_k3"))
    assert write_label(read_label(label)) == label


@given(st.lists(CANDIDATES, min_size=1, max_size=4).map(tuple))
def test_a_label_is_read_as_it_was_written(candidates: tuple[CandidateId, ...]) -> None:
    assert read_label(write_label(candidates)) == candidates


@pytest.mark.parametrize("label", ["", "a.0=teacher|", "a.0=teacher||b.1=identity", "a.0=teacher|b.1"])
def test_a_label_with_a_part_that_is_no_candidate_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match="is not of the form layer=operation"):
        read_label(label)


def test_a_cost_is_named_with_the_target_that_it_depends_on() -> None:
    assert str(CostId("latency_ms", "edge")) == "latency_ms on edge"
    assert str(CostId("params")) == "params"


@pytest.mark.parametrize(
    ("cost", "value", "text"),
    [
        ("latency_ms", 1.75, "1.750 ms"),
        ("latency_ms", 0.01, "0.010 ms"),
        ("latency_ms", 0.0012345, "0.00123 ms"),
        ("latency_ms", -0.5, "-0.500 ms"),
        ("peak_memory_mb", 12.3456, "12.346 MB"),
        ("energy_mj", 3.0, "3.000 mJ"),
        ("params", 2.5e6, "2.5e+06 params"),
        ("macs", 1234.0, "1234 macs"),
    ],
)
def test_a_value_is_written_with_the_unit_of_its_cost(cost: str, value: float, text: str) -> None:
    assert CostId(cost).written(value) == text
    assert CostId(cost, "edge").written(value) == text


def test_nested_settings_have_dotted_paths() -> None:
    settings = {"run": {"seed": 0}, "targets": {"a": {"measure": {}, "cores": [1, 2]}}, "score": None}
    assert list(dotted(settings)) == [("run.seed", 0), ("targets.a.cores", [1, 2]), ("score", None)]
