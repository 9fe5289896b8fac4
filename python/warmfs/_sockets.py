"""Where the daemons of this user listen.

A daemon writes its socket into ``<cache>/lock``, and puts it into a directory that only
its user may enter: ``$XDG_RUNTIME_DIR/warmfs``, ``/run/user/UID/warmfs`` or
``/tmp/warmfs-UID``. A directory that another user could have put there is not looked into.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

# Bytes of a lock's record, as the daemon has it.
RECORD_BYTES_MAX = 4_096

# Sockets looked at. A user has a daemon for each cache directory: one, in tests a few.
SOCKETS_MAX = 64


def cache_dir(given: Optional[str] = None) -> Path:
    """The cache directory in canonical form: what was given, or the default."""
    named = given or os.environ.get("WARMFS_CACHE_DIR")
    return Path(os.path.realpath(named or os.path.expanduser("~/.cache/warmfs")))


def of_cache(cache: Path) -> Optional[Path]:
    """The socket of who serves a cache, or did so last."""
    try:
        with open(cache / "lock", "rb") as lock:
            record = json.loads(lock.read(RECORD_BYTES_MAX))
    except (OSError, ValueError):
        return None
    socket = record.get("socket") if isinstance(record, dict) else None
    return Path(socket) if isinstance(socket, str) else None


def all_sockets() -> list[Path]:
    """The sockets in this user's runtime directories, newest first, dead ones included."""
    found = [path for folder in _folders() if _is_private(folder) for path in folder.glob("*.sock")]
    found.sort(key=_age)
    return found[:SOCKETS_MAX]


def _folders() -> Iterator[Path]:
    uid = os.geteuid()
    parents = [os.environ.get("XDG_RUNTIME_DIR") or "", f"/run/user/{uid}"]
    for parent in dict.fromkeys(filter(None, parents)):
        yield Path(parent) / "warmfs"
    yield Path(f"/tmp/warmfs-{uid}")


def _is_private(folder: Path) -> bool:
    try:
        meta = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(meta.st_mode) and meta.st_uid == os.geteuid() and not meta.st_mode & 0o077


def _age(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0
