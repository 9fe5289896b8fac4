"""Keeping the cache in order: what is in it, what stays, what goes, what comes next.

Each call is one request at the socket whose answer comes in lines. It ends with the cell: an
interrupt stops it in the daemon, and what is done until then is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Optional, Union

from . import _binary, _paths
from ._client import Client
from ._errors import InvalidError, NotFoundError
from ._html import Readable, columns, format_bytes, format_count, grid, note
from ._mount import daemon
from ._paths import Found, Pathish
from ._progress import Progress, Report
from ._status import MountStatus, decode

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


class Rows(list[Row], Readable):
    """Rows that a notebook shows as a table."""

    def __str__(self) -> str:
        return "\n".join(filter(None, (columns(HEAD, map(_cells, self)), self._unknown())))

    def _repr_html_(self) -> str:
        unknown = self._unknown()
        return grid(HEAD, map(_cells, self)) + (note(unknown) if unknown else "")

    def _unknown(self) -> str:
        return UNLISTED if any(map(_is_unlisted, self)) else ""


HEAD = ("name", "size", "cached", "objects")

UNLISTED = "-: not listed yet, or empty; warmfs.du(path) lists it."


def _is_unlisted(row: Row) -> bool:
    """No folder of a bucket is empty."""
    return row.is_folder and not row.objects


def _cells(row: Row) -> list[str]:
    name = (row.name or ".") + ("/" if row.is_folder else "")
    if _is_unlisted(row):
        return [name, "-", "-", "-"]
    cached = f"{100 * row.cached_bytes // row.bytes} %" if row.bytes else "-"
    return [name, format_bytes(row.bytes), cached, str(row.objects)]


@dataclass(frozen=True)
class Pinned(Readable):
    """What is pinned by a request."""

    objects: int = 0
    bytes: int = 0
    cached_bytes: int = 0
    """Fewer than ``bytes`` if the cache has no room for it."""

    def __str__(self) -> str:
        return f"pinned {_sum(self)}{_cached(self)}"


@dataclass(frozen=True)
class Prefetched(Readable):
    """What :func:`prefetch` fetched. Without ``wait`` no figures are known."""

    detached: bool = False
    """The daemon goes on by itself."""
    objects: int = 0
    bytes: int = 0
    cached_bytes: int = 0
    """Fewer than ``bytes`` if not all was fetched."""
    unfit: int = 0
    """Objects for which the cache has no room."""
    capped: bool = False
    """``max_download`` was reached."""
    missing: int = 0
    """Paths that do not exist."""

    def __str__(self) -> str:
        if self.detached:
            return "the daemon prefetches; warmfs.du(path) shows how far it is"
        text = f"prefetched {_sum(self)}{_cached(self)}"
        text += (
            f"; {format_count(self.unfit, 'object')} did not fit the cache" if self.unfit else ""
        )
        return text + ("; max_download was reached" if self.capped else "")


@dataclass(frozen=True)
class Evicted(Readable):
    """What left the cache."""

    objects: int = 0
    bytes: int = 0
    in_use: int = 0
    """Objects left because somebody has them open."""
    pinned: int = 0
    """Objects left because they are pinned."""

    def __str__(self) -> str:
        stayed = [f"{self.in_use} in use"] if self.in_use else []
        stayed += [f"{self.pinned} pinned"] if self.pinned else []
        return f"evicted {_sum(self)}" + (f"; {', '.join(stayed)} stayed" if stayed else "")


@dataclass(frozen=True)
class Refreshed(Readable):
    """What was listed anew."""

    folders: int = 0
    objects: int = 0

    def __str__(self) -> str:
        folders, objects = (
            format_count(self.folders, "folder"),
            format_count(self.objects, "object"),
        )
        return f"refreshed {folders}, {objects}"


@dataclass(frozen=True)
class Verified(Readable):
    """What was compared with its checksums."""

    objects: int = 0
    bytes: int = 0
    damaged_chunks: int = 0
    repaired_chunks: int = 0
    same_objects: int = 0
    """Whole objects that are as their store says; with ``remote``."""
    differing_objects: int = 0
    unverifiable_objects: int = 0

    def __str__(self) -> str:
        damaged = format_count(self.damaged_chunks, "damaged chunk")
        text = f"verified {_sum(self)}: {damaged}, {self.repaired_chunks} repaired"
        of_store = (
            (self.same_objects, "as their store says"),
            (self.differing_objects, "differ from their store's"),
            (self.unverifiable_objects, "of which the store does not say"),
        )
        told = [f"{format_count(count, 'object')} {what}" for count, what in of_store if count]
        return "; ".join((text, *told))


def _sum(done: Union[Pinned, Prefetched, Evicted, Verified]) -> str:
    return f"{format_count(done.objects, 'object')}, {format_bytes(done.bytes)}"


def _cached(done: Union[Pinned, Prefetched]) -> str:
    if done.cached_bytes >= done.bytes:
        return ""
    return f"; {format_bytes(done.cached_bytes)} of it in the cache"


@dataclass(frozen=True)
class Diagnosis(Readable):
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
) -> Prefetched:
    """Fetches files and folders of one daemon into the cache, in the order given or
    ``"shuffled"``.

    With ``wait`` it returns once they are there, and an interrupt stops it; without, the
    daemon goes on by itself.
    """
    if order not in ("listed", "shuffled"):
        raise InvalidError(f"order={order!r} is unknown", "give 'listed' or 'shuffled'")
    wanted = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    if not wanted:
        return Prefetched()
    client, mounted = _paths.find(wanted[0]).client, _paths.mounts()
    names = [_canonical(path, mounted) for path in wanted]
    body = {"paths": names, "shuffled": order == "shuffled", "detached": not wait}
    reply = _shown(client, "/v1/prefetch", body, progress and wait)
    done = decode(Prefetched, reply)
    if done.missing:
        paths_do = "1 path does" if done.missing == 1 else f"{done.missing} paths do"
        message = f"{paths_do} not exist, such as {reply.get('first_missing')}"
        raise NotFoundError(message, f"the others: {done}")
    return done


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
    return _shown(client, target, {"path": where, **fields}, progress)


def _shown(client: Client, target: str, body: dict[str, Any], progress: bool) -> dict[str, Any]:
    with Progress(target.rpartition("/")[2], progress) as display:

        def on_line(kind: str, value: Any) -> None:
            if kind == "progress" and isinstance(value, dict):
                display.show(decode(Report, value))

        reply = client.upkeep(target, body, on_line)
        # The last report was of a moment before the end.
        done = decode(Prefetched, reply)
        kept = done.cached_bytes if "cached_bytes" in reply else done.bytes
        display.show(Report(done.objects, done.objects, kept, done.bytes))
        return reply


def _carrier(path: Optional[Pathish]) -> tuple[Client, Optional[str]]:
    if path is None:
        return daemon(), None
    found = _paths.find(path)
    return found.client, found.path


def _canonical(path: Pathish, mounted: list[tuple[Client, MountStatus]]) -> str:
    text = os.fspath(path)
    if "://" in text:
        return _paths.find_uri(_paths.uri_of(text), mounted).path
    return str(_paths.walk(text))
