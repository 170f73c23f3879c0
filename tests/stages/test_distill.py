"""Which workers distil, and what their candidates ask of them."""

from __future__ import annotations

from pathlib import Path

from lana_ray.cluster.claims import Claim
from lana_ray.cluster.connection import Node
from lana_ray.cluster.groups import WorkerGroup
from lana_ray.config import RayConfig
from lana_ray.stages.distill import find_demands, worker_groups
from lana_ray.workspace import Workspace

from ..test_workspace import configuration, write_teacher

GIB = 2**30


def node(cpus: int, gpus: int = 0, gib: float = 1000) -> Node:
    return Node(id="a", name="a", labels={}, resources={"CPU": cpus, "GPU": gpus, "memory": gib * GIB})


def group_of(config: RayConfig, candidates: int, known: Node) -> WorkerGroup:
    (group,) = worker_groups(config, candidates, 4 * GIB, [known])
    return group


def bounds(group: WorkerGroup) -> tuple[int, int]:
    return group.fewest, group.most


def test_never_more_workers_than_candidates_cpus_and_memory() -> None:
    assert bounds(group_of(RayConfig(), 20, node(64))) == (1, 16)
    assert group_of(RayConfig(), 20, node(64)).claim.cpus == 4
    assert bounds(group_of(RayConfig(), 20, node(2))) == (1, 2)
    small = group_of(RayConfig(), 20, node(64, gib=16))
    assert (bounds(small), small.claim) == ((1, 4), Claim(cpus=16, memory=4 * GIB))
    assert bounds(group_of(RayConfig(workers=8), 20, node(64))) == (1, 8)
    assert bounds(group_of(RayConfig(workers=8), 3, node(64))) == (1, 3)


def test_workers_may_follow_the_cluster() -> None:
    group = group_of(RayConfig(workers=8, min_workers=2), 20, node(64))
    assert bounds(group) == (2, 8)
    group = group_of(RayConfig(workers=8, min_workers=4), 3, node(64))
    assert bounds(group) == (3, 3)
    assert bounds(group_of(RayConfig(workers=1), 20, node(64))) == (1, 1)


def test_cpus_help_gpus() -> None:
    config = RayConfig(workers=2, gpus_per_worker=0.5, cpus_per_worker=4, cpu_workers=6)
    assert worker_groups(config, 99, GIB, [node(64, 1)]) == [
        WorkerGroup(name="gpu worker", most=2, claim=Claim(cpus=4, gpus=0.5, memory=GIB)),
        WorkerGroup(name="cpu worker", most=6, claim=Claim(cpus=4, memory=GIB)),
    ]


def test_both_kinds_share_the_cpus() -> None:
    main, others = worker_groups(RayConfig(gpus_per_worker=1, cpu_workers=4), 99, GIB, [node(64, 8)])
    assert (main.most, others.most, main.claim.cpus, others.claim.cpus) == (8, 4, 5, 5)
    assert others.room([node(64, 8)], [main]) == 4


def test_every_candidate_is_tried_for_what_it_asks(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    write_teacher(config)
    workspace = Workspace(config)
    ids = workspace.space.ids
    candidates = [ids[0][2], ids[0][3], ids[1][1], ids[2][2]]
    demands = find_demands(workspace, candidates)
    assert list(demands) == candidates
    weights = sum(p.nbytes for p in workspace.space.candidate(0, 2).parameters())
    assert demands[ids[0][2]].kept == 4 * weights
    assert demands[ids[0][2]] != demands[ids[0][3]]
