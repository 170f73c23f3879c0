"""The run directory on a disk and on an fsspec URL: whole files, fingerprints, and what damage looks like."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from lana_ray.config import RunConfig
from lana_ray.errors import UserError
from lana_ray.run_dir.fingerprint import fingerprint
from lana_ray.run_dir.storage import Storage

TABLE = pa.table({"layer": [0, 1], "cost": [0.5, float("inf")]})
TENSORS = {"weight": torch.arange(6.0).reshape(2, 3).T, "steps": torch.tensor(3)}


@pytest.fixture(params=["disk", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    root = str(tmp_path / "run") if request.param == "disk" else f"memory://{uuid.uuid4().hex}/run"
    return Storage(root)


@pytest.fixture
def disk(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "run"))


def test_what_is_written_is_read(storage: Storage) -> None:
    assert not storage.exists("a/b.txt")
    storage.write_text("a/b.txt", "première")
    storage.write_json("c.json", {"x": (1, 2)})
    assert storage.exists("a/b.txt")
    assert storage.read_text("a/b.txt") == "première"
    assert storage.read_json("c.json") == {"x": [1, 2]}
    storage.write_text("a/b.txt", "zweite")
    assert storage.read_text("a/b.txt") == "zweite"
    storage.remove("a/b.txt")
    storage.remove("a/b.txt")
    assert not storage.exists("a/b.txt")
    storage.check_writable()


def test_tables_carry_their_fingerprint(storage: Storage) -> None:
    assert storage.table_fingerprint("t.parquet") is None
    storage.write_table("t.parquet", TABLE.replace_schema_metadata({"unit": "ms"}), "abc")
    assert storage.read_table("t.parquet").equals(TABLE)
    assert storage.read_table("t.parquet").schema.metadata[b"unit"] == b"ms"
    assert storage.table_fingerprint("t.parquet") == "abc"


def test_tensors_carry_their_metadata(storage: Storage) -> None:
    assert storage.tensor_metadata("t.safetensors") is None
    storage.write_tensors("t.safetensors", TENSORS, {"key": "abc"})
    metadata = storage.tensor_metadata("t.safetensors")
    assert metadata is not None
    assert metadata["key"] == "abc"
    assert storage.intact_metadata("t.safetensors") == metadata
    again = storage.read_tensors("t.safetensors")
    assert again.keys() == TENSORS.keys()
    assert all(torch.equal(again[name], TENSORS[name]) for name in TENSORS)


def test_tensors_that_share_memory_are_written_under_all_their_names(storage: Storage) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    shared = {"a": whole, "again": whole, "row": whole[0], "turned": whole.t(), "none": torch.zeros(0)}
    storage.write_tensors("t.safetensors", shared, {})
    again = storage.read_tensors("t.safetensors")
    assert again.keys() == shared.keys()
    assert all(torch.equal(again[name], shared[name]) for name in shared)


def test_list_names_the_files_of_one_folder(storage: Storage) -> None:
    assert storage.list("samples") == []
    for name in ("b.parquet", "a.parquet", "notes.txt", ".a.parquet.1234", "deeper/c.parquet"):
        storage.write_bytes(f"samples/{name}", b"")
    assert storage.list("samples", ".parquet") == ["samples/a.parquet", "samples/b.parquet"]


def test_list_sees_what_another_process_wrote(storage: Storage) -> None:
    storage.write_bytes("samples/a", b"")
    storage.list("samples")
    Storage(storage.root).write_bytes("samples/b", b"")
    assert storage.list("samples") == ["samples/a", "samples/b"]


def test_what_a_killed_process_was_writing_is_found(disk: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        """Nothing is tidied up after it."""

    def kill(*_: object) -> None:
        raise Killed

    disk.write_text("a/file", "whole")
    disk.write_text("a/.hidden", "whole")
    monkeypatch.setattr(os, "replace", kill)
    monkeypatch.setattr(os, "remove", kill)
    for name in ("a/file", "a/b.c/other.parquet", "top"):
        with pytest.raises(Killed):
            disk.write_text(name, "half")
    monkeypatch.undo()
    found = disk.temporaries()
    assert [name.rsplit(".", 1)[0] for name in found] == [".top", "a/.file", "a/b.c/.other.parquet"]
    for name in found:
        disk.remove(name)
    assert sorted(os.listdir(f"{disk.root}/a")) == [".hidden", "b.c", "file"]


def test_a_failing_write_leaves_the_old_file(disk: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.write_text("a/file", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a/file: cannot be written \(No space left on device\); fix this"):
        disk.write_text("a/file", "new")
    assert disk.read_text("a/file") == "old"
    assert os.listdir(f"{disk.root}/a") == ["file"]


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"run\.dir .*file/run: cannot be written .*choose another run\.dir"):
        Storage(str(tmp_path / "file" / "run")).check_writable()


@pytest.mark.usefixtures("file_modes_bind")
def test_a_read_only_directory_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"run\.dir .*cannot be written \(Permission denied\)"):
        Storage(str(tmp_path)).check_writable()


def test_nothing_is_read_or_written_outside_the_root(storage: Storage) -> None:
    for name in ("../secret.json", "costs/../../secret.json"):
        for use in (storage.read_json, storage.exists, storage.remove, storage.list, storage.tensor_metadata):
            with pytest.raises(UserError, match=r"secret\.json: leads out of run\.dir .*; refused"):
                use(name)
        with pytest.raises(UserError, match="refused"):
            storage.write_text(name, "mine")


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(UserError, match=r"run\.dir nosuch://bucket/run"):
        Storage("nosuch://bucket/run")


@pytest.mark.parametrize("keep", [0, 3, 40, -9])
def test_damaged_tables_are_named(storage: Storage, keep: int) -> None:
    storage.write_table("t.parquet", TABLE, "abc")
    storage.write_bytes("t.parquet", storage.read_bytes("t.parquet")[:keep])
    with pytest.raises(UserError, match=r"t\.parquet: damaged Parquet file .*; remove it"):
        storage.read_table("t.parquet")
    assert storage.table_fingerprint("t.parquet") is None


def test_a_table_with_a_damaged_footer_has_no_fingerprint(disk: Storage) -> None:
    disk.write_table("t.parquet", TABLE, "abc")
    data = bytearray(disk.read_bytes("t.parquet"))
    length = int.from_bytes(data[-8:-4], "little")
    data[-8 - length : -8] = b"\xff" * length
    disk.write_bytes("t.parquet", bytes(data))
    with pytest.raises(UserError, match=r"t\.parquet: damaged Parquet file"):
        disk.read_table("t.parquet")
    assert disk.table_fingerprint("t.parquet") is None


def flipped(data: bytes, places: Iterable[int]) -> Iterator[bytes]:
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << place % 8
        yield bytes(changed)


def test_damaged_weights_are_named_and_never_used(
    storage: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut anywhere, or with a flipped bit anywhere."""
    storage.write_tensors("t.safetensors", TENSORS, {"key": "abc"})
    whole = storage.read_bytes("t.safetensors")
    cut = [whole[:keep] for keep in (0, 5, 30, len(whole) // 2, len(whole) - 1)]
    for data in (*cut, *flipped(whole, range(len(whole)))):
        storage.write_bytes("t.safetensors", data)
        with pytest.raises(UserError, match=r"t\.safetensors: damaged .*rerun the same command"):
            storage.read_tensors("t.safetensors")
        assert storage.intact_metadata("t.safetensors") is None
        assert "t.safetensors: damaged" in capsys.readouterr().out


def test_tensors_of_every_type_have_a_digest(storage: Storage) -> None:
    types = (torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool, torch.complex64)
    tensors = {str(kind): torch.ones(2, 1, 3).to(kind) for kind in types} | {"none": torch.zeros(0, 4)}
    storage.write_tensors("t.safetensors", tensors, {})
    again = storage.read_tensors("t.safetensors")
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_a_table_with_a_flipped_bit_is_never_used_changed(storage: Storage) -> None:
    table = pa.table({"layer": list(range(200)), "cost": [float(k % 7) for k in range(200)]})
    storage.write_table("t.parquet", table, "abc")
    whole = storage.read_bytes("t.parquet")
    for data in flipped(whole, range(len(whole))):
        storage.write_bytes("t.parquet", data)
        if storage.table_fingerprint("t.parquet") == "abc":
            assert storage.read_table("t.parquet").equals(table)


@pytest.mark.parametrize("content", ["", '{"value"', "[1]", "null", "{}", '{"value": "much"}', "\0\0"])
def test_damaged_json_is_named_and_counts_as_none(
    storage: Storage, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(kept: Any) -> float:
        return float(kept["value"])

    assert storage.kept("a.json", read) is None
    assert capsys.readouterr().out == ""
    storage.write_text("a.json", content)
    assert storage.kept("a.json", read) is None
    assert "a.json: damaged" in capsys.readouterr().out
    storage.write_json("a.json", {"value": 2})
    assert storage.kept("a.json", read) == 2.0


def test_fingerprints_tell_values_apart() -> None:
    config = RunConfig(dir="a", seed=1)
    assert fingerprint(config, {"b": 1, "a": (2, 3)}) == fingerprint(
        RunConfig(dir="a", seed=1), {"a": [2, 3], "b": 1}
    )
    different = [fingerprint(*parts) for parts in ([1], ["1"], [1, 2], [[1, 2]], [None], [], [config])]
    assert len(set(different)) == len(different)
    assert fingerprint("lana") == "4d82351b2ddcf081"  # the same in every process and version
