"""Where a path leads, and which daemon's mount it is in.

What lies in a mount is not asked of the mount: its daemon knows that better, and a dead
one would never answer. A path may also be the URI of what is mounted, or of what is in it.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Optional, Union

from . import _client
from ._client import Client
from ._errors import DaemonGoneError, InvalidError, NotMountedError, WarmfsError
from ._status import MountStatus, Status, decode

Pathish = Union[str, "os.PathLike[str]"]

# What a URL of ours begins with.
PROTOCOL = "warmfs"

# Symlinks followed, as the kernel has it.
LINKS_MAX = 40


class Found(NamedTuple):
    """A mount, who serves it, and the path in it that was asked for."""

    client: Client
    mount: MountStatus
    path: str


def status_of(client: Client) -> Status:
    """A daemon's state."""
    return decode(Status, client.get("/v1/status"))


def mounts(cache: Optional[Path] = None, only: bool = False) -> list[tuple[Client, MountStatus]]:
    """The mounts of every daemon in reach, but for detached ones; or ``only`` of one cache."""
    found = []
    clients = [_client.of_cache(cache)] if only and cache else _client.all_clients(cache)
    for client in filter(None, clients):
        try:
            status = status_of(client)
        except WarmfsError:
            continue  # It ended in this moment, and its mounts with it.
        found += [(client, mount) for mount in status.mounts if not mount.detached]
    return found


def mount_at(
    path: Union[Path, str], cache: Optional[Path] = None
) -> Optional[tuple[Client, MountStatus]]:
    """The mount whose mount point is ``path``, or the view of that URI."""
    return next((found for found in mounts(cache) if found[1].dir == str(path)), None)


def uri_of(text: str) -> str:
    """The URI that a text means: ``warmfs://s3/bucket/key`` is ``s3://bucket/key``."""
    scheme, mark, rest = text.partition("://")
    if scheme != PROTOCOL or not mark:
        return text
    scheme, _, rest = rest.partition("/")
    return f"file:///{rest.lstrip('/')}" if scheme == "file" else f"{scheme}://{rest}"


def find(path: Pathish) -> Found:
    """The mount that a path or a URI is in. Raises :class:`NotMountedError` if it is in none."""
    text = os.fspath(path)
    if "://" in text:
        return find_uri(uri_of(text), mounts())
    canonical = walk(text)
    above = [
        Found(client, mount, str(canonical))
        for client, mount in mounts()
        if canonical == Path(mount.dir) or Path(mount.dir) in canonical.parents
    ]
    if not above:
        raise _not_found(canonical)
    return max(above, key=lambda found: len(found.mount.dir))


def _not_found(path: Path) -> WarmfsError:
    """Nobody who answers serves a path."""
    stale = [point for point in mount_points() if point == path or point in path.parents]
    if not stale:
        hint = "mount it first: warmfs.mount(uri, path)"
        return NotMountedError(f"{path} is in no mount of warmfs", hint)
    message = f"the daemon that serves {stale[-1]} does not answer"
    return DaemonGoneError(message, "mount it again, or end it with warmfs.unmount(path)")


def find_uri(
    uri: str, mounted: Iterable[tuple[Client, MountStatus]], place: Optional[str] = None
) -> Found:
    """The one that a URI is in of what is ``mounted``; of several the one at ``place``."""
    within = []
    for client, mount in mounted:
        rest = below(uri, mount.uri)
        if rest is not None:
            within.append(Found(client, mount, f"{mount.dir}/{rest}" if rest else mount.dir))
    if not within:
        hint = f"mount it first: warmfs.mount({uri!r})"
        raise NotMountedError(f"{uri} is not mounted", hint)
    return max(within, key=lambda found: (len(found.mount.uri), found.mount.dir == place))


def below(uri: str, mounted: str) -> Optional[str]:
    """What follows ``mounted`` in ``uri``, without slashes around it."""
    root = mounted.rstrip("/")
    rest = uri[len(root) :]
    return rest.strip("/") if uri.startswith(root) and rest[:1] in ("", "/") else None


def walk(text: str) -> Path:
    """The canonical form of a path that may be in a mount, and need not exist."""
    known = mount_points()
    at = Path("/") if text.startswith("/") else Path.cwd()
    ahead, links = deque(_parts(text)), 0
    while ahead:
        part = ahead.popleft()
        if part == "..":
            at = at.parent
            continue
        at = at / part
        # There are no symlinks in our mounts.
        if any(point == at or point in at.parents for point in known):
            continue
        try:
            target = os.readlink(at)
        except (OSError, ValueError):
            continue
        links += 1
        if links > LINKS_MAX:
            raise InvalidError(f"{text} cannot be resolved: too many symbolic links")
        at = Path("/") if target.startswith("/") else at.parent
        ahead.extendleft(reversed(_parts(target)))
    return at


def _parts(text: str) -> list[str]:
    return [part for part in text.split("/") if part not in ("", ".")]


def mount_points() -> list[Path]:
    """Where warmfs is mounted, by whomever, dead or alive."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            rows = [line.split(" - ", 1) for line in lines]
    except OSError:
        return []
    return [
        Path(_unescaped(row[0].split(" ")[4]))
        for row in rows
        if len(row) == 2 and row[1].startswith("fuse.warmfs ")
    ]


def _unescaped(text: str) -> str:
    """The kernel writes blanks and backslashes of a path as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
