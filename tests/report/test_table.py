"""Tables on the terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.console import Console
from rich.table import Table

from lana_ray.registry import Version
from lana_ray.report.table import models_table, results_table
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.summary import Result, Summary


def shown(table: Table, width: int = 160) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def results(finished: Storage) -> Sequence[Result]:
    return Summary.read(finished).results


def test_a_row_has_the_numbers_of_the_result(results: Sequence[Result]) -> None:
    first, *others = results
    row = replace(first, measured_ms=0.4756, iqr_ms=0.0123, speedup=2.104, accuracy=0.9125)
    lines = shown(results_table("net", [row, *others])).splitlines()
    line = next(line for line in lines if str(row.model_uri) in line)
    assert line.split()[:2] == [row.target, row.budget]
    for text in ("0.700", "0.476 ± 0.012", "1.00", "2.10×", "91.2 %", "93.1 %"):
        assert text in line


def test_what_is_not_registered_says_why(results: Sequence[Result]) -> None:
    assert "measured 0.961 ms, over the budget of 0.950 ms" in shown(results_table("net", results), 200)


def test_names_with_brackets_are_shown_as_they_are(results: Sequence[Result]) -> None:
    first, *others = results
    text = shown(results_table("[/b]net", [replace(first, target="[red]x"), *others]))
    assert "[red]x" in text
    assert "[/b]net" in text


def test_eighty_columns_are_enough(results: Sequence[Result]) -> None:
    text = shown(results_table("efficientnet_lite0", results), 80)
    assert "…" not in text
    assert len(text.splitlines()) < 30
    for row in results:
        assert f"{row.measured_ms:.3g}" in text
        assert f"{100 * row.accuracy:.1f} %" in text


def test_models_are_listed_with_their_aliases() -> None:
    tags = {
        "target": "ort-1t",
        "budget": "50%",
        "latency_ms": "0.476",
        "speedup": "2.1",
        "accuracy": "0.9125",
        "teacher_accuracy": "0.931",
    }
    version = Version(name="net-ort-1t", version=3, aliases=("budget-50pct", "champion"), tags=tags)
    text = shown(models_table([version]))
    for word in ("models:/net-ort-1t/3", "budget-50pct, champion", "0.476", "2.10×", "91.2 %"):
        assert word in text
