"""What is refused before any work, since no measurement could change it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lana_ray.config import Config, load_config
from lana_ray.costs.registry import COUNTED
from lana_ray.costs.table import CostTable
from lana_ray.errors import UserError
from lana_ray.measurement.counts import exact_costs
from lana_ray.preflight import settings as structure
from lana_ray.workspace import structural_space

from ..runs import settings
from ..stages.test_select import Sampled

OPS = ["identity", "mbconv_e1_k3", "bottleneck_w0.5_k3", "repvgg_w1_k3"]


def config_of(folder: Path, **changes: Any) -> Config:
    return load_config(settings(folder, **{"pool": {"ops": OPS}, **changes}))


def refused(config: Config) -> str:
    with pytest.raises(UserError) as error:
        structure.check_space(config, structural_space(config, 10))
    text = str(error.value)
    assert "\n" not in text
    return text


def accepted(config: Config) -> None:
    structure.check_space(config, structural_space(config, 10))


@pytest.mark.parametrize(
    ("select", "says"),
    [
        ({"force": ["blocks.9=identity"]}, ["select.force: 'blocks.9=identity'", "did you mean blocks."]),
        ({"force": ["blocks.0=idendity"]}, ["select.force: 'blocks.0=idendity'", "did you mean identity?"]),
        ({"forbid": ["block.0=teacher"]}, ["select.forbid: ", "did you mean blocks.0?"]),
        ({"forbid": ["blocks.0"]}, ["select.forbid: 'blocks.0'", "LAYER=OPERATION"]),
        ({"force": ["blocks.0=identity"], "forbid": ["*=identity"]}, ["layer blocks.0 without a candidate"]),
        ({"force": ["blocks.0=identity", "blocks.2=mbconv*"], "max_ops": 1}, ["select.max_ops: 1", "to 2"]),
        ({"forbid": ["*=teacher"], "max_ops": 0}, ["select.max_ops: 0", "raise it to 1"]),
    ],
)
def test_constraints_that_leave_nothing_are_named(
    select: dict[str, Any], says: list[str], tmp_path: Path
) -> None:
    text = refused(config_of(tmp_path, select=select))
    for words in says:
        assert words in text


@pytest.mark.parametrize(
    "changes",
    [{"select": {"max_ops": 0}}, {"select": {"force": ["*=teacher"]}}, {"pool": {"ops": ["teacher"]}}],
)
def test_the_teacher_alone_keeps_no_budget_below_its_own_latency(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    text = refused(config_of(tmp_path, budgets={"latency_ms": ["70%", "100%"]}, **changes))
    assert "budgets.latency_ms: 70%, 100%" in text  # of the latter the margin is missing
    accepted(config_of(tmp_path, budgets={"latency_ms": ["70%", "12ms"]}, **changes))
    accepted(config_of(tmp_path, budgets={"latency_ms": ["70%", "110%"]}, **changes))


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("select", [{}, {"forbid": ["*=identity"]}, {"force": ["blocks.1=teacher"]}])
def test_a_counted_budget_is_refused_where_counting_everything_refuses_it(
    name: str, select: dict[str, Any], tmp_path: Path
) -> None:
    """One less than the smallest student, and exactly that, as counted after sampling."""
    config = config_of(tmp_path, select=select, budgets={"latency_ms": "90%", name: "1G"})
    space = structural_space(config, 10)
    whole = counted(config, space, tmp_path / "whole")
    least = whole.rest + sum(
        min(float(whole.costs[i][j]) for j in choices)
        for i, choices in enumerate(structure.allowed_choices(config, space))
    )
    accepted(config_of(tmp_path, select=select, budgets={"latency_ms": "90%", name: least}))
    text = refused(config_of(tmp_path, select=select, budgets={"latency_ms": "90%", name: least - 1}))
    assert text.startswith(
        f"budgets.{name}: {least - 1:.6g} cannot be met: the smallest student has {least:.6g}"
    )
    assert "budgets" in refused(config_of(tmp_path, budgets={"latency_ms": "90%", name: "0.01%"}))


def counted(config: Config, space: Any, folder: Path) -> CostTable:
    """By the stage that counts every candidate."""
    (name,) = (name for name in COUNTED if getattr(config.budgets, name))
    here = Sampled(folder, {"latency_ms": "90%", name: getattr(config.budgets, name).value}).workspace
    here.space, here.teacher = space, space.network
    return exact_costs(here, name, space.everything).table


@pytest.mark.parametrize(
    ("ops", "says"),
    [
        (["identity", "mbconf_e1_k3"], ["pool.ops[1]", "mbconf_e1_k3", "did you mean mbconv?"]),
        (["mbconv_e1_k2"], ["pool.ops[0]", "odd"]),
    ],
)
def test_an_operation_that_is_none_is_named(ops: list[str], says: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        structure.check_pool(config_of(tmp_path, pool={"ops": ops}))
    for words in says:
        assert words in str(error.value)


@pytest.mark.parametrize("section", ["finetune", "distill", "teacher"])
def test_a_batch_larger_than_the_data_is_refused_if_it_was_asked_for(section: str, tmp_path: Path) -> None:
    given = settings(tmp_path)
    key = "teacher.adapt" if section == "teacher" else section
    owner = given[section].setdefault("adapt", {}) if section == "teacher" else given[section]
    for other in ("finetune", "distill"):
        given[other].pop("batch_size")
    structure.check_batches(load_config(given), {"train": 3})  # by default it becomes smaller
    owner["batch_size"] = 100
    structure.check_batches(load_config(given), {"train": 100})
    with pytest.raises(UserError, match=rf"{key}\.batch_size: 100 is more than the 99 images .* at most 99"):
        structure.check_batches(load_config(given), {"train": 99})
    again = load_config(load_config(given))
    with pytest.raises(UserError, match="batch_size"):
        structure.check_batches(again, {"train": 99})
