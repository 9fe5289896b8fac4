"""Files read at the daemon's socket, without a folder: ``warmfs.open()``, and what
:mod:`._view` and :mod:`._fsspec` are made of.

A file is known by its inode number and version, so that it is one version from its first
byte to its last. Nothing is held in the daemon for a file that is open, so what was asked of
a daemon that died is asked of the next one.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, Callable, Optional, TypeVar

from . import _client, _mount, _paths, _reads
from ._client import Client
from ._errors import (
    BusyError,
    DaemonGoneError,
    InvalidError,
    NotMountedError,
    StaleError,
    WarmfsError,
)
from ._paths import Found, Pathish
from ._status import MountStatus, decode
from ._upkeep import Row, Rows, rows_of

_T = TypeVar("_T")

# Most bytes of one read, as the daemon has it.
READ_BYTES_MAX = 16 << 20

# Bytes that are read for who wants fewer: two chunks of the cache.
BUFFER_BYTES = 256 << 10

# How long a daemon that died may take to be back, or one that is busy to have a turn. It takes
# milliseconds, unless it has an index to check.
RETURN_LIMIT_S = 15.0

# Pauses before the next tries. The first comes at once: a connection that was idle is ended.
PAUSES_S = (0.0, 0.02, 0.1, 0.25)

# What a failure is for who reads files; anything else is EIO.
ERRNOS = {
    "busy": errno.EBUSY,
    "denied": errno.EACCES,
    "invalid": errno.EINVAL,
    "not-found": errno.ENOENT,
    "not-mounted": errno.ENODEV,
    "stale": errno.ESTALE,
}

READ_ONLY = "warmfs only reads: write to another folder, or to the bucket itself"

# Schemes whose buckets are named by two parts.
TWO_PARTS = ("az",)


@dataclass(frozen=True)
class Stat(Row):
    """What is at a URI, and how its bytes are asked for."""

    dir: str = ""
    uri: str = ""
    ino: int = 0


class Files:
    """What lies below URIs. Who serves it is looked up once.

    What is below no mount is attached to the cache, as a view of ``root`` or of its whole
    bucket, with the ``options`` of a mount.
    """

    def __init__(self, root: Optional[str] = None, options: Optional[Mapping[str, Any]] = None):
        self._root = root
        self._options = dict(options or {})
        self._mounted: list[tuple[Client, MountStatus]] = []

    def stat(self, uri: str) -> Stat:
        """What a URI is."""
        return self._asked(uri, _stat)

    def rows(self, uri: str) -> Rows:
        """What is in a folder."""

        def listed(found: Found) -> Rows:
            _stat(found)  # What is mounted there may be another bucket by now.
            return rows_of(found, "/v1/ls", hidden=False)

        return self._asked(uri, listed)

    def open(self, uri: str) -> RawFile:
        """A file, whatever becomes of its name."""

        def opened(found: Found) -> RawFile:
            stat = _stat(found)
            if stat.is_folder:
                raise IsADirectoryError(errno.EISDIR, "it is a folder", uri)
            return RawFile(found.client, stat, uri, lambda: self.stat(uri))

        return self._asked(uri, opened)

    def _asked(self, uri: str, ask: Callable[[Found], _T]) -> _T:
        try:
            return again(lambda: self._ask(uri, ask))
        except WarmfsError as error:
            raise os_error(error, uri) from None

    def _ask(self, uri: str, ask: Callable[[Found], _T]) -> _T:
        if self._mounted:
            try:
                return ask(self._find(uri))
            except NotMountedError:
                pass  # It was ended, or it is in another one.
        self._mounted = _mount.mounts_for(self._options)
        try:
            found = self._find(uri)
        except NotMountedError:
            _mount.attach(self._root or top_of(uri), self._options)
            self._mounted = _mount.mounts_for(self._options)
            found = self._find(uri)
        return ask(found)

    def _find(self, uri: str) -> Found:
        # A view has the options that it was made with.
        return _paths.find_uri(uri, self._mounted, self._root)


class RawFile(io.RawIOBase):
    """A file that is read by ranges, as it was when it was opened."""

    mode = "rb"

    def __init__(self, client: Client, stat: Stat, name: str, look: Callable[[], Stat]):
        self.name = name
        self.size = stat.bytes
        """In bytes."""
        self._client = client
        self._stat = stat
        self._look = look
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves there; behind the end nothing is read."""
        self._check_open()
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}.get(whence)
        if base is None or base + offset < 0:
            raise OSError(errno.EINVAL, f"there is no place {offset} from {whence}", self.name)
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Reads the next bytes."""
        self._check_open()
        view = memoryview(buffer).cast("B")
        count = self.read_at(self._at, view)
        self._at += count
        return count

    def read_at(self, offset: int, view: memoryview) -> int:
        """Reads from a place; how many bytes came. Fewer than there is room for are no end."""
        length = min(len(view), READ_BYTES_MAX, self.size - offset)
        if length <= 0:
            return 0
        try:
            try:
                return again(lambda: self._read(offset, view[:length]))
            except StaleError:
                # A daemon that died may have known more than its index.
                if not self._is_same_again():
                    raise
                return again(lambda: self._read(offset, view[:length]))
        except WarmfsError as error:
            raise os_error(error, self.name) from None

    def _read(self, offset: int, view: memoryview) -> int:
        stat = self._stat
        body: dict[str, Any] = {"dir": stat.dir, "uri": stat.uri, "ino": stat.ino}
        body.update(version=stat.version or "", offset=offset, length=len(view))
        count = _reads.read(self._client.socket, body, view)
        if not count:
            raise StaleError("the file ended before its size", "open it again")
        return count

    def _is_same_again(self) -> bool:
        """Whether the name leads to the same version, under another number."""
        try:
            stat = self._look()
        except OSError:
            return False  # Whatever it is by now, it is not what was opened.
        is_same = (stat.version, stat.bytes) == (self._stat.version, self.size)
        is_news = stat.ino != self._stat.ino
        if is_same and is_news:
            self._stat = stat
        return is_same and is_news

    def read_range(self, start: int, end: int) -> bytes:
        """The bytes of a range, as far as the file goes."""
        length = min(end, self.size) - start
        if length <= 0:
            return b""
        # Its value is handed over: bytes are made of a bytearray by another copy.
        whole = io.BytesIO()
        whole.seek(length - 1)
        whole.write(b"\0")
        with whole.getbuffer() as view:
            done = 0
            while done < length:
                done += self.read_at(start + done, view[done:])
        return whole.getvalue()

    def readall(self) -> bytes:
        """The rest of it."""
        self._check_open()
        data = self.read_range(self._at, self.size)
        self._at += len(data)
        return data

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")


class BufferedFile(io.BufferedReader):
    """A file in which a seek and the read after it belong together, in each thread: DuckDB has
    several of them do that in one file, and a read here lets go of the interpreter.
    """

    def __init__(self, raw: RawFile, size: int = BUFFER_BYTES):
        super().__init__(raw, size)
        self._turn = threading.RLock()
        self._sought = threading.local()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Where this thread's next read begins, and everybody's if nobody seeks before it."""
        with self._turn:
            if whence == io.SEEK_CUR:
                self._go()
            at = super().seek(offset, whence)
            self._sought.at = at
            return at

    def tell(self) -> int:
        """Where this thread's next read begins."""
        at: Optional[int] = vars(self._sought).get("at")
        return super().tell() if at is None else at

    def read(self, size: Optional[int] = -1) -> bytes:
        """As of any file."""
        with self._turn:
            self._go()
            return super().read(size)

    def read1(self, size: int = -1) -> bytes:
        """As of any file."""
        with self._turn:
            self._go()
            return super().read1(size)

    def readinto(self, buffer: Any) -> int:
        """As of any file."""
        with self._turn:
            self._go()
            return super().readinto(buffer)

    def readinto1(self, buffer: Any) -> int:
        """As of any file."""
        with self._turn:
            self._go()
            return super().readinto1(buffer)

    def peek(self, size: int = 0) -> bytes:
        """As of any file."""
        with self._turn:
            self._go()
            return super().peek(size)

    def readline(self, size: Optional[int] = -1) -> bytes:
        """As of any file."""
        with self._turn:
            self._go()
            return super().readline(size)

    def _go(self) -> None:
        at = vars(self._sought).pop("at", None)
        if at is not None:
            super().seek(at)


_anywhere = Files()


def open_file(
    path: Pathish,
    mode: str = "rb",
    buffering: int = -1,
    encoding: Optional[str] = None,
    errors: Optional[str] = None,
    newline: Optional[str] = None,
) -> IO[Any]:
    """Opens a file to read it: a URI (``s3://bucket/key``, or ``warmfs://s3/bucket/key``) at
    the daemon's socket, with no need of a folder; a path as the builtin does.

    What a URI is below need not be mounted: its bucket is attached to the cache then. Failures
    are an :class:`OSError` as of a file in a mount.
    """
    text = os.fspath(path)
    if "://" not in text:
        return builtins.open(path, mode, buffering, encoding, errors, newline)
    raw = opened_for(mode, text, lambda: _anywhere.open(_paths.uri_of(text)))
    return wrapped(raw, mode, buffering, encoding, errors, newline)


def opened_for(mode: str, name: str, open_raw: Callable[[], RawFile]) -> RawFile:
    """The file, unless the mode is one to write."""
    if not set(mode) <= set("rbt") or "r" not in mode:
        raise OSError(errno.EROFS, READ_ONLY, name)
    return open_raw()


def wrapped(
    raw: RawFile,
    mode: str,
    buffering: int = -1,
    encoding: Optional[str] = None,
    errors: Optional[str] = None,
    newline: Optional[str] = None,
) -> IO[Any]:
    """A file as its mode has it: buffered, unless that is not wanted, and text or bytes."""
    if buffering == 0 and "b" in mode:
        return raw  # type: ignore[return-value]
    buffered = BufferedFile(raw, buffering if buffering > 1 else BUFFER_BYTES)
    if "b" in mode:
        return buffered
    return io.TextIOWrapper(buffered, encoding, errors, newline)


def again(call: Callable[[], _T]) -> _T:
    """What ``call`` returns, once the daemon is back that died, or has a turn."""
    deadline, tries = time.monotonic() + RETURN_LIMIT_S, 0
    while True:
        try:
            return call()
        except (BusyError, DaemonGoneError):
            if time.monotonic() > deadline:
                raise
        time.sleep(PAUSES_S[min(tries, len(PAUSES_S) - 1)])
        tries += 1


def os_error(error: WarmfsError, name: str) -> OSError:
    """The error of a file for one of the daemon's."""
    return OSError(ERRNOS.get(error.code, errno.EIO), str(error), name)


def top_of(uri: str) -> str:
    """The bucket that a URI is in, or a local file's folder."""
    scheme, mark, rest = uri.partition("://")
    if not mark or not rest:
        raise InvalidError(f"{uri!r} is not a URI", "write s3://BUCKET/KEY or another scheme")
    if scheme == "file":
        return f"{scheme}://{rest.rstrip('/').rpartition('/')[0] or '/'}"
    count = 2 if scheme in TWO_PARTS or rest.startswith("@") else 1
    return f"{scheme}://{'/'.join(rest.split('/')[:count])}"


def _stat(found: Found) -> Stat:
    body = {"path": found.path}
    reply = found.client.send("POST", "/v1/stat", body, _client.REMOTE_TIMEOUT_S)
    stat = decode(Stat, reply)
    if stat.uri and stat.uri != found.mount.uri:
        raise NotMountedError(f"{found.mount.uri} is no longer at {found.mount.dir}")
    return stat
