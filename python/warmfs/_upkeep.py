"""Keeping the cache in order: what is in it, what stays, what goes, what comes next.

Each call is one request at the socket whose answer comes in lines. It ends with the cell: an
interrupt stops it in the daemon, and what is done until then is kept.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Callable, Optional, Union

from . import _binary, _paths
from ._client import Client
from ._errors import InvalidError, WarmfsError
from ._html import format_bytes, grid
from ._mount import daemon
from ._paths import Found, Pathish
from ._progress import Progress, Report
from ._status import decode

# How often the bar of a prefetch is drawn.
PREFETCH_INTERVAL_S = 0.5

# No dataset takes longer to fetch: a day.
PREFETCH_TIMEOUT_S = 86_400.0

# `doctor` asks the remote twice, with retries.
DOCTOR_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Row:
    """A file, or a folder with all that is known below it."""

    name: str = ""
    """Its name; for :func:`du` its path below what was asked for, which is empty for that."""
    is_folder: bool = False
    objects: int = 0
    bytes: int = 0
    """In the remote."""
    cached_bytes: int = 0
    mtime_ms: int = 0
    version: Optional[str] = None
    """The etag or generation of an object."""

    @property
    def is_cached(self) -> bool:
        """Whether all of it is in the cache. Of a folder without a byte nothing is."""
        return self.cached_bytes >= self.bytes and (self.bytes > 0 or not self.is_folder)


class Rows(list[Row]):
    """Rows that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        lines = (
            (
                (row.name or ".") + ("/" if row.is_folder else ""),
                format_bytes(row.bytes),
                f"{100 * row.cached_bytes // row.bytes} %" if row.bytes else "-",
                str(row.objects),
            )
            for row in self
        )
        return grid(("name", "bytes", "cached", "objects"), lines)


@dataclass(frozen=True)
class Pinned:
    """What is pinned by a request."""

    objects: int = 0
    bytes: int = 0
    cached_bytes: int = 0
    """Fewer than ``bytes`` if the cache has no room for it."""


@dataclass(frozen=True)
class Evicted:
    """What left the cache."""

    objects: int = 0
    bytes: int = 0
    in_use: int = 0
    """Objects left because somebody has them open."""
    pinned: int = 0
    """Objects left because they are pinned."""


@dataclass(frozen=True)
class Refreshed:
    """What was listed anew."""

    folders: int = 0
    objects: int = 0


@dataclass(frozen=True)
class Verified:
    """What was compared with its checksums."""

    objects: int = 0
    bytes: int = 0
    damaged_chunks: int = 0
    repaired_chunks: int = 0
    same_objects: int = 0
    """Whole objects that are as their store says; with ``remote``."""
    differing_objects: int = 0
    unverifiable_objects: int = 0


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`doctor` found."""

    ok: bool
    text: str

    def __str__(self) -> str:
        return self.text


def ls(path: Pathish, hidden: bool = False) -> Rows:
    """What is in a folder, and how much of it is cached; with ``hidden`` only keys that no
    path can name.
    """
    return _rows("/v1/ls", path, hidden=hidden)


def du(path: Pathish, depth: int = 0) -> Rows:
    """The sums of a folder, and of those down to ``depth`` below it."""
    if depth < 0:
        raise InvalidError(f"depth={depth} is less than nothing", "give 0 for the folder alone")
    return _rows("/v1/du", path, depth=depth)


def pin(path: Pathish, progress: bool = True) -> Pinned:
    """Fetches a file or a folder and keeps it, over restarts too, until :func:`unpin`."""
    return decode(Pinned, _run("/v1/pin", path, progress))


def unpin(path: Pathish) -> bool:
    """Lets it be evicted again. Returns whether ``path`` itself was pinned."""
    return bool(_run("/v1/unpin", path, False).get("was_pinned"))


def evict(
    path: Optional[Pathish] = None,
    older_than_s: Optional[float] = None,
    everything: bool = False,
    progress: bool = True,
) -> Evicted:
    """Removes from the cache what is in ``path``, what was not read for so many seconds, or
    what is both; or all of it with ``everything``. What is open or pinned stays.
    """
    if everything == (path is not None or older_than_s is not None):
        raise InvalidError("evict() needs to know what", "name a path, or give everything=True")
    older = None if older_than_s is None else max(round(older_than_s), 0)
    return decode(Evicted, _run("/v1/evict", path, progress, older_than_s=older))


def refresh(path: Optional[Pathish] = None, progress: bool = False) -> Refreshed:
    """Sees at once what changed in the remote, in ``path`` or in all that is mounted."""
    return decode(Refreshed, _run("/v1/refresh", path, progress))


def verify(path: Optional[Pathish] = None, remote: bool = False, progress: bool = True) -> Verified:
    """Compares what is cached with its checksums, and with ``remote`` whole objects with
    their store's; what is damaged is fetched again.
    """
    return decode(Verified, _run("/v1/verify", path, progress, remote=remote))


def prefetch(
    paths: Union[Pathish, Iterable[Pathish]],
    wait: bool = True,
    progress: bool = True,
    order: str = "listed",
) -> None:
    """Fetches files and folders into the cache, in the order given or ``"shuffled"``.

    With ``wait`` it returns once they are there, and an interrupt stops it; without, the
    daemon goes on by itself.
    """
    if order not in ("listed", "shuffled"):
        raise InvalidError(f"order={order!r} is unknown", "give 'listed' or 'shuffled'")
    wanted = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not wanted:
        return
    found = [_paths.find(path) for path in wanted[:1]]
    lines = "".join(f"{_line(path)}\n" for path in wanted).encode("utf-8", "surrogateescape")
    args = ["prefetch", "--from=-", f"--order={order}", *(["--wait"] if wait else [])]
    with Progress("prefetch", progress and wait) as display:
        figures = _fetched(found[0].client)
        _watched(args, lines, lambda: display.show(figures()))


def doctor(uri: Optional[str] = None) -> Diagnosis:
    """Checks this machine, and with a URI the way to it: what is wrong, and what to do."""
    ended = _binary.finish(["doctor", *([uri] if uri else [])], DOCTOR_TIMEOUT_S)
    if not ended.out.strip():
        _binary.check("doctor", ended.code, ended.err)
    return Diagnosis(ended.code == 0, ended.out.rstrip())


def _rows(target: str, path: Pathish, **fields: Any) -> Rows:
    return rows_of(_paths.find(path), target, **fields)


def rows_of(found: Found, target: str, **fields: Any) -> Rows:
    """Rows of what was found."""
    rows = Rows()

    def on_line(kind: str, value: Any) -> None:
        if kind == "rows" and isinstance(value, list):
            rows.extend(decode(Row, row) for row in value if isinstance(row, dict))

    found.client.upkeep(target, {"path": found.path, **fields}, on_line)
    return rows


def _run(target: str, path: Optional[Pathish], progress: bool, **fields: Any) -> dict[str, Any]:
    client, where = _carrier(path)
    with Progress(target.rpartition("/")[2], progress) as display:

        def on_line(kind: str, value: Any) -> None:
            if kind == "progress" and isinstance(value, dict):
                display.show(decode(Report, value))

        return client.upkeep(target, {"path": where, **fields}, on_line)


def _carrier(path: Optional[Pathish]) -> tuple[Client, Optional[str]]:
    if path is None:
        return daemon(), None
    found = _paths.find(path)
    return found.client, found.path


def _line(path: Pathish) -> str:
    text = os.fspath(path)
    if "\n" in text:
        raise InvalidError(f"{text!r} holds a line break", "name its folder instead")
    return _paths.uri_of(text) if "://" in text else str(_paths.walk(text))


def _fetched(client: Client) -> Callable[[], Report]:
    """What a daemon fetched ahead since now."""
    before = _paths.status_of(client).prefetched

    def figures() -> Report:
        now = _paths.status_of(client).prefetched
        return Report(
            objects_done=now.objects - before.objects, bytes_done=now.bytes - before.bytes
        )

    return figures


def _watched(args: list[str], stdin: bytes, show: Callable[[], None]) -> None:
    """Runs the program, and shows how far it is meanwhile."""
    done = threading.Event()

    def draw() -> None:
        while not done.wait(PREFETCH_INTERVAL_S):
            try:
                show()
            except WarmfsError:
                return  # The program says so, too.

    thread = threading.Thread(target=draw, name="warmfs-progress", daemon=True)
    thread.start()
    try:
        _binary.run(args, PREFETCH_TIMEOUT_S, stdin)
    finally:
        done.set()
        thread.join()
