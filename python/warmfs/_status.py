"""The state of a daemon, as ``GET /v1/status`` has it: ``src/control/wire/status.rs``.

Counters run since the daemon started and cover what reaches it: reads that the kernel
answers from its page cache do not. Fields of later versions are left out, those that an
older daemon does not send have their defaults.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional, TypeVar, Union, get_args, get_origin, get_type_hints

from . import _html
from ._html import format_bytes, format_count, format_duration

_T = TypeVar("_T")

# The daemon's numbers have 64 bits. What is no number is not below it, either.
NUMBER_MAX = 1 << 64


@dataclass(frozen=True)
class ReadStatus:
    """Bytes read."""

    hit_bytes: int = 0
    """Answered without waiting for the remote."""
    miss_bytes: int = 0
    """Answered after waiting for the remote."""


@dataclass(frozen=True)
class DownloadStatus:
    """Bytes downloaded for one mount."""

    bytes: int = 0
    cap: Optional[int] = None
    """``max_download``, if it was given."""
    reached: bool = False
    """Nothing is fetched ahead any more."""


@dataclass(frozen=True)
class FuseStatus:
    """Requests from the kernel."""

    requests: int = 0
    ops: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class WarmingStatus:
    """What a mount fetches before it is read."""

    state: str = ""
    objects: int = 0
    bytes: int = 0
    of_objects: int = 0
    all_is_too_large: bool = False


@dataclass(frozen=True)
class MountStatus(_html.Readable):
    """One mount."""

    uri: str = ""
    dir: str = ""
    """The mount point; of a view its URI."""
    view: bool = False
    """There is no folder: its files are read at the socket."""
    mode: str = ""
    """How files are opened; see ``docs/kernel.md``."""
    mode_reason: str = ""
    uptime_s: float = 0.0
    detached: bool = False
    """Detached from ``dir`` and waiting for its last user."""
    reads: ReadStatus = field(default_factory=ReadStatus)
    download: DownloadStatus = field(default_factory=DownloadStatus)
    refusal: Optional[str] = None
    """Why its credentials are refused, if they are."""
    fuse: FuseStatus = field(default_factory=FuseStatus)
    warming: WarmingStatus = field(default_factory=WarmingStatus)

    def __str__(self) -> str:
        return _text(_mount_rows(self))

    def _repr_html_(self) -> str:
        return _html.table(_mount_rows(self))


@dataclass(frozen=True)
class ComparedStatus:
    """Objects that were compared with the checksums of their stores."""

    same: int = 0
    unverifiable: int = 0
    skipped: int = 0
    dropped: int = 0
    """Those that differed, and were dropped to be fetched again."""
    disputed: int = 0
    """Those that differed again, and are kept as they came."""
    last: Optional[str] = None
    """The key of the last one that differed."""


@dataclass(frozen=True)
class CacheStatus:
    """The cache."""

    dir: str = ""
    used_bytes: int = 0
    limit_bytes: int = 0
    objects: int = 0
    state: str = ""
    """``ok``, or in a few words why reads pass it by."""
    dataset_bytes: int = 0
    """Bytes of all objects below the mounts, as far as they are listed."""
    dataset_cached_bytes: int = 0
    expected_hit_rate: Optional[float] = None
    """Part of an epoch's bytes that will come from the cache once it is warm, 0 to 1."""
    pins: int = 0
    hidden_keys: int = 0
    """Keys that no path can name, as far as they are listed."""
    compared: ComparedStatus = field(default_factory=ComparedStatus)


@dataclass(frozen=True)
class TransferStatus:
    """Requests with a body."""

    requests: int = 0
    bytes: int = 0
    errors: int = 0


@dataclass(frozen=True)
class RequestStatus:
    """Requests whose bodies are not counted."""

    requests: int = 0
    errors: int = 0


@dataclass(frozen=True)
class RetryStatus:
    """Requests that were made again, by what became of the attempt before."""

    throttled: int = 0
    no_answer: int = 0
    stalled: int = 0
    broken: int = 0
    unreachable: int = 0


@dataclass(frozen=True)
class HedgeStatus:
    """GETs sent once more because the first one was slow."""

    sent: int = 0
    won: int = 0


@dataclass(frozen=True)
class OriginStatus:
    """What came from ``origin`` in place of its cluster."""

    gets: int = 0
    bytes: int = 0
    answers: int = 0
    """Of any kind, HEADs and LISTs too."""


@dataclass(frozen=True)
class RemoteStatus:
    """Requests sent to remotes, one per attempt."""

    get: TransferStatus = field(default_factory=TransferStatus)
    list: RequestStatus = field(default_factory=RequestStatus)
    head: RequestStatus = field(default_factory=RequestStatus)
    throttled: int = 0
    retries: RetryStatus = field(default_factory=RetryStatus)
    hedges: HedgeStatus = field(default_factory=HedgeStatus)
    from_origin: OriginStatus = field(default_factory=OriginStatus)


@dataclass(frozen=True)
class CountStatus:
    """Objects and their bytes."""

    objects: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class RestartStatus:
    """Daemons that died, and whose mounts the next one was given."""

    count: int = 0
    reason: Optional[str] = None
    """How the last one died."""


@dataclass(frozen=True)
class MemoryStatus:
    """Memory of the daemon."""

    rss_bytes: int = 0


@dataclass(frozen=True)
class Status(_html.Readable):
    """The state of a daemon. A notebook shows it as a table; ``str()`` is plain text."""

    schema: int = 0
    pid: int = 0
    version: str = ""
    restarts: RestartStatus = field(default_factory=RestartStatus)
    mounts: list[MountStatus] = field(default_factory=list)
    cache: CacheStatus = field(default_factory=CacheStatus)
    remote: RemoteStatus = field(default_factory=RemoteStatus)
    repairs: int = 0
    """Damaged chunks that were dropped and fetched again."""
    passed_by_bytes: int = 0
    """Bytes served but not kept: a full cache, a full, failing or slow disk."""
    evictions: CountStatus = field(default_factory=CountStatus)
    prefetched: CountStatus = field(default_factory=CountStatus)
    memory: MemoryStatus = field(default_factory=MemoryStatus)

    @property
    def hit_bytes(self) -> int:
        """Bytes that all mounts answered without waiting for the remote."""
        return sum(mount.reads.hit_bytes for mount in self.mounts)

    @property
    def miss_bytes(self) -> int:
        """Bytes that all mounts answered after waiting for the remote."""
        return sum(mount.reads.miss_bytes for mount in self.mounts)

    def __str__(self) -> str:
        return "\n\n".join((_text(self._rows()), *map(str, self.mounts)))

    def _repr_html_(self) -> str:
        cache = self.cache
        fill = _html.bar(cache.used_bytes, cache.limit_bytes)
        used = f"{format_bytes(cache.used_bytes)} of {format_bytes(cache.limit_bytes)} of the cache"
        mounts = "".join(mount._repr_html_() for mount in self.mounts)
        head = _html.table(self._rows()) + fill + _html.note(f"{used} in use")
        return head + mounts + _html.note(_html.UNSEEN)

    def _rows(self) -> list[tuple[str, str]]:
        rows = [("daemon", f"warmfs {self.version}, process {self.pid}")]
        if self.restarts.count:
            times = format_count(self.restarts.count, "time")
            reason = f", the last: {self.restarts.reason}" if self.restarts.reason else ""
            rows.append(("", f"started again {times}{reason}"))
        rows += [("memory", format_bytes(self.memory.rss_bytes)), ("cache", self.cache.dir)]
        rows += [("", text) for text in _cache_lines(self)]
        rows.append(("remote", _remote_line(self.remote)))
        return rows


def decode(cls: type[_T], value: Mapping[str, Any]) -> _T:
    """A dataclass from JSON; what is not of its type has its default."""
    hints = get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    given = {name: _decoded(hints[name], value[name]) for name in names if name in value}
    return cls(**{name: value for name, value in given.items() if value is not None})


def _decoded(kind: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return decode(kind, value) if isinstance(value, dict) else None
    if get_origin(kind) is list and isinstance(value, list):
        items = (_decoded(get_args(kind)[0], item) for item in value)
        return [item for item in items if item is not None]
    if get_origin(kind) is Union:
        kind = get_args(kind)[0]
    if isinstance(value, (int, float)) and not -NUMBER_MAX < value < NUMBER_MAX:
        return None
    if kind is float and isinstance(value, int):
        return float(value)
    return value if isinstance(value, get_origin(kind) or kind) else None


def _text(rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"{name:<9}{value}".rstrip() for name, value in rows)


def _cache_lines(status: Status) -> list[str]:
    cache = status.cache
    used = f"{format_bytes(cache.used_bytes)} of {format_bytes(cache.limit_bytes)}"
    text = f"{used}, {format_count(cache.objects, 'object')}"
    if cache.state not in ("", "ok"):
        text += f"; {cache.state}"
    if status.evictions.objects:
        text += f"; {format_bytes(status.evictions.bytes)} evicted"
    if status.passed_by_bytes:
        text += f"; {format_bytes(status.passed_by_bytes)} not kept"
    lines = [text]
    if cache.expected_hit_rate is not None:
        dataset, cached = format_bytes(cache.dataset_bytes), cache.dataset_cached_bytes
        # Not rounded up: 100 % is a promise.
        percent = int(cache.expected_hit_rate * 100)
        text = f"dataset {dataset} as far as listed, {format_bytes(cached)} of it cached"
        lines.append(f"{text}; expect {percent} % hits once warm")
    return lines


def _remote_line(remote: RemoteStatus) -> str:
    text = f"{remote.get.requests} GET ({format_bytes(remote.get.bytes)})"
    text += f", {remote.list.requests} LIST, {remote.head.requests} HEAD"
    failed = remote.get.errors + remote.list.errors + remote.head.errors
    text += f"; {failed} failed" if failed else ""
    return text + (
        f"; throttled {format_count(remote.throttled, 'time')}" if remote.throttled else ""
    )


def _mount_rows(mount: MountStatus) -> list[tuple[str, str]]:
    hits, misses = (format_bytes(n) for n in (mount.reads.hit_bytes, mount.reads.miss_bytes))
    reason = f": {mount.mode_reason}" if mount.mode_reason else ""
    rows = [
        ("mount", mount.uri),
        ("at", "no folder" if mount.view else mount.dir + (" (detached)" * mount.detached)),
        ("mode", mount.mode + reason),
        ("since", format_duration(mount.uptime_s)),
        ("reads", f"{hits} from the cache, {misses} from the remote"),
    ]
    if mount.warming.objects:
        rows.append(("warm", f"{format_count(mount.warming.objects, 'file')} fetched ahead"))
    if mount.refusal:
        text = f"what is not cached is refused: {mount.refusal}"
        rows.append(("access", f"{text}; log in, then mount again or warmfs.login()"))
    return rows
