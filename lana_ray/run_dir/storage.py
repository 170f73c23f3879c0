"""Storage of a run directory: artifacts are written atomically, each with the fingerprint of its inputs.

Works on a local path and on any fsspec URL. An artifact is reused only if its fingerprint is the expected
one, so results of different teachers, data or hardware never mix.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from lana_ray.errors import UserError, one_line
from lana_ray.monitoring.progress import say
from lana_ray.run_dir.digest import seal, unseal
from lana_ray.run_dir.fingerprint import fingerprint, plain

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

FINGERPRINT_KEY = "lana_ray.fingerprint"
_SHAPE_KEY = b"lana_ray.shape"
_TEMPORARY = re.compile(r"\.(.+\.|probe-)[0-9a-f]{32}(\.[0-9a-f]{32})?")
"""Names of temporary files, which are renamed when they are complete."""
_PROBE = bytes(64 * 1024)  # an empty file would fit on a full disk
_LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit


class Storage:
    """Files below one root. A write replaces the whole file or nothing."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        try:
            self._fs, self._base = fsspec.core.url_to_fs(self.root)
        except (ValueError, ImportError) as error:  # unknown protocol, or its package is missing
            raise UserError("invalid_setting", f"run.dir {self.root}: {error}") from None
        self.is_local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else ())

    def check_writable(self) -> None:
        """Raises UserError if nothing can be written to the directory."""
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self._write(probe, _PROBE)
            self.remove(probe)
        except OSError as error:
            problem = error.strerror or error
            raise UserError(
                "not_writable",
                f"run.dir {self.root}: cannot be written ({problem}); fix this or choose another run.dir",
            ) from None

    def path(self, name: str) -> str:
        """Raises UserError for a name that leads out of the root, since names are also read from files."""
        if ".." in name.split("/"):
            raise UserError("invalid_file", f"{self.url(name)}: leads out of run.dir {self.root}; refused")
        return f"{self._base}/{name}"

    def url(self, name: str) -> str:
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        return bool(self._fs.exists(self.path(name)))

    def list(self, folder: str, suffix: str = "") -> list[str]:
        """Names of the files directly in ``folder``, sorted; empty if there is no such folder."""
        self._fs.invalidate_cache()
        if not self._fs.exists(self.path(folder)):
            return []
        names = (entry.rsplit("/", 1)[-1] for entry in self._fs.ls(self.path(folder), detail=False))
        return sorted(f"{folder}/{n}" for n in names if n.endswith(suffix) and not n.startswith("."))

    def read_bytes(self, name: str) -> bytes:
        return bytes(self._fs.cat_file(self.path(name)))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Raises UserError if the disk is full or the file may not be written."""
        try:
            self._write(name, data)
        except OSError as error:
            problem = error.strerror or error
            raise UserError(
                "not_writable",
                f"{self.url(name)}: cannot be written ({problem}); fix this and rerun the same command; "
                "finished work is kept",
            ) from error

    def _write(self, name: str, data: bytes) -> None:
        final = self.path(name)
        folder, _, base = final.rpartition("/")
        self._fs.makedirs(folder, exist_ok=True)
        if not self.is_local:  # object stores publish an upload only when it is complete
            self._fs.pipe_file(final, data)
            return
        temporary = f"{folder}/.{base}.{uuid.uuid4().hex}"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, final)
            _sync_folder(folder)
        except BaseException:
            if os.path.exists(temporary):
                os.remove(temporary)
            raise

    def temporaries(self) -> Sequence[str]:
        """Files left by processes that were killed while writing, at any depth."""
        paths = self._fs.find(self._base) if self.is_local else []
        names = (path.removeprefix(f"{self._base}/") for path in paths)
        return sorted(name for name in names if _TEMPORARY.fullmatch(name.rpartition("/")[2]))

    def remove(self, name: str) -> None:
        """Removes a file; one that is gone, perhaps removed by another driver meanwhile, is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self.path(name))

    def read_text(self, name: str) -> str:
        return self.read_bytes(name).decode()

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=2, default=plain) + "\n")

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_text(name))

    def kept(self, name: str, read: Callable[[Any], T], then: str = "it is recreated") -> T | None:
        """As ``intact``, but ``read`` gets the content of a JSON file."""
        return self.intact(name, lambda data: read(json.loads(data)), then)

    def intact(self, name: str, read: Callable[[bytes], T], then: str = "it is recreated") -> T | None:
        """Applies ``read`` to a file; None if there is none, or after a message if it is damaged.

        Args:
            then: end of the message, which says what happens next.
        """
        if not self.exists(name):
            return None
        data = self.read_bytes(name)
        try:
            return read(data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            say(f"{self.url(name)}: damaged ({type(error).__name__}: {one_line(error)}); {then}")
            return None

    def write_table(self, name: str, table: pa.Table, fingerprint: str) -> None:
        metadata = {**(table.schema.metadata or {}), FINGERPRINT_KEY.encode(): fingerprint.encode()}
        metadata[_SHAPE_KEY] = _shape(table, metadata)
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(metadata), buffer, write_page_checksum=True)
        self.write_bytes(name, buffer.getvalue())

    def read_table(self, name: str) -> pa.Table:
        """Raises UserError if the file is damaged or not Parquet."""
        try:
            return self._table(name)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(
                "damaged_file", f"{self.url(name)}: damaged Parquet file ({one_line(error)}); remove it"
            ) from None

    def _table(self, name: str) -> pa.Table:
        # Parquet has checksums of its pages only; our digest covers names, types and metadata.
        table = pq.read_table(io.BytesIO(self.read_bytes(name)), page_checksum_verification=True)
        metadata = table.schema.metadata or {}
        if metadata.get(_SHAPE_KEY) != _shape(table, metadata):
            raise ValueError("its columns or metadata are not those written")
        return table

    def table_fingerprint(self, name: str) -> str | None:
        """The fingerprint of a table; None if there is none, or after a message if it is damaged."""
        if not self.exists(name):
            return None
        try:
            metadata = self._table(name).schema.metadata or {}
        except (pa.ArrowException, OSError, ValueError) as error:
            say(f"{self.url(name)}: damaged ({one_line(error)}); it is recreated")
            return None
        value = metadata.get(FINGERPRINT_KEY.encode())
        return value.decode() if value else None

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        """Writes a weights file with its digest."""
        self.write_bytes(name, seal(tensors, metadata))

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """Raises UserError if the content does not match the digest."""
        try:
            return unseal(self.read_bytes(name))[0]
        except ValueError as error:
            raise UserError(
                "damaged_file", f"{self.url(name)}: damaged ({error}); rerun the same command to recreate it"
            ) from None

    def intact_metadata(self, name: str) -> dict[str, str] | None:
        """Metadata of a weights file whose digest was checked; None as for ``intact``."""
        return self.intact(name, lambda data: unseal(data)[1])

    def tensor_metadata(self, name: str) -> dict[str, str] | None:
        """Metadata of a weights file without checking its content; None if it cannot be read."""
        if not self.exists(name):
            return None
        with self._fs.open(self.path(name), "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            text = file.read(size) if size <= _LONGEST_HEADER else b""
        try:
            header = json.loads(text)
        except ValueError:
            return None
        return dict(header.get("__metadata__", {})) if isinstance(header, dict) else None


def _shape(table: pa.Table, metadata: Mapping[bytes, bytes]) -> bytes:
    """A digest of a table's columns, number of rows and metadata, without this digest itself."""
    columns = [(field.name, field.type.id) for field in table.schema]
    rest = sorted((key.hex(), value.hex()) for key, value in metadata.items() if key != _SHAPE_KEY)
    return fingerprint(columns, table.num_rows, rest).encode()


def _sync_folder(folder: str) -> None:
    # Without this, a power cut may undo the renaming of a file.
    if hasattr(os, "O_DIRECTORY"):
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
