"""Measures the structures of a space on one target, in a pinned process and without Ray."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from lana_ray.config import Target
from lana_ray.costs.hardware import own_cpus, processor
from lana_ray.costs.remote_timing import time_session
from lana_ray.costs.samples import Sample
from lana_ray.costs.session_process import SessionProcess
from lana_ray.costs.timing import FAILED, Measurement, Reference, Timing, soak
from lana_ray.costs.work import OtherStructure, Work, empty_structure
from lana_ray.deploy.inputs import example_input, layer_input
from lana_ray.deploy.programs import Programs
from lana_ray.deploy.runtimes import Session, load, program, software
from lana_ray.errors import Unsupported, one_line
from lana_ray.ids import Architecture
from lana_ray.monitoring.progress import say
from lana_ray.networks.layers import removable, replace
from lana_ray.run_dir.code_version import method_version
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.storage import Storage
from lana_ray.spaces.space import StudentSpace

_PATIENCE = 4.0
"""Factor on the time limit of the references' first measurement, the baseline of all drift."""
_TRIES = 3
"""Maximum number of first measurements until one settles. All latencies are corrected to that moment, so the
machine must not be busy with other work then."""
_FLOOR_SHARE = 0.8
"""Share of the teacher's latency below which the floor serves as a second reference."""
_SESSION_PATIENCE = 2.0
"""Factor on the time limit of structures that are measured in several sessions."""


class Sampler:
    """Builds and times structures on a target, on the CPUs that the process is pinned to.

    Args:
        space: a space of students on any weights; only a layer-wise space has candidates.
        target: must have ``input_shape`` set.
        storage: the run directory with the weights of students.
    """

    def __init__(self, space: StudentSpace, target: Target, storage: Storage) -> None:
        self._space = space
        self._storage = storage
        self._target = target
        self._cpus = own_cpus()
        self._node = platform.node()
        self._runtime = software(target)
        torch.set_num_threads(target.threads)
        self._programs = Programs(space, target)
        self._layers = {layer.name: i for i, layer in enumerate(space.layers)}
        self._students: dict[str, nn.Module | bytes] = {}
        self._references = [program(space.network, example_input(target), target), *self._floor()]
        self._sessions = [load(each, example_input(target), target) for each in self._references]
        self._process: tuple[int, SessionProcess] | None = None
        """The process of the last session, with its number."""
        self._processor = processor(target)  # a GPU is there, since the teacher was loaded

    def _floor(self) -> Iterator[nn.Module | bytes]:
        """The teacher without its removable layers, if it has any and the rest runs here."""
        spare = {layer.name: nn.Identity() for layer in removable(self._space.layers)}
        if not spare:
            return
        example = example_input(self._target)
        try:
            deployed = program(replace(self._space.network, spare), example, self._target)
            load(deployed, example, self._target)
            yield deployed
        except Unsupported as error:
            say(f"target {self._target.name}: only the teacher measures drift: {error}")

    def target_key(self) -> str:
        """Identity of the settings, hardware, code and references of this process's samples from now on."""
        # A device may have got other firmware since this process measured on it.
        self._processor = processor(self._target)
        return self._key()

    def _key(self) -> str:
        other: dict[str, Any] = {
            "name": True,
            "label": True,
            "measure": {"architectures", "active"},
            "command": {"version", "timeout_s"},
        }
        settings = self._target.model_dump(exclude=other, mode="json") | {"label": self._target.node_label}
        method = method_version("costs.sampler")
        return fingerprint(settings, self._processor, self._runtime, self._space.fingerprint, method)

    def sample(self, work: Iterable[Work], baselines_ms: Sequence[float]) -> Iterator[Sample]:
        """Measures structures, and corrects latencies for the drift of the references (teacher and floor).

        Args:
            baselines_ms: the references' latencies in an earlier session, the teacher's first. If empty, the
                references are measured first; their samples come before the others, the teacher's last.

        Raises:
            OtherStructure: this node would build another structure than the ordered one.
            Exception: this process cannot measure. Only a structure that the exporter or the runtime refuses,
                as they would again, gives a sample with an error.
        """
        references = [
            Reference(run=session.run, baseline_ms=baseline_ms)  # a floor without a baseline is not used
            for session, baseline_ms in zip(self._sessions, baselines_ms, strict=False)
        ]
        if not references:
            for what, measured, reference in self._baselines():
                references.insert(0, reference)
                yield self._record("reference", what, what, measured, None, os.getpid())
        for item in work:
            yield self._sample(item, references)

    def _baselines(self) -> Iterator[tuple[str, Measurement, Reference]]:
        """The references' first measurements: the floor's, if it is clearly faster, then the teacher's."""
        teacher, *floors = self._sessions
        soak(teacher.run, self._target.measure.soak_s)
        measured = self._quickest(teacher)
        reference = Reference(run=teacher.run, baseline_ms=measured.median_ms)
        for floor in floors:
            try:
                timed = self._time(floor, [reference], _PATIENCE)
            except Unsupported as error:
                say(f"target {self._target.name}: only the teacher measures drift: {error}")
                continue
            if timed.median_ms < _FLOOR_SHARE * measured.median_ms:
                yield "floor", timed, Reference(run=floor.run, baseline_ms=timed.median_ms)
        yield "teacher", measured, reference

    def _quickest(self, session: Session) -> Measurement:
        """The quickest of up to ``_TRIES`` measurements, which end when one settles."""
        tries: list[Measurement] = []
        while len(tries) < _TRIES and not (tries and tries[-1].settled):
            tries.append(self._time(session, (), _PATIENCE))
        return min(tries, key=lambda measured: measured.median_ms)

    def _sample(self, item: Work, references: Sequence[Reference]) -> Sample:
        pid = os.getpid()
        try:
            deployed, example = self._program(item), self._example(item)
            if item.session is None:
                session = load(deployed, example, self._target)
                measured = self._time(session, references, 1.0)
            else:
                process = self._process_of(item.session, references)
                measured, pid = (
                    process.time((deployed, example), self._timing(_SESSION_PATIENCE)),
                    process.pid,
                )
        except Unsupported as error:
            return self._record(item.kind, item.key, item.what, None, one_line(error), pid)
        return self._record(item.kind, item.key, item.what, measured, None, pid)

    def _process_of(self, number: int, references: Sequence[Reference]) -> SessionProcess:
        """The process with this number, which takes the place of the last one."""
        if self._process is None or self._process[0] != number:
            self._end_process()
            example = example_input(self._target)
            programs = [(each, example) for each in self._references[: len(references)]]
            baselines_ms = [reference.baseline_ms for reference in references]
            self._process = number, SessionProcess(self._target, programs, baselines_ms)
        return self._process[1]

    def close(self) -> None:
        """Ends the process of the last session and forgets students; ``sample`` may be called again."""
        self._students.clear()
        self._end_process()

    def _end_process(self) -> None:
        if self._process is not None:
            self._process[1].close()
            self._process = None

    def _program(self, item: Work) -> nn.Module | bytes:
        """The program that the target would run for a structure."""
        if item.layer is None:
            architecture = self._architecture(item)
            if item.weights is not None:
                return self._student(item, architecture)
            return self._programs.network(architecture)
        layer = self._layer(item)
        if item.op is None:
            self._check(item, empty_structure(self._space.layers[layer]))
            return program(nn.Identity(), self._example(item), self._target)
        return self._programs.candidate(layer, self._choice(item, layer))

    def _layer(self, item: Work) -> int:
        """Index of a candidate's layer."""
        assert item.layer is not None
        if item.layer not in self._layers:
            self._check(item, None)
        return self._layers[item.layer]

    def _choice(self, item: Work, layer: int) -> int:
        """Index of a candidate at its layer."""
        ops = {op: (choice, structure) for choice, (op, structure) in enumerate(self._programs.ops(layer))}
        choice, structure = ops.get(str(item.op), (0, None))
        self._check(item, structure)
        return choice

    def _architecture(self, item: Work) -> Architecture:
        """The architecture of a network."""
        try:
            architecture = self._space.parse(item.what)
        except ValueError:
            architecture = None
        own = None if architecture is None else self._space.network_structure(architecture)
        self._check(item, own)
        assert architecture is not None
        return architecture

    def _check(self, item: Work, own: str | None) -> None:
        """Raises OtherStructure unless ``own``, which this process would build, is the ordered structure."""
        if own != (item.network or item.structure):
            raise OtherStructure(
                "changed",
                f"target {self._target.name!r}: {item.what} is another structure on node {self._node} than "
                "in the driver; install the same lana_ray, torch, timm and pool.modules on both",
            )

    def _student(self, item: Work, architecture: Architecture) -> nn.Module | bytes:
        """The program of a student, exported once for all sessions."""
        if item.structure not in self._students:
            assert item.weights is not None
            network = self._space.build(architecture)
            network.load_state_dict(self._storage.read_tensors(item.weights))
            self._students[item.structure] = program(network, self._example(item), self._target)
        return self._students[item.structure]

    def _example(self, item: Work) -> Tensor:
        """An example input of a structure."""
        if item.layer is None:
            return example_input(self._target)
        return layer_input(self._space, self._layer(item), self._target)

    def _timing(self, patience: float) -> Timing:
        measure = self._target.measure
        return Timing(
            rel_error=measure.rel_error / sqrt(patience),
            time_limit_s=measure.time_limit_s * patience,
            calls=measure.calls,
        )

    def _time(self, session: Session, references: Sequence[Reference], patience: float) -> Measurement:
        return time_session(session, self._target, self._timing(patience), references)

    def _record(
        self, kind: str, key: str, what: str, m: Measurement | None, error: str | None, process: int
    ) -> Sample:
        return Sample(
            **asdict(m or FAILED),
            target=self._target.name,
            target_key=self._key(),
            kind=kind,
            key=key,
            what=what,
            error=error,
            node=self._node,
            processor=self._processor,
            runtime=self._runtime,
            threads=self._target.threads,
            cpus=",".join(map(str, self._cpus)),
            process=process,
            time=time.time(),
        )
