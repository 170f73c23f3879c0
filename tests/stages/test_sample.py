"""Which candidates are worth their time on the targets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lana_ray.config import load_config
from lana_ray.costs.samples import Sample, SampleStore
from lana_ray.costs.table import CostTables
from lana_ray.costs.work import candidate_work, empty_work, in_sessions, network_work
from lana_ray.errors import UserError
from lana_ray.ids import CostId
from lana_ray.networks.layers import find_layers
from lana_ray.pipeline import run
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.tables import COSTS, LAYER_SCORES, SCORES, LayerScoreRow
from lana_ray.spaces import LayerwiseSpace
from lana_ray.stages import sample as stage
from lana_ray.stages import score
from lana_ray.stages.sample import FAILS, SLOW, Sampling, left_out, worth

from ..measured import sample
from ..runs import settings
from ..small_networks import net

_TIMES = st.lists(st.floats(0, 10) | st.just(np.inf), min_size=0, max_size=8)

NET = net(3).eval()
SPACE = LayerwiseSpace(NET, find_layers(NET, torch.zeros(2, 3, 16, 16)), ["identity", "mbconv_e1_k3"])
SCORED: dict[str, Any] = {"kl": 0.0, "loss": 0.0}
TARGET = cast(Any, SimpleNamespace(name="edge"))


def measured(empty_ms: float | None = 0.2, **op_ms: float | None) -> dict[str, Sample]:
    """Samples of every candidate alone; None for what does not run."""
    times = {"teacher": 1.2, "identity": 0.3, "mbconv_e1_k3": 0.7} | op_ms

    def found(ms: float | None) -> Sample:
        if ms is None:
            return sample(median_ms=float("nan"), settled=False, error="RuntimeError: no such kernel")
        return sample(median_ms=ms)

    samples = {}
    for layer, ops in enumerate(SPACE.ops):
        samples[empty_work(SPACE, layer).key] = found(empty_ms)
        for choice, op in enumerate(ops):
            samples[candidate_work(SPACE, layer, choice).key] = found(times[op.name])
    return samples


def alone_of(samples: dict[str, Sample], op: str) -> set[float]:
    isolated = stage.isolated_latencies(SPACE, TARGET, samples)
    places = [(i, j) for i, ops in enumerate(SPACE.ops) for j, known in enumerate(ops) if known.name == op]
    return {round(float(isolated[i][j]), 9) for i, j in places}


def test_what_a_call_costs_is_subtracted_where_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert alone_of(measured(0.2), "teacher") == {1.0}
    assert alone_of(measured(0.2), "mbconv_e1_k3") == {0.5}
    assert alone_of(measured(None), "teacher") == {1.2}
    assert alone_of(measured(None), "mbconv_e1_k3") == {0.7}
    for empty_ms in (0.2, None):
        among = worth(stage.isolated_latencies(SPACE, TARGET, measured(empty_ms)), 1.0)
        assert among == SPACE.everything
    stage._say_failed_empties(SPACE, TARGET, measured(0.2))
    assert capsys.readouterr().out == ""
    stage._say_failed_empties(SPACE, TARGET, measured(None))
    said = capsys.readouterr().out
    for words in ("edge", "blocks.0", "RuntimeError: no such kernel", "not subtracted"):
        assert words in said


def test_a_layer_that_does_not_run_is_named() -> None:
    with pytest.raises(UserError, match=r"'edge': the teacher's layer blocks\.0 .* no such kernel"):
        stage.isolated_latencies(SPACE, TARGET, measured(teacher=None))


def sampling_of(*targets: dict[str, Sample]) -> Sampling:
    known, tables = {}, {}
    for number, samples in enumerate(targets):
        of = CostId("latency_ms", f"t{number}")
        isolated = stage.isolated_latencies(SPACE, TARGET, samples)
        tables[of] = CostTables(id=of, teacher=1.0, isolated=tuple(isolated))
        known[f"t{number}"] = SimpleNamespace(latency=of, considered=worth(isolated, 1.0))
    return Sampling(targets=cast(Any, known), tables=tables)


def reasons_of(*targets: dict[str, Sample]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for candidate, reason in left_out(SPACE, sampling_of(*targets)).items():
        found.setdefault(candidate.op, set()).add(reason)
    return found


def test_what_fails_and_what_is_slow_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    failing, slow = measured(identity=None, mbconv_e1_k3=1.5), measured(mbconv_e1_k3=1.5)
    assert reasons_of(measured()) == {}
    assert reasons_of(failing) == {"identity": {FAILS}, "mbconv_e1_k3": {SLOW}}
    assert reasons_of(failing, slow) == {"mbconv_e1_k3": {SLOW}}
    assert reasons_of(measured(identity=None), measured(identity=1.5)) == {"identity": {SLOW}}
    assert reasons_of(measured(None, identity=None)) == {"identity": {FAILS}}
    stage._say_left_out(left_out(SPACE, sampling_of(failing)))
    slower, failed = capsys.readouterr().out.splitlines()
    assert "3 candidates slower than pool.max_cost" in slower
    assert "2 candidates that run on no target" in failed


def test_the_scores_tell_why_a_candidate_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of layers are kept; the reason is the sampling's, whenever they were made."""
    storage = Storage(str(tmp_path))
    config = SimpleNamespace(score=SimpleNamespace(by="kl", batch_size=8))
    workspace = cast(Any, SimpleNamespace(storage=storage, config=config, layers=SPACE.layers, space=SPACE))
    monkeypatch.setattr(score, "_key", lambda *_: "kept")
    monkeypatch.setattr(score, "task_bytes", lambda *_: 0)
    monkeypatch.setattr(score, "run_tasks", lambda *_, **__: None)
    for layer, ops in enumerate(SPACE.ops):
        name = SPACE.layers[layer].name
        rows = [
            LayerScoreRow(layer=layer, name=name, choice=j, op=op.name, **(SCORED if j == 0 else {}))
            for j, op in enumerate(ops)
        ]
        LAYER_SCORES.write(storage, layout.scores(name), rows, "kept")
    sampling = sampling_of(measured(identity=None, mbconv_e1_k3=1.5))
    scores = score.run(workspace, sampling.considered, left_out(SPACE, sampling))
    assert [list(np.flatnonzero(np.isfinite(of_layer))) for of_layer in scores] == [[0]] * 3
    why = {row.op: row.left_out for row in SCORES.read(storage, layout.SCORES)}
    assert why == {"teacher": None, "identity": FAILS, "mbconv_e1_k3": SLOW}


def on_targets(*choices: tuple[tuple[int, ...], ...]) -> Sampling:
    targets = {f"t{k}": SimpleNamespace(considered=c) for k, c in enumerate(choices)}
    return Sampling(targets=cast(Any, targets), tables={})


def test_what_is_slower_than_its_layer_is_not_worth_its_time() -> None:
    alone = [np.array([2.0, 1.9, 2.0, 2.1, np.inf, 0.0])]
    assert worth(alone, 1.0) == ((0, 1, 2, 5),)
    assert worth(alone, 0.5) == ((0, 5),)
    assert worth(alone, 1.1) == ((0, 1, 2, 3, 5),)
    assert worth(alone, None) == ((0, 1, 2, 3, 5),)


@given(st.floats(0.01, 10), _TIMES, st.none() | st.floats(0.01, 3))
def test_the_layer_itself_comes_first_whatever_it_takes(
    own: float, times: list[float], most: float | None
) -> None:
    ((first, *others),) = worth([np.array([own, *times])], most)
    assert first == 0
    assert others == sorted(set(others) - {0})


def test_a_candidate_that_one_target_wants_is_kept_for_all() -> None:
    one, other = ((0, 1), (0,)), ((0, 3), (0, 2))
    assert on_targets(one).considered == one
    assert on_targets(one, other).considered == ((0, 1, 3), (0, 2))


def test_all_stored_networks_of_considered_candidates_count_but_those_of_sessions(tmp_path: Path) -> None:
    """A student that a table proposed is measured in sessions; a resumed run begins without it."""
    workspace = cast(Any, SimpleNamespace(space=SPACE, samples=SampleStore(Storage(str(tmp_path)))))

    def network(*choices: int, **changes: Any) -> Sample:
        work = network_work(SPACE, choices)
        return sample(**{"kind": "network", "key": work.key, "what": work.what, "median_ms": 2.0} | changes)

    session = in_sessions([network_work(SPACE, (0, 0, 1))], [0])[0].key
    workspace.samples.append(
        [
            network(0, 1, 0, time=2.0, median_ms=3.0),
            network(0, 1, 0, time=1.0, median_ms=2.0),  # the first one counts
            network(0, 0, 0),
            network(2, 0, 0),
            network(0, 0, 1, key=session),
            network(1, 1, 0, target_key="other"),
            network(1, 1, 1, median_ms=float("nan"), error="no such kernel"),
            network(1, 0, 1, what="a cell"),
            network(1, 0, 0, kind="candidate"),
        ]
    )
    sampled = cast(Any, SimpleNamespace(target_key="k", considered=((0, 1), (0, 1), (0, 1, 2))))
    stored = stage._stored(workspace, sampled, "p50")
    assert {a: cost.value for a, cost in stored.items()} == {(0, 0, 0): 2.0, (0, 1, 0): 2.0}


def test_what_was_measured_for_a_design_serves_a_larger_and_a_smaller_one(
    tmp_path: Path, ray_cluster: None
) -> None:
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

    def sampled(architectures: int) -> tuple[set[str], int]:
        """The networks in the store, and how many the table was fitted to."""
        measure = {"architectures": architectures, "time_limit_s": 0.02, "soak_s": 0}
        target = {"name": "eager", "runtime": "torch", "measure": measure}
        run(load_config(settings(tmp_path, targets=[target])), until="sample")
        store = SampleStore(Storage(str(tmp_path)))
        rows = COSTS.read(Storage(str(tmp_path)), layout.costs("eager"))
        return {s.key for s in store.read() if s.kind == "network"}, rows[0].networks

    few, rests_on_few = sampled(8)
    many, rests_on_many = sampled(30)
    assert few < many
    assert rests_on_few < rests_on_many
    assert sampled(8) == (many, rests_on_many)
    assert len(list((tmp_path / "samples").iterdir())) == 1
