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
from collections.abc import Iterator, Sequence
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
from lana_ray.data.sources import UNLABELLED, Decode, Labels, MissingDataError, Source
from lana_ray.errors import UserError, one_line
from lana_ray.monitoring.progress import say

IN_MEMORY = 2**30
"""Size in bytes of the largest data set kept in memory; a larger one is mapped from a local copy."""
_ROWS = 1024
"""Rows copied at a time."""
_SUFFIXES = (".parquet", ".pq")
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
        files = _matches(fs, path)
    except Exception as error:  # each file system has exceptions of its own
        raise MissingDataError(
            "unreachable", f"{name}: cannot be read ({str(error).splitlines()[0]})"
        ) from None
    if files is None:
        raise MissingDataError("missing_file", f"{name}: no such file or folder")
    if not files:
        raise UserError("missing_file", f"{name}: no Parquet files there")
    return sorted(fs.unstrip_protocol(file) for file in files)


def _matches(fs: Any, path: str) -> list[str] | None:
    """Returns the Parquet files at a path or glob pattern; None if nothing is there."""
    if fs.isdir(path):
        return _below(fs, path)
    if fs.exists(path):
        return [path]
    if not any(character in path for character in "*?["):
        return None
    return [file for x in fs.glob(path) for file in (_below(fs, x) if fs.isdir(x) else [x])]


def _below(fs: Any, folder: str) -> list[str]:
    """Returns the Parquet files at any depth of a folder."""
    depth = len(PurePosixPath(folder).parts)
    return [
        file
        for file in fs.find(folder)
        if file.lower().endswith(_SUFFIXES)
        and not any(part.startswith((".", "_")) for part in PurePosixPath(file).parts[depth:])
    ]


def split_files(name: str, files: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Returns files by the split that they or their folders are named after, and files of no split.

    Raises:
        UserError: files of one split are in several folders, as if they were of several data sets.
    """
    paths = [PurePosixPath(file).parts for file in files]
    levels = zip(*(parts[:-1] for parts in paths), strict=False)
    common = len(list(itertools.takewhile(lambda level: len(set(level)) == 1, levels)))
    splits: dict[str, list[str]] = defaultdict(list)
    folders: dict[str, set[str]] = defaultdict(set)
    rest = []
    for file, parts in zip(files, paths, strict=True):
        own = (*parts[common:-1], PurePosixPath(file).stem)
        split = next(filter(None, map(split_named, reversed(own))), None)
        if split is None:
            rest.append(file)
            continue
        splits[split].append(file)
        folders[split].add("/".join(part for part in own[:-1] if not split_named(part)))
    for split, places in folders.items():
        if len(places) > 1 and "train" in splits:
            raise UserError(
                "invalid_data",
                f"{name}: {split} files are in several folders ({listed(sorted(places))}), as if there were "
                "several data sets; set data.parquet to one of them",
            )
    return dict(splits), rest


def parquet_source(
    name: str, files: Sequence[str], columns: Columns, decode: Decode, *, needs_labels: bool = True
) -> Source:
    """Returns a source of the images of several Parquet files, one file after another.

    Class names are the labels or come from the schema's metadata: ``classes`` (a JSON list) or the hub's
    ``huggingface``.

    Args:
        needs_labels: refuse files without a label column; otherwise their images are unlabelled.

    Raises:
        UserError: a file is damaged, lacks a column, or has one of the wrong type or a row without a label.
    """
    shards = [_Shard(file, columns, needs_labels=needs_labels) for file in files]
    if sum(shard.size for shard in shards) > IN_MEMORY:
        for shard in shards:
            shard.mapped = True
    starts = [0, *itertools.accumulate(len(shard.labels) for shard in shards)]
    labels, names = _join_labels(shards)
    named = [(shard, shard.classes) for shard in shards if shard.classes is not None]
    for shard, classes in named:
        if classes != named[0][1]:
            raise UserError(
                "invalid_data", f"{shard.url}: its class names differ from those of {named[0][0].url}"
            )

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
        classes=names or (named[0][1] if named else None),
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
        raise UserError(
            "invalid_data",
            f"{other.url}: its labels are numbers, but those of {by_name[0].url} are names; "
            "label all files with names or all with numbers",
        )
    if not by_name:
        return np.concatenate([shard.labels for shard in shards]), None
    names = sorted(set().union(*(shard.names or () for shard in by_name)))
    number = {name: index for index, name in enumerate(names)}
    parts = []
    for shard in shards:
        numbers = np.asarray([*(number[name] for name in shard.names or ()), UNLABELLED], dtype=np.int64)
        parts.append(numbers[shard.labels])  # the index UNLABELLED, -1, selects the last element
    return np.concatenate(parts), tuple(names)


class _Shard:
    """A Parquet file, whose labels are read at once and whose images when first needed.

    Attributes:
        size: size of the file, bytes.
        mapped: read image bytes from a local copy that is mapped into memory.
        labels: class numbers, shape [rows].
        names: class names in the order of ``labels`` if the file's labels are names.
        classes: class names in the file's metadata.
    """

    def __init__(self, file: str, columns: Columns, *, needs_labels: bool) -> None:
        self._file = file
        self.url = printable(file.removeprefix("file://"))
        fs, path = fsspec.core.url_to_fs(file)
        self._open = functools.partial(fs.open, path, "rb")
        self.size = int(fs.size(path) or 0)
        self.mapped = False
        schema, labels, count, self._column, self.identity = self._read(
            functools.partial(self._head, columns=columns)
        )
        if labels is None and needs_labels:
            raise UserError(
                "invalid_data",
                f"{self.url}: no label column {columns.label_name}; set data.label_column to one of "
                f"{listed(schema.names, 20)}",
            )
        self.classes = self._class_names(schema, columns.label_name)
        self.labels, self.names = columns.labels(self.url, pa.nulls(count) if labels is None else labels)

    @functools.cached_property
    def images(self) -> Any:
        """Encoded image bytes, a chunked binary array [rows]."""
        if not self.mapped:
            return self._read(self._image_bytes)
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

        def write(file: Any) -> None:
            schema = pa.schema([("bytes", pa.binary())])
            with pa.ipc.new_file(part, schema) as writer:
                for batch in pq.ParquetFile(file).iter_batches(_ROWS, columns=[self._column]):
                    rows = pa.record_batch([_encoded(batch.column(0)).cast(pa.binary())], schema=schema)
                    with _naming_cache(copy.parent):
                        writer.write(rows)

        with _naming_cache(copy.parent):
            copy.parent.mkdir(parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(".part", dir=copy.parent)
            os.close(handle)
        try:
            self._read(write)
            os.replace(part, copy)
        finally:
            Path(part).unlink(missing_ok=True)

    def _read(self, read: Any) -> Any:
        """Calls ``read`` with the open file; raises UserError if the file cannot be read."""
        try:
            with self._open() as file:
                return read(file)
        except (OSError, pa.ArrowException) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                "invalid_file", f"{self.url}: cannot be read as Parquet ({reason}); write or copy it again"
            ) from None

    def first(self, rows: int) -> list[bytes | None]:
        """Reads the encoded image bytes of the first rows only."""

        def read(file: Any) -> list[bytes | None]:
            parquet = pq.ParquetFile(file, pre_buffer=False, buffer_size=_BLOCK)
            batches = parquet.iter_batches(rows, columns=[self._column])
            return [
                image
                for batch in itertools.islice(batches, 1)
                for image in _encoded(batch.column(0)).to_pylist()
            ]

        images: list[bytes | None] = self._read(read)
        return images

    def _head(self, file: Any, columns: Columns) -> tuple[Any, Any, int, str, bytes]:
        """Reads schema, label column (None if there is none), row count, image column and a content hash."""
        parquet = pq.ParquetFile(file)
        schema, label = parquet.schema_arrow, columns.label_name
        labels = parquet.read([label]).column(0) if label in schema.names else None
        image = columns.image_path(self.url, parquet)
        return schema, labels, parquet.metadata.num_rows, image, _sampled_digest(file).encode()

    def _image_bytes(self, file: Any) -> Any:
        return _encoded(pq.ParquetFile(file).read([self._column]).column(0))

    def _class_names(self, schema: Any, label: str) -> tuple[str, ...] | None:
        metadata = schema.metadata or {}
        try:
            names = json.loads(metadata.get(b"classes", b"null"))
            if names is None:
                hub = json.loads(metadata.get(b"huggingface", b"{}"))
                features = hub.get("info", {}).get("features", {})
                names = features.get(label, {}).get("names")
            return tuple(class_name(str(name)) for name in names) if names else None
        except (ValueError, TypeError, AttributeError):
            raise UserError(
                "invalid_data", f"{self.url}: the class names in its schema metadata are damaged"
            ) from None


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
def _naming_cache(cache: Path) -> Iterator[None]:
    """Turns an ``OSError`` into a ``UserError`` that names the cache folder."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            "not_writable", f"{cache}: the data cannot be copied there ({reason}); set XDG_CACHE_HOME"
        ) from None
