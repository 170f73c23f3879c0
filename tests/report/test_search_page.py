"""search.html: what searches came to, with or without a finished run around them."""

from __future__ import annotations

import html
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from lana_ray import cli
from lana_ray.config import load_config
from lana_ray.errors import UserError
from lana_ray.ids import CostId
from lana_ray.predictors.fits import Fit, quality, write_fit
from lana_ray.report.page import write_page
from lana_ray.report.searches import write_search_page
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.summary import SearchSummary, Summary
from lana_ray.run_dir.tables import TRIALS

from .test_page import LOADING_TAGS, _Page
from .test_searches import GRID, ROWS

SETTINGS: dict[str, Any] = {
    "teacher": {"timm": "resnet18"},
    "data": {"source": "digits"},
    "targets": [{"name": "ort-1t", "runtime": "onnxruntime"}, {"name": "unsearched"}],
    "budgets": {"latency_ms": "50%"},
    "search": {"grid": [0, 0.5, 1], "seeds": 2},
}


def searched(folder: Path) -> Storage:
    """A run directory in which `lana-ray search` alone was called, with a predictor for cells."""
    storage = Storage(str(folder))
    storage.write_text("run.yaml", load_config(SETTINGS | {"run": {"dir": str(folder)}}).to_yaml())
    rows = [replace(row, seed=0, architecture=f"<cell {n}>") for n, row in enumerate(GRID + ROWS[2:])]
    TRIALS.write(storage, layout.TRIALS, rows, "key")
    rng = np.random.default_rng(0)
    measured = rng.uniform(1, 3, 40)
    curve = tuple(
        (count, quality(measured * rng.normal(1, 1 / count, 40), measured)) for count in (10, 20, 40, 80, 160)
    )
    write_fit(
        storage,
        Fit(
            id=CostId("latency_ms", "ort-1t"),
            space="cells",
            curve=curve,
            predicted=measured * rng.normal(1, 0.03, 40),
            measured=measured,
            sample_s=0.36,
        ),
    )
    return storage


@pytest.fixture
def page(tmp_path: Path) -> _Page:
    storage = searched(tmp_path)
    write_search_page(storage)
    return _Page(storage.read_text("search.html"))


def test_the_page_has_everything_about_the_searches(page: _Page) -> None:
    assert len(page.pictures) == 4
    assert all(ElementTree.fromstring(picture).tag.endswith("svg") for picture in page.pictures)
    assert "Target ort-1t" in page.text
    assert "Target unsearched" not in page.text
    for words in (
        "ort-1t 0.5 2 1.05 ± 0.07 50.0 % 83.0 % ± 4.2 -9.0 ± 3.6 0",  # what a λ came to
        "integer program 3 2 53.0 %",  # the methods side by side
        "differentiable search λ = 1, seed 0 0.500 0.500 0.500 70.0 % 3.00 <cell 4>",  # a trial
        "integer program at most 0.600 0.500",
        "100 000 cells: 10.0 hours on one sampler, 1.25 on eight.",
        "predictors/cells/latency_ms/ort-1t.safetensors",
        "seeds: 2",  # the configuration
    ):
        assert words in page.text


def test_the_cells_that_were_trained_in_full_stand_on_the_page(finished: Storage, tmp_path: Path) -> None:
    storage = searched(tmp_path)
    summary = Summary.read(finished)
    SearchSummary(teacher=summary.teacher.name, results=summary.results, unmet=()).write(storage)
    write_search_page(storage)
    assert "registered model" not in _Page(storage.read_text("search.html")).text  # cells were not asked for
    cells = {**SETTINGS["search"], "cells": {"space": "nasbench201"}}
    storage.write_text("run.yaml", load_config(SETTINGS | {"search": cells}).to_yaml())
    write_search_page(storage)
    text = _Page(storage.read_text("search.html")).text
    assert f"Students of {summary.teacher.name}" in text
    assert len(summary.results) == 4
    assert all((row.model_uri or row.problem or "no reason") in text for row in summary.results)


def test_the_page_loads_nothing_and_names_are_shown_as_they_are(page: _Page) -> None:
    assert not LOADING_TAGS & set(page.tags)
    assert "cell" not in page.tags


def test_the_page_of_the_run_has_the_predictor_and_what_each_lambda_came_to(
    run: Storage, tmp_path: Path
) -> None:
    searched(tmp_path)
    write_page(run)
    text = _Page(run.read_text("report.html")).text
    assert "Learning curve".lower() in text
    assert "points to first ± se" in text
    assert "10.0 hours on one sampler" in text


def test_report_makes_the_pages_that_there_is_something_for(
    run: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone"
    searched(alone)
    for folder, pages in ((tmp_path, {"report.html"}), (alone, {"search.html"})):
        monkeypatch.setattr(sys, "argv", ["lana-ray", "report", str(alone / "run.yaml"), *said(folder)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code
        assert {path.name for path in folder.glob("*.html")} == pages
    assert html.escape("<cell 0>") in (alone / "search.html").read_text()
    assert f"report: {alone}/search.html" in capsys.readouterr().out


def said(folder: Path) -> list[str]:
    return ["--set", f"run.dir={folder}"]


def test_without_searches_the_command_that_makes_them_is_named(run: Storage) -> None:
    with pytest.raises(UserError, match=r"search\.parquet: missing; run `lana-ray search CONFIG\.yaml`"):
        write_search_page(run)
