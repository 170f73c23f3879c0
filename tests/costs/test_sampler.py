"""The sampler: what it yields, under which keys, and what becomes of a structure that cannot be measured."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lana_ray.config import MeasureConfig, Target
from lana_ray.costs import hardware
from lana_ray.costs import sampler as sampler_module
from lana_ray.costs.hardware import processor
from lana_ray.costs.sampler import Sampler
from lana_ray.costs.samples import Sample
from lana_ray.costs.timing import Measurement, Reference
from lana_ray.costs.work import (
    OtherStructure,
    Work,
    candidate_work,
    empty_work,
    in_sessions,
    network_work,
    student_work,
)
from lana_ray.deploy.inputs import example_input
from lana_ray.deploy.runtimes import program
from lana_ray.deploy.runtimes import torch_eager as eager
from lana_ray.errors import Unsupported, UserError
from lana_ray.networks.layers import find_layers
from lana_ray.run_dir.storage import Storage
from lana_ray.spaces import LayerwiseSpace, NasBench201Space
from lana_ray.spaces.cells import CellStudents

from ..small_networks import Block, Net

pytestmark = pytest.mark.usefixtures("own_process")
QUICK = MeasureConfig(rel_error=0.5, time_limit_s=0.01, soak_s=0)
POOL = ["identity", "mbconv_e1_k3"]


class Twins(Net):
    """Two layers of the same structure and a third of another."""

    def __init__(self, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__(num_classes=5)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), act(), act(), act(), act())
        self.blocks = nn.ModuleList([Block(8, 8, 1), Block(8, 8, 1), Block(8, 16, 2)])


def space(act: type[nn.Module] = nn.ReLU) -> LayerwiseSpace:
    torch.manual_seed(0)
    network = Twins(act).eval()
    return LayerwiseSpace(network, find_layers(network, torch.randn(2, 3, 16, 16)), POOL)


def target(runtime: str = "torch", **settings: object) -> Target:
    if runtime != "torch":
        pytest.importorskip(runtime)
    return Target.model_validate(
        {"name": "here", "runtime": runtime, "input_shape": (3, 16, 16), "measure": QUICK, **settings}
    )


def work(of: LayerwiseSpace) -> list[Work]:
    return [
        empty_work(of, 0),
        candidate_work(of, 0, 0),
        candidate_work(of, 2, 1),
        network_work(of, (1, 2, 0)),
    ]


def write_student(storage: Storage, of: LayerwiseSpace, architecture: tuple[int, ...], name: str) -> None:
    storage.write_tensors(name, of.build(architecture).state_dict(), {})


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_the_reference_comes_first_and_then_every_structure(tmp_path: Path, runtime: str) -> None:
    of, storage = space(), Storage(str(tmp_path))
    write_student(storage, of, (2, 0, 1), "students/a.safetensors")
    asked = [*work(of), student_work(of, (2, 0, 1), "students/a.safetensors", "a")]
    sampler = Sampler(of, target(runtime, batch_size=2), storage)
    samples = [s for s in sampler.sample(asked, []) if s.key != "floor"]  # nearly as fast as the teacher
    assert [s.kind for s in samples] == ["reference", "empty", "candidate", "candidate", "network", "student"]
    assert [s.key for s in samples[1:]] == [item.key for item in asked]
    assert [s.what for s in samples] == [
        "teacher",
        "empty (8, 16, 16)",
        "blocks.0=teacher",
        "blocks.2=mbconv_e1_k3",
        "blocks.0=identity|blocks.1=mbconv_e1_k3|blocks.2=teacher",
        "blocks.0=mbconv_e1_k3|blocks.1=teacher|blocks.2=mbconv_e1_k3",
    ]
    for sample in samples:
        assert sample.error is None
        assert sample.target == "here"
        assert sample.target_key == sampler.target_key()
        assert np.isfinite([sample.median_ms, sample.iqr_ms, sample.raw_ms, sample.drift]).all()
        assert sample.median_ms > 0
        assert sample.repeats >= 10
        assert sample.runtime.startswith(f"{runtime} ")
        assert sample.threads == 1
        assert sample.processor == processor(target())
    assert [s.time for s in samples] == sorted(s.time for s in samples)


def test_a_known_baseline_is_not_measured_again(tmp_path: Path) -> None:
    of = space()
    sampler = Sampler(of, target(), Storage(str(tmp_path)))
    (sample,) = sampler.sample([network_work(of, of.teacher)], [1000.0])
    assert sample.kind == "network"
    assert sample.median_ms > 10 * sample.raw_ms  # relative to what the teacher is said to take
    assert sample.drift == pytest.approx(sample.raw_ms / sample.median_ms)


def test_every_session_is_a_process_of_its_own_with_one_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All students have their session before one has its next."""
    of, storage = space(), Storage(str(tmp_path))
    sampler = Sampler(of, target(), storage)
    students = []
    for i in (1, 2):
        write_student(storage, of, (i, 0, 0), f"{i}.safetensors")
        students.append(student_work(of, (i, 0, 0), f"{i}.safetensors", str(i)))
    made: list[object] = []

    def export(network: nn.Module, example: torch.Tensor, at: Target) -> nn.Module | bytes:
        made.append(network)
        return program(network, example, at)

    monkeypatch.setattr(sampler_module, "program", export)
    asked = in_sessions(students, range(3))
    samples = list(sampler.sample([*asked, students[0]], [1.0]))
    sampler.close()
    assert len(made) == 2
    assert [sample.key for sample in samples] == [item.key for item in [*asked, students[0]]]
    processes = [sample.process for sample in samples]
    assert processes[0::2][:3] == processes[1::2][:3]
    assert len({os.getpid(), *processes[:6]}) == 4
    assert processes[-1] == os.getpid()


class Bessel(nn.Module):
    """No ONNX operator computes it."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.special.i0(images)


def test_only_what_the_exporter_or_the_runtime_refuses_is_a_sample_with_an_error(tmp_path: Path) -> None:
    """Weights that cannot be read say nothing about the network."""
    of, storage = space(Bessel), Storage(str(tmp_path))
    with pytest.raises(Unsupported, match="ONNX cannot express it"):
        Sampler(of, target("onnxruntime"), storage)  # as no layer leaves the stem out
    of = space()
    sampler = Sampler(of, target("onnxruntime"), storage)
    item = candidate_work(of, 0, 2)
    sampler._programs.candidate = lambda *_: b"no program"  # type: ignore
    (refused,) = sampler.sample([item], [1.0])
    assert "ONNX Runtime refuses the network" in str(refused.error)
    assert np.isnan([refused.median_ms, refused.iqr_ms, refused.raw_ms, refused.drift]).all()
    assert not refused.settled
    write_student(storage, of, (0, 0, 0), "other.safetensors")
    storage.write_bytes("damaged.safetensors", b"not weights")
    for name, error in (("other", RuntimeError), ("damaged", UserError), ("missing", OSError)):
        with pytest.raises(error, match=r"key\(s\) in state_dict|damaged|missing\.safetensors"):
            next(sampler.sample([student_work(of, (1, 1, 1), f"{name}.safetensors", name)], [1.0]))


@pytest.mark.parametrize("message", ["CUDA error: unspecified launch failure", "std::bad_alloc"])
def test_a_fault_of_the_machine_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    of = space()
    sampler = Sampler(of, target(), Storage(str(tmp_path)))

    def break_down(*_: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(eager.EagerSession, "run", break_down)
    with pytest.raises(RuntimeError, match=message):
        next(sampler.sample([network_work(of, (1, 1, 0))], [1.0]))
    monkeypatch.setattr(eager, "program", break_down)
    with pytest.raises(RuntimeError, match=message):
        next(sampler.sample([empty_work(of, 2)], [1.0]))


def test_what_a_node_would_build_otherwise_is_not_measured(tmp_path: Path) -> None:
    """Its pool lacks an operation, its teacher is another, or its cells are wider."""
    of, storage = space(), Storage(str(tmp_path))
    torch.manual_seed(0)
    network = Twins().eval()
    layers = find_layers(network, torch.randn(2, 3, 16, 16))
    reordered = LayerwiseSpace(network, layers, list(reversed(POOL)))
    assert of.structure(0, 2) == reordered.structure(0, 1)  # the same under another index
    wide = LayerwiseSpace(network, layers, ["mbconv_e6_k3"])
    students, thin = (CellStudents(NasBench201Space(classes=10, width=w, cells=1), of) for w in (4, 8))
    asked = [candidate_work(of, 0, 2), network_work(of, (2, 0, 1))]
    assert [s.error for s in Sampler(reordered, target(), storage).sample(asked, [1.0])] == [None, None]
    weights = student_work(of, (2, 0, 1), "a.safetensors", "a")
    cells = network_work(students, (1, 2, 3, 4, 0, 1))
    other: list[tuple[LayerwiseSpace | CellStudents, Work]] = [
        (wide, asked[0]),
        (wide, asked[1]),
        (wide, weights),
        (space(nn.SiLU), asked[0]),
    ]
    other += [(space(nn.SiLU), asked[1]), (space(nn.SiLU), weights)]
    for its_space, item in [*other, (thin, cells)]:
        with pytest.raises(OtherStructure, match=r"'here': .* is another structure on node"):
            next(Sampler(its_space, target(), storage).sample([item], [1.0]))


def test_equal_structures_have_equal_keys_and_others_do_not() -> None:
    of, again = space(), space()
    with torch.no_grad():
        for parameter in again.network.parameters():
            parameter.normal_()
    assert [item.key for item in work(of)] == [item.key for item in work(again)]
    assert candidate_work(of, 0, 2).key == candidate_work(of, 1, 2).key
    assert empty_work(of, 0).key == empty_work(of, 1).key
    distinct = [
        candidate_work(of, 0, 0),
        candidate_work(of, 0, 1),
        candidate_work(of, 0, 2),
        candidate_work(of, 1, 0),
        candidate_work(of, 2, 1),
        candidate_work(space(nn.SiLU), 0, 2),
        empty_work(of, 0),
        network_work(of, (0, 0, 0)),
        network_work(of, (1, 0, 0)),
        network_work(of, (0, 1, 0)),
        *in_sessions([network_work(of, (0, 0, 0))], range(2)),
        student_work(of, (0, 0, 0), "a.safetensors", "a"),
        student_work(of, (0, 0, 0), "a.safetensors", "b"),
    ]
    assert len({item.key for item in distinct}) == len(distinct)


def test_samples_mix_only_between_equal_targets(tmp_path: Path) -> None:
    of, storage = space(), Storage(str(tmp_path))
    first = Sampler(of, target(), storage).target_key()
    more, patient = (QUICK.model_copy(update=new) for new in ({"architectures": 99}, {"time_limit_s": 9.0}))
    same = [target(), target(name="there", label="here"), target(measure=more)]
    assert {Sampler(of, t, storage).target_key() for t in same} == {first}
    others = [
        target(label="x"),
        target(name="there"),
        target(batch_size=2),
        target(threads=2),
        target("onnxruntime"),
        target(input_shape=(3, 24, 24)),
    ]
    others += [target(measure=patient), target(measure=QUICK.model_copy(update={"rel_error": 0.001}))]
    keys = {Sampler(of, t, storage).target_key() for t in others}
    assert len(keys) == len(others)
    assert first not in keys


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system pins no processes")
def test_samples_say_where_the_process_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of, cpu = space(), min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, [cpu])
    monkeypatch.setattr(hardware, "kind_of", lambda cpus: f"cores like {cpus}")
    sampler = Sampler(of, target(threads=1), Storage(str(tmp_path)))
    assert torch.get_num_threads() == 1
    (sample,) = sampler.sample([empty_work(of, 0)], [1.0])
    assert sample.cpus == str(cpu)
    assert sample.processor.endswith(f", cores like ({cpu},)")


@pytest.mark.parametrize(("floor_ms", "used"), [(1.0, True), (1.9, False)])
def test_the_floor_is_the_teacher_without_the_layers_that_can_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, floor_ms: float, used: bool
) -> None:
    """It is timed beside the teacher, and used where it is much faster."""
    of = space()
    sampler = Sampler(of, target(), Storage(str(tmp_path)))
    images = example_input(target())
    with torch.no_grad():
        for session, architecture in zip(sampler._sessions, [of.teacher, (1, 1, 0)], strict=True):
            torch.testing.assert_close(session.predict(images), of.build(architecture).eval()(images))

    def time(session: object, references: Sequence[Reference], patience: float) -> Measurement:
        median_ms = 2.0 if session is sampler._sessions[0] else floor_ms
        beside = sum(reference.baseline_ms for reference in references)
        return Measurement(
            median_ms=median_ms,
            p90_ms=median_ms,
            p99_ms=median_ms,
            iqr_ms=0,
            repeats=7,
            seconds=1,
            settled=True,
            raw_ms=1,
            drift=beside,
        )

    monkeypatch.setattr(sampler, "_time", time)
    *floor, teacher, network = sampler.sample([network_work(of, (1, 1, 0))], [])
    assert [(s.kind, s.key, s.median_ms, s.drift) for s in floor] == [("reference", "floor", 1.0, 2.0)] * used
    assert (teacher.kind, teacher.key, teacher.median_ms) == ("reference", "teacher", 2.0)
    assert network.drift == 2.0 + used  # what it was measured beside
    (again,) = sampler.sample([network_work(of, (1, 1, 0))], [2.0, 1.0][: 1 + used])
    assert again.drift == network.drift


@pytest.mark.parametrize(
    ("tries", "baseline_ms"),
    [
        ([(11.0, False), (0.6, False), (0.5, False), (0.4, True)], 0.5),
        ([(11.0, False), (0.6, True), (0.5, True)], 0.6),
        ([(11.0, True), (0.6, True)], 11.0),
    ],
)
def test_a_busy_moment_is_no_baseline(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tries: list[tuple[float, bool]],
    baseline_ms: float,
) -> None:
    """The teacher is timed until it settles, three times at most; the quickest counts."""
    of = space()
    narrow = LayerwiseSpace(of.network, of.layers[-1:], POOL)
    sampler, left = Sampler(narrow, target(), Storage(str(tmp_path))), iter(tries)

    def time(*_: object) -> Measurement:
        median_ms, settled = next(left)
        return Measurement(
            median_ms=median_ms,
            p90_ms=median_ms,
            p99_ms=median_ms,
            iqr_ms=0,
            repeats=7,
            seconds=1,
            settled=settled,
            raw_ms=1,
            drift=1,
        )

    monkeypatch.setattr(sampler, "_time", time)
    assert [s.median_ms for s in sampler.sample([], [])] == [baseline_ms]


def test_a_teacher_that_needs_all_its_layers_is_the_only_reference(tmp_path: Path) -> None:
    of = space()
    narrow = LayerwiseSpace(of.network, of.layers[-1:], POOL)
    assert [s.key for s in Sampler(narrow, target(), Storage(str(tmp_path))).sample([], [])] == ["teacher"]


def test_samples_are_yielded_as_they_are_taken(tmp_path: Path) -> None:
    """A driver stores them in blocks: work must be drawn one by one, never all at once."""
    of = space()
    drawn: list[str] = []

    def asked() -> Iterator[Work]:
        for item in work(of):
            drawn.append(item.kind)
            yield item

    stream = Sampler(of, target(), Storage(str(tmp_path))).sample(asked(), [])
    assert next(s for s in stream if s.key == "teacher")
    assert drawn == []
    assert isinstance(next(stream), Sample)
    assert drawn == ["empty"]


def test_cells_are_measured_beside_the_teacher(tmp_path: Path) -> None:
    """Against the same reference as the teacher's own students, and dead edges make no difference."""
    of = space()
    cells = NasBench201Space(classes=10, width=4, cells=1)
    students = CellStudents(cells, of)
    rng = np.random.default_rng(0)
    some = [cells.random(rng) for _ in range(3)]
    storage = Storage(str(tmp_path))
    sampler = Sampler(students, target(), storage)
    assert sampler.target_key() == Sampler(of, target(), storage).target_key()
    found = {s.what: s for s in sampler.sample([network_work(students, a) for a in some], [])}
    assert found["teacher"].median_ms > 0
    for architecture in some:
        sample = found[cells.format(architecture)]
        assert sample.error is None
        assert sample.median_ms > 0
    dead = (0, 0, 1, 3, 0, 0)  # node 1 is fed by nothing
    assert students.network_structure(dead) == students.network_structure((0, 0, 0, 3, 0, 0))
    one, other = students.build(some[0]), students.build(some[0])
    assert all(torch.equal(*pair) for pair in zip(one.parameters(), other.parameters(), strict=True))
