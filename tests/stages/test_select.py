"""What the stage makes of the configuration: choices, limits, and refusals before anything is trained."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from lana_ray.config import BudgetsConfig, SelectConfig, Target
from lana_ray.costs.table import CostTable, CostTables
from lana_ray.ids import CostId
from lana_ray.measurement.counts import exact_costs
from lana_ray.networks.layers import find_layers
from lana_ray.run_dir.storage import Storage
from lana_ray.spaces import LayerwiseSpace
from lana_ray.stages import select
from lana_ray.stages.sample import Sampling

from ..errors import refuses
from ..small_networks import net

NET = net(3).eval()
SPACE = LayerwiseSpace(NET, find_layers(NET, torch.zeros(2, 3, 16, 16)), ["identity", "mbconv_e1_k3"])


class Sampled:
    """Targets of three layers, on which ``identity`` takes half as long as the teacher's."""

    def __init__(self, folder: Path, asked: dict[str, Any], **options: Any) -> None:
        config = SimpleNamespace(
            select=SelectConfig(**{"margin": 0.0, **options}), budgets=BudgetsConfig.model_validate(asked)
        )
        parts = {
            "space": SPACE,
            "config": config,
            "teacher": NET,
            "targets": (Target(name="edge", input_shape=(3, 16, 16)),),
            "storage": Storage(str(folder)),
        }
        self.workspace = cast(Any, SimpleNamespace(**parts))
        self.targets: dict[str, Any] = {}
        self.tables: dict[CostId, CostTables] = {}
        for cost in set(config.budgets.bounds) & {"params", "macs"}:
            self.tables[CostId(cost)] = exact_costs(self.workspace, cost, SPACE.everything)
        self.target("edge")

    def target(self, name: str, considered: Any = SPACE.everything, **op_ms: float) -> Sampled:
        """A target where every layer's candidates take so long, the teacher's layers 1 ms."""
        ms = {"teacher": 1.0, "identity": 0.5, "mbconv_e1_k3": 0.6} | op_ms
        of = CostId("latency_ms", name)
        if name not in {target.name for target in self.workspace.targets}:
            self.workspace.targets += (Target(name=name, input_shape=(3, 16, 16)),)
        table = CostTable(rest=0.5, costs=tuple(np.array([ms[op.name] for op in ops]) for ops in SPACE.ops))
        self.tables[of] = CostTables(id=of, teacher=3.5, tables=(table,))
        self.targets[name] = SimpleNamespace(latency=of, considered=considered)
        return self

    @property
    def sampling(self) -> Sampling:
        return Sampling(targets=self.targets, tables=self.tables)

    def check(self) -> None:
        select.check(self.workspace, self.sampling)


def test_a_joint_choice_is_opened_for_every_budget_if_there_are_several_targets(tmp_path: Path) -> None:
    here = Sampled(tmp_path, {"latency_ms": ["50%", "3ms"]}, joint=True)
    assert len(select.open_choices(here.workspace, here.sampling)) == 2
    here.target("server")
    opened = select.open_choices(here.workspace, here.sampling)
    assert [(c.name, {str(of.target): x.budget for of, x in c.limits.items()}) for c in opened] == [
        ("50%", {"edge": 1.75}),
        ("3ms", {"edge": 3.0}),
        ("50%", {"server": 1.75}),
        ("3ms", {"server": 3.0}),
        ("50% on all", {"edge": 1.75, "server": 1.75}),
        ("3ms on all", {"edge": 3.0, "server": 3.0}),
    ]


def test_a_budget_on_another_measured_cost_is_a_limit_of_every_choice(tmp_path: Path) -> None:
    here = Sampled(tmp_path, {"latency_ms": ["50%", "3ms"], "peak_memory_mb": "80%"})
    of = CostId("peak_memory_mb", "edge")
    here.tables[of] = CostTables(id=of, teacher=10.0)
    opened = select.open_choices(here.workspace, here.sampling)
    assert [choice.limits[of].budget for choice in opened] == [8.0, 8.0]
    assert [choice.name for choice in opened] == ["50%", "3ms"]


def test_a_budget_that_cannot_be_met_costs_the_others_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Sampled(tmp_path, {"latency_ms": ["61%", "50%"]}).check()
    (line,) = capsys.readouterr().out.splitlines()
    for words in ("'edge'", "budget 50% (1.750 ms", "about 2.100 ms", "raise the budget"):
        assert words in line
    with refuses("infeasible", "budget 50%", "nor can"):
        Sampled(tmp_path, {"latency_ms": ["50%", "1ms"]}).check()
    assert capsys.readouterr().out == ""


def test_budgets_that_the_teacher_keeps_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Sampled(tmp_path, {"latency_ms": ["100%", "99ms", "99%"]}).check()
    lines = capsys.readouterr().out.splitlines()
    assert ["100%" in lines[0], "99ms" in lines[1], len(lines)] == [True, True, 2]
    assert all("3.500 ms" in line for line in lines)


def test_a_joint_budget_that_cannot_be_met_is_left_open_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each operation is fast on one of the targets only."""
    here = Sampled(tmp_path, {"latency_ms": "75%"}, joint=True)
    here.target("edge", mbconv_e1_k3=2.0).target("server", identity=2.0).check()
    (line,) = capsys.readouterr().out.splitlines()
    for words in ("75% on all", "that keeps the budget on server takes about "):
        assert words in line


def test_a_counted_budget_below_the_smallest_student_is_refused(tmp_path: Path) -> None:
    with refuses("infeasible", "budgets.params", "10"):
        Sampled(tmp_path, {"latency_ms": "90%", "params": "10"}).check()


def test_a_counted_budget_that_clashes_with_a_latency_is_named(tmp_path: Path) -> None:
    """identity alone is small enough, and too slow."""
    here = Sampled(tmp_path, {"latency_ms": "70%", "params": 600}, force=("blocks.1=mbconv*",))
    with refuses("infeasible", "budgets.params", "3.500 ms", "select.force"):
        here.target("edge", identity=1.2).check()


def test_what_is_forced_but_was_left_out_is_told_before_training(tmp_path: Path) -> None:
    """identity is slower than its layer where it is measured so, and then not there to be forced."""
    here = Sampled(tmp_path, {"latency_ms": "90%"}, force=("blocks.0=identity",))
    here.check()
    with refuses("invalid_setting", "blocks.0", "identity"):
        here.target("edge", considered=((0,), *SPACE.everything[1:])).check()
