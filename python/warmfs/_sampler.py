"""A process of its own that watches another one wait for files.

    python _sampler.py PID   ->   one line of JSON once stdin is closed

Many times a second it looks where in the kernel each thread of PID and of its children
sleeps (``/proc/PID/task/TID/wchan``). A thread that sleeps in FUSE or for a page of a file
waits for a read, whatever language it is written in: C readers, mappings and the workers of
a DataLoader count. Not seen is what needs no wait, the copying of bytes that are there.

It is a process, since a thread of the watched one would run just when that lets go of the
interpreter's lock, which it does to read: it would see reads everywhere. It reads files of
/proc, changes nothing, and ends with whoever holds its stdin.
"""

from __future__ import annotations

import json
import os
import re
import select
import sys
import time

# Between two looks. At 50 a second one look at 20 threads costs 2 % of a core.
INTERVAL_S = 0.02

# Looks between two searches for new children.
SEARCH_EVERY = 10

# Processes watched: a kernel and its workers.
PROCESSES_MAX = 64

# Where threads sleep for a file: in a FUSE request, for a page, for a disk.
WAITS = re.compile(rb"request_wait_answer|fuse|folio_wait|folio_lock|page_bit|filemap|iomap_dio")


class Sampler:
    """What was seen until now."""

    def __init__(self, pid: int):
        self.pid = pid
        self.pids = [pid]
        self.looks = 0
        self.any_s = 0.0
        """Seconds during which somebody waited."""
        self.sum_s = 0.0
        """Seconds that each of them waited, added up."""
        self.can_see = False
        """Whether the kernel tells where threads sleep."""

    def look(self, elapsed_s: float) -> None:
        """Looks once, for the time since the last look."""
        if self.looks % SEARCH_EVERY == 0:
            self.pids = family(self.pid)
        self.looks += 1
        waiting = sum(self._waiting(pid) for pid in self.pids)
        self.sum_s += waiting * elapsed_s
        self.any_s += elapsed_s if waiting else 0.0

    def _waiting(self, pid: int) -> int:
        waiting = 0
        for tid in _entries(f"/proc/{pid}/task"):
            where = _content(f"/proc/{pid}/task/{tid}/wchan")
            self.can_see = self.can_see or len(where) > 1
            waiting += bool(WAITS.search(where))
        return waiting


def family(pid: int) -> list[int]:
    """A process and its descendants, but for this one."""
    found: list[int] = []
    queue = [pid]
    while queue and len(found) < PROCESSES_MAX:
        member = queue.pop(0)
        if member == os.getpid():
            continue
        found.append(member)
        for tid in _entries(f"/proc/{member}/task"):
            queue += map(int, _content(f"/proc/{member}/task/{tid}/children").split())
    return found


def _entries(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []  # It ended.


def _content(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:
        return b""


def main(pid: int) -> None:
    """Watches until stdin is closed."""
    sampler = Sampler(pid)
    # Whoever started this sleeps until it is ready: if that cannot be seen, nothing can.
    sampler.look(0.0)
    print("ready", flush=True)
    last = time.monotonic()
    while not select.select([0], [], [], INTERVAL_S)[0]:
        now = time.monotonic()
        sampler.look(now - last)
        last = now
    print(json.dumps({"any_s": sampler.any_s, "sum_s": sampler.sum_s, "ok": sampler.can_see}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
