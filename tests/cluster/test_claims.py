"""How many workers nodes hold, what each claims, and where it may run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lana_ray.cluster import connection as cluster
from lana_ray.cluster.claims import (
    GIB,
    Ask,
    Claim,
    await_room,
    held,
    no_room,
    occupied,
    selector,
    share,
    trainers,
)
from lana_ray.cluster.connection import Node
from lana_ray.cluster.trainers import describe, worker_group
from lana_ray.config import Config, RayConfig, TrainConfig, load_config
from lana_ray.training.micro import micro_batches

from ..errors import refuses
from ..runs import settings


def node(name: str, cpus: int = 4, *, gpus: int = 0, gib: float | None = None, **labels: str) -> Node:
    """Labels are given as ``target`` and ``role``."""
    memory = {} if gib is None else {"memory": gib * GIB}
    named = {f"lana.{key}": value for key, value in labels.items()}
    return Node(id=name, name=name, labels=named, resources={"CPU": cpus, "GPU": gpus, **memory})


def left(name: str, **labels: str) -> Node:
    """A node that is gone, as Ray remembers it: without its resources."""
    named = {f"lana.{key}": value for key, value in labels.items()}
    return Node(id=name, name=name, labels=named, resources={}, alive=False)


# How many workers, and how large


def batches(size: int) -> TrainConfig:
    """A training whose batches are cut into micro-batches of 16 images."""
    return TrainConfig(batch_size=size, micro_batch_size=16)


@pytest.mark.parametrize(
    ("cpus", "workers", "threads"),
    [(1, 1, 1), (2, 2, 1), (3, 1, 3), (33, 4, 8), (64, 4, 16), (65, 4, 16), (128, 4, 32)],
)
def test_workers_of_one_network_share_a_machine_as_their_batch_allows(
    cpus: int, workers: int, threads: int
) -> None:
    group = worker_group(RayConfig(), batches(64), [node("a", cpus)])
    assert (group.most, group.fewest, group.claim.cpus) == (workers, 1, threads)


@pytest.mark.parametrize("batch_size", [2, 8, 24, 48, 64, 96, 256])
@pytest.mark.parametrize("cpus", [1, 2, 7, 33, 64, 128])
@pytest.mark.parametrize("asked", [None, 1, 3, 5, 100])
def test_no_more_workers_than_parts_of_the_batch_and_all_get_as_many(
    batch_size: int, cpus: int, asked: int | None
) -> None:
    group = worker_group(RayConfig(workers=asked), batches(batch_size), [node("a", cpus)])
    assert group.most <= min(asked or cpus, batch_size)
    assert micro_batches(batch_size, 16) % group.most == 0
    assert held([node("a", cpus)], group.claim) >= group.fewest


def test_more_workers_than_the_batch_takes_are_told() -> None:
    config = RayConfig(workers=100)
    said = describe(worker_group(config, batches(64), [node("a", 64)]), config)
    assert "4 workers of 16 CPUs" in said
    assert "ray.workers 100" in said
    config = RayConfig(workers=4)
    assert "ray.workers" not in describe(worker_group(config, batches(64), [node("a", 64)]), config)


def test_cpus_of_a_worker_are_as_configured() -> None:
    group = worker_group(RayConfig(cpus_per_worker=3), batches(256), [node("a", 64)])
    assert (group.most, group.claim.cpus) == (16, 3)
    group = worker_group(RayConfig(workers=1, cpus_per_worker=2), batches(256), [node("a", 64)])
    assert (group.fewest, group.most) == (1, 1)


def test_memory_bounds_workers_and_they_take_the_cpus_that_are_left() -> None:
    count, claim = share(Ask(most=1000, memory=2 * GIB), [node("a", 64, gib=16)])
    assert (count, claim.cpus, claim.memory) == (8, 8, 2 * GIB)
    assert held([node("a", 64, gib=16)], claim) == 8


def test_nodes_of_unlike_size_are_all_used() -> None:
    known = [node("a", 64, gib=200), node("b", 4, gib=7), node("c", 2, gib=3), node("tiny", 1, gib=1)]
    count, claim = share(Ask(most=1000, memory=2 * GIB), known)
    assert [claim.fits(n) for n in known] == [64, 3, 1, 0]
    assert (count, claim.cpus) == (68, 1)
    assert share(Ask(most=6), [node(str(k), 8) for k in range(10)]) == (6, Claim(cpus=8, memory=GIB))


def test_a_machine_too_small_for_one_worker_gets_one() -> None:
    count, claim = share(Ask(most=9, memory=4 * GIB), [node("a", 2, gib=1.5)])
    assert (count, claim) == (1, Claim(cpus=2, memory=int(1.5 * GIB)))


def test_gpus_are_all_used_and_share_the_cpus() -> None:
    known = [node("a", 96, gpus=8), node("b", 8, gpus=2), node("c", 128)]
    count, claim = share(Ask(most=99, gpus=1), known)
    assert (count, claim.cpus, claim.gpus) == (10, 4, 1)
    assert share(Ask(most=99, gpus=0.5), known)[0] == 20
    assert share(Ask(most=99, gpus=4), known) == (2, Claim(cpus=48, gpus=4, memory=GIB))


def test_the_fewest_of_a_group_divides_the_work_too() -> None:
    group = worker_group(RayConfig(workers=8, min_workers=3), batches(128), [node("a", 64)])
    assert (group.fewest, group.most) == (4, 8)
    fixed = worker_group(RayConfig(min_workers=16), batches(64), [node("a", 64)])
    assert (fixed.fewest, fixed.most) == (4, 4)
    assert [group.room([node("a", cpus)], []) for cpus in (31, 33, 56, 64)] == [0, 4, 4, 8]


def test_what_one_group_takes_another_does_not_get() -> None:
    known = [node("a", 8, gib=10), node("edge", 8, target="edge"), node("b", 3, gib=10)]
    rest = occupied(known, Claim(cpus=2, memory=4 * GIB), 3)
    assert [(n.cpus, round(n.memory / GIB)) for n in rest if n.name != "edge"] == [(4, 2), (1, 6)]
    assert rest[1] == known[1]


# Where they run


def test_nodes_that_are_measured_on_do_not_train() -> None:
    head, pi, both, said = (
        node("h"),
        node("pi", target="pi"),
        node("g", target="g", role="both"),
        node("m", role="measure"),
    )
    assert [n.role for n in (head, pi, both, said)] == ["train", "measure", "both", "measure"]
    assert trainers([head, pi, both, said]) == [head, both]
    assert worker_group(RayConfig(), batches(256), [node("h", 2), node("pi", 64, target="pi")]).most == 2


def test_they_train_where_there_has_never_been_another() -> None:
    pi, idle = node("pi", target="pi"), node("h", 0)
    assert trainers([pi, idle]) == [pi]
    assert selector([pi, idle], Claim(cpus=1), ["pi"]) == {}
    gone = left("spot")
    assert trainers([pi, idle, gone]) == []


def test_the_selector_keeps_out_what_only_measures() -> None:
    claim = Claim(cpus=1)
    known = [node("h"), node("pi", target="pi"), node("g", target="g", role="both"), left("x", target="xeon")]
    wanted = {"lana.role": "!in(measure)", "lana.target": "!in(phone, pi, xeon)"}
    assert selector(known, claim, ["pi", "g", "phone"]) == wanted
    assert selector([node("h")], claim, []) == {"lana.role": "!in(measure)"}
    assert selector([node("h")], claim, ["no-label-."]) == {"lana.role": "!in(measure)"}


def test_a_target_s_node_that_may_train_can_be_brought_for_it() -> None:
    """Its label is not kept out as long as no node holds a worker: only the node itself says its role."""
    claim = Claim(cpus=1, gpus=1)
    assert selector([node("h")], claim, ["g"]) == {"lana.role": "!in(measure)"}
    gone = left("g1", target="g", role="both")
    assert selector([node("h", gpus=1), gone], claim, ["g"]) == {"lana.role": "!in(measure)"}


def test_nodes_of_one_target_may_differ_in_their_role() -> None:
    known = [node("a", target="g", role="both"), node("b", target="g")]
    assert selector(known, Claim(cpus=1), ["g"]) == {"lana.role": "!in(measure)", "ray.io/node-id": "!in(b)"}


# What is refused


@pytest.mark.parametrize(
    ("changes", "known", "parts"),
    [
        ({"cpus_per_worker": 16}, [node("a", 8)], ["ray.cpus_per_worker 16", "a with 8 CPUs"]),
        ({"gpus_per_worker": 2}, [node("a", 8, gpus=1)], ["ray.gpus_per_worker 2", "8 CPUs, 1 GPU"]),
        ({"gpus_per_worker": 1, "cpus_per_worker": 16}, [node("a", 8, gpus=1)], ["ray.cpus_per_worker 16"]),
        ({"gpus_per_worker": 1}, [node("a"), node("t4", gpus=1, target="t4")], ["t4", "lana.role=both"]),
        (
            {"cpus_per_worker": 3, "min_workers": 2, "workers": 2},
            [node("a", 4)],
            ["ray.min_workers 2", "only 1 workers"],
        ),
    ],
)
def test_what_no_node_holds_is_named(changes: dict[str, Any], known: list[Node], parts: list[str]) -> None:
    config = RayConfig(**changes)
    group = worker_group(config, batches(64), known)
    assert held(known, group.claim) < group.fewest
    said = no_room(group.claim, config, known, group.fewest)
    assert "\n" not in said
    for part in parts:
        assert part in said


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(settings(tmp_path, ray={"cpus_per_worker": 512}))


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_that_no_node_holds_is_refused_at_once(config: Config) -> None:
    with refuses("no_node", "ray.cpus_per_worker 512", "ray.label_wait_s"):
        await_room(Claim(cpus=512), config)
    await_room(Claim(cpus=1), config)


@pytest.mark.usefixtures("ray_cluster")
def test_a_node_is_waited_for_with_a_word(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = [[node("a", 2)], [node("a", 2)], [node("a", 2), node("b", 512)]]
    monkeypatch.setattr(cluster, "nodes", lambda **_: seen.pop(0) if len(seen) > 1 else seen[0])
    await_room(Claim(cpus=512), config, wait_s=60)
    assert "waiting for a node with room for a worker of 512 CPUs" in capsys.readouterr().out
