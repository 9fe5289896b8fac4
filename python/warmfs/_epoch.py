"""What an epoch costs: its time, the time it waited for files, the daemon's bytes and requests.

Waiting is measured from outside the interpreter (see ``_sampler``), bytes and requests are
the difference of two ``status``. Both miss what the kernel answers from its page cache
without a wait: such reads are as fast as memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from . import _client, _html, _paths
from ._errors import WarmfsError
from ._html import COLD, OTHER, WARM, format_bytes, format_seconds
from ._status import Status

# The sampler looks fifty times a second: it answers at once, or not at all.
SAMPLER_TIMEOUT_S = 5.0

# Epochs that a report remembers.
EPOCHS_MAX = 1_000

HEAD = ("epoch", "time", "waited for files", "hits", "bytes at hand", "bytes waited for", "GETs")


@dataclass
class Epoch(_html.Readable):
    """One epoch. What could not be measured is ``None``."""

    name: str
    wall_s: float = 0.0
    wait_s: Optional[float] = None
    """Seconds during which a thread or a worker waited for a file. Sampled."""
    reader_wait_s: Optional[float] = None
    """The same, added up over all threads and workers."""
    hit_bytes: int = 0
    """From the cache, or fetched ahead before they were asked for."""
    miss_bytes: int = 0
    """After waiting for the remote."""
    get_requests: int = 0
    get_bytes: int = 0
    list_requests: int = 0
    head_requests: int = 0
    problem: Optional[str] = None
    """Why the daemon's figures are missing, if they are."""

    @property
    def hit_rate(self) -> Optional[float]:
        """Part of the bytes that came from the cache, 0 to 1."""
        read = self.hit_bytes + self.miss_bytes
        return self.hit_bytes / read if read else None

    def __str__(self) -> str:
        if self.wait_s is None:
            waited = "waiting for files not measured"
        else:
            waited = f"waited for files {format_seconds(self.wait_s)}"
            waited += f" ({format_seconds(self.reader_wait_s or 0.0)} over all readers)"
        lines = [f"{self.name}: {format_seconds(self.wall_s)}, {waited}"]
        if self.problem:
            return f"{lines[0]}\n  {self.problem}"
        reads = "nothing was read through the daemon"
        if self.hit_rate is not None:
            hits, misses = format_bytes(self.hit_bytes), format_bytes(self.miss_bytes)
            reads = f"{hits} from the cache or fetched ahead, {misses} waited for"
            reads += f" ({int(self.hit_rate * 100)} % hits)"
        requests = f"{self.get_requests} GET ({format_bytes(self.get_bytes)})"
        requests += f", {self.list_requests} LIST, {self.head_requests} HEAD"
        return "\n".join((*lines, f"  reads: {reads}", f"  requests: {requests}"))


@dataclass(frozen=True)
class EpochReport(_html.Readable):
    """The epochs of this session."""

    epochs: list[Epoch] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(map(str, self.epochs)) or "no epoch was measured yet: use %%warmfs epoch"

    def _repr_html_(self) -> str:
        if not self.epochs:
            return _html.note(str(self))
        return "".join(
            (
                _html.grid(HEAD, map(_cells, self.epochs)),
                *self._bars(),
                _html.note(f"Waiting is sampled; where it says - it could not be. {_html.UNSEEN}"),
            )
        )

    def _bars(self) -> list[str]:
        times = [
            (
                e.name,
                ((COLD, _waited(e)), (OTHER, e.wall_s - _waited(e))),
                format_seconds(e.wall_s),
            )
            for e in self.epochs
        ]
        reads = [
            (
                e.name,
                ((WARM, float(e.hit_bytes)), (COLD, float(e.miss_bytes))),
                format_bytes(e.hit_bytes + e.miss_bytes),
            )
            for e in self.epochs
        ]
        left_out = len(self.epochs) - _html.BARS_MAX
        return [
            _html.legend(((COLD, "waited for files"), (OTHER, "everything else")), "Time:"),
            _html.bars(times, "time of each epoch"),
            _html.legend(
                ((WARM, "from the cache or fetched ahead"), (COLD, "waited for the remote")),
                "Bytes read through the daemon:",
            ),
            _html.bars(reads, "bytes of each epoch"),
            _html.note(f"Without the first {left_out}.") if left_out > 0 else "",
        ]


_epochs: list[Epoch] = []


def report() -> EpochReport:
    """The epochs that were measured in this session, as a table with plots."""
    return EpochReport(list(_epochs))


@contextlib.contextmanager
def epoch(name: Optional[str] = None) -> Iterator[Epoch]:
    """Measures what is done in it: ``with warmfs.epoch("cold") as cost: …; print(cost)``.

    What is measured is kept for :func:`report`, also if an exception ends it.
    """
    measured = Epoch(name or f"epoch {len(_epochs) + 1}")
    before = _daemons()
    try:
        with _watching(measured):
            yield measured
    finally:
        _subtract(measured, before, _daemons())
        _epochs.append(measured)
        del _epochs[:-EPOCHS_MAX]


@contextlib.contextmanager
def _watching(measured: Epoch) -> Iterator[None]:
    sampler = _start_sampler()
    started = time.monotonic()
    try:
        yield
    finally:
        measured.wall_s = time.monotonic() - started
        if sampler is not None:
            seen = _end_sampler(sampler)
            if seen.get("ok"):
                measured.wait_s, measured.reader_wait_s = seen["any_s"], seen["sum_s"]


def _start_sampler() -> Optional[subprocess.Popen[bytes]]:
    program = str(Path(__file__).with_name("_sampler.py"))
    try:
        sampler = subprocess.Popen(
            [sys.executable or "python3", "-I", "-S", program, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (OSError, ValueError):
        return None
    # It says when it is ready, unless the interpreter is none that runs programs.
    out = sampler.stdout
    if out is not None and select.select([out], [], [], SAMPLER_TIMEOUT_S)[0]:
        out.readline()
        return sampler
    sampler.kill()
    sampler.communicate()
    return None


def _end_sampler(sampler: subprocess.Popen[bytes]) -> dict[str, float]:
    with sampler:
        try:
            out, _ = sampler.communicate(timeout=SAMPLER_TIMEOUT_S)
            seen = json.loads(out)
        except (subprocess.TimeoutExpired, ValueError):
            sampler.kill()
            return {}
    return seen if isinstance(seen, dict) else {}


def _daemons() -> dict[int, Status]:
    """The state of each daemon, by its process."""
    found = {}
    for client in _client.all_clients():
        with contextlib.suppress(WarmfsError):
            status = _paths.status_of(client)
            found[status.pid] = status
    return found


def _subtract(measured: Epoch, before: dict[int, Status], after: dict[int, Status]) -> None:
    if not after:
        measured.problem = "no daemon runs: nothing is mounted"
    elif before and not before.keys() & after.keys():
        measured.problem = "the daemon was restarted meanwhile: its figures began anew"
    for pid, now in after.items():
        then = before.get(pid, Status())
        measured.hit_bytes += _grown(_hits(then), _hits(now))
        measured.miss_bytes += _grown(_misses(then), _misses(now))
        measured.get_requests += now.remote.get.requests - then.remote.get.requests
        measured.get_bytes += now.remote.get.bytes - then.remote.get.bytes
        measured.list_requests += now.remote.list.requests - then.remote.list.requests
        measured.head_requests += now.remote.head.requests - then.remote.head.requests


def _hits(status: Status) -> dict[str, int]:
    return {mount.dir: mount.reads.hit_bytes for mount in status.mounts}


def _misses(status: Status) -> dict[str, int]:
    return {mount.dir: mount.reads.miss_bytes for mount in status.mounts}


def _grown(then: dict[str, int], now: dict[str, int]) -> int:
    """By how much counters grew. Those of a mount that was made anew began anew."""
    return sum(
        count - (then.get(name, 0) if count >= then.get(name, 0) else 0)
        for name, count in now.items()
    )


def _waited(measured: Epoch) -> float:
    return min(measured.wait_s or 0.0, measured.wall_s)


def _cells(measured: Epoch) -> list[str]:
    times = [
        measured.name,
        format_seconds(measured.wall_s),
        "-" if measured.wait_s is None else format_seconds(measured.wait_s),
    ]
    if measured.problem:
        return [*times, *["-"] * (len(HEAD) - len(times))]
    return [
        *times,
        "-" if measured.hit_rate is None else f"{int(measured.hit_rate * 100)} %",
        format_bytes(measured.hit_bytes),
        format_bytes(measured.miss_bytes),
        str(measured.get_requests),
    ]
