"""Samplers on the nodes of a real cluster, one of which is killed: with samplers that measure nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..runs import TOKEN, printed

SCRIPT = """
    import sys, time
    from collections import Counter
    from pathlib import Path

    import ray
    from ray.cluster_utils import Cluster

    from lana_ray.cluster import connection as cluster
    from lana_ray.config import RayConfig, Target
    from lana_ray.cluster.job import Progress, Ready
    from lana_ray.cluster.fleet import run_jobs
    from lana_ray.cluster.job import Job
    from lana_ray.costs.work import Work
    from lana_ray.costs.samples import SampleStore
    from lana_ray.cluster.placement import assign_targets
    from lana_ray.run_dir.storage import Storage
    from tests.hired import From
    from tests.measured import sample as take

    here = Path(sys.argv[1]) / "begun"
    here.mkdir()

    class Sampler:
        def start(self):
            return Ready(target_key="k", node_id=ray.get_runtime_context().get_node_id())

        def sample(self, work, baselines_ms):
            node = ray.get_runtime_context().get_node_id()
            if not baselines_ms:
                teacher = take(kind="reference", key="teacher", target_key="k", median_ms=2.0, node=node)
                yield Progress(samples=(teacher,))
            if work and work[0].key.startswith("edge"):  # both begin before one of them has done it all
                (here / node).touch()
                while len(list(here.iterdir())) < 2:
                    time.sleep(0.02)
            done = ()
            for item in work:
                yield Progress(samples=done, begins=item.key)
                time.sleep(0.1)
                done = (take(kind="network", key=item.key, what=item.what, target_key="k", node=node),)
            yield Progress(samples=done)

    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    offer = {"num_cpus": 1, "resources": {"lana_device": 1}}
    doomed, other = (machines.add_node(**offer, labels={"lana.target": "edge"}) for _ in range(2))
    lone = machines.add_node(**offer, labels={"lana.target": "phone"})
    with cluster.connect(RayConfig(address=machines.address)):
        targets = [Target(name="edge"), Target(name="phone")]
        where = assign_targets(targets, cluster.nodes())
        jobs = [
            Job(
                target=target,
                placement=where[target.name],
                space="layers",
                work=[Work(kind="network", structure=f"{target.name}{k}", what=str(k)) for k in range(60)],
            )
            for target in targets
        ]
        print("actors", [where[t.name].actors for t in targets])

        def placement(job):
            return assign_targets([job.target], cluster.nodes())[job.target.name]

        class OnNodes(From):
            def room(self, job, without):
                return placement(job).actors

        samplers = OnNodes(lambda job: ray.remote(Sampler).options(**placement(job).options()).remote())

        alive = [doomed]

        def watch(job):
            shared = len({s.node for s in job.samples.values()}) == 2
            if alive and job.target.name == "edge" and shared and job.done > 20:
                machines.remove_node(alive.pop(), allow_graceful=False)

        store = SampleStore(Storage(sys.argv[1]))
        run_jobs(jobs, store, samplers, watch)
        samples = [s for s in store.read() if s.kind != "reference"]
        names = {doomed.node_id: "doomed", other.node_id: "other", lone.node_id: "lone"}
        shares = Counter((s.key[:4], names[s.node]) for s in samples)
        print("done", [job.done for job in jobs], len({s.key for s in samples}) == len(samples))
        print("nodes", sorted(shares), shares["edge", "other"] > 20)
    machines.shutdown()
"""


@pytest.mark.slow
def test_the_nodes_of_a_target_share_its_work_and_one_may_die(tmp_path: Path) -> None:
    said = printed(SCRIPT, tmp_path, **TOKEN)
    assert "actors [2, 1]" in said
    assert any("target edge: a sampler died" in line for line in said)
    assert "done [60, 60] True" in said
    assert "nodes [('edge', 'doomed'), ('edge', 'other'), ('phon', 'lone')] True" in said
