"""What other processes took of the processor, and what the page cache holds."""

from __future__ import annotations

import os
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system time of a process, its threads included."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    # After the name, which may hold anything, come state and 10 more before utime.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def drop_page_cache() -> None:
    """Needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1", encoding="ascii")
