"""Training and tasks on the nodes of a real cluster, where a device with the most CPUs only measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
from ray import train

from ..runs import TOKEN, printed

SCRIPT = """
    import sys, time
    from dataclasses import replace
    from pathlib import Path

    import ray
    from ray.cluster_utils import Cluster

    from lana_ray.cluster import connection as cluster
    from lana_ray.config import TrainConfig, load_config
    from lana_ray.cluster.tasks import run_tasks
    from lana_ray.cluster.trainers import Training, run_training, worker_group
    from tests.runs import settings
    from tests.cluster.test_roles import worker

    here = Path(sys.argv[1])

    def task(workspace, number):
        time.sleep(0.5)
        return ray.get_runtime_context().get_node_id()

    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    device = {"lana_device": 1}
    edge = machines.add_node(num_cpus=8, resources=device, labels={"lana.target": "edge"})
    labels = {"lana.target": "xeon", "lana.role": "both"}
    both = machines.add_node(num_cpus=1, resources=device, labels=labels)
    config = load_config(settings(
        here / "run",
        ray={"address": machines.address},
        targets=[{"name": "edge"}, {"name": "xeon"}],
    ))
    with cluster.connect(config.ray):
        names = {node.id: node.target or "head" for node in cluster.nodes()}
        print("roles", sorted((names[node.id], node.role) for node in cluster.nodes()))
        group = worker_group(config.ray, TrainConfig(batch_size=256))
        print("group", (group.fewest, group.most), group.claim.cpus)

        def train(name):
            independent = replace(group, parts=None)
            setting = {"folder": here}
            run_training(
                Training(title=name, worker=worker, setting=setting, groups=[independent], total=1), config
            )
            files = [file.name.split() for file in here.iterdir() if file.is_file()]
            print(name, sorted(names[node] for _, node in files))
            for file in here.iterdir():
                if file.is_file():
                    file.unlink()

        found = run_tasks(task, [(k,) for k in range(8)], config, title="t")
        print("tasks", sorted({names[node] for node in found}))
        train("training")
        machines.remove_node(both)
        while len(cluster.nodes()) > 2:
            time.sleep(0.5)
        train("smaller")
    machines.shutdown()
"""


def worker(setting: dict[str, Any]) -> None:
    """Leaves a file that names its node."""
    node = ray.get_runtime_context().get_node_id()
    (setting["folder"] / f"{train.get_context().get_world_rank()} {node}").touch()
    train.report({})


@pytest.mark.slow
def test_a_node_that_measures_gets_no_training_however_large_it_is(tmp_path: Path) -> None:
    said = printed(SCRIPT, tmp_path, **TOKEN)
    assert "roles [('edge', 'measure'), ('head', 'train'), ('xeon', 'both')]" in said
    assert "group (1, 2) 1" in said
    assert "tasks ['head', 'xeon']" in said
    assert "training ['head', 'xeon']" in said
    assert "smaller ['head']" in said
