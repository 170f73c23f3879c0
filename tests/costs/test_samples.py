"""Samples on disk: appended by several writers, damaged files left out and named."""

from __future__ import annotations

import math
import uuid
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lana_ray.costs.samples import SCHEMA_VERSION, Sample, SampleStore
from lana_ray.run_dir.layout import SAMPLES
from lana_ray.run_dir.storage import Storage

from ..measured import sample
from ..run_dir.columns import values_of


@pytest.fixture(params=["disk", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run") if request.param == "disk" else f"memory://{uuid.uuid4().hex}")


def test_samples_come_back_equal_and_oldest_first(storage: Storage) -> None:
    samples = [sample(key=f"c{k}", time=float(k)) for k in range(4)]
    store = SampleStore(storage)
    store.append(samples[2:])
    store.append(samples[:2])
    assert SampleStore(storage).read() == samples


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
    assert [s.key for s in store.read()] == ["kept"]
    (damaged,) = store.damaged
    assert name in damaged
    storage.remove(name)
    assert [s.key for s in store.read()] == ["kept"]
    assert store.damaged == []


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


@hypothesis_settings(deadline=None, max_examples=30)
@given(st.data())
def test_samples_of_any_content_come_back_equal(data: st.DataObject) -> None:
    kinds = get_type_hints(Sample)
    drawn = Sample(**{field.name: data.draw(values_of(kinds[field.name])) for field in fields(Sample)})
    store = SampleStore(Storage(f"memory://{uuid.uuid4().hex}"))
    store.append([sample(key="other"), drawn])
    if drawn.error is not None or 0 < drawn.median_ms < math.inf:
        assert drawn in store.read()
    else:
        assert [s.key for s in store.read()] == ["other"]
