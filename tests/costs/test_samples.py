"""Samples on disk: appended and merged by several drivers, damaged files left out and named."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from lana_ray.costs import samples
from lana_ray.costs.samples import SCHEMA_VERSION, Sample, SampleStore
from lana_ray.run_dir.layout import SAMPLES
from lana_ray.run_dir.storage import Storage

from ..measured import sample
from ..run_dir.columns import values_of


@pytest.fixture(params=["disk", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run") if request.param == "disk" else f"memory://{uuid.uuid4().hex}")


def test_samples_come_back_equal_and_oldest_first(storage: Storage) -> None:
    taken = [sample(key=f"c{k}", time=float(k)) for k in range(4)]
    store = SampleStore(storage)
    store.append(taken[2:])
    store.append(taken[:2])
    assert store.read() == SampleStore(storage).read() == taken


def test_a_failed_measurement_comes_back(storage: Storage) -> None:
    nan = float("nan")
    store = SampleStore(storage)
    store.append(
        [sample(median_ms=nan, iqr_ms=nan, raw_ms=nan, drift=nan, settled=False, error="refused: ü")]
    )
    (read,) = store.read()
    assert read.error == "refused: ü"
    assert math.isnan(read.median_ms)


def test_nothing_is_nothing(storage: Storage) -> None:
    store = SampleStore(storage)
    assert store.read() == []
    store.append([])
    assert storage.list(SAMPLES) == []


def test_samples_of_one_target(storage: Storage) -> None:
    store = SampleStore(storage)
    store.append([sample(target_key="k", key="a"), sample(target_key="other", key="b")])
    assert [s.key for s in store.read("other")] == ["b"]
    assert store.read("third") == []


def test_two_writers_do_not_disturb_one_another(storage: Storage) -> None:
    first, second = SampleStore(storage), SampleStore(Storage(storage.root))
    for k in range(3):
        first.append([sample(key=f"a{k}", time=2.0 * k)])
        second.append([sample(key=f"b{k}", time=2.0 * k + 1)])
    for store in (first, second):
        assert [s.key for s in store.read()] == ["a0", "b0", "a1", "b1", "a2", "b2"]


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_truncated_file_is_left_out_and_named(storage: Storage, keep: int) -> None:
    store = SampleStore(storage)
    store.append([sample(key="lost")])
    (name,) = storage.list(SAMPLES)
    store.append([sample(key="kept")])
    storage.write_bytes(name, storage.read_bytes(name)[:keep])
    later = SampleStore(storage)
    (damaged,) = later.update()
    assert name in damaged
    assert [s.key for s in later.read()] == ["kept"]
    assert later.damaged == [damaged]
    assert later.update() == []  # said once
    storage.remove(name)
    assert [s.key for s in later.read()] == ["kept"]
    assert later.damaged == []


def test_samples_of_another_version_are_left_out_and_named(storage: Storage) -> None:
    store = SampleStore(storage)
    store.append([sample(key="kept")])
    (name,) = storage.list(SAMPLES)
    table = storage.read_table(name)
    older = table.replace_schema_metadata({"lana_ray.samples": "1"})
    storage.write_table(f"{SAMPLES}/older.parquet", older, "x")
    storage.write_table(f"{SAMPLES}/narrow.parquet", table.drop_columns(["drift"]), "x")
    storage.write_table(f"{SAMPLES}/strange.parquet", pa.table({"a": [1]}), "x")
    assert [s.key for s in store.read()] == ["kept"]
    folder = storage.url(SAMPLES)
    assert store.damaged == [
        f"{folder}/narrow.parquet: its columns are not those of samples; left out",
        f"{folder}/older.parquet: samples of version 1, not {SCHEMA_VERSION}; left out",
        f"{folder}/strange.parquet: samples of version none, not {SCHEMA_VERSION}; left out",
    ]


def test_impossible_latencies_are_left_out_and_counted(storage: Storage) -> None:
    store = SampleStore(storage)
    values = {"nan": math.nan, "negative": -1.0, "zero": 0.0, "infinite": math.inf, "fine": 1.0}
    failed = sample(key="failed", median_ms=math.nan, error="no such kernel")
    store.append([failed, *(sample(key=key, median_ms=value) for key, value in values.items())])
    assert [s.key for s in store.read()] == ["failed", "fine"]
    (damaged,) = store.damaged
    assert damaged.endswith(": 4 samples whose latency is not a positive number")


def test_an_unfinished_write_is_no_sample(tmp_path: Path) -> None:
    store = SampleStore(Storage(str(tmp_path)))
    store.append([sample()])
    (tmp_path / SAMPLES / ".cpu-1.parquet.abc").write_bytes(b"PAR1 half")
    assert len(store.read()) == 1
    assert store.damaged == []


class _Killed(Exception):
    pass


class _MortalStorage(Storage):
    """A storage whose process may be killed, or overtaken by another one, before any write or removal."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.before: dict[int, Callable[[], None]] = {}
        """What happens before a certain one of the next writes and removals, counted from 0."""

    def write_bytes(self, name: str, data: bytes) -> None:
        self._step()
        super().write_bytes(name, data)

    def remove(self, name: str) -> None:
        self._step()
        super().remove(name)

    def _step(self) -> None:
        event = self.before.get(0)
        self.before = {number - 1: happens for number, happens in self.before.items() if number}
        if event is not None:
            event()


def _kill() -> None:
    raise _Killed


class Drivers(RuleBasedStateMachine):
    """Two drivers append, read, merge and are killed anywhere; nothing is lost, nothing is there twice."""

    def __init__(self) -> None:
        super().__init__()
        root = f"memory://{uuid.uuid4().hex}"
        self.storages = [_MortalStorage(root), _MortalStorage(root)]
        self.stores = [SampleStore(storage) for storage in self.storages]
        self.times: set[float] = set()

    @rule(driver=st.integers(0, 1), count=st.integers(1, 3), on=st.sampled_from(["a", "b"]))
    def append(self, driver: int, count: int, on: str) -> None:
        times = [float(len(self.times) + k) for k in range(count)]
        failed = {"error": "no such kernel", "median_ms": math.nan}
        block = [sample(time=time, target=on, **(failed if time % 3 else {})) for time in times]
        self.stores[driver].append(block)
        self.times.update(times)

    @rule(driver=st.integers(0, 1))
    def compact(self, driver: int) -> None:
        self.stores[driver].compact()

    @rule(driver=st.integers(0, 1), step=st.integers(0, 6))
    def killed_while_compacting(self, driver: int, step: int) -> None:
        self.storages[driver].before = {step: _kill}
        try:
            self.stores[driver].compact()
        except _Killed:
            self.stores[driver] = SampleStore(self.storages[driver])
        self.storages[driver].before = {}

    @rule(driver=st.integers(0, 1), step=st.integers(0, 6), reads=st.booleans())
    def overtaken_while_compacting(self, driver: int, step: int, reads: bool) -> None:
        other = self.stores[1 - driver]

        def compacts() -> None:
            if reads:
                other.read()
            other.compact()

        self.storages[driver].before = {step: compacts}
        self.stores[driver].compact()
        self.storages[driver].before = {}

    @rule(driver=st.integers(0, 1))
    def read(self, driver: int) -> None:
        assert [s.time for s in self.stores[driver].read()] == sorted(self.times)
        assert self.stores[driver].damaged == []

    @invariant()
    def everything_is_there_once(self) -> None:
        assert [s.time for s in SampleStore(self.storages[0]).read()] == sorted(self.times)


Drivers.TestCase.settings = hypothesis_settings(deadline=None, max_examples=60, stateful_step_count=15)
TestDrivers = Drivers.TestCase


def test_small_blocks_become_one_for_each_target(storage: Storage) -> None:
    store = SampleStore(storage)
    for k in range(6):
        store.append([sample(target="ab"[k % 2], key=f"c{k}", time=float(k))])
    before = store.read()
    store.compact()
    files = storage.list(SAMPLES)
    assert [name.partition("-")[0] for name in files] == [f"{SAMPLES}/a", f"{SAMPLES}/b"]
    assert store.read() == SampleStore(storage).read() == before
    store.compact()  # there is nothing to merge
    assert storage.list(SAMPLES) == files


def test_large_blocks_stay(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_SMALL", 3)
    store = SampleStore(storage)
    store.append([sample(time=float(k)) for k in range(3)])
    large = storage.list(SAMPLES)
    for k in range(4):
        store.append([sample(time=10.0 + k)])
    store.compact()
    merged = [name for name in storage.list(SAMPLES) if name not in large]
    assert [storage.read_table(name).num_rows for name in (*large, *merged)] == [3, 4]


def test_damaged_blocks_are_not_merged_away(storage: Storage) -> None:
    store = SampleStore(storage)
    for k, value in enumerate((1.0, math.nan, 2.0)):
        store.append([sample(time=2.0 * k), sample(time=2.0 * k + 1, median_ms=value)])
    storage.write_bytes(f"{SAMPLES}/half.parquet", b"PAR1")
    store.read()
    store.compact()
    later = SampleStore(storage)
    assert len(later.read()) == 5
    assert len(later.damaged) == 2


def test_blocks_of_others_are_merged_once_they_were_read(storage: Storage) -> None:
    first, second = SampleStore(storage), SampleStore(storage)
    first.append([sample(key="a")])
    first.append([sample(key="b")])
    second.append([sample(key="c")])
    first.compact()
    assert len(storage.list(SAMPLES)) == 2
    first.read()
    first.compact()
    assert len(storage.list(SAMPLES)) == 1
    assert {s.key for s in second.read()} == {"a", "b", "c"}


def test_a_file_that_vanished_after_it_was_listed_is_found_in_its_new_block(tmp_path: Path) -> None:
    class Late(Storage):
        """Another driver merges all blocks after this one has listed them."""

        merged = False

        def read_table(self, name: str) -> pa.Table:
            if not self.merged:
                self.merged = True
                writer.compact()
            return super().read_table(name)

    writer = SampleStore(Storage(str(tmp_path)))
    for k in range(3):
        writer.append([sample(key=f"c{k}", time=float(k))])
    reader = SampleStore(Late(str(tmp_path)))
    assert [s.key for s in reader.read()] == ["c0", "c1", "c2"]
    assert reader.damaged == []


def test_only_new_blocks_are_read(tmp_path: Path) -> None:
    class Counting(Storage):
        opened = 0

        def read_table(self, name: str) -> pa.Table:
            self.opened += 1
            return super().read_table(name)

    writer, storage = SampleStore(Storage(str(tmp_path))), Counting(str(tmp_path))
    reader = SampleStore(storage)
    for k in range(3):
        writer.append([sample(key=f"c{k}")])
        assert len(reader.read("k")) == k + 1
        assert reader.read("other") == []
    reader.append([sample(key="own")])
    assert len(reader.read()) == 4
    assert storage.opened == 3


@hypothesis_settings(deadline=None, max_examples=30)
@given(st.data())
def test_samples_of_any_content_come_back_equal(data: st.DataObject) -> None:
    kinds = get_type_hints(Sample)
    drawn = Sample(**{field.name: data.draw(values_of(kinds[field.name])) for field in fields(Sample)})
    storage = Storage(f"memory://{uuid.uuid4().hex}")
    SampleStore(storage).append([sample(key="other"), drawn])
    store = SampleStore(storage)
    if drawn.error is not None or 0 < drawn.median_ms < math.inf:
        assert drawn in store.read()
    else:
        assert [s.key for s in store.read()] == ["other"]
