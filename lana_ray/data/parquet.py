"""Parquet as the Hugging Face hub lays it out: encoded images in one column, integer labels in another.

Only labels, footers and a few blocks to hash are read when a source is opened. The encoded bytes of a file
are read when its first image is asked for. Of a small data set they are kept in memory; a large one is copied
once to the machine's cache, as Arrow files that all its workers map, so that images can be read in any order
while the system keeps in memory what fits.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lana_ray.data.pixels import Pixels, decode
from lana_ray.data.sources import Labels, Source, digest
from lana_ray.errors import UserError

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMN = "label"
IN_MEMORY = 2**30
"""Bytes of files that are kept in memory; more than that in a data set are mapped from a local copy."""
_ROWS = 1024  # copied at a time
_BLOCKS, _BLOCK = 5, 256 * 1024  # what is hashed of each file, bytes


def list_files(setting: str, location: str) -> list[str]:
    """The Parquet files at a path or URL that is a file, a folder or a glob pattern, as sorted URLs.

    Raises:
        UserError: nothing is there, or the URL's file system is not installed.
    """
    try:
        fs, path = fsspec.core.url_to_fs(location)
    except (ImportError, ValueError) as error:
        raise UserError(f"{setting} {location}: {error}") from None
    if fs.isdir(path):
        found = [x for x in fs.find(path) if x.endswith(".parquet")]
    elif fs.exists(path):
        found = [path]
    elif any(character in path for character in "*?["):
        found = fs.glob(path)
    else:
        raise UserError(f"{setting} {location}: no such file or folder")
    if not found:
        raise UserError(f"{setting} {location}: no Parquet files there")
    return sorted(fs.unstrip_protocol(x) for x in found)


def parquet_source(setting: str, location: str, files: Sequence[str]) -> Source:
    """Images of several Parquet files, one after another.

    The image column is ``image`` or ``img``, binary or a struct with ``bytes``; the other is ``label``.
    Class names come from the schema's metadata: ``classes`` (a JSON list) or the hub's ``huggingface``.

    Raises:
        UserError: a file is damaged, lacks a column, has one of the wrong type or a row without a label.
    """
    shards = [_Shard(file) for file in files]
    if sum(shard.size for shard in shards) > IN_MEMORY:
        for shard in shards:
            shard.mapped = True
    starts = [0, *itertools.accumulate(len(shard.labels) for shard in shards)]
    named = [(shard, shard.classes) for shard in shards if shard.classes is not None]
    for shard, classes in named:
        if classes != named[0][1]:
            raise UserError(f"{shard.url}: its class names differ from those of {named[0][0].url}")

    def locate(index: int) -> tuple[_Shard, int]:
        shard = bisect.bisect_right(starts, index) - 1
        return shards[shard], index - starts[shard]

    def pixels(index: int) -> Pixels:
        shard, row = locate(index)
        return decode(shard.images[row].as_py())

    def where(index: int) -> str:
        shard, row = locate(index)
        return f"{shard.url} row {row}"

    return Source(
        name=f"{setting} {location}",
        labels=np.concatenate([shard.labels for shard in shards]),
        classes=named[0][1] if named else None,
        identity=digest(*(shard.identity for shard in shards)),
        pixels=pixels,
        where=where,
    )


class _Shard:
    """One file: its labels at once, its image bytes when first needed.

    Attributes:
        size: of the file in bytes.
        mapped: read image bytes from a local copy that is mapped into memory.
    """

    def __init__(self, file: str) -> None:
        self.url = file.removeprefix("file://")
        fs, path = fsspec.core.url_to_fs(file)
        self._open = functools.partial(fs.open, path, "rb")
        self.size = int(fs.size(path) or 0)
        self.mapped = False
        schema, labels, self.identity = self._read(self._head)
        self._column = self._image_column(schema)
        self.classes = self._class_names(schema)
        self.labels = self._checked_labels(labels)

    @functools.cached_property
    def images(self) -> Any:
        """The encoded bytes: a chunked binary array [rows]."""
        if not self.mapped:
            return self._read(self._image_bytes)
        copy = _cache() / f"{self.identity.decode()}.arrow"
        if not copy.exists():
            self._copy(copy)
        return pa.ipc.open_file(pa.memory_map(str(copy))).read_all().column(0)

    def _copy(self, copy: Path) -> None:
        """Writes the image column as an Arrow file, a few rows at a time; whole or not at all."""

        def write(file: Any) -> None:
            schema = pa.schema([("bytes", pa.binary())])
            with pa.ipc.new_file(part, schema) as writer:
                for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=[self._column]):
                    rows = pa.record_batch([_encoded(batch.column(0)).cast(pa.binary())], schema=schema)
                    with _told(copy.parent):
                        writer.write(rows)

        with _told(copy.parent):
            copy.parent.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(".part", dir=copy.parent)
            os.close(handle)
        try:
            self._read(write)
            os.replace(part, copy)
        finally:
            Path(part).unlink(missing_ok=True)

    def _read(self, what: Any) -> Any:
        try:
            with self._open() as file:
                return what(file)
        except (OSError, pa.ArrowException) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"{self.url}: cannot be read as Parquet ({reason}); write or copy it again"
            ) from None

    @staticmethod
    def _head(file: Any) -> tuple[Any, Any, bytes]:
        """Schema, label column (None where there is none) and a hash of the content."""
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        labels = parquet.read([LABEL_COLUMN]).column(0) if LABEL_COLUMN in schema.names else None
        return schema, labels, _sampled_digest(file).encode()

    def _image_bytes(self, file: Any) -> Any:
        return _encoded(pq.ParquetFile(file).read([self._column]).column(0))

    def _image_column(self, schema: Any) -> str:
        """Path of the column that holds the encoded bytes, such as ``image.bytes``."""
        name = next((x for x in IMAGE_COLUMNS if x in schema.names), None)
        if name is None:
            expected, present = " or ".join(IMAGE_COLUMNS), ", ".join(schema.names)
            raise UserError(f"{self.url}: no image column; expected {expected}, found {present}")
        kind = schema.field(name).type
        if _is_binary(kind):
            return name
        if pa.types.is_struct(kind) and any(x.name == "bytes" and _is_binary(x.type) for x in kind):
            return f"{name}.bytes"
        raise UserError(f"{self.url}: column {name} is {kind}; expected binary or struct<bytes: binary>")

    def _checked_labels(self, column: Any) -> Labels:
        if column is None:
            raise UserError(
                f"{self.url}: no column {LABEL_COLUMN}; expected the class of each image as an integer"
            )
        if not pa.types.is_integer(column.type):
            raise UserError(
                f"{self.url}: column {LABEL_COLUMN} is {column.type}; expected integers from 0 upwards"
            )
        if column.null_count:
            row = pc.index(pc.is_null(column), True).as_py()
            raise UserError(f"{self.url} row {row}: has no label; remove the row or label it")
        return column.to_numpy().astype(np.int64)

    def _class_names(self, schema: Any) -> tuple[str, ...] | None:
        metadata = schema.metadata or {}
        try:
            names = json.loads(metadata.get(b"classes", b"null"))
            if names is None:
                hub = json.loads(metadata.get(b"huggingface", b"{}"))
                features = hub.get("info", {}).get("features", {})
                names = features.get(LABEL_COLUMN, {}).get("names")
            return tuple(str(name) for name in names) if names else None
        except (ValueError, TypeError, AttributeError):
            raise UserError(f"{self.url}: the class names in its schema metadata are damaged") from None


def _sampled_digest(file: Any) -> str:
    """Hash of the size and of blocks spread over the file from its start to its end, the footer."""
    size = file.seek(0, 2)
    places = np.linspace(0, max(0, size - _BLOCK), _BLOCKS, dtype=np.int64) if size > _BLOCK else [0]
    blocks = []
    for place in places:
        file.seek(int(place))
        blocks.append(file.read(_BLOCK))
    return digest(str(size).encode(), *blocks)


def _encoded(column: Any) -> Any:
    """The bytes of a column that is binary or a struct with ``bytes``."""
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


@contextlib.contextmanager
def _told(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{cache}: the data cannot be copied there ({reason}); set XDG_CACHE_HOME") from None


def _cache() -> Path:
    """Where local copies are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lana_ray"


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
