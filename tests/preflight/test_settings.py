"""Settings that no measurement could satisfy are refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lana_ray.config import Config, load_config
from lana_ray.costs.registry import COUNTED
from lana_ray.costs.table import CostTable
from lana_ray.errors import UserError
from lana_ray.measurement.counts import exact_costs
from lana_ray.ops import parse_op
from lana_ray.preflight import settings as structure
from lana_ray.workspace import structural_space

from ..errors import refuses
from ..runs import settings
from ..stages.test_select import Sampled

OPS = ["identity", "mbconv_e1_k3", "bottleneck_w0.5_k3", "repvgg_w1_k3"]


def config_of(folder: Path, **changes: Any) -> Config:
    return load_config(settings(folder, **{"pool": {"ops": OPS}, **changes}))


def check(config: Config) -> None:
    structure.check_space(config, structural_space(config, 10))


@pytest.mark.parametrize(
    ("select", "named"),
    [
        ({"force": ["blocks.9=identity"]}, ("select.force", "'blocks.9=identity'", "did you mean blocks.")),
        ({"force": ["blocks.0=idendity"]}, ("select.force", "'blocks.0=idendity'", "did you mean identity?")),
        ({"forbid": ["block.0=teacher"]}, ("select.forbid", "did you mean blocks.0?")),
        ({"forbid": ["blocks.0"]}, ("select.forbid", "'blocks.0'", "LAYER=OPERATION")),
        ({"force": ["blocks.0=identity"], "forbid": ["*=identity"]}, ("layer blocks.0 ",)),
    ],
)
def test_constraints_that_leave_nothing_are_refused_as_by_the_selection(
    select: dict[str, Any], named: tuple[str, ...], tmp_path: Path
) -> None:
    config = config_of(tmp_path, select=select)
    with pytest.raises(UserError) as expected:
        structure.allowed_choices(config, structural_space(config, 10))
    with refuses(expected.value.code, *named):
        check(config)


@pytest.mark.parametrize(
    ("select", "named"),
    [
        ({"force": ["blocks.0=identity", "blocks.2=mbconv*"], "max_ops": 1}, ("select.max_ops: 1", "to 2")),
        ({"forbid": ["*=teacher"], "max_ops": 0}, ("select.max_ops: 0", "to 1")),
    ],
)
def test_too_few_operations_for_the_constraints_are_named(
    select: dict[str, Any], named: tuple[str, ...], tmp_path: Path
) -> None:
    with refuses("invalid_setting", *named):
        check(config_of(tmp_path, select=select))


@pytest.mark.parametrize(
    "changes",
    [{"select": {"max_ops": 0}}, {"select": {"force": ["*=teacher"]}}, {"pool": {"ops": ["teacher"]}}],
)
def test_the_teacher_alone_keeps_no_budget_below_its_own_latency(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    # 100% leaves no room for the margin.
    with refuses("infeasible", "budgets.latency_ms: 70%, 100%"):
        check(config_of(tmp_path, budgets={"latency_ms": ["70%", "100%"]}, **changes))
    check(config_of(tmp_path, budgets={"latency_ms": ["70%", "12ms"]}, **changes))
    check(config_of(tmp_path, budgets={"latency_ms": ["70%", "110%"]}, **changes))


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("select", [{}, {"forbid": ["*=identity"]}, {"force": ["blocks.1=teacher"]}])
def test_a_counted_budget_is_refused_where_counting_everything_refuses_it(
    name: str, select: dict[str, Any], tmp_path: Path
) -> None:
    """One less than the smallest student, and exactly that, as counted after sampling."""
    config = config_of(tmp_path, select=select, budgets={"latency_ms": "90%", name: "1G"})
    space = structural_space(config, 10)
    budget = counted(config, space, tmp_path / "counted")
    least = budget.rest + sum(
        min(float(budget.costs[i][j]) for j in choices)
        for i, choices in enumerate(structure.allowed_choices(config, space))
    )
    check(config_of(tmp_path, select=select, budgets={"latency_ms": "90%", name: least}))
    with refuses("infeasible", f"budgets.{name}: {least - 1:.6g} ", f"{least:.6g}"):
        check(config_of(tmp_path, select=select, budgets={"latency_ms": "90%", name: least - 1}))
    with refuses("infeasible", f"budgets.{name}"):
        check(config_of(tmp_path, budgets={"latency_ms": "90%", name: "0.01%"}))


def counted(config: Config, space: Any, folder: Path) -> CostTable:
    """By the stage that counts every candidate."""
    (name,) = (name for name in COUNTED if getattr(config.budgets, name))
    here = Sampled(folder, {"latency_ms": "90%", name: getattr(config.budgets, name).value}).workspace
    here.space, here.teacher = space, space.network
    return exact_costs(here, name, space.everything).table


@pytest.mark.parametrize(
    ("ops", "named"),
    [
        (["identity", "mbconf_e1_k3"], ("pool.ops[1]", "mbconf_e1_k3", "did you mean mbconv?")),
        (["mbconv_e1_k2"], ("pool.ops[0]", "odd")),
    ],
)
def test_an_operation_that_is_none_is_named(ops: list[str], named: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError) as expected:
        parse_op(ops[-1])
    with refuses(expected.value.code, *named):
        structure.check_names(config_of(tmp_path, pool={"ops": ops}))


@pytest.mark.parametrize("section", ["finetune", "distill", "teacher"])
def test_a_batch_larger_than_the_data_is_refused_if_it_was_asked_for(section: str, tmp_path: Path) -> None:
    data = settings(tmp_path)
    key = "teacher.adapt" if section == "teacher" else section
    owner = data[section].setdefault("adapt", {}) if section == "teacher" else data[section]
    for other in ("finetune", "distill"):
        data[other].pop("batch_size")
    structure.check_batches(load_config(data), {"train": 3})  # default batch sizes are reduced
    owner["batch_size"] = 100
    structure.check_batches(load_config(data), {"train": 100})
    with refuses("invalid_setting", f"{key}.batch_size: 100 ", "99 training images"):
        structure.check_batches(load_config(data), {"train": 99})
    again = load_config(load_config(data))
    with refuses("invalid_setting", f"{key}.batch_size: 100 "):
        structure.check_batches(again, {"train": 99})
