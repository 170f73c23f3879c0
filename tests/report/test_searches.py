"""The table and the pictures of a sweep."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

from lana_ray.report.page import write_page
from lana_ray.report.searches import (
    fronts_plot,
    lambda_table,
    lambdas_plot,
    repeated,
    searches_table,
    write_search_plots,
)
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.tables import TRIALS

from .rundir import trial

ROWS = [
    trial("differentiable", 0.5, 0.5, multiplier=1.0),
    trial("differentiable", 1.5, 0.9, multiplier=0.1),
    trial("program", 0.5, 0.6, budget=0.6),
    trial("program", 1.2, 0.8, budget=1.3),
    trial("program", 1.3, 0.7, budget=1.4),
]
GRID = [
    trial("differentiable", ms, accuracy, multiplier=value)
    for value, ms, accuracy in (
        *((0.0, 2.0, 0.90), (0.0, 2.2, 0.94)),
        *((0.5, 1.0, 0.80), (0.5, 1.1, 0.86)),
        (1.0, 0.5, 0.70),
    )
]


def words(table: Table) -> list[list[str]]:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(table)
    return [line.split() for line in console.export_text().splitlines()]


def test_the_table_compares_the_methods() -> None:
    lines = words(searches_table(ROWS))
    by_method = {line[1]: line for line in lines if line and line[0] == "ort-1t"}
    # Best accuracy over budgets: ((1.5 - .5) .5 + (2 - 1.5) .9) / 2, and ((1.2 - .5) .6 + (2 - 1.2) .8) / 2.
    assert by_method["differentiable"][3:] == [
        *("2", "2", "47.5", "%", "50.0", "%", "50.0", "%"),
        *("3.00", "0"),
    ]
    assert by_method["integer"][3:] == ["3", "2", "53.0", "%", "80.0", "%", "60.0", "%", "3.00", "0"]


def test_what_each_lambda_came_to_has_its_spread() -> None:
    lines = [" ".join(line) for line in words(lambda_table(GRID + ROWS[2:])) if line[:1] == ["ort-1t"]]
    # Accuracies of two seeds deviate by .0283 and .0424; their means differ by .09 ± (.0283² / 2 + …)^½.
    assert lines == [
        "ort-1t 0 2 2.10 ± 0.14 100.0 % 92.0 % ± 2.8 – 0",
        "ort-1t 0.5 2 1.05 ± 0.07 50.0 % 83.0 % ± 4.2 -9.0 ± 3.6 0",
        "ort-1t 1 1 0.500 23.8 % 70.0 % -22.0 0",
    ]
    assert repeated(GRID)
    assert not repeated(ROWS)


def test_lambda_0_stands_on_the_axis_and_means_are_a_line() -> None:
    svg = lambdas_plot(GRID)
    assert all(f"<!-- {text} -->" in svg for text in ("0", "0.5", "1", "mean of the measured"))
    assert "mean of the measured" not in lambdas_plot(ROWS[:2])
    assert "<!-- 0 -->" in lambdas_plot(GRID[:1])


def test_the_legend_says_what_the_searches_came_to_and_how_long_they_took() -> None:
    svg = fronts_plot(ROWS)
    assert "<!-- differentiable search: hypervolume 47.5 % (2 trials, 6.0 s) -->" in svg
    assert "<!-- integer program: hypervolume 53.0 % (3 trials, 9.0 s) -->" in svg
    assert "<!-- integer program: hypervolume 45.0 % (1 trial, 3.0 s) -->" in fronts_plot(ROWS[2:3])


def test_pictures_are_written_and_stand_in_the_report(run: Storage, tmp_path: Path) -> None:
    files = write_search_plots(run, ROWS)
    assert [Path(file).name for file in files] == ["ort-1t-fronts.svg", "ort-1t-lambdas.svg"]
    for file in files:
        ElementTree.parse(file)
    write_page(run)
    before = (tmp_path / "report.html").read_text()
    TRIALS.write(run, layout.TRIALS, ROWS, "key")
    write_page(run)
    after = (tmp_path / "report.html").read_text()
    assert "Cost by λ" in after
    assert "Pareto fronts of the searches" in after
    assert "Cost by λ" not in before


def test_a_sweep_of_budgets_has_no_curve_of_lambdas(tmp_path: Path) -> None:
    files = write_search_plots(Storage(str(tmp_path)), ROWS[2:])
    assert [Path(file).name for file in files] == ["ort-1t-fronts.svg"]
