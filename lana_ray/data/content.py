"""Identity of data by its content: files are read whole once on a machine, later only where one has changed.

What tells that a file has not changed are its size and times, or the ETag of an object store. For a million
images that is a million calls of ``stat``. The first time they are read at what the disk gives.
"""

from __future__ import annotations

import contextlib
import functools
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
from torch import Tensor

from lana_ray.errors import UserError
from lana_ray.monitoring.progress import progress

_PART = 1000
"""Files of one folder, at most, that are read again where one of them has changed."""
_READERS = 8
_SHOWN = 2**30
"""Bytes to read, from which on progress is shown."""
_SETTLED_NS = 2 * 10**9
"""Nanoseconds since a file's last change, from which on its times will tell of the next one."""
_ETAGS = ("ETag", "etag", "md5Hash", "content_md5")
"""What object stores tell of an object's content, by the names that their clients use."""


def cache() -> Path:
    """Where this machine keeps what it knows of data."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lana_ray"


def digest(*parts: bytes) -> str:
    """Hash of byte strings."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little"))
        whole.update(part)
    return whole.hexdigest()[:16]


def content_of_files(paths: Sequence[str]) -> str:
    """Hash of the content of local files, one after another.

    Raises:
        UserError: a file cannot be read.
    """
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
    """Hash of the content of one file, or what its object store says instead."""
    fs, path = fsspec.core.url_to_fs(url)
    return content_of_files([path]) if _is_local(fs) else _state_of_object(fs, path)


def state_of(url: str) -> str:
    """Changes whenever the file does, without reading it if its store can tell; differs between machines."""
    fs, path = fsspec.core.url_to_fs(url)
    return _state([(path, os.stat(path))]) if _is_local(fs) else _state_of_object(fs, path)


def content_of_object(value: Any) -> str:
    """Hash of the arrays that a data set's attributes hold and of the files that they name."""
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
    """Some files that are read together.

    Attributes:
        content: hash of the content, None while it is not known.
        size: of all, bytes.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        with _named(paths[0]):
            stats = [(path, os.stat(path)) for path in paths]
        self.size = sum(status.st_size for _, status in stats)
        self._changed_ns = max(max(status.st_mtime_ns, status.st_ctime_ns) for _, status in stats)
        self._kept = cache() / "content" / _state(stats)
        self.content: str | None = None
        with contextlib.suppress(OSError):
            self.content = self._kept.read_text() or None

    def read(self) -> int:
        """Finds the content out and keeps it; returns the bytes read."""
        begin_ns = time.time_ns()
        digests = []
        for path in self._paths:
            with _named(path), open(path, "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").digest())
        self.content = digest(*digests)
        if begin_ns - self._changed_ns > _SETTLED_NS:
            with contextlib.suppress(OSError):  # then it is read again next time
                self._kept.parent.mkdir(parents=True, exist_ok=True)
                self._kept.write_text(self.content)
        return self.size


def _state(stats: Sequence[tuple[str, os.stat_result]]) -> str:
    lines = (f"{os.path.abspath(path)}\t{s.st_size}\t{s.st_mtime_ns}\t{s.st_ctime_ns}" for path, s in stats)
    return digest("\n".join(lines).encode(errors="surrogateescape"))


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _state_of_object(fs: Any, path: str) -> str:
    fs.invalidate_cache()
    info = fs.info(path)
    tag = next((info[name] for name in _ETAGS if info.get(name)), None)
    if tag is not None:
        return digest(str((tag, info.get("size"))).encode())
    with _named(path), fs.open(path, "rb") as file:
        whole = hashlib.sha256()
        for block in iter(functools.partial(file.read, 2**20), b""):
            whole.update(block)
    return digest(whole.digest())


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path!a}: cannot be read ({error.strerror or error})") from None
