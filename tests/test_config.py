"""The configuration's units, paths and overrides, and the errors for mistakes in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lana_ray.config import LatencyBudget, load_config

from .errors import refuses

SMALLEST: dict[str, Any] = {
    "teacher": {"timm": "resnet18"},
    "data": {"source": "digits"},
    "targets": [{"name": "cpu"}],
    "budgets": {"latency_ms": "50%"},
}


def changed(**sections: Any) -> dict[str, Any]:
    return {**SMALLEST, **sections}


COMMAND = {"run": "ssh board bench {program}", "version": "ssh board uname -a"}


def with_command(**command: Any) -> dict[str, Any]:
    return changed(targets=[{"name": "a", "runtime": "command", "command": {**COMMAND, **command}}])


def write(folder: Path, settings: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(settings if isinstance(settings, str) else yaml.safe_dump(settings))
    return path


def message(settings: Any, *overrides: str, code: str = "invalid_setting") -> str:
    """The message about a mistake in a configuration."""
    with refuses(code) as error:
        load_config(settings, overrides)
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "value", "relative"),
    [
        ("12.5ms", 12.5, False),
        (" 12.5 ms ", 12.5, False),
        ("800us", 0.8, False),
        ("800µs", 0.8, False),
        ("0.02s", 20.0, False),
        ("50%", 0.5, True),
        ("1e1ms", 10.0, False),
        (7, 7.0, False),
        (0.25, 0.25, False),
    ],
)
def test_budgets_have_units(text: Any, value: float, relative: bool) -> None:
    budget = LatencyBudget.parse(text)
    assert budget.value == pytest.approx(value)
    assert budget.relative == relative


def test_a_relative_budget_is_a_share_of_the_teacher() -> None:
    assert LatencyBudget.parse("25%").limit(8.0) == pytest.approx(2.0)
    assert LatencyBudget.parse("3ms").limit(8.0) == 3.0


@pytest.mark.parametrize(
    "bad", ["fast", "", "0ms", "-3ms", "50 %%", "12.5min", "1e", "nan", "inf", "1e999ms", True]
)
def test_a_malformed_budget_names_its_key(bad: Any) -> None:
    text = message(changed(budgets={"latency_ms": ["50%", bad]}))
    assert text.startswith("configuration: budgets.latency_ms[1]: ")
    assert ("true" if bad is True else repr(bad)) in text
    assert "50% or 12.5ms" in text


@hypothesis_settings(deadline=None)
@given(st.floats(1e-6, 1e9), st.booleans())
def test_budgets_survive_being_written(value: float, relative: bool) -> None:
    budget = LatencyBudget(value=value, relative=relative)
    again = LatencyBudget.parse(str(budget))
    assert again.relative == relative
    assert again.value == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ({"p50": "70%", "p99": ["12ms", "8ms"]}, ["70%", "p99:12ms", "p99:8ms"]),
        (["50%", "p90:50%"], ["50%", "p90:50%"]),
    ],
)
def test_budgets_bound_quantiles(given: Any, written: list[str]) -> None:
    config = load_config(changed(budgets={"latency_ms": given}))
    assert [str(budget) for budget in config.budgets.latencies] == written
    again = load_config(yaml.safe_load(config.to_yaml()))
    assert again == config
    assert [budget.cost for budget in again.budgets.latencies][-1] in ("latency_p90_ms", "latency_p99_ms")


def test_a_throughput_is_a_latency_of_the_batch() -> None:
    config = load_config(changed(budgets={"throughput_ips": [1000, "150%"]}))
    assert [str(budget) for budget in config.budgets.latencies] == ["1000ips", "150%ips"]
    assert [b.limit_ms(6.0, 4) for b in config.budgets.latencies] == [pytest.approx(4.0)] * 2
    assert [b.is_absolute for b in config.budgets.latencies] == [True, False]
    assert config.budgets.bounds == {}
    assert load_config(yaml.safe_load(config.to_yaml())) == config


def test_budgets_decide_how_long_a_session_is() -> None:
    target = load_config(SMALLEST).targets[0]
    kinds = {text: LatencyBudget.parse(text) for text in ("50%", "p90:50%", "p99:9ms", "1000ips")}
    measured = {text: target.judged_by([budget]).measure for text, budget in kinds.items()}
    assert {text: measure.calls for text, measure in measured.items()} == {
        "50%": 0,
        "p90:50%": 40,
        "p99:9ms": 200,
        "1000ips": 0,
    }
    assert [text for text, measure in measured.items() if measure.soak_s] == ["p99:9ms", "1000ips"]
    assert target.judged_by(list(kinds.values())).measure.calls == 200


def test_one_budget_needs_no_list() -> None:
    assert len(load_config(SMALLEST).budgets.latency_ms) == 1


@pytest.mark.parametrize(
    ("settings", "key", "hint"),
    [
        (changed(distil={}), "distil", "did you mean distill?"),
        (changed(teacher={"tim": "resnet18"}), "teacher.tim", "did you mean timm?"),
        (
            changed(targets=[{"name": "a"}, {"name": "b", "measure": {"rel_eror": 0.1}}]),
            "targets[1] (b).measure.rel_eror",
            "did you mean rel_error?",
        ),
        (
            changed(teacher={"timm": "resnet18", "adapt": {"epoch": 3}}),
            "teacher.adapt.epoch",
            "did you mean epochs?",
        ),
        (changed(seed=1), "seed", "did you mean run.seed?"),
        (
            changed(budgets={"gflops": 1}),
            "budgets.gflops",
            "energy_mj, latency_ms, macs, params, peak_memory_mb",
        ),
        (changed(pool={"zzz": 1}), "pool.zzz", "max_cost, modules, ops, preset"),
        (
            changed(budgets={"latency_ms": [{"value": 1, "relative": True, "values": 2}]}),
            "budgets.latency_ms[0].values",
            "did you mean value?",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(settings: dict[str, Any], key: str, hint: str) -> None:
    with refuses("unknown_name", "configuration: ", f" {key};", hint):
        load_config(settings)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (changed(finetune={"epochs": 0}), "finetune.epochs"),
        (changed(finetune={"label_smoothing": 1.0}), "finetune.label_smoothing"),
        (changed(targets=[]), "targets"),
        (changed(targets=[{"name": "no spaces"}]), "targets[0] (no spaces).name"),
        (changed(targets=[{"name": "a", "runtime": "abacus"}]), "targets[0] (a).runtime"),
        (changed(targets=[{"name": "a", "device": "cuda:x"}]), "targets[0] (a).device"),
        (changed(budgets={"latency_ms": []}), "budgets.latency_ms"),
        (changed(budgets={"latency_ms": {"p98": "9ms"}}), "budgets.latency_ms"),
        (changed(budgets={"latency_ms": "p99:90ips"}), "budgets.latency_ms[0]"),
        (changed(budgets={"throughput_ips": ["9", "9ips"]}), "budgets.throughput_ips[1]"),
        (changed(data={"source": "digits", "image_size": "big"}), "data.image_size"),
        (changed(search={"grid": [0.1, -0.1]}), "search.grid[1]"),
        (changed(search={"grid": []}), "search.grid"),
    ],
)
def test_a_value_out_of_range_names_its_key(settings: dict[str, Any], key: str) -> None:
    assert message(settings).startswith(f"configuration: {key}: ")


@pytest.mark.parametrize("section", ["teacher", "data", "targets", "budgets"])
def test_what_every_run_needs_must_be_there(section: str) -> None:
    rest = {key: value for key, value in SMALLEST.items() if key != section}
    assert message(rest).startswith(f"configuration: {section}: ")


@pytest.mark.parametrize(
    ("settings", "section", "named"),
    [
        (changed(teacher={}), "teacher", ("timm", "factory")),
        (changed(teacher={"timm": "a", "factory": "b:c"}), "teacher", ("timm", "factory")),
        (
            changed(teacher={"timm": "a", "pretrained": True, "weights": "w.pt"}),
            "teacher",
            ("pretrained", "timm", "weights"),
        ),
        (changed(data={"source": "digits", "mean": [0.5] * 3}), "data", ("mean", "std")),
        (changed(data={"source": "digits", "image_column": "a"}), "data", ("image_column", "parquet")),
        (changed(data={"source": "digits", "value_range": [2, 1]}), "data", ("value_range [2.0, 1.0]",)),
        (changed(data={}), "data", ("source", "parquet", "folder", "torchvision")),
        (
            changed(data={"parquet": "a", "torchvision": "CIFAR10"}),
            "data",
            ("source", "parquet", "folder", "torchvision"),
        ),
    ],
)
def test_rules_between_settings(settings: dict[str, Any], section: str, named: tuple[str, ...]) -> None:
    with refuses("invalid_setting", f"configuration: {section}: ", *named):
        load_config(settings)


@pytest.mark.parametrize(
    ("settings", "key", "given_value"),
    [
        (changed(search={"seeds": 2}), "search.seeds", "2"),
        (changed(search={"grid": [0, 1], "aim": "budget"}), "search.grid", "budget"),
        (changed(search={"grid": [1, 0, 1.0]}), "search.grid", "1"),
        (changed(search={"lambdas": [3, 1]}), "search.lambdas", "[3, 1]"),
        (changed(search={"lambdas": [3]}), "search.lambdas", "[3]"),
        (changed(search={"methods": ["program", "program"]}), "search.methods", "once"),
        (
            changed(search={"methods": ["program"], "cells": {"space": "darts"}}),
            "search.methods",
            "search.cells",
        ),
        (changed(search={"cells": {"space": "darts", "cells": 2}}), "search.cells.cells", "2"),
        (changed(search={"cells": {"space": "darts", "search_cells": 2}}), "search.cells.search_cells", "2"),
        (changed(search={"cells": {"space": "darts", "partial": 3}}), "search.cells.partial", "3"),
        (
            changed(targets=[{"name": "a"}, {"name": "b"}, {"name": "a", "threads": 2}]),
            "targets[2] (a).name",
            "two targets",
        ),
        (changed(targets=[{"name": "Edge"}, {"name": "edge"}]), "targets[1] (edge).name", "edge"),
        (changed(targets=[{"name": "NUL"}]), "targets[0] (NUL).name", "NUL"),
        (changed(targets=[{"name": "a", "runtime": "command"}]), "targets[0] (a).command", "missing"),
        (changed(targets=[{"name": "a", "command": COMMAND}]), "targets[0] (a).command", "runtime: command"),
        (with_command(run="bench"), "targets[0] (a).command.run", "{program}"),
        (with_command(run="sh -c 'bench {program}"), "targets[0] (a).command.run", "No closing quotation"),
        (with_command(version="'' a"), "targets[0] (a).command.version", "no program"),
        (with_command(timeout_s="10min"), "targets[0] (a).command.timeout_s", "at most 300"),
        (with_command(version="\n"), "targets[0] (a).command.version", "blank"),
        (changed(targets=[{"name": "com1.x"}]), "targets[0] (com1.x).name", "com1.x"),
        (changed(budgets={"latency_ms": ["70%", "50%", "50 %"]}), "budgets.latency_ms[2]", "50%"),
        (changed(budgets={"latency_ms": [12.5, "12.5ms"]}), "budgets.latency_ms[1]", "12.5ms"),
        (changed(budgets={"latency_ms": ["2000us", "2"]}), "budgets.latency_ms[1]", "2ms"),
        (changed(budgets={"latency_ms": "50%", "params": 0.25}), "budgets.params", "25%"),
        (changed(registry={"default_budget": "60%"}), "registry.default_budget", "60%"),
        (changed(ray={"workers": 2, "min_workers": 3}), "ray.min_workers", "3"),
    ],
)
def test_settings_that_contradict_one_another_name_the_key(
    settings: dict[str, Any], key: str, given_value: str
) -> None:
    text = message(settings)
    assert text.startswith(f"configuration: {key}: ")
    assert given_value in text


def test_half_of_a_millisecond_is_not_half_of_the_teacher() -> None:
    config = load_config(changed(budgets={"latency_ms": ["50%", 0.5]}, registry={"default_budget": 0.5}))
    assert [str(budget) for budget in config.budgets.latency_ms] == ["50%", "0.5ms"]
    assert config.registry.default_budget == "0.5ms"


def test_overrides_reach_everything() -> None:
    config = load_config(
        changed(targets=[{"name": "a"}, {"name": "b"}]),
        (
            "run.seed=7",
            "finetune.epochs=0.5",
            "targets.1.measure.rel_error=0.1",
            "pool.ops=[identity, mbconv_e3_k3]",
            "budgets.latency_ms=12.5ms",
            "registry.name=a=b",
        ),
    )
    assert config.run.seed == 7
    assert config.finetune.epochs == 0.5
    assert [t.measure.rel_error for t in config.targets] == [0.02, 0.1]
    assert config.pool.ops == ("identity", "mbconv_e3_k3")
    assert config.budgets.latency_ms == (LatencyBudget(value=12.5, relative=False),)
    assert config.registry.name == "a=b"


def test_overrides_leave_the_given_dictionary_alone() -> None:
    given_settings = changed(run={"seed": 1})
    load_config(given_settings, ("run.seed=2",))
    assert given_settings["run"] == {"seed": 1}


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("run.seed", "invalid_setting"),
        ("=3", "invalid_setting"),
        ("targets.4.threads=2", "unknown_name"),
        ("targets.first.threads=2", "unknown_name"),
        ("targets.-2.threads=2", "unknown_name"),
        ("run..seed=1", "invalid_setting"),
        ("run.seed=[1, 2", "invalid_setting"),
        ("run={seed: 1, seed: 2}", "invalid_setting"),
        ("teacher.timm.name=a", "unknown_name"),
        ("run.seed=[1", "invalid_setting"),
    ],
)
def test_a_malformed_override_is_named(override: str, code: str) -> None:
    assert message(SMALLEST, override, code=code).startswith(f"--set {override}: ")


@pytest.mark.parametrize(
    ("override", "code", "named"),
    [
        ("run.sed=3", "unknown_name", ("run.sed", "did you mean seed?")),
        ("targts.0.threads=2", "unknown_name", ("targts", "did you mean targets?")),
        ("finetun.epochs=2", "unknown_name", ("finetun", "did you mean finetune?")),
        ("run.dir=", "invalid_setting", ("run.dir: null ", "text")),
        ("finetune.epochs.x=1", "invalid_setting", ('finetune.epochs: {"x": 1} ', "a number")),
        ("targets.-1.threads=0", "invalid_setting", ("targets[0] (cpu).threads: 0 ",)),
        ("targets[0].threads=0", "invalid_setting", ("targets[0] (cpu).threads: 0 ",)),
    ],
)
def test_what_an_override_breaks_names_the_override(override: str, code: str, named: tuple[str, ...]) -> None:
    text = message(SMALLEST, "run.seed=1", override, code=code)
    start = f"--set {override}: "
    assert text.startswith(start)
    assert all(name in text.removeprefix(start) for name in named)


def test_what_a_file_breaks_is_not_laid_to_an_override(tmp_path: Path) -> None:
    path = write(tmp_path, changed(run={"seed": -1}))
    assert message(path, "finetune.epochs=1").startswith(f"{path}: run.seed: -1")
    assert message(path, "run.seed=-2").startswith("--set run.seed=-2: run.seed: -2")


def test_an_override_may_be_empty_and_go_into_an_empty_block(tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump(changed(registry={"name": "mine"})) + "finetune:\n")
    config = load_config(path, ("registry.name=", "finetune.epochs=3"))
    assert config.registry.name is None
    assert config.finetune.epochs == 3


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    settings = changed(
        run={"dir": "runs/a"},
        teacher={"factory": "nets.py:small", "weights": "/weights/a.pt"},
        data={"parquet": "../images", "test": "s3://bucket/test", "root": "~/data"},
        pool={"modules": ["my_ops.py", "/ops/more.py"]},
    )
    config = load_config(write(tmp_path, settings))
    assert config.run.dir == str(tmp_path / "runs/a")
    assert config.teacher.factory == f"{tmp_path}/nets.py:small"
    assert config.teacher.weights == "/weights/a.pt"
    assert config.data.parquet == str(tmp_path.parent / "images")
    assert config.data.test == "s3://bucket/test"
    assert config.data.root == str(Path.home() / "data")
    assert config.pool.modules == (f"{tmp_path}/my_ops.py", "/ops/more.py")


def test_paths_in_overrides_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs").mkdir()
    settings = changed(run={"dir": "runs/a"}, pool={"modules": ["one.py", "two.py"]})
    file = write(tmp_path / "jobs", settings)
    monkeypatch.chdir(tmp_path)
    overrides = ("data={parquet: images, test: s3://bucket/test}", "pool.modules.-1=ops.py", "run.seed=3")
    config = load_config(file, (*overrides, "teacher.weights=a.pt"))
    assert config.run.dir == str(tmp_path / "jobs/runs/a")
    assert config.teacher.weights == str(tmp_path / "a.pt")
    assert config.data.parquet == str(tmp_path / "images")
    assert config.data.test == "s3://bucket/test"
    assert config.pool.modules == (f"{tmp_path}/jobs/one.py", f"{tmp_path}/ops.py")
    assert load_config(file, ("run.dir=b",)).run.dir == str(tmp_path / "b")
    last = load_config(file, ("pool.modules.-1=ops.py",)).pool.modules
    assert last == (f"{tmp_path}/jobs/one.py", f"{tmp_path}/ops.py")


def test_a_factory_of_a_package_is_no_path(tmp_path: Path) -> None:
    settings = changed(teacher={"factory": "package.module:function"})
    assert load_config(write(tmp_path, settings)).teacher.factory == "package.module:function"


def test_a_dictionarys_paths_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(changed(run={"dir": "here"})).run.dir == str(tmp_path / "here")


def test_a_written_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(
        changed(
            run={"dir": str(tmp_path / "run"), "seed": 3},
            teacher={"timm": "resnet18", "layers": ["layer*.*"], "adapt": {"epochs": 0.25}},
            data={"source": "digits", "image_size": 32},
            targets=[{"name": "a", "input_shape": [3, 32, 32], "measure": {"time_limit_s": 1.5}}],
            budgets={"latency_ms": ["33.3%", "1.23456789ms", 4]},
            finetune={"kd_weight": 1},
        )
    )
    (tmp_path / "elsewhere").mkdir()
    assert load_config(write(tmp_path / "elsewhere", config.to_yaml())) == config
    assert load_config(config) == config


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("teacher: [", ("not valid YAML",)),
        ("a: b: c", ("not valid YAML",)),
        ("", ("empty",)),
        ("# nothing", ("empty",)),
        ("- teacher", ("a list",)),
        ("just words", ("'just words'",)),
        ("a: 1\n---\nb: 2", ("several documents", "line 2")),
        ("run: {}\nteacher: {}\nrun: {}", ("key run ", "lines 1 and 3")),
        ("run:\n  seed: 1\n  dir: x\n  seed: 2", ("key seed ", "lines 2 and 4")),
        ("run:\n\tseed: 1", ("line 2, column 1", "tab")),
        ("a: *b", ("alias 'b'",)),
        ("a: !!python/name:os.system", ("python/name",)),
        ("? [1]\n: 2", ("key",)),
        ("a: \x07", ("line 1 ", "U+0007")),
        ("[" * 5000, ("nested",)),
    ],
)
def test_a_file_that_is_no_configuration_is_named(
    tmp_path: Path, content: str, named: tuple[str, ...]
) -> None:
    path = write(tmp_path, content)
    with refuses("invalid_file", f"{path}: ", *named):
        load_config(path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with refuses("missing_file", f"{tmp_path / 'no.yaml'}: "):
        load_config(tmp_path / "no.yaml")
    with refuses("invalid_file", f"{tmp_path}: ", "folder"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"run: {dir: \xff}")
    with refuses("invalid_file", f"{tmp_path / 'latin.yaml'}: ", "UTF-8", "0xff", "line 1"):
        load_config(tmp_path / "latin.yaml")


def test_mistakes_in_a_file_name_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, changed(run={"sead": 1}))
    with refuses("unknown_name", f"{path}: ", "run.sead", "did you mean seed?"):
        load_config(path)


def test_targets_take_their_name_as_label() -> None:
    config = load_config(changed(targets=[{"name": "a"}, {"name": "b", "label": "xeon"}]))
    assert [target.node_label for target in config.targets] == ["a", "xeon"]


def test_a_target_of_another_shape_than_the_datas_is_refused() -> None:
    with refuses("invalid_setting", "targets[0] (a).input_shape: [3, 32, 32] ", "[3, 224, 224]"):
        load_config(changed(targets=[{"name": "a", "input_shape": [3, 32, 32]}]))
