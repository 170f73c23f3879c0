"""Workers that take rounds of candidates, and one that is killed in the middle."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lana_ray.cluster import distill_worker as worker_module
from lana_ray.cluster.claims import Claim
from lana_ray.cluster.distill_worker import GIB, distill_round, distill_worker, ending
from lana_ray.cluster.groups import WorkerGroup
from lana_ray.cluster.trainers import Training, run_training
from lana_ray.config import Config, load_config
from lana_ray.distill.rounds import Demand, parts
from lana_ray.ids import CandidateId
from lana_ray.run_dir import layout
from lana_ray.run_dir.storage import FINGERPRINT_KEY
from lana_ray.workspace import Workspace

from ..runs import settings, times
from ..small_networks import net

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

_MBCONV, _PAIR = "mbconv_e1_k3", "conv_pair_w0.25_k3"
EVERY = [CandidateId(f"blocks.{i}", op) for i in range(3) for op in (_MBCONV, _PAIR)]
DEMANDS = dict.fromkeys(EVERY, Demand(kept=1000, per_image=1000, observed=100))


def configuration(folder: Path, **distill: Any) -> Config:
    pool = {"ops": ["identity", "mbconv_e1_k3", "conv_pair_w0.25_k3"], "max_cost": None}
    return load_config(settings(folder, pool=pool, distill={"steps": 8, "batch_size": 32} | distill))


def prepared(config: Config) -> Workspace:
    workspace = Workspace(config)
    workspace.storage.write_tensors(layout.TEACHER, net(10).state_dict(), {FINGERPRINT_KEY: "k"})
    return workspace


def train(
    workspace: Workspace,
    candidates: list[CandidateId],
    demands: dict[CandidateId, Demand] = DEMANDS,
    on_steps: Callable[[int], object] = lambda _: None,
) -> None:
    distill_round(workspace, candidates, demands=demands, device=torch.device("cpu"), on_steps=on_steps)


def test_a_round_leaves_weights_curves_and_no_doubt(tmp_path: Path) -> None:
    workspace, told = prepared(configuration(tmp_path)), list[int]()
    assert not any(ending(workspace, candidate) for candidate in EVERY)
    train(workspace, EVERY[:3], on_steps=told.append)
    assert [ending(workspace, c) is not None for c in EVERY] == [True] * 3 + [False] * 3
    assert told == [0] + [3] * 8  # nothing was resumed
    metadata = workspace.storage.tensor_metadata(layout.candidate(EVERY[0]))
    assert metadata is not None
    curve = json.loads(metadata["curve"])
    assert len(curve) == 8
    assert float(metadata["error"]) == pytest.approx(sum(curve) / 8, rel=1e-3)
    assert metadata["stopped"] == ""
    assert workspace.candidate(EVERY[0]) is not None


def test_another_partition_into_rounds_trains_the_same_candidates(tmp_path: Path) -> None:
    together, apart = (prepared(configuration(tmp_path / name)) for name in ("together", "apart"))
    train(together, EVERY[:4])
    for candidate in EVERY[:4]:
        train(apart, [candidate])
    for candidate in EVERY[:4]:
        one, other = (w.storage.read_tensors(layout.candidate(candidate)) for w in (together, apart))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_candidate_too_large_for_the_memory_sees_its_batch_in_parts(tmp_path: Path) -> None:
    """Its batch-norms then see a part at a time, so it learns something else than it would at once."""
    workspace = prepared(configuration(tmp_path, memory_gb=0.001))
    large = dataclasses.replace(DEMANDS[EVERY[0]], per_image=int(0.0001 * GIB))
    assert parts(large, 32, 0.001 * GIB) == 4
    train(workspace, EVERY[:2], {**DEMANDS, EVERY[0]: large})
    curves = []
    for candidate in EVERY[:2]:
        metadata = workspace.storage.tensor_metadata(layout.candidate(candidate))
        assert metadata is not None
        curves.append(json.loads(metadata["curve"]))
    whole = prepared(configuration(tmp_path / "whole"))
    train(whole, EVERY[:2])
    for candidate, curve, same in zip(EVERY[:2], curves, (False, True), strict=True):
        metadata = whole.storage.tensor_metadata(layout.candidate(candidate))
        assert metadata is not None
        assert (json.loads(metadata["curve"]) == curve) == same


class Interrupted(Exception):
    pass


def interrupt_after(calls: int) -> Callable[[int], None]:
    left = [calls]

    def on_steps(_: int) -> None:
        left[0] -= 1
        if not left[0]:
            raise Interrupted

    return on_steps


def weights_of(workspace: Workspace, candidates: list[CandidateId]) -> dict[str, torch.Tensor]:
    return {
        f"{candidate} {name}": value
        for candidate in candidates
        for name, value in workspace.storage.read_tensors(layout.candidate(candidate)).items()
    }


def test_a_killed_round_goes_on_to_the_same_candidates_in_other_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two are killed after five of eight steps; one of them goes on with a third that has not begun."""
    monkeypatch.setattr(worker_module, "SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(worker_module, "_SAVING_SHARE", float("inf"))
    whole, killed = (prepared(configuration(tmp_path / name)) for name in ("whole", "killed"))
    train(whole, EVERY[:3])
    with pytest.raises(Interrupted):
        train(killed, EVERY[:2], on_steps=interrupt_after(6))  # the first tells what was resumed
    told = list[int]()
    train(killed, EVERY[1:3], on_steps=told.append)
    assert (told[0], sum(told)) == (4, 16)
    train(killed, EVERY[:1])
    expected, found = weights_of(whole, EVERY[:3]), weights_of(killed, EVERY[:3])
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert [ending(killed, c) for c in EVERY[:3]] == [ending(whole, c) for c in EVERY[:3]]
    assert not killed.storage.list(layout.CANDIDATE_STATES)


def test_the_state_of_other_settings_or_damaged_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(worker_module, "SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(worker_module, "_SAVING_SHARE", float("inf"))
    workspace = prepared(configuration(tmp_path, lr=0.01))
    with pytest.raises(Interrupted):
        train(workspace, EVERY[:2], on_steps=interrupt_after(6))
    (_, damaged) = workspace.storage.list(layout.CANDIDATE_STATES)
    workspace.storage.write_bytes(damaged, workspace.storage.read_bytes(damaged)[:100])
    other, told = prepared(configuration(tmp_path)), list[int]()
    train(other, EVERY[:2], on_steps=told.append)
    assert told == [0] + [2] * 8
    assert damaged in capsys.readouterr().out


def _dies_once(setting: dict[str, Any]) -> None:
    """A worker that is killed when it begins a certain round, the first time anybody does."""
    marker, usual = Path(setting["marker"]), worker_module.distill_round

    def round_of(workspace: Workspace, candidates: list[CandidateId], **others: Any) -> None:
        if EVERY[4] in candidates and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        usual(workspace, candidates, **others)

    worker_module.distill_round = round_of  # type: ignore[assignment]
    try:
        distill_worker(setting)
    finally:
        worker_module.distill_round = usual


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_what_a_killed_worker_had_in_hand_is_done_again_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two kinds of workers, one of each, as where CPUs help GPUs."""
    config = configuration(tmp_path / "run")
    workspace = prepared(config)
    kept: dict[str, int] = {}
    train(workspace, [EVERY[0]])
    kept = times(tmp_path / "run", "candidates/*")
    training = Training(
        title="distill",
        worker=_dies_once,
        setting={"demands": DEMANDS, "marker": str(tmp_path / "died")},
        groups=[WorkerGroup(name=name, claim=Claim(cpus=1)) for name in ("quick", "slow")],
        total=len(EVERY) * 8,
        rounds=[EVERY[:2], EVERY[2:4], EVERY[4:]],
    )
    run_training(training, config)
    assert (tmp_path / "died").exists()
    assert all(ending(workspace, candidate) for candidate in EVERY)
    assert kept.items() <= times(tmp_path / "run", "candidates/*").items()
    told = capsys.readouterr().out
    assert told.count("died; its work since the last save") == 1
    assert "48/48 (100 %)" in told
