from __future__ import annotations

from typing import Any

import pytest

from lana_ray.cluster import connection as cluster
from lana_ray.cluster.connection import Node
from lana_ray.cluster.placement import assign_targets
from lana_ray.config import Target

from ..errors import refuses


def _node(name: str, target: str | None = None, *, cpus: int = 4, gpus: int = 0, devices: int = 1) -> Node:
    resources = {"CPU": cpus, "GPU": gpus, "lana_device": devices}
    return Node(id=name, name=name, labels={"lana.target": target} if target else {}, resources=resources)


def _target(name: str = "xeon", **settings: Any) -> Target:
    return Target(name=name, **settings)


def test_labelled_nodes_serve_their_target() -> None:
    known = [_node("a", "xeon", cpus=8), _node("b", "xeon", devices=2), _node("c", "arm"), _node("head")]
    placements = assign_targets([_target(threads=4), _target("small", label="arm", threads=2)], known)
    xeon = placements["xeon"]
    assert xeon.nodes == ("a", "b")
    assert xeon.actors == 2  # b has two devices, but CPUs for one
    assert xeon.alone == xeon
    both = [_node("b", "xeon", devices=2), _node("c", "xeon", devices=3)]
    assert assign_targets([_target()], both)["xeon"].alone.claim == {"CPU": 1, "lana_device": 2}
    assert not xeon.stand_in
    assert xeon.options() == {
        "num_cpus": 4,
        "num_gpus": 0,
        "resources": {"lana_device": 1.0},
        "scheduling_strategy": "DEFAULT",
        "label_selector": {"lana.target": "xeon"},
    }
    assert placements["small"].nodes == ("c",)


def test_a_gpu_target_owns_the_gpu_it_names() -> None:
    known = [_node("a", "t4", gpus=2)]
    assert assign_targets([_target("t4", device="cuda")], known)["t4"].num_gpus == 1
    assert assign_targets([_target("t4", device="cuda:1")], known)["t4"].num_gpus == 2
    with refuses("no_node", "target 't4'", "device cuda:2", "but a has"):
        assign_targets([_target("t4", device="cuda:2")], known)


def test_the_only_machine_stands_in() -> None:
    placement = assign_targets([_target()], [_node("laptop")])["xeon"]
    assert placement.stand_in
    assert placement.label_selector is None
    assert placement.resources == {"lana_device": 1.0}
    assert assign_targets([_target()], [_node("laptop", devices=0)])["xeon"].resources == {}


def test_the_only_machine_stands_in_unless_it_says_that_it_trains() -> None:
    node = _node("head")
    only = Node(id="h", name="h", labels={"lana.role": "train"}, resources=node.resources)
    with refuses("no_node", "lana.target=xeon"):
        assign_targets([_target()], [only])


@pytest.mark.parametrize(
    ("known", "named"),
    [
        ([_node("a", "b"), _node("c", "a")], ["lana.target=xeon", "nodes offer: a, b"]),
        ([_node("a"), _node("b")], ["lana.target=xeon", "nodes offer: none"]),
        ([_node("a", "xeon", cpus=1)], ["threads 2", "a has only 1 CPUs"]),
        ([_node("a", "xeon", devices=0)], ["a offers no lana_device", "ray start --resources="]),
        ([_node("laptop", cpus=1)], ["threads 2", "laptop has only 1 CPUs"]),
    ],
)
def test_a_target_nobody_serves_is_named(known: list[Node], named: list[str]) -> None:
    with refuses("no_node", "target 'xeon'", *named):
        assign_targets([_target(threads=2)], known)


@pytest.mark.usefixtures("ray_cluster")
def test_waiting_is_said_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    known = [_node("head", devices=0)]  # unlabelled, but more is to come: no stand-in
    monkeypatch.setattr(cluster, "nodes", lambda: known)
    with refuses("no_node", "target 'xeon'", "nodes offer: none"):
        assign_targets([_target()], known, wait_s=0.1, on_wait=said.append)
    assert said == ["waiting for a node with label lana.target=xeon (0 of 0.1 s)"]
