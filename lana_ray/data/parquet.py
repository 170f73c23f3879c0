"""Reads Parquet files as the Hugging Face hub lays them out: encoded images in one column, labels in another.

Opening a source only reads labels, footers and a few blocks to hash. The encoded bytes of a file are read
for its first image. Those of a small data set stay in memory; a large one is copied once to the machine's
cache, as Arrow files that all workers map: images can then be read in any order, and the operating system
keeps in memory what fits.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lana_ray.data.columns import Columns
from lana_ray.data.content import cache, content_of, digest, state_of
from lana_ray.data.names import class_name, listed, printable, split_named
from lana_ray.data.pixels import Pixels
from lana_ray.data.sources import (
    UNLABELLED,
    Decode,
    Labels,
    MissingDataError,
    Source,
    invalid_data,
    positions,
)
from lana_ray.errors import UserError, first_line, one_line
from lana_ray.monitoring.progress import say

IN_MEMORY = 2**30
"""Size in bytes of the largest data set kept in memory; a larger one is mapped from a local copy."""
_ROWS = 1024
"""Rows copied at a time."""
_PREVIEW = 8
"""Rows of a file in a preview."""
_BLOCKS, _BLOCK = 5, 256 * 1024
"""Number and size in bytes of the blocks of each file that are hashed."""


def list_files(setting: str, location: str) -> list[str]:
    """Returns the Parquet files of a path or URL of a file, a folder or a glob pattern, as sorted URLs.

    Files and folders whose names begin with ``.`` or ``_`` are skipped: other programs keep theirs there.

    Raises:
        MissingDataError: nothing is there, or the URL's file system is not installed.
        UserError: there are no Parquet files.
    """
    name = f"{setting} {printable(location)}"
    try:
        fs, path = fsspec.core.url_to_fs(location)
        matches = [path] if fs.isdir(path) or fs.exists(path) else fs.glob(path)
        files = [file for x in matches for file in (_below(fs, x) if fs.isdir(x) else [x])]
    except Exception as error:  # each file system has exceptions of its own
        raise MissingDataError("unreachable", f"{name}: cannot be read ({first_line(error)})") from None
    if not matches and not any(character in path for character in "*?["):
        raise MissingDataError("missing_file", f"{name}: no such file or folder")
    if not files:
        raise UserError("missing_file", f"{name}: no Parquet files there")
    return sorted(fs.unstrip_protocol(file) for file in files)


def _below(fs: Any, folder: str) -> list[str]:
    """Returns the Parquet files at any depth of a folder."""
    depth = len(PurePosixPath(folder).parts)
    return [
        file
        for file in fs.find(folder)
        if file.lower().endswith((".parquet", ".pq"))
        and not any(part.startswith((".", "_")) for part in PurePosixPath(file).parts[depth:])
    ]


def split_files(name: str, files: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Returns files by the split that they or their folders are named after, and files of no split.

    Raises:
        UserError: files of one split are in several folders, as if they were of several data sets.
    """
    common = os.path.commonpath([PurePosixPath(file).parent for file in files])
    splits: dict[str | None, list[str]] = defaultdict(list)
    folders: dict[str | None, set[str]] = defaultdict(set)
    for file in files:
        *parents, stem = PurePosixPath(file).relative_to(common).with_suffix("").parts
        split = next(filter(None, map(split_named, (stem, *reversed(parents)))), None)
        splits[split].append(file)
        folders[split].add("/".join(part for part in parents if not split_named(part)))
    for split, places in folders.items():
        if split and len(places) > 1 and "train" in splits:
            raise invalid_data(
                f"{name}: {split} files are in several folders ({listed(sorted(places))}), as if there were "
                "several data sets; set data.parquet to one of them"
            )
    return {split: part for split, part in splits.items() if split}, splits.get(None, [])


def parquet_source(
    name: str, files: Sequence[str], columns: Columns, decode: Decode, *, needs_labels: bool = True
) -> Source:
    """Returns a source of the images of several Parquet files, one file after another.

    Class names are the labels or come from the schema's metadata: ``classes`` (a JSON list) or the hub's
    ``huggingface``.

    Without ``needs_labels``, the images of files without a label column are unlabelled.

    Raises:
        UserError: a file is damaged, lacks a column, or has one of the wrong type or a row without a label.
    """
    shards = [_Shard(file, columns, needs_labels=needs_labels) for file in files]
    if sum(shard.size for shard in shards) > IN_MEMORY:
        for shard in shards:
            shard.mapped = True
    starts = [0, *itertools.accumulate(len(shard.labels) for shard in shards)]
    labels, names = _join_labels(shards)
    named = [shard for shard in shards if shard.classes is not None]
    for shard in named:
        if shard.classes != named[0].classes:
            raise invalid_data(f"{shard.url}: its class names differ from those of {named[0].url}")

    def locate(index: int) -> tuple[_Shard, int]:
        shard = bisect.bisect_right(starts, index) - 1
        return shards[shard], index - starts[shard]

    def pixels(index: int) -> Pixels:
        shard, row = locate(index)
        return decode(shard.images[row].as_py())

    def where(index: int) -> str:
        shard, row = locate(index)
        return f"{shard.url} row {row}"

    def preview() -> Iterator[tuple[str, bytes | None]]:
        for shard in {shards[0].url: shards[0], shards[-1].url: shards[-1]}.values():
            for row, data in enumerate(shard.first(_PREVIEW)):
                yield f"{shard.url} row {row}", data

    chosen = [column.encode() for column in (columns.image, columns.label) if column]
    return Source(
        name=name,
        labels=labels,
        classes=names or (named[0].classes if named else None),
        by_name=names is not None,
        identity=digest(*(shard.identity for shard in shards), *chosen),
        content=functools.cache(lambda: digest(*(content_of(file).encode() for file in files), *chosen)),
        pixels=pixels,
        where=where,
        preview=preview,
    )


def _join_labels(shards: Sequence[_Shard]) -> tuple[Labels, tuple[str, ...] | None]:
    """Returns the labels of all files, shape [n], and the class names if the labels are names."""
    filled = [shard for shard in shards if (shard.labels != UNLABELLED).any()]
    by_name = [shard for shard in filled if shard.names is not None]
    if by_name and len(by_name) < len(filled):
        other = next(shard for shard in filled if shard.names is None)
        raise invalid_data(
            f"{other.url}: its labels are numbers, but those of {by_name[0].url} are names; "
            "label all files with names or all with numbers"
        )
    if not by_name:
        return np.concatenate([shard.labels for shard in shards]), None
    names = sorted(set().union(*(shard.names or () for shard in by_name)))
    # No class is named ""; the index UNLABELLED, -1, selects it.
    parts = [positions([*(shard.names or ()), ""], names)[shard.labels] for shard in shards]
    return np.concatenate(parts), tuple(names)


class _Shard:
    """A Parquet file, whose labels are read at once and whose images when first needed.

    Attributes:
        size: size of the file, bytes.
        mapped: read image bytes from a local copy that is mapped into memory.
        labels: class numbers, shape [rows].
        names: class names in the order of ``labels`` if the file's labels are names.
        classes: class names in the file's metadata.
        identity: hash of parts of its content.
    """

    def __init__(self, file: str, columns: Columns, *, needs_labels: bool) -> None:
        self._file = file
        self.url = printable(file.removeprefix("file://"))
        fs, path = fsspec.core.url_to_fs(file)
        self._open = functools.partial(fs.open, path, "rb")
        self.size = int(fs.size(path) or 0)
        self.mapped = False
        with self._reading() as content:
            parquet = pq.ParquetFile(content)
            schema, label = parquet.schema_arrow, columns.label_name
            has_labels = label in schema.names
            labels = parquet.read([label]).column(0) if has_labels else pa.nulls(parquet.metadata.num_rows)
            self._column = columns.image_path(self.url, parquet)
            self.identity = _sampled_digest(content).encode()
        if needs_labels and not has_labels:
            raise invalid_data(
                f"{self.url}: no label column {label}; set data.label_column to one of "
                f"{listed(schema.names, 20)}"
            )
        self.classes = _class_names(self.url, schema.metadata or {}, label)
        self.labels, self.names = columns.labels(self.url, labels)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        """Opens the file; raises UserError if it cannot be read."""
        try:
            with self._open() as content:
                yield content
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                "invalid_file",
                f"{self.url}: cannot be read as Parquet ({first_line(error)}); write or copy it again",
            ) from None

    def first(self, rows: int) -> list[bytes | None]:
        """Reads the encoded image bytes of the first rows only."""
        with self._reading() as content:
            parquet = pq.ParquetFile(content, pre_buffer=False, buffer_size=_BLOCK)
            batch = next(parquet.iter_batches(rows, columns=[self._column]), None)
            return [] if batch is None else _encoded(batch.column(0)).to_pylist()

    @functools.cached_property
    def images(self) -> Any:
        """Encoded image bytes, a chunked binary array [rows]."""
        if not self.mapped:
            with self._reading() as content:
                return _encoded(pq.ParquetFile(content).read([self._column]).column(0))
        name = digest(self._file.encode(), self._column.encode())
        copy = cache() / f"{name}-{state_of(self._file)}.arrow"
        if not copy.exists():
            # A process that has mapped an outdated copy can still read it.
            for outdated in cache().glob(f"{name}-*.arrow"):
                outdated.unlink(missing_ok=True)
            self._copy(copy)
        try:
            return _mapped(copy)
        except (pa.ArrowException, OSError) as error:
            say(f"{copy}: damaged ({one_line(error)}); copying the data again")
            self._copy(copy)
            return _mapped(copy)

    def _copy(self, copy: Path) -> None:
        """Writes the image column as an Arrow file, a few rows at a time; a failure leaves no file."""
        with _writing(copy.parent):
            copy.parent.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(".part", dir=copy.parent)
            os.close(handle)
        schema = pa.schema([("bytes", pa.binary())])
        try:
            with self._reading() as content, pa.ipc.new_file(part, schema) as writer:
                for batch in pq.ParquetFile(content).iter_batches(_ROWS, columns=[self._column]):
                    rows = pa.record_batch([_encoded(batch.column(0)).cast(pa.binary())], schema=schema)
                    with _writing(copy.parent):
                        writer.write(rows)
            os.replace(part, copy)
        finally:
            Path(part).unlink(missing_ok=True)


def _class_names(url: str, metadata: Mapping[bytes, bytes], label: str) -> tuple[str, ...] | None:
    """Returns the class names in a schema's metadata, see ``parquet_source``; None if there are none."""
    try:
        names = json.loads(metadata.get(b"classes", b"null"))
        if names is None:
            hub = json.loads(metadata.get(b"huggingface", b"{}"))
            names = hub.get("info", {}).get("features", {}).get(label, {}).get("names")
        return tuple(class_name(str(name)) for name in names) if names else None
    except (ValueError, TypeError, AttributeError):
        raise invalid_data(f"{url}: the class names in its schema metadata are damaged") from None


def _sampled_digest(file: Any) -> str:
    """Returns a hash of the file's size and of blocks spread from its start to its end, the footer."""
    size = file.seek(0, 2)
    places = np.linspace(0, max(0, size - _BLOCK), _BLOCKS, dtype=np.int64) if size > _BLOCK else [0]
    blocks = []
    for place in places:
        file.seek(int(place))
        blocks.append(file.read(_BLOCK))
    return digest(str(size).encode(), *blocks)


def _mapped(copy: Path) -> Any:
    return pa.ipc.open_file(pa.memory_map(str(copy))).read_all().column(0)


def _encoded(column: Any) -> Any:
    """Returns the bytes of a column that is binary or a struct with ``bytes``."""
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


@contextlib.contextmanager
def _writing(cache: Path) -> Iterator[None]:
    """Turns an ``OSError`` into a ``UserError`` that names the cache folder."""
    try:
        yield
    except OSError as error:
        raise UserError(
            "not_writable",
            f"{cache}: the data cannot be copied there ({error.strerror or error}); set XDG_CACHE_HOME",
        ) from None
