"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from lana_ray.report.numbers import count, duration, number, percent, spread, standard_error


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (0.5, "0.500"),
        (0.01234, "0.0123"),
        (12.345, "12.3"),
        (1234.5, "1234"),
        (-0.25, "-0.250"),
        (1e-12, "0.000000"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_spread_has_the_decimals_of_its_value() -> None:
    assert spread(0.5123, 0.01277) == "0.512 ± 0.013"
    assert spread(132.04, 1.6) == "132 ± 2"
    assert spread(1.0, math.nan) == "1.00"
    assert spread(math.nan, 1.0) == "–"


def test_shares_counts_and_times() -> None:
    assert percent(0.9144) == "91.4 %"
    assert percent(0.96, 0) == "96 %"
    assert percent(None) == "–"
    assert count(3387160).split() == ["3", "387", "160"]
    assert [duration(s) for s in (0.42, 59.4, 59.7, 83.2, 7260)] == [
        "0.4 s",
        "59 s",
        "1 min 0 s",
        "1 min 23 s",
        "2 h 1 min",
    ]


def test_the_standard_error_shrinks_with_the_root_of_the_images() -> None:
    assert standard_error(0.5, 100) == pytest.approx(0.05)
    assert standard_error(0.9, 400) == pytest.approx(0.015)
    assert standard_error(1.0, 10) == 0
