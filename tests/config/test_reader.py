"""YAML as people write it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lana_ray.config import load_config
from lana_ray.config.reader import NotYaml, read, write

SMALLEST = (
    "teacher: {timm: resnet18}\ndata: {source: digits}\ntargets: [{name: edge}]\nbudgets: {latency_ms: 50%}\n"
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("5.", 5.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("010", "010"),
        ("0o10", "0o10"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'3'", "3"),
        ("-.inf", -math.inf),
        ("~", None),
        ("", None),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    result = read(f"key: {text}")["key"]
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("settings", "path", "value"),
    [
        ("run: {seed: 010}", ("run", "seed"), 10),
        ("distill: {lr: 1e-3}", ("distill", "lr"), 1e-3),
        ("registry: {name: off}", ("registry", "name"), "off"),
        ("registry: {name: 2024-01-01}", ("registry", "name"), "2024-01-01"),
        ("select: {joint: on}", ("select", "joint"), True),
        ("distill: &d {steps: 7}\nscore:\n  images: 9", ("distill", "steps"), 7),
        ("distill: &b {batch_size: 9}\nscore: {<<: *b, images: 4}", ("score", "batch_size"), 9),
        ("distill: &b {batch_size: 9}\nscore: {<<: *b, batch_size: 4}", ("score", "batch_size"), 4),
        ("finetune:\n", ("finetune", "epochs"), 2.0),
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_type_of_a_setting_determines_what_a_word_is(
    settings: str, path: tuple[str, str], value: Any, ending: str, encoding: str, tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes((SMALLEST + settings).replace("\n", ending).encode(encoding))
    config = load_config(file)
    assert getattr(getattr(config, path[0]), path[1]) == value


def test_a_key_that_comes_twice_is_refused_wherever_it_stands() -> None:
    for text in ("a: 1\nb: 2\na: 3", "x:\n - {a: 1,\n    a: 2}", "<<: {b: 1}\n<<: {c: 2}"):
        with pytest.raises(NotYaml, match=r"given twice, on lines \d and \d"):
            read(text)
    assert read("a: {x: 1}\nb: {x: 2}") == {"a": {"x": 1}, "b": {"x": 2}}


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=8),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=8)
        | st.sampled_from(["1e3", "no", "010", "1:30", "~", "<<", "2024-01-01", "true", "0x1f", ".5"]),
        max_size=4,
    )
)
def test_what_is_written_reads_back_equal(data: dict[str, Any]) -> None:
    assert read(write(data)) == data
