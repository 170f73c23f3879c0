"""Tables on the terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from lana_ray.registry import Version
from lana_ray.report import models_table, results_table
from lana_ray.run_dir.storage import Storage


def shown(table: Table, width: int = 160) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def summary(finished: Storage) -> dict[str, Any]:
    found: dict[str, Any] = finished.read_json("summary.json")
    return found


def test_a_row_has_the_numbers_of_the_result(summary: dict[str, Any]) -> None:
    row = summary["results"][0]
    row |= {"measured_ms": 0.4756, "iqr_ms": 0.0123, "speedup": 2.104, "accuracy": 0.9125}
    line = next(line for line in shown(results_table(summary)).splitlines() if row["model_uri"] in line)
    assert line.split()[:2] == [row["target"], row["budget"]]
    for text in ("0.700", "0.476 ± 0.012", "1.00", "2.10×", "91.2 %", "93.1 %"):
        assert text in line


def test_what_is_not_registered_says_why(summary: dict[str, Any]) -> None:
    assert "measured 0.961 ms, over the budget of 0.950 ms" in shown(results_table(summary), 200)


def test_names_with_brackets_are_shown_as_they_are(summary: dict[str, Any]) -> None:
    summary["results"][0]["target"] = "[red]x"
    summary["teacher"]["name"] = "[/b]net"
    text = shown(results_table(summary))
    assert "[red]x" in text
    assert "[/b]net" in text


def test_eighty_columns_are_enough(summary: dict[str, Any]) -> None:
    text = shown(results_table(summary), 80)
    assert "…" not in text
    assert len(text.splitlines()) < 30
    for row in summary["results"]:
        assert f"{row['measured_ms']:.3g}" in text
        assert f"{100 * row['accuracy']:.1f} %" in text


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
