"""Forced and forbidden candidates."""

from __future__ import annotations

import numpy as np
import pytest

from lana_ray.selection.constraints import constrained

from ..errors import refuses

LAYERS = ["blocks.0.0", "blocks.0.1", "blocks.1.0"]
OPS = [["teacher", "mbconv_e1_k3"], ["teacher", "identity", "mbconv_e1_k3"], ["teacher", "vit_d32_h4_n1"]]
SCORES = [np.array([0.0, 0.1]), np.array([0.0, 0.2, 0.3]), np.array([0.0, np.inf])]


def allowed(**patterns: list[str]) -> list[list[str]]:
    found = constrained(SCORES, LAYERS, OPS, **patterns)
    return [
        [op for op, score in zip(ops, of_layer, strict=True) if np.isfinite(score)]
        for ops, of_layer in zip(OPS, found, strict=True)
    ]


def test_without_patterns_scores_stay_as_they_are() -> None:
    for before, after in zip(SCORES, constrained(SCORES, LAYERS, OPS), strict=True):
        assert np.array_equal(before, after)


def test_forced_operations_are_the_only_ones_at_their_layers() -> None:
    assert allowed(force=["blocks.0.*=mbconv*"]) == [["mbconv_e1_k3"], ["mbconv_e1_k3"], ["teacher"]]


def test_forbidden_operations_are_none_of_those_left() -> None:
    assert allowed(forbid=["*=identity", "blocks.0.0=teacher"]) == [
        ["mbconv_e1_k3"],
        ["teacher", "mbconv_e1_k3"],
        ["teacher"],
    ]


def test_the_scores_given_are_left_alone() -> None:
    before = [values.copy() for values in SCORES]
    constrained(SCORES, LAYERS, OPS, forbid=["*=identity"])
    assert all(np.array_equal(*pair) for pair in zip(before, SCORES, strict=True))


@pytest.mark.parametrize(
    ("patterns", "code", "named"),
    [
        ({"force": ["blocks.0.0"]}, "invalid_setting", ("select.force", "'blocks.0.0'", "LAYER=OPERATION")),
        ({"forbid": ["stages.*=teacher"]}, "unknown_name", ("select.forbid", "layer 'stages.*'")),
        ({"force": ["blocks.0.0=identity"]}, "unknown_name", ("select.force", "operation 'identity'")),
        ({"forbid": ["blocks.1.0=teacher"]}, "invalid_setting", ("select.forbid", "layer blocks.1.0")),
        ({"force": ["blocks.1.0=vit*"]}, "invalid_setting", ("select.force", "layer blocks.1.0")),
    ],
)
def test_patterns_that_cannot_be_met_are_refused(
    patterns: dict[str, list[str]], code: str, named: tuple[str, ...]
) -> None:
    with refuses(code, *named):
        allowed(**patterns)
