"""Samples on disk: append-only Parquet files, keyed by structure, target and settings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
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


_SCHEMA = schema_of(Sample).with_metadata({_VERSION_KEY: str(SCHEMA_VERSION).encode()})


class SampleStore:
    """The samples of a run directory; every block is a new file, so several drivers may append at once."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.damaged: list[str] = []
        """One line for everything that the last ``read`` left out, such as damaged files."""

    def append(self, samples: Iterable[Sample]) -> None:
        """Writes one block as one file, atomically."""
        rows = [dataclasses.asdict(sample) for sample in samples]
        if rows:
            table = pa.Table.from_pylist(rows, schema=_SCHEMA)
            name = layout.samples(rows[0]["target"])
            self._storage.write_table(name, table, fingerprint(SCHEMA_VERSION))

    def read(self, target_key: str | None = None) -> list[Sample]:
        """All samples, or those of one target; oldest first."""
        self.damaged = []
        samples = []
        for name in self._storage.list(layout.SAMPLES, ".parquet"):
            try:
                samples += self._file(name)
            except UserError as error:
                self.damaged.append(str(error))
        wanted = (s for s in samples if target_key is None or s.target_key == target_key)
        return sorted(wanted, key=lambda sample: sample.time)

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
        samples = [Sample(**row) for row in table.to_pylist()]
        possible = [s for s in samples if s.error is not None or 0 < s.median_ms < math.inf]
        if impossible := len(samples) - len(possible):
            self.damaged.append(
                f"{self._storage.url(name)}: {impossible} samples whose latency is not a positive number"
            )
        return possible
