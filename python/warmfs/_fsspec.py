"""``warmfs://`` for fsspec: pandas, pyarrow, DuckDB and whatever else opens URLs by it.

``warmfs://s3/bucket/key`` is ``s3://bucket/key``, read through the cache. It is not written
as a chain (``warmfs::s3://…``), for which fsspec wants the file system of ``s3`` as well.

A file system of one view (``WarmfsFileSystem("s3://bucket/prefix")``, as
:func:`warmfs.mount` returns it) has names below that; without one names are
``s3/bucket/key``. It can be pickled: whoever has it connects to the daemon by itself, each
process and each thread.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import IO, Any, Optional, Union

import fsspec
from fsspec.spec import AbstractFileSystem
from fsspec.utils import stringify_path

from . import _files, _paths
from ._files import RawFile
from ._mount import MADE_OPTIONS
from ._upkeep import Row
from ._view import View

# Ranges that are read at once. The daemon answers 64 in all.
RANGES_AT_ONCE = 8


def _refused(self: WarmfsFileSystem, *args: Any, **_: Any) -> Any:
    """Refuses to write."""
    name = str(args[0]) if args else self.root_marker
    raise OSError(errno.EROFS, _files.READ_ONLY, name)


class WarmfsFileSystem(AbstractFileSystem, View):  # type: ignore[misc]
    """Read-only files through the cache of warmfs.

    ``root`` is the URI that names are below, and the ``options`` are those of
    :func:`warmfs.mount`. What is below no mount is attached when it is first asked for.
    """

    protocol = _paths.PROTOCOL
    root_marker = ""
    # A view that was ended and begun anew is another one.
    cachable = False

    def __init__(self, root: str = "", **options: Any):
        AbstractFileSystem.__init__(self, **options)
        made = {name: value for name, value in options.items() if name in MADE_OPTIONS}
        place = _paths.uri_of(root).rstrip("/")
        View.__init__(self, place, place, options=made)
        self._files = _files.Files(place or None, made)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        name: str = stringify_path(path)
        scheme, mark, rest = name.partition("://")
        if mark and scheme == cls.protocol:
            name = rest
        elif mark:
            name = f"{scheme}/{rest.lstrip('/')}"
        return name.strip("/")

    def _uri(self, name: str) -> str:
        name = self._strip_protocol(name)
        if not self._place:
            return _paths.uri_of(f"{self.protocol}://{name}")
        root = self._strip_protocol(self._place)
        rest = _paths.below(name, root)
        name = name if rest is None else rest
        return f"{self._place}/{name}" if name else self._place

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a name."""
        return f"{self.protocol}://{self._strip_protocol(self._uri(name))}"

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """What a path is."""
        name = self._strip_protocol(path)
        return _entry(name, self._files.stat(self._uri(name)))

    def ls(self, path: str = "", detail: bool = True, **_: Any) -> Any:
        """What is in a folder."""
        name = self._strip_protocol(path)
        found = self.info(name)
        entries = [found]
        if found["type"] == "directory":
            above = f"{name}/" if name else ""
            entries = [_entry(above + row.name, row) for row in self._files.rows(self._uri(name))]
        return entries if detail else [entry["name"] for entry in entries]

    def exists(self, path: str, **_: Any) -> bool:
        """Whether it is there; an error if that cannot be told."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def modified(self, path: str) -> datetime:
        """When a file was written."""
        modified: datetime = self.info(path)["mtime"]
        return modified

    def ukey(self, path: str) -> str:
        """What changes with the content of a file."""
        entry = self.info(path)
        key = f"{self.unstrip_protocol(path)} {entry['version']} {entry['size']}"
        return hashlib.sha256(key.encode()).hexdigest()

    def _open(
        self, path: str, mode: str = "rb", block_size: Union[int, str, None] = None, **_: Any
    ) -> IO[bytes]:
        buffering = block_size if isinstance(block_size, int) else -1
        return _files.wrapped(self._raw(path, mode), "rb", buffering)

    def _raw(self, path: str, mode: str = "rb") -> RawFile:
        uri = self._uri(path)
        return _files.opened_for(mode, uri, lambda: self._files.open(uri))

    def cat_file(
        self, path: str, start: Optional[int] = None, end: Optional[int] = None, **_: Any
    ) -> bytes:
        """The bytes of a file, or of a range of it; from its end, if that is negative."""
        with self._raw(path) as raw:
            first, last, _step = slice(start, end).indices(raw.size)
            return raw.read_range(first, last)

    def cat_ranges(
        self,
        paths: list[str],
        starts: Union[int, Sequence[Optional[int]], None],
        ends: Union[int, Sequence[Optional[int]], None],
        max_gap: Optional[int] = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        """The bytes of many ranges, some at once."""
        froms = _each(starts, len(paths))
        untils = _each(ends, len(paths))
        if not len(paths) == len(froms) == len(untils):
            raise ValueError("there is a start and an end for each path")

        def one(path: str, start: Optional[int], end: Optional[int]) -> Any:
            try:
                return self.cat_file(path, start, end)
            except OSError as error:
                if on_error != "return":
                    raise
                return error

        with ThreadPoolExecutor(RANGES_AT_ONCE) as pool:
            return list(pool.map(one, paths, froms, untils))

    mkdir = makedirs = rmdir = touch = _refused
    rm = rm_file = _rm = _refused
    cp_file = mv = pipe_file = put_file = _refused


def _each(given: Any, count: int) -> Sequence[Optional[int]]:
    return given if isinstance(given, (list, tuple)) else [given] * count


def _entry(name: str, row: Row) -> dict[str, Any]:
    """A row as fsspec has it."""
    return {
        "name": name,
        "type": "directory" if row.is_folder else "file",
        "size": 0 if row.is_folder else row.bytes,
        "mtime": datetime.fromtimestamp(row.mtime_ms / 1_000, timezone.utc),
        "version": row.version,
        "cached_bytes": row.cached_bytes,
    }


fsspec.register_implementation(_paths.PROTOCOL, WarmfsFileSystem, clobber=True)
