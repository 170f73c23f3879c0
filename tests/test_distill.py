"""Which workers distil, and what their candidates ask of them."""

from __future__ import annotations

from pathlib import Path

from lana_ray.config import RayConfig
from lana_ray.stages.distill import find_demands, worker_groups
from lana_ray.training.driver import WorkerGroup
from lana_ray.workspace import Workspace

from .test_workspace import configuration, write_teacher


def test_never_more_workers_than_candidates() -> None:
    assert worker_groups(RayConfig(workers=8), 20) == [WorkerGroup(name="worker", workers=(1, 8), cpus=1)]
    assert worker_groups(RayConfig(workers=8), 3) == [WorkerGroup(name="worker", workers=(1, 3), cpus=1)]


def test_workers_may_follow_the_cluster() -> None:
    (group,) = worker_groups(RayConfig(workers=8, min_workers=2), 20)
    assert (group.workers, group.most) == ((2, 8), 8)
    (group,) = worker_groups(RayConfig(workers=8, min_workers=4), 3)
    assert (group.workers, group.most) == (3, 3)
    (group,) = worker_groups(RayConfig(workers=1), 20)
    assert group.workers == 1


def test_cpus_help_gpus() -> None:
    config = RayConfig(workers=2, gpus_per_worker=0.5, cpus_per_worker=4, cpu_workers=6)
    assert worker_groups(config, 99) == [
        WorkerGroup(name="gpu worker", workers=(1, 2), cpus=4, gpus=0.5),
        WorkerGroup(name="cpu worker", workers=6, cpus=4),
    ]


def test_every_candidate_is_tried_for_what_it_asks(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    write_teacher(config)
    workspace = Workspace(config)
    candidates = [(0, 2), (0, 3), (1, 1), (2, 2)]
    demands = find_demands(workspace, candidates)
    assert list(demands) == candidates
    weights = sum(p.nbytes for p in workspace.space.candidate(0, 2).parameters())
    assert demands[0, 2].kept == 4 * weights
    assert demands[0, 2] != demands[0, 3]
