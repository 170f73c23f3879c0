"""Nodes that do not share the driver's run directory are found before anything is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lana_ray.cluster.agreement import Agreement, of_driver
from lana_ray.run_dir.lease import held
from lana_ray.run_dir.storage import Storage

from ..errors import refuses
from ..runs import TOKEN, printed

# The files of memory:// are a process's own: what a directory is that only looks shared.
NODES = """
    import sys

    from ray.cluster_utils import Cluster

    from lana_ray.cluster import agreement, connection as cluster
    from lana_ray.config import RayConfig
    from lana_ray.errors import UserError
    from lana_ray.run_dir.lease import held
    from lana_ray.run_dir.storage import Storage

    asked = []

    def ask(nodes, *rest, ask=agreement._ask):
        asked.append([node.id for node in nodes])
        ask(nodes, *rest)

    agreement._ask = ask
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    with cluster.connect(RayConfig(address=machines.address)):
        with held(Storage(sys.argv[1])), held(Storage("memory://run")):
            shared = agreement.NodeCheck(sys.argv[1])
            shared.look()
            first = machines.add_node(num_cpus=0)
            shared.look()
            shared.look()
            second = machines.add_node(num_cpus=0)
            shared.look()
            print("asked", asked == [[first.node_id], [second.node_id]])
            try:
                agreement.NodeCheck("memory://run").look()
            except UserError as error:
                print(error)
    machines.shutdown()
"""


@pytest.mark.slow
def test_every_node_is_asked_once_and_one_with_another_directory_is_named(tmp_path: Path) -> None:
    said = printed(NODES, tmp_path, **TOKEN)
    assert "asked True" in said
    assert any(line.startswith(f"run.dir memory://run: node {os.uname().nodename} ") for line in said)


def test_the_driver_agrees_with_itself(tmp_path: Path) -> None:
    of_driver(str(tmp_path)).check()
    with held(Storage(str(tmp_path))):
        of_driver(str(tmp_path)).check()


@pytest.mark.parametrize(("found", "said"), [("another", "another driver"), (None, "does not show")])
def test_a_directory_without_the_drivers_lease_is_another_one(found: str | None, said: str) -> None:
    storage = Storage(f"memory://{found}")
    with held(storage):
        here = of_driver(storage.root)
    named = (f"run.dir {storage.root}", os.uname().nodename, said)
    if found:
        with held(storage), refuses("invalid_setting", *named):
            here.check()
    else:
        with refuses("invalid_setting", *named):
            here.check()


def test_other_code_is_named_before_the_directory(tmp_path: Path) -> None:
    here = of_driver(str(tmp_path))
    other = Agreement(run_dir="memory://nowhere", lease="none", code={**here.code, "torch": "1.0"})
    with refuses("changed", "torch"):
        other.check()
