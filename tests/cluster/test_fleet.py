"""Samplers that share a target's work, die, and are replaced: with actors that answer at once."""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from lana_ray.cluster import fleet as fleet_module
from lana_ray.cluster import leases
from lana_ray.cluster.agreement import of_driver
from lana_ray.cluster.fleet import MAX_FAILURES, run_jobs
from lana_ray.cluster.job import Job, Progress, Ready
from lana_ray.cluster.leases import Busy
from lana_ray.cluster.placement import Placement
from lana_ray.cluster.samplers import SamplerActor
from lana_ray.config import Config, Target
from lana_ray.costs.sampler import Sampler
from lana_ray.costs.samples import Sample, SampleStore
from lana_ray.costs.work import Work
from lana_ray.deploy.runtimes import RUNTIMES
from lana_ray.errors import DeviceError, UserError
from lana_ray.run_dir.storage import Storage
from lana_ray.stages.sample import planned_candidates
from lana_ray.workspace import structural_space

from ..errors import refuses
from ..hired import Alone, From
from ..measured import sample
from ..runs import settings

pytestmark = pytest.mark.usefixtures("ray_cluster")


def samplers(
    deadly: Sequence[str] = (),
    keys: Sequence[str | Busy | DeviceError] = ("k",),
    stillborn: int = 0,
    endless: str = "",
    crew: tuple[Path, int] | None = None,
) -> From:
    """Actors that answer at once, and whose process ends at work called so, the first ones at birth.

    With a folder for a ``crew`` and its size, they wait for all of it to start before they measure anything.

    A sample's ``node`` is the number of its actor, its ``median_ms`` the sum of its baselines.
    """
    take = sample  # the class travels by value, what it names with it

    class Sampler:
        def __init__(self, number: int) -> None:
            self._number, self._asked = number, 0
            if number < stillborn:
                os._exit(1)

        def start(self) -> Ready | Busy:
            if crew:
                (crew[0] / str(self._number)).touch()
            key = keys[(self._number + self._asked) % len(keys)]
            self._asked += not isinstance(key, str)
            if isinstance(key, DeviceError):
                raise key
            if isinstance(key, Busy):
                return key
            return Ready(target_key=key, node_id=ray.get_runtime_context().get_node_id())

        def sample(self, work: Sequence[Work], baselines_ms: Sequence[float]) -> Iterator[Progress]:
            while crew and len(list(crew[0].iterdir())) < crew[1]:
                time.sleep(0.05)
            common = {
                "target_key": keys[0] if isinstance(keys[0], str) else keys[-1],
                "node": str(self._number),
                "error": None,
            }
            if not baselines_ms:
                baselines_ms = [2.0, 0.5]
                for key, baseline_ms in zip(("floor", "teacher"), reversed(baselines_ms), strict=True):
                    yield Progress(
                        samples=(take(kind="reference", key=key, median_ms=baseline_ms, **common),)
                    )
            done: tuple[Sample, ...] = ()
            for item in work:
                yield Progress(samples=done, begins=item.key)
                if item.what == "away" and not self._number:
                    raise DeviceError("failed", "target 'edge': command.run: no route")
                if item.what in deadly:
                    time.sleep(0.5)  # until what was yielded has arrived
                    os._exit(1)
                if item.what == endless:
                    time.sleep(600)
                found = {"key": item.key, "what": item.what, "median_ms": sum(baselines_ms)}
                done = (take(kind=item.kind, **found, **common),)
            yield Progress(samples=done)

    hired = From(lambda _: ray.remote(Sampler).options(num_cpus=0).remote(len(hired.started)))
    return hired


def job(count: int, *, actors: int = 1, name: str = "edge", extra: Sequence[str] = ()) -> Job:
    whats = [f"w{k}" for k in range(count)]
    whats[count // 2 : count // 2] = extra
    placement = Placement(
        nodes=("a",), actors=actors, label_selector=None, resources={}, num_cpus=0, num_gpus=0, stand_in=True
    )
    work = [Work(kind="network", structure=what, what=what) for what in whats]
    return Job(target=Target(name=name), placement=placement, work=work, space="layers")


@pytest.fixture
def store(tmp_path: Path) -> SampleStore:
    return SampleStore(Storage(str(tmp_path)))


def test_the_actors_of_a_target_share_its_work(store: SampleStore, tmp_path: Path) -> None:
    asked, done = job(200, actors=3), []
    crew = tmp_path / "crew"
    crew.mkdir()
    run_jobs([asked], store, samplers(crew=(crew, 3)), lambda job: done.append(job.done))
    stored = store.read("k")
    assert Counter(s.key for s in stored) == Counter(["floor", "teacher", *(work.key for work in asked.work)])
    assert {s.median_ms for s in stored if s.kind == "network"} == {2.5}  # the same baselines for all
    assert len(Counter(s.node for s in stored)) == 3
    assert (done[-1], sorted(done)) == (200, done)


def test_what_is_stored_is_not_measured_again(store: SampleStore) -> None:
    start = samplers()
    run_jobs([job(5)], store, start, lambda _: None)
    again, more = job(5), job(8)
    again.target_key = "k"
    run_jobs([again], store, start, lambda _: None)
    assert len(start.started) == 1
    assert (again.reused, again.done, again.pending()) == (5, 5, [])
    run_jobs([more], store, start, lambda _: None)
    assert (more.reused, more.done) == (5, 8)
    assert len(store.read("k")) == 10


def test_what_follows_from_the_samples_is_measured_by_the_same_actors(store: SampleStore) -> None:
    start, asked, told = samplers(), job(5, actors=2), []

    def follow(samples: Mapping[str, Sample]) -> list[Work]:
        told.append(sorted(samples))
        return [Work(kind="network", structure=f"{key}+", what=key) for key in samples]

    asked.follow = follow
    run_jobs([asked], store, start, lambda _: None)
    assert told == [sorted(f"w{k}" for k in range(5))]
    assert sorted(asked.samples) == sorted([*told[0], *(f"{key}+" for key in told[0])])
    assert (asked.reused, asked.pending()) == (0, [])
    again = job(5)
    again.follow = follow
    run_jobs([again], store, start, lambda _: None)
    assert (again.reused, again.done) == (10, 10)
    assert len(start.started) == 3


def test_a_sampler_that_finds_no_place_holds_up_nobody(store: SampleStore) -> None:
    """Its node went with the device it waits for: what follows from the samples is not given to it."""

    class Homeless:
        def start(self) -> Ready:
            raise AssertionError("it never starts, and has no method to sample with")

    place, asked = samplers(), job(5, actors=2)
    asked.follow = lambda samples: [Work(kind="network", structure=f"{key}+", what=key) for key in samples]

    def start(job: Job) -> Any:
        if not hired.started:
            return place.hire(job, ()).actor()  # type: ignore[union-attr]
        return ray.remote(Homeless).options(resources={"nowhere": 1}).remote()

    hired = From(start)
    run_jobs([asked], store, hired, lambda _: None)
    assert (asked.done, asked.pending()) == (10, [])


def test_the_first_teacher_and_the_floor_beside_it_are_the_baseline(store: SampleStore) -> None:
    """A floor without a teacher was left by a sampler that died; later ones are another driver's."""
    taken = [("floor", 0.7), ("floor", 0.5), ("teacher", 2.0), ("floor", 0.9), ("teacher", 3.0)]
    for time_s, (key, ms) in enumerate(taken):
        store.append([sample(kind="reference", key=key, median_ms=ms, time=float(time_s))])
    asked = job(1)
    asked.target_key = "k"
    asked.recall(store)
    assert {key: s.median_ms for key, s in asked.references.items()} == {"floor": 0.5, "teacher": 2.0}
    assert (asked.done, len(asked.pending())) == (0, 1)


def test_a_structure_that_samplers_end_at_is_left_out_of_this_run_alone(
    store: SampleStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has a sample that says why, which is not kept, and everything else is measured."""
    asked = job(40, actors=2, extra=["deadly"])
    run_jobs([asked], store, samplers(deadly=["deadly"]), lambda _: None)
    assert asked.done == 41
    assert f"{MAX_FAILURES} samplers died while measuring it" in str(asked.samples["deadly"].error)
    kept = {s.what: s for s in store.read("k") if s.kind != "reference"}
    assert kept.keys() == asked.samples.keys() - {"deadly"}
    assert all(s.error is None for s in kept.values())
    said = capsys.readouterr().out
    assert said.count("target edge: a sampler died") == MAX_FAILURES
    assert said.count("deadly is left out") == 1
    again = job(40, extra=["deadly"])
    again.target_key = "k"
    run_jobs([again], store, samplers(), lambda _: None)
    assert (again.reused, again.samples["deadly"].error) == (40, None)


def test_what_follows_is_measured_though_the_last_sampler_died(store: SampleStore) -> None:
    asked = job(0, extra=["deadly"])
    asked.follow = lambda samples: [Work(kind="network", structure=f"{key}+", what=key) for key in "ab"]
    run_jobs([asked], store, samplers(deadly=["deadly"]), lambda _: None)
    assert {key: s.error is None for key, s in asked.samples.items()} == {
        "deadly": False,
        "a+": True,
        "b+": True,
    }


class Faulty(SamplerActor):
    """A real sampler that fails at chosen structures, once each, in one of two ways.

    Its process ends, or raises what a GPU does after a fault, and from then on at every structure.
    """

    def __init__(self, marks: str, deadly: Sequence[str], faulty: Sequence[str], *arguments: Any) -> None:
        super().__init__(*arguments)
        self._marks, self._deadly, self._faulty = Path(marks), deadly, faulty
        self._poisoned = False
        self._sampler._program = self._program  # type: ignore[method-assign]

    def _program(self, item: Work) -> Any:
        mark = self._marks / item.key
        if item.key in (*self._deadly, *self._faulty) and not mark.exists():
            mark.touch()
            if item.key in self._deadly:
                time.sleep(0.5)  # until its last message has arrived
                os._exit(1)
            self._poisoned = True
        if self._poisoned:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return Sampler._program(self._sampler, item)


def test_no_structure_is_blamed_for_what_befell_its_sampler(store: SampleStore, tmp_path: Path) -> None:
    """Samplers die at three different structures and one has a fault: all is measured, nothing refused."""
    marks = tmp_path / "marks"
    marks.mkdir()
    config = Config.model_validate(settings(tmp_path))
    target = next(t for t in config.targets if t.runtime == "torch")
    target = target.model_copy(update={"input_shape": (3, 16, 16)})
    space = structural_space(config, 10)
    work = planned_candidates(space)
    keys = [item.key for item in work]
    asked = dataclasses.replace(job(0), target=target, work=work)

    def start(job: Job) -> Any:
        arguments = (
            str(marks),
            [*keys[:2], keys[3]],
            keys[2:3],
            config,
            10,
            job.target,
            job.space,
            of_driver(str(tmp_path)),
        )
        return ray.remote(Faulty).options(num_cpus=0).remote(*arguments)

    run_jobs([asked], store, From(start), lambda _: None)
    assert sorted(mark.name for mark in marks.iterdir()) == sorted(keys[:4])
    kept = {s.key: s for s in store.read(asked.target_key) if s.kind != "reference"}
    assert kept.keys() == set(keys)
    assert {s.error for s in (*kept.values(), *asked.samples.values())} == {None}


def test_a_sampler_of_other_code_is_refused(store: SampleStore, tmp_path: Path) -> None:
    config = Config.model_validate(settings(tmp_path))

    def start(job: Job) -> Any:
        here = of_driver(str(tmp_path))
        other = dataclasses.replace(here, code={**here.code, "timm": "0.0.1"})
        return ray.remote(SamplerActor).options(num_cpus=0).remote(config, 10, job.target, job.space, other)

    with refuses("changed", "timm"):
        run_jobs([job(3)], store, From(start), lambda _: None)


def test_what_takes_too_long_goes_to_another_sampler(
    store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "_ITEM_S", 2.0)
    asked = job(2, extra=["hangs"])
    run_jobs([asked], store, samplers(endless="hangs"), lambda _: None)
    assert asked.done == 3
    assert "no answer" in str(asked.samples["hangs"].error)
    assert {s.key for s in store.read("k") if s.kind == "network"} == {"w0", "w1"}


def test_a_wait_for_a_place_says_what_it_is_for_and_ends(
    store: SampleStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "_SAY_EVERY_S", 0.0)
    monkeypatch.setattr(fleet_module, "_START_S", 2.5)

    class Unplaced(Alone):
        def __init__(self) -> None:
            super().__init__(None)

    class Full(From):
        def hire(self, job: Job, without: Collection[str]) -> Alone:
            return Unplaced()

    asked = job(2)
    asked.placement = dataclasses.replace(asked.placement, num_cpus=4, resources={"lana_device": 1.0})
    for samplers in (Full(lambda _: None), From(lambda _: None)):  # no room on its node, and no node
        with refuses("busy", "target 'edge'", "4 CPU, 1 lana_device", "label edge"):
            run_jobs([asked], store, samplers, lambda _: None)
        assert "waiting for at most" in capsys.readouterr().out


def test_samplers_that_keep_dying_end_the_run(store: SampleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_module, "MAX_DEATHS", 1)
    with refuses("failed", "target 'edge'", "2 times"):
        run_jobs([job(3)], store, samplers(stillborn=99), lambda _: None)
    asked = job(3)
    run_jobs([asked], store, samplers(stillborn=1), lambda _: None)
    assert asked.done == 3


@pytest.mark.skipif(RUNTIMES["tensorrt"].version is not None, reason="this machine has TensorRT")
def test_a_runtime_that_is_missing_where_the_sampler_runs_is_named(
    store: SampleStore, tmp_path: Path
) -> None:
    target = {"name": "edge", "runtime": "tensorrt", "device": "cuda", "input_shape": (3, 16, 16)}
    config = Config.model_validate(settings(tmp_path, targets=[target]))
    asked = dataclasses.replace(job(3), target=config.targets[0])

    def start(job: Job) -> Any:
        return (
            ray.remote(SamplerActor)
            .options(num_cpus=0)
            .remote(config, 10, job.target, job.space, of_driver(str(tmp_path)))
        )

    with refuses("unavailable", "target 'edge'", "tensorrt", "pip install"):
        run_jobs([asked], store, From(start), lambda _: None)


def test_nodes_of_another_kind_are_let_go(
    store: SampleStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All actors are on one node here, so that the other kind leaves none to hire from."""
    asked, crew = job(9, actors=2), tmp_path / "crew"
    crew.mkdir()
    run_jobs([asked], store, samplers(keys=["k", "other"], crew=(crew, 2)), lambda _: None)
    assert (asked.done, {s.target_key for s in asked.samples.values()}) == (9, {"k"})
    assert "target 'edge': its nodes differ" in capsys.readouterr().out
    again = job(12)
    again.target_key = "k"
    with refuses("invalid_setting", "target 'edge'", "its nodes differ"):
        run_jobs([again], store, samplers(keys=["other"]), lambda _: None)


def test_a_target_nobody_serves_any_more_is_told_and_what_came_is_kept(store: SampleStore) -> None:
    class Once(From):
        def hire(self, job: Job, without: Collection[str]) -> Alone | None:
            if self.started:
                raise UserError("no_node", "target 'edge': no node carries label lana.target=edge")
            return super().hire(job, without)

    with refuses("no_node", "lana.target=edge"):
        once = Once(samplers(deadly=["deadly"])._start)
        run_jobs([job(10, extra=["deadly"])], store, once, lambda _: None)
    assert {s.what for s in store.read("k") if s.kind == "network"} == {f"w{k}" for k in range(5)}


def test_a_sampler_without_free_cores_is_asked_again_and_the_wait_is_told(
    store: SampleStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = Busy("xeon", ("process 7 (runs/other)",), own=False)
    asked = job(5)
    run_jobs([asked], store, samplers(keys=[busy, busy, "k"]), lambda _: None)
    assert asked.done == 5
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "process 7" in line]
    for words in ("target 'edge'", "xeon", "runs/other"):
        assert words in said
    monkeypatch.setattr(leases, "LIMIT_S", 0.0)
    with refuses("busy", "target 'edge'", "process 7 (runs/other)"):
        run_jobs([job(6)], store, samplers(keys=[busy]), lambda _: None)


def test_a_device_that_disappears_is_waited_for_and_nothing_of_it_is_stored(
    store: SampleStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    away = DeviceError("failed", "target 'edge': command.version: no route")
    asked = job(5, extra=["away"])
    run_jobs([asked], store, samplers(keys=["k", away, away, "k"]), lambda _: None)
    stored = store.read("k")
    assert {s.what for s in stored if s.kind == "network"} == {work.what for work in asked.work}
    assert all(s.error is None for s in stored)
    (waited,) = [line for line in capsys.readouterr().out.splitlines() if "command.version" in line]
    assert "target 'edge'" in waited
    assert "at most 10 minutes" in waited
    monkeypatch.setattr(fleet_module, "AWAY_S", 0.0)
    with refuses("busy", "target 'edge'", "command.version: no route"):
        run_jobs([job(5, extra=["away"])], store, samplers(keys=["other", away]), lambda _: None)


def test_a_device_that_never_answered_ends_the_run_at_once(store: SampleStore) -> None:
    away = samplers(keys=[DeviceError("failed", "target 'edge': command.version: no route")])
    with refuses("failed", "target 'edge'", "command.version: no route"):
        run_jobs([job(5)], store, away, lambda _: None)
    assert len(away.started) == 1


def test_a_real_sampler_leases_its_cores_until_it_ends(store: SampleStore, tmp_path: Path) -> None:
    config = Config.model_validate(settings(tmp_path))
    target = next(t for t in config.targets if t.runtime == "torch")
    target = target.model_copy(update={"input_shape": (3, 16, 16)})
    arguments = (config, 10, target, "layers", of_driver(str(tmp_path)))
    actor = ray.remote(SamplerActor).options(num_cpus=0).remote(*arguments)
    first = ray.get(actor.start.remote())
    while isinstance(first, Busy):  # other tests measure as well
        first = ray.get(actor.start.remote())
    assert ray.get(actor.start.remote()) == first
    assert any(str(tmp_path) in holder for holder in leases.held())
    ray.kill(actor)
    while any(str(tmp_path) in holder for holder in leases.held()):
        time.sleep(0.05)


def test_several_targets_are_measured_in_one_go(store: SampleStore) -> None:
    jobs = [job(30, name="a"), job(20, actors=2, name="b")]
    order: list[str] = []
    run_jobs(jobs, store, samplers(), lambda job: order.append(job.target.name))
    assert [(j.target.name, j.done) for j in jobs] == [("a", 30), ("b", 20)]
    assert set(order) == {"a", "b"}
