"""Hashes of data by its content: each machine reads all files once, and later only those that changed.

A file counts as unchanged if its size and times, or its ETag in an object store, are the same. A million
images take a million calls of ``stat``; the first time, they are read as fast as the disk allows.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from lana_ray.data.names import printable
from lana_ray.errors import Code, UserError
from lana_ray.monitoring.progress import progress

_PART = 1000
"""Most files of one folder that share a cached hash: all of them are read again if one changes."""
_READERS = 8
_SHOWN = 2**30
"""Bytes to read from which progress is shown."""
_SETTLED_NS = 2 * 10**9
"""Nanoseconds after a file's last change from which another change is sure to alter its times."""
_ETAGS = ("ETag", "etag", "md5Hash", "content_md5")
"""Names under which the clients of object stores give a hash of an object's content."""


def cache() -> Path:
    """Returns the folder in which this machine caches hashes and copies of data."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lana_ray"


def digest(*parts: bytes) -> str:
    """Returns a hash of byte strings, 16 hexadecimal digits."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()[:16]


def content_of_files(paths: Sequence[str]) -> str:
    """A hash of the content of local files, in this order; raises UserError if a file cannot be read."""
    folders = (list(files) for _, files in itertools.groupby(paths, os.path.dirname))
    parts = [_Part(folder[i : i + _PART]) for folder in folders for i in range(0, len(folder), _PART)]
    unread = [part for part in parts if part.content is None]
    size = sum(part.size for part in unread)
    shown = size >> 20 if size >= _SHOWN else 0
    with ThreadPoolExecutor(_READERS) as pool, progress("data: MiB read", shown) as show:
        for done in itertools.accumulate(pool.map(_Part.read, unread)):
            show(done >> 20)
    return digest(*(str(part.content).encode() for part in parts))


def content_of(url: str) -> str:
    """Returns a hash of one file's content, or of its ETag if an object store gives one."""
    fs, path = fsspec.core.url_to_fs(url)
    return content_of_files([path]) if isinstance(fs, LocalFileSystem) else _state_of_object(fs, path)


def state_of(url: str) -> str:
    """A hash of a file's times or ETag, or else of its content, which differs between machines."""
    fs, path = fsspec.core.url_to_fs(url)
    return _state([(path, os.stat(path))]) if isinstance(fs, LocalFileSystem) else _state_of_object(fs, path)


def content_of_object(value: Any) -> str:
    """Returns a hash of the arrays in a data set's attributes and of the files that they name."""
    arrays: list[str] = []
    files: dict[str, None] = {}

    def visit(inner: Any) -> None:
        if isinstance(inner, np.ndarray | Tensor):
            array = np.asarray(inner)
            arrays.append(digest(str((array.dtype, array.shape)).encode(), array.tobytes()))
        elif isinstance(inner, str | Path) and os.sep in str(inner) and os.path.isfile(inner):
            files[str(inner)] = None
        elif isinstance(inner, list | tuple):
            for each in inner:
                visit(each)

    for _, attribute in sorted(vars(value).items()):
        visit(attribute)
    return digest(*(array.encode() for array in arrays), content_of_files(list(files)).encode())


class _Part:
    """Files of one folder whose hash is cached together.

    Attributes:
        content: hash of their content; None until they are read.
        size: total size, bytes.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        with reading(paths[0]):
            stats = [(path, os.stat(path)) for path in paths]
        self.size = sum(status.st_size for _, status in stats)
        self._changed_ns = max(max(status.st_mtime_ns, status.st_ctime_ns) for _, status in stats)
        self._cached = cache() / "content" / _state(stats)
        self.content: str | None = None
        with contextlib.suppress(OSError):
            self.content = self._cached.read_text() or None

    def read(self) -> int:
        """Hashes the files and caches the hash; returns the bytes read."""
        begin_ns = time.time_ns()
        digests = []
        for path in self._paths:
            with reading(path), open(path, "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").digest())
        self.content = digest(*digests)
        if begin_ns - self._changed_ns > _SETTLED_NS:
            # Without a cache the files are read again next time.
            with contextlib.suppress(OSError):
                self._cached.parent.mkdir(parents=True, exist_ok=True)
                self._cached.write_text(self.content)
        return self.size


def _state(stats: Sequence[tuple[str, os.stat_result]]) -> str:
    lines = (f"{os.path.abspath(path)}\t{s.st_size}\t{s.st_mtime_ns}\t{s.st_ctime_ns}" for path, s in stats)
    return digest("\n".join(lines).encode(errors="surrogateescape"))


def _state_of_object(fs: Any, path: str) -> str:
    fs.invalidate_cache()
    info = fs.info(path)
    tag = next((info[name] for name in _ETAGS if info.get(name)), None)
    if tag is not None:
        return digest(str((tag, info.get("size"))).encode())
    with reading(path), fs.open(path, "rb") as file:
        return digest(hashlib.file_digest(file, "sha256").digest())


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turns an ``OSError`` into a ``UserError`` that names the file."""
    try:
        yield
    except OSError as error:
        code: Code = "missing_file" if isinstance(error, FileNotFoundError) else "invalid_file"
        raise UserError(code, f"{printable(path)}: cannot be read ({error.strerror or error})") from None
