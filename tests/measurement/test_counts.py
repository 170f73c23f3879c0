"""Parameters and multiply-accumulates: counted per candidate, exact for whole students."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lana_ray.config import CountBudget, Target
from lana_ray.measurement.counts import count_network, exact_costs
from lana_ray.networks.layers import find_layers
from lana_ray.run_dir.storage import Storage
from lana_ray.spaces import LayerwiseSpace

from ..small_networks import net

NET = net(3).eval()
OPS = ["identity", "mbconv_e1_k3", "bottleneck_w0.5_k3", "repvgg_w1_k3"]
SPACE = LayerwiseSpace(NET, find_layers(NET, torch.zeros(2, 3, 16, 16)), OPS)
TARGETS = (Target(name="edge", input_shape=(3, 16, 16)),)


def workspace(folder: Path) -> Any:
    return SimpleNamespace(space=SPACE, teacher=NET, targets=TARGETS, storage=Storage(str(folder)))


@pytest.mark.parametrize("cost", ["params", "macs"])
def test_what_candidates_have_adds_up_to_whole_students(tmp_path: Path, cost: str) -> None:
    here = workspace(tmp_path)
    costs = exact_costs(here, cost, SPACE.everything)
    assert costs.teacher == count_network(here, NET)[cost]
    rng = np.random.default_rng(0)
    for student in [SPACE.teacher, *(SPACE.random(rng) for _ in range(6))]:
        assert costs.table.predict(student) == count_network(here, SPACE.build(student))[cost]


def test_candidates_that_are_left_out_are_not_counted(tmp_path: Path) -> None:
    choices = tuple(tuple(j for j in range(len(ops)) if j != 1) for ops in SPACE.ops)
    table = exact_costs(workspace(tmp_path), "params", choices).table
    assert all(np.isinf(of_layer[1]) and np.isfinite(of_layer[[0, 2]]).all() for of_layer in table.costs)


def test_what_was_counted_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = workspace(tmp_path)
    first = exact_costs(here, "params", SPACE.everything)
    monkeypatch.setattr(SPACE, "candidate", None)  # nothing is made again
    again = exact_costs(here, "params", SPACE.everything)
    assert [list(of_layer) for of_layer in again.table.costs] == [list(c) for c in first.table.costs]


@pytest.mark.parametrize(
    ("text", "value", "relative"),
    [("60%", 0.6, True), ("2.5M", 2.5e6, False), ("300k", 3e5, False), (1200, 1200.0, False)],
)
def test_counts_have_units(text: Any, value: float, relative: bool) -> None:
    found = CountBudget.parse(text)
    assert found.relative == relative
    assert found.value == pytest.approx(value)
    assert CountBudget.parse(str(found)) == found


@pytest.mark.parametrize("text", ["2.5ms", "-3", "many", "0%"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"use e\.g\. 50% or 2\.5M"):
        CountBudget.parse(text)
