"""Samples on disk: immutable Parquet files, keyed by structure, target and settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import pyarrow as pa

from lana_ray.costs.timing import Measurement
from lana_ray.errors import UserError
from lana_ray.run_dir import layout
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.tables import schema_of

SCHEMA_VERSION = 6
"""Changes whenever columns or their meaning change."""
_VERSION_KEY = b"lana_ray.samples"
_SMALL = 10_000
"""Blocks of fewer samples are merged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample(Measurement):
    """A measurement of a structure on a target, with its provenance."""

    target: str
    target_key: str
    """Identity of the target's settings, hardware and runtime version and of the teacher's structure; only
    samples with equal keys are comparable."""
    kind: str
    """``reference`` (``teacher`` and ``floor``, which measure drift), ``empty``, ``candidate``, ``network``
    or ``student`` (a network with its final weights)."""
    key: str
    """Identity of the measured structure, without its weights, and of the session."""
    what: str
    """A readable description: the operation and its layer, or the operations of a network."""
    error: str | None
    """Why the exporter or the runtime refuses the structure; the numbers are NaN then."""
    node: str
    processor: str
    runtime: str
    threads: int
    cpus: str
    process: int
    """Id of the process that timed it."""
    time: float
    """Seconds since the epoch."""


_provenance = attrgetter(*Sample.__annotations__)
"""What was measured, where and when; two samples of which all this is equal are one."""
_SCHEMA = schema_of(Sample).with_metadata({_VERSION_KEY: str(SCHEMA_VERSION).encode()})


class SampleStore:
    """The samples of a run directory, read once and answered from memory.

    Every block of samples is a file that never changes. So ``read`` opens only files it has not seen, several
    drivers may append at once, and ``compact`` may replace small blocks by a larger one: it removes only
    blocks it has read, once the larger one exists. If it is killed in between, the samples are there twice
    and count once.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._blocks: dict[str, list[Sample]] = {}
        """File -> its samples, for the files that were there when last looked."""
        self._damage: dict[str, str] = {}
        """File -> what was left out of it, and why."""
        self._said: set[str] = set()
        """Files whose damage ``update`` has returned."""
        self._samples: dict[str, dict[Any, Sample]] = {}
        """Target key -> provenance -> sample."""

    @property
    def damaged(self) -> list[str]:
        """One line for everything that is left out, such as damaged files."""
        return [self._damage[name] for name in sorted(self._damage)]

    def append(self, samples: Iterable[Sample]) -> None:
        """Writes one block as one file, atomically."""
        if block := list(samples):
            name = layout.samples(block[0].target)
            self._write(name, block)
            self._keep(name, block)

    def read(self, target_key: str | None = None) -> list[Sample]:
        """All samples, or those of one target; oldest first."""
        self.update()
        keys = self._samples if target_key is None else [target_key]
        samples = [sample for key in keys for sample in self._samples.get(key, {}).values()]
        return sorted(samples, key=lambda sample: sample.time)

    def update(self) -> list[str]:
        """Reads the blocks that were added since; returns one new line for everything left out."""
        # Another driver may compact meanwhile: what was listed is gone then, and a new block has it.
        while new := self._new():
            for name in new:
                try:
                    self._keep(name, self._file(name))
                except UserError as error:
                    self._keep(name, [])
                    self._damage[name] = str(error)
        unsaid = sorted(self._damage.keys() - self._said)
        self._said.update(unsaid)
        return [self._damage[name] for name in unsaid]

    def compact(self) -> None:
        """Merges the small blocks of each target that were read or written here into one."""
        small: dict[str, list[str]] = {}
        for name, block in self._blocks.items():
            if 0 < len(block) < _SMALL and name not in self._damage:
                small.setdefault(block[0].target, []).append(name)
        for target, names in small.items():
            if len(names) > 1:
                merged = {_provenance(sample): sample for name in names for sample in self._blocks[name]}
                whole = layout.samples(target)
                self._write(whole, list(merged.values()))
                self._blocks[whole] = list(merged.values())
                for name in names:
                    del self._blocks[name]
                    self._storage.remove(name)

    def _new(self) -> list[str]:
        """Lists the blocks; forgets those that are gone, but not their samples, and returns unread ones."""
        names = dict.fromkeys(self._storage.list(layout.SAMPLES, ".parquet"))
        self._blocks = {name: block for name, block in self._blocks.items() if name in names}
        self._damage = {name: line for name, line in self._damage.items() if name in names}
        return [name for name in names if name not in self._blocks]

    def _keep(self, name: str, samples: Sequence[Sample]) -> None:
        possible = [s for s in samples if s.error is not None or 0 < s.median_ms < math.inf]
        if impossible := len(samples) - len(possible):
            self._damage[name] = (
                f"{self._storage.url(name)}: {impossible} samples whose latency is not a positive number"
            )
        self._blocks[name] = possible
        for sample in possible:
            self._samples.setdefault(sample.target_key, {})[_provenance(sample)] = sample

    def _write(self, name: str, samples: Sequence[Sample]) -> None:
        columns = [[getattr(sample, field) for sample in samples] for field in _SCHEMA.names]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
        table = pa.Table.from_arrays(arrays, schema=_SCHEMA)
        self._storage.write_table(name, table, fingerprint(SCHEMA_VERSION))

    def _file(self, name: str) -> list[Sample]:
        table = self._storage.read_table(name)
        version = (table.schema.metadata or {}).get(_VERSION_KEY, b"none").decode()
        if version != str(SCHEMA_VERSION):
            raise UserError(
                "damaged_file",
                f"{self._storage.url(name)}: samples of version {version}, not {SCHEMA_VERSION}; left out",
            )
        if table.schema.names != _SCHEMA.names:
            raise UserError(
                "damaged_file", f"{self._storage.url(name)}: its columns are not those of samples; left out"
            )
        return [Sample(**row) for row in table.to_pylist()]
