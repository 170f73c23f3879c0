"""Every setting refuses the values that it may be given by mistake."""

from __future__ import annotations

import math
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lana_ray.config import Config, load_config
from lana_ray.config.budgets import Budget
from lana_ray.config.section import Section
from lana_ray.errors import UserError

PYDANTICS = (
    "Input should",
    "valid integer",
    "valid string",
    "pydantic",
    "Field required",
    "instance of",
    "Extra",
)

BASE: dict[str, Any] = {
    "teacher": {"timm": "resnet18"},
    "data": {"source": "digits"},
    "targets": [{"name": "edge"}],
    "budgets": {"latency_ms": "50%"},
}


def bare(annotation: Any) -> tuple[Any, bool]:
    """A type without ``| None``, and whether None is allowed."""
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [option for option in get_args(annotation) if option is not types.NoneType]
        return bare(inner[0])[0], True
    return (get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation), False


def leaves(section: type[Section], at: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any, bool]]:
    """Path, type and whether null is allowed, of every setting that is not itself a block."""
    for name, field in section.model_fields.items():
        inner, optional = bare(field.annotation)
        path = (*at, name)
        if path == ("targets",):
            yield path, inner, optional
            yield from leaves(get_args(inner)[0], (*path, 0))
        elif isinstance(inner, type) and issubclass(inner, Section) and not issubclass(inner, Budget):
            yield from leaves(inner, path)
        else:
            yield path, inner, optional


LEAVES = list(leaves(Config))


def with_value(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The smallest configuration with one setting changed."""
    data: dict[str, Any] = {key: dict(v) if isinstance(v, dict) else v for key, v in BASE.items()}
    data["targets"] = [dict(BASE["targets"][0])]
    if path[:2] == ("search", "cells"):
        data["search"] = {"cells": {"space": "nasbench201"}}
    if "command" in path[:-1]:
        data["targets"][0] |= {
            "runtime": "command",
            "command": {"run": "a {program}", "version": "uname"},
        }
    node: Any = data
    for part in path[:-1]:
        node = node[part] if isinstance(node, list) else node.setdefault(part, {})
    node[path[-1]] = value
    return data


def key_of(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path)).replace("targets.0", "targets[0] (edge)")


def refusal(path: tuple[Any, ...], value: Any) -> str | None:
    """The message that refuses a value; None if the setting takes it."""
    try:
        load_config(with_value(path, value))
    except UserError as error:
        refused = error
    else:
        return None
    assert refused.code in ("invalid_setting", "unknown_name")
    return str(refused)


def wrong(kind: Any, optional: bool) -> list[Any]:
    """Values that a setting of a type must not take."""
    always: list[Any] = [{"a": 1}, [[1]], *([] if optional else [None])]
    if get_origin(kind) is tuple:
        return [*always, True, 7, {"a": "b"}, [None], [True]]
    if get_origin(kind) is Literal:
        return [*always, True, 3, "no such word", [], ""]
    return always + {
        bool: ["maybe", 2, [], 0.5, "", "nul"],
        int: [
            True,
            False,
            "many",
            "",
            math.nan,
            math.inf,
            -math.inf,
            1.5,
            "1.5x",
            [],
            -(10**30),
            "0x1f",
            "1:30",
        ],
        float: [True, "many", "", math.nan, math.inf, "nan", "inf", [], -1.0, "5 parsecs", "%", "1:30"],
        str: [True, 3, 1.5, [], "", "  ", "a\x00b", "a\nb"],
    }.get(kind, [True, "many", [], "", math.nan])


CASES = [(path, value) for path, kind, optional in LEAVES for value in wrong(kind, optional)]


@pytest.mark.parametrize("path", [path for path, _, _ in LEAVES], ids=key_of)
def test_what_a_setting_does_not_take_is_named(path: tuple[Any, ...]) -> None:
    for value in (value for where, value in CASES if where == path):
        if (
            path[-1] in ("default_budget", "latency_ms", "throughput_ips")
            and value in (3, 1.5, 7)
            and value is not True
        ):
            continue  # milliseconds
        text = refusal(path, value)
        assert text is not None, f"{key_of(path)} took {value!r}"
        shown = "name" if path[-1] == "name" and path[0] == "targets" else key_of(path)
        assert text.startswith("configuration: ")
        assert shown in text
        assert "\n" not in text
        assert len(text) < 400
        assert not [words for words in PYDANTICS if words in text], text
        assert any(word in text for word in ("expected", "use e.g.", "needs", "none of", "known keys")), text


@pytest.mark.parametrize(
    ("path", "value", "shown", "allowed"),
    [
        (("targets", 0, "threads"), True, "true", "a whole number, at least 1"),
        (("targets", 0, "threads"), 0, "0", "at least 1"),
        (("targets", 0, "runtime"), "onnx", "'onnx'", "did you mean onnxruntime?"),
        (("targets", 0, "runtime"), "TensorRT", "'TensorRT'", "did you mean tensorrt?"),
        (("targets", 0, "device"), "gpu", "'gpu'", "cpu, cuda, or cuda:0"),
        (("targets", 0, "label"), "-x", "'-x'", "a letter or a digit at both ends"),
        (("targets", 0, "measure", "rel_error"), "200%", "'200%'", "e.g. 0.02 or 2%, above 0 and below 1"),
        (("run", "seed"), -1, "-1", "at least 0 and at most 4294967295"),
        (("run", "seed"), 2**32, "4294967296", "at most 4294967295"),
        (("pool", "preset"), "samll", "'samll'", "did you mean small?"),
        (("pool", "ops"), [], "[]", "a list of at least 1, each text"),
        (("select", "force"), "a=b", "'a=b'", "a list, each text"),
        (("select", "max_ops"), 1.5, "1.5", "a whole number, at least 0, or null"),
        (("search", "lambdas"), [1, 2, 3], "[1, 2, 3]", "a list of 2"),
        (("registry", "tracking_uri"), ["http://me:secret@host"], "http://***@host", "text"),
        (("run", "dir"), "x" * 300 + "\n", "xxx", "control characters"),
    ],
)
def test_a_refusal_shows_what_was_given_and_what_is_allowed(
    path: tuple[Any, ...], value: Any, shown: str, allowed: str
) -> None:
    text = refusal(path, value)
    assert text is not None
    assert shown in text
    assert allowed in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("path", "value", "read"),
    [
        (("select", "margin"), "2%", 0.02),
        (("select", "margin"), " 2.5 % ", 0.025),
        (("select", "confidence"), "95%", 0.95),
        (("select", "max_overlap"), "70%", 0.7),
        (("data", "test_fraction"), "20%", 0.2),
        (("data", "max_undecodable"), "1%", 0.01),
        (("finetune", "kd_weight"), "100%", 1.0),
        (("finetune", "label_smoothing"), "10%", 0.1),
        (("pool", "max_cost"), "150%", 1.5),
        (("search", "warmup"), "50%", 0.5),
        (("targets", 0, "measure", "rel_error"), "3%", 0.03),
        (("targets", 0, "measure", "time_limit_s"), "250ms", 0.25),
        (("select", "time_limit_s"), "2min", 120.0),
        (("ray", "label_wait_s"), "1h", 3600.0),
        (("ray", "label_wait_s"), "1e2 s", 100.0),
        (("distill", "lr"), "1e-3", 1e-3),
        (("run", "seed"), "7", 7),
        (("run", "seed"), 2**32 - 1, 2**32 - 1),
        (("data", "download"), "no", False),
        (("data", "download"), "on", True),
        (("search",), None, None),
    ],
)
def test_values_are_read_as_people_write_them(path: tuple[Any, ...], value: Any, read: Any) -> None:
    node: Any = load_config(with_value(path, value))
    for part in path:
        node = node[part] if isinstance(part, int) else getattr(node, part)
    if read is None:
        assert node == type(node)()
    else:
        assert node == pytest.approx(read)


@pytest.mark.parametrize(
    "path",
    [("finetune", "epochs"), ("distill", "lr"), ("score", "images"), ("distill", "memory_gb")],
    ids=key_of,
)
@pytest.mark.parametrize("value", ["2%", "2s"])
def test_what_is_no_share_and_no_time_takes_no_such_unit(path: tuple[Any, ...], value: str) -> None:
    text = refusal(path, value)
    assert text is not None
    assert text.startswith(f"configuration: {key_of(path)}: '{value}'")


_ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


@hypothesis_settings(deadline=None, max_examples=200)
@given(
    st.sampled_from([path for path, _, _ in LEAVES] + [(name,) for name in Config.model_fields]), _ANYTHING
)
def test_whatever_is_given_is_taken_or_refused_in_a_line(path: tuple[Any, ...], value: Any) -> None:
    text = refusal(path, value)
    if text is not None:
        assert text.startswith("configuration: ")
        assert len(text.splitlines()) == 1
        assert not [words for words in PYDANTICS if words in text]


def test_sections_made_in_python_refuse_alike() -> None:
    for value in (True, "200%", math.nan):
        with pytest.raises(ValidationError, match="margin"):
            load_config(BASE).select.model_validate({"margin": value})
