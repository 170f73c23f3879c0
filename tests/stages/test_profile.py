"""The stage that profiles finished students: what is kept, and what is tried again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lana_ray.config import Target
from lana_ray.ids import CandidateId
from lana_ray.measurement.readings import Refusal
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.tables import PROFILES, ProfileRow
from lana_ray.stages import profile

TARGET = Target(name="edge", runtime="onnxruntime", input_shape=(3, 16, 16))
SPACE = cast(
    Any,
    SimpleNamespace(
        teacher=(0, 0),
        parse=lambda label: (1, 0),
        chosen=lambda choices: [CandidateId(f"layer{i}", f"op{choice}") for i, choice in enumerate(choices)],
    ),
)
SAMPLED = cast(Any, SimpleNamespace(target=TARGET, target_key="key", teacher_ms=4.0))
STUDENT = cast(
    Any,
    SimpleNamespace(
        target=SAMPLED,
        budget="50%",
        architecture="layer0=op1",
        latency=SimpleNamespace(value=2.0),
        problem=None,
    ),
)
TOOK = {"layer0": 1.0, "layer1": 2.0, "": 1.0}


@pytest.fixture
def workspace(tmp_path: Path) -> Any:
    data = SimpleNamespace(num_classes=10)
    return SimpleNamespace(storage=Storage(str(tmp_path)), space=SPACE, config=None, data=data)


def answering(monkeypatch: pytest.MonkeyPatch, *answers: tuple[Any, str | None]) -> list[int]:
    """Lets the targets' nodes answer this, the last network first; returns how many networks were asked."""
    asked: list[int] = []

    def run(_: Any, calls: Sequence[Any], config: Any) -> Iterator[tuple[int, Any, str | None]]:
        asked.append(len(calls))
        for position in reversed(range(len(calls))):
            yield position, *answers[position]

    monkeypatch.setattr(profile, "run_on_cores", run)
    return asked


def rows_of(workspace: Any) -> list[ProfileRow]:
    return PROFILES.read(workspace.storage, layout.profile("edge"))


def test_the_rows_of_a_network_add_up_to_its_latency(workspace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answering(monkeypatch, (TOOK, None), (TOOK, None))
    for _ in range(2):  # the second time everything is kept
        profile.run(workspace, [STUDENT])
    assert asked == [2]
    assert rows_of(workspace) == [
        ProfileRow(network="teacher", layer="layer0", op="op0", ms=1.0),
        ProfileRow(network="teacher", layer="layer1", op="op0", ms=2.0),
        ProfileRow(network="teacher", layer="", op="", ms=1.0),
        ProfileRow(network="50%", layer="layer0", op="op1", ms=0.5),
        ProfileRow(network="50%", layer="layer1", op="op0", ms=1.0),
        ProfileRow(network="50%", layer="", op="", ms=0.5),
    ]


@pytest.mark.parametrize(
    ("answer", "times"),
    [((None, "RuntimeError: gone"), 2), ((Refusal("no names"), None), 1)],
    ids=["failed", "refused"],
)
def test_only_what_failed_is_tried_again(
    answer: tuple[Any, str | None], times: int, workspace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(monkeypatch, (TOOK, None), answer)
    for _ in range(2):
        profile.run(workspace, [STUDENT])
    assert asked == [2] * times
    assert {row.network for row in rows_of(workspace)} == {"teacher"}


def test_a_target_whose_runtime_has_no_profile_is_told(
    workspace: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled = SimpleNamespace(
        **vars(SAMPLED) | {"target": TARGET.model_copy(update={"runtime": "torch-compile"})}
    )
    asked = answering(monkeypatch)
    profile.run(workspace, [cast(Any, SimpleNamespace(**vars(STUDENT) | {"target": compiled}))])
    assert asked == []
    assert not workspace.storage.exists(layout.profile("edge"))
    assert "edge: torch.compile has no profile" in capsys.readouterr().out
