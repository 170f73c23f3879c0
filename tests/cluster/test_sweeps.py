"""Sweeps with Ray Tune: as many trials as asked for, whatever happens in between."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune

from lana_ray.cluster.sweeps import Sweep, Trial, run_sweep
from lana_ray.errors import UserError
from lana_ray.run_dir.storage import Storage

TRIALS = 3
DRAWN = {"x": tune.loguniform(0.01, 10.0)}
GRID = {"x": tune.grid_search([0.0, 2.0, 4.0]), "seed": tune.grid_search([0])}


def sweep(space: dict[str, Any], name: str = "toy-0123", trials: int = TRIALS) -> Sweep:
    return Sweep(
        name=name,
        space=space,
        objectives={"accuracy": "max", "measured_ms": "min"},
        trials=trials,
        concurrency=1,
        resources={"CPU": 1.0},
        seed=0,
    )


def find(settings: dict[str, Any], log: str, fails_from: int, state: str) -> dict[str, Any]:
    """Notes that it ran; breaks from the n-th time on."""
    path = Path(log)
    with path.open("a") as file:
        file.write(json.dumps(settings) + "\n")
    if len(path.read_text().splitlines()) >= fails_from:
        raise UserError("unsupported_network", "layer blocks.0: out of luck")
    return {"accuracy": 1 / (1 + settings["x"]), "choices": [1, 2]}


def judge(found: dict[str, Any], settings: dict[str, Any], *_: Any) -> dict[str, Any]:
    return {"measured_ms": settings["x"]}


trial = Trial(find=find, judge=judge)


def judge_elsewhere(found: dict[str, Any], settings: dict[str, Any], *_: Any) -> dict[str, Any]:
    """On all CPUs that there are, as a sampler may need them."""
    measured = ray.remote(judge).options(num_cpus=2, scheduling_strategy="DEFAULT")
    return dict(ray.get(measured.remote(found, settings)))


def test_a_trial_that_waits_for_a_sampler_holds_nothing_that_it_needs(
    tmp_path: Path, ray_cluster: None
) -> None:
    planned = replace(sweep(GRID), resources={"CPU": 2.0}, concurrency=2)
    arguments = [str(tmp_path / "log"), 1000]
    patient = Trial(find=find, judge=judge_elsewhere)
    found = run_sweep(planned, patient, arguments, Storage(str(tmp_path)), lambda done: None)
    assert [row["measured_ms"] for row in found] == [row["settings"]["x"] for row in found]
    assert len(found) == TRIALS


class Planted:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def plant(folder: Path, mark: Path) -> None:
    """What Tune would read if its books were kept here."""
    for books in ("ray/toy-0123", "search/toy-0123"):
        (folder / books).mkdir(parents=True, exist_ok=True)
        for name in ("tuner.pkl", "trainable.pkl", "searcher-state-x.pkl"):
            (folder / books / name).write_bytes(pickle.dumps(Planted(mark)))


@pytest.mark.parametrize("space", [DRAWN, GRID], ids=["drawn", "grid"])
def test_a_sweep_that_broke_off_goes_on_where_it_ended(
    space: dict[str, Any], tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was found before is neither lost nor looked for again, and nothing is unpickled."""
    storage, log, told = Storage(str(tmp_path)), str(tmp_path / "log"), list[int]()
    with pytest.raises(UserError, match=r"layer blocks\.0") as error:
        run_sweep(sweep(space), trial, [log, 2], storage, told.append)
    assert error.value.code == "unsupported_network"
    before = storage.list("search/toy-0123", ".json")
    assert len(before) == 1
    assert not list(tmp_path.rglob("*.pkl"))
    plant(tmp_path, tmp_path / "ran")
    found = run_sweep(sweep(space), trial, [log, 1000], storage, told.append)
    assert not (tmp_path / "ran").exists()
    assert len(found) == TRIALS
    assert len(storage.list("search/toy-0123", ".json")) == TRIALS
    assert told[-1] == TRIALS
    assert [row["begun"] for row in found] == sorted(row["begun"] for row in found)
    assert all(row["measured_ms"] == row["settings"]["x"] and row["choices"] == [1, 2] for row in found)
    ran = Path(log).read_text().splitlines()
    assert len(set(ran)) == TRIALS  # those that failed were begun again with their own settings
    assert all(ran.count(json.dumps(storage.read_json(file)["settings"])) == 1 for file in before)
    assert run_sweep(sweep(space), trial, [log, 1], storage, told.append) == found

    storage.write_text(before[0], "")
    assert len(run_sweep(sweep(space), trial, [log, 1000], storage, told.append)) == TRIALS
    assert f"{before[0]}: damaged" in capsys.readouterr().out
    assert len(Path(log).read_text().splitlines()) == len(ran) + 1


def test_more_trials_or_another_range_keep_what_was_found(tmp_path: Path, ray_cluster: None) -> None:
    storage, log = Storage(str(tmp_path)), str(tmp_path / "log")
    first = run_sweep(sweep(DRAWN, trials=2), trial, [log, 1000], storage, lambda done: None)
    more = run_sweep(sweep(DRAWN, trials=3), trial, [log, 1000], storage, lambda done: None)
    assert more[:2] == first
    assert len({row["settings"]["x"] for row in more}) == 3
    assert len(Path(log).read_text().splitlines()) == 3
    narrow = {"x": tune.uniform(*sorted(row["settings"]["x"] for row in first))}
    kept = run_sweep(sweep(narrow, trials=2), trial, [log, 1], storage, lambda done: None)
    assert all(row in kept for row in first)


def test_what_is_asked_for_is_tried_before_anything_is_drawn(tmp_path: Path, ray_cluster: None) -> None:
    planned = replace(sweep(DRAWN), first=[{"x": 7.0}, {"x": 0.3}])
    found = run_sweep(
        planned, trial, [str(tmp_path / "log"), 1000], Storage(str(tmp_path)), lambda done: None
    )
    tried = [row["settings"]["x"] for row in found]
    assert tried[:2] == [7.0, 0.3]
    assert len(set(tried)) == TRIALS


def test_a_grid_is_tried_whole_and_nothing_else(tmp_path: Path, ray_cluster: None) -> None:
    apart = {"lana.role": "!in(measure)", "lana.target": "!in(edge, phone)"}  # nodes it is kept off
    planned, log = replace(sweep(GRID, trials=1), labels=apart), str(tmp_path / "log")
    found = run_sweep(planned, trial, [log, 1000], Storage(str(tmp_path)), lambda done: None)
    tried = [(row["settings"]["x"], row["settings"]["seed"]) for row in found]
    assert sorted(tried) == [(0.0, 0), (2.0, 0), (4.0, 0)]
    assert planned.size == len(tried)


def test_what_a_trial_depends_on_is_in_the_name(tmp_path: Path, ray_cluster: None) -> None:
    storage, log = Storage(str(tmp_path)), str(tmp_path / "log")
    run_sweep(sweep(DRAWN), trial, [log, 1000], storage, lambda done: None)
    run_sweep(sweep(DRAWN, "toy-4567"), trial, [log, 1000], storage, lambda done: None)
    assert len(Path(log).read_text().splitlines()) == 2 * TRIALS
