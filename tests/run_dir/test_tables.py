"""Tables of a run directory: rows come back equal, and a file that is none of them is refused."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lana_ray.ids import CandidateId
from lana_ray.run_dir import layout, tables
from lana_ray.run_dir.storage import Storage
from lana_ray.run_dir.tables import (
    CURVES,
    LAYER_SCORES,
    PROXY,
    SCORES,
    CurveRow,
    LayerScoreRow,
    Table,
    layer_scores,
    schema_of,
)

from ..errors import refuses
from .columns import TYPES, is_optional, present, values_of

FILE = "folder/table.parquet"
EVERY_TABLE: list[Table[Any]] = [value for value in vars(tables).values() if isinstance(value, Table)]
every_table = pytest.mark.parametrize("table", EVERY_TABLE, ids=lambda table: table.record.__name__)


def row_of(table: Table[Any], data: st.DataObject, *, bare: bool) -> Any:
    """A row with all of its optional values, or with none."""
    values = {
        name: None if bare and is_optional(kind) else data.draw(present(kind), name)
        for name, kind in get_type_hints(table.record).items()
    }
    return table.record(**values)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture(scope="session")
def reused(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """For tests that are called many times; each call writes what it reads."""
    return Storage(str(tmp_path_factory.mktemp("tables")))


def test_every_kind_of_row_has_a_table() -> None:
    rows = {value for name, value in vars(tables).items() if name.endswith("Row")}
    assert {table.record for table in EVERY_TABLE} == rows - {tables.CandidateRow}


@every_table
@settings(deadline=None, max_examples=20)
@given(st.data())
def test_a_row_comes_back_equal_with_and_without_its_optional_values(
    reused: Storage, table: Table[Any], data: st.DataObject
) -> None:
    rows = [row_of(table, data, bare=bare) for bare in (False, True, False)]
    table.write(reused, FILE, rows, "key")
    assert table.read(reused, FILE) == rows


@every_table
def test_a_table_without_rows_comes_back(storage: Storage, table: Table[Any]) -> None:
    assert table.read_if_there(storage, FILE) is None
    table.write(storage, FILE, [], "key", {"unit": "ms"})
    assert table.read_if_there(storage, FILE) == []
    assert storage.table_fingerprint(FILE) == "key"
    assert storage.read_table(FILE).schema.metadata[b"unit"] == b"ms"


@every_table
def test_a_damaged_file_is_refused(storage: Storage, table: Table[Any]) -> None:
    table.write(storage, FILE, [], "key")
    storage.write_bytes(FILE, storage.read_bytes(FILE)[:-20])
    for read in (table.read, table.read_if_there):
        with refuses("damaged_file", storage.url(FILE)):
            read(storage, FILE)


@every_table
def test_a_file_with_other_columns_is_refused(storage: Storage, table: Table[Any]) -> None:
    whole = pa.Table.from_pylist([], schema=schema_of(table.record))
    first = whole.schema.names[0]
    for other in (
        pa.table({"a": [1]}),
        whole.drop_columns([first]),
        whole.append_column("more", pa.array([], pa.int64())),
        whole.rename_columns(["other", *whole.schema.names[1:]]),
    ):
        storage.write_table(FILE, other, "key")
        with refuses("damaged_file", storage.url(FILE), "another version"):
            table.read(storage, FILE)


@pytest.mark.parametrize(
    "changed", [{"score": pa.array(["a"])}, {"loss": pa.array([None], pa.float64())}], ids=["text", "null"]
)
def test_a_file_with_other_values_is_refused(storage: Storage, changed: dict[str, pa.Array]) -> None:
    row = {"architecture": ["a"], "choices": [[0]], "score": [1.0], "loss": [1.0]}
    storage.write_table(FILE, pa.table({**row, **changed}), "key")
    with refuses("damaged_file", storage.url(FILE)):
        PROXY.read(storage, FILE)


def test_numbers_that_are_none_are_not_null(storage: Storage) -> None:
    row = LayerScoreRow(layer=0, name="a", choice=1, op="x", loss=math.nan, kl=math.inf)
    LAYER_SCORES.write(storage, FILE, [row], "key")
    (read,) = LAYER_SCORES.read(storage, FILE)
    assert read.loss is not None
    assert math.isnan(read.loss)
    assert (read.loss_se, read.kl) == (None, math.inf)


def test_a_row_names_its_candidate() -> None:
    row = CurveRow(layer=2, name="blocks.1.0", choice=1, op="identity", stopped=None, error=())
    assert row.candidate == CandidateId("blocks.1.0", "identity")


def test_scores_of_a_layer_are_those_made_under_the_key(storage: Storage) -> None:
    rows = [LayerScoreRow(layer=0, name="a", choice=0, op="teacher", loss=0.0)]
    assert layer_scores(storage, "a", "key") is None
    LAYER_SCORES.write(storage, layout.scores("a"), rows, "key")
    assert layer_scores(storage, "a", "key") == rows
    assert layer_scores(storage, "a", "another") is None
    assert layer_scores(storage, "b", "key") is None


@settings(deadline=None)
@given(st.data(), st.lists(st.sampled_from(TYPES), min_size=1, max_size=6))
def test_a_record_of_any_types_comes_back_equal(
    reused: Storage, data: st.DataObject, kinds: list[Any]
) -> None:
    fields = {f"f{number}": kind for number, kind in enumerate(kinds)}
    table: Table[Any] = Table(make_dataclass("Record", fields.items(), frozen=True))
    row = st.builds(table.record, **{name: values_of(kind) for name, kind in fields.items()})
    rows = data.draw(st.lists(row, min_size=1, max_size=3))
    table.write(reused, FILE, rows, "key")
    assert table.read(reused, FILE) == rows


def test_an_optional_column_is_one_of_its_type_in_the_order_of_the_fields() -> None:
    assert schema_of(SCORES.record).field("score").type == pa.float64()
    assert schema_of(CURVES.record).names == [field.name for field in dataclasses.fields(CurveRow)]


@pytest.mark.parametrize("kind", [list[int], int | str, dict[str, int], tuple[str, ...], object])
def test_a_field_that_no_column_holds_is_named(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"Record\.odd: "):
        schema_of(make_dataclass("Record", [("plain", int), ("odd", kind)]))
