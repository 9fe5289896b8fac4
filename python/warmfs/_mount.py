"""Mounting, unmounting and credentials.

``mount`` runs the program that the wheel carries, since starting a daemon, healing what a
dead one left and checking the machine is its job. Everything else speaks to the daemon's
socket. Only where the store refuses existing credentials and anonymous access, and this is
Colab, are the notebook's own secrets asked for; then the request for the mount is sent from
here, through the socket, so that no other process, file or command line ever has them.
"""

from __future__ import annotations

import contextlib
import os
import select
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from . import _binary, _caller_env, _client, _html, _options, _paths, _secrets, _sockets
from ._client import Client
from ._errors import (
    BusyError,
    DaemonGoneError,
    DeniedError,
    InvalidError,
    MachineError,
    NotMountedError,
    WarmfsError,
)
from ._paths import Pathish
from ._status import MountStatus, Status

if TYPE_CHECKING:
    from typing_extensions import Unpack

# How long a daemon whose last mount went may take to save its index.
EXIT_TIMEOUT_S = 60.0


class Mount:
    """A mount that was made or found by :func:`mount`.

    As a context manager it is unmounted at the end, unless it was there before.
    """

    def __init__(self, uri: str, path: Path, existed: bool = False):
        self.uri = uri
        """What is mounted, as it was written."""
        self.path = path
        """Where; ``mount.path / "train"`` and ``os.listdir(mount)`` work."""
        self.existed = existed
        """Whether the same mount was there before."""

    def status(self) -> MountStatus:
        """The state of this mount alone."""
        return _at(self.path)[1]

    def renew(self) -> None:
        """Gives the mount the credentials of this process, or Colab's if these are refused."""
        _renew(*_at(self.path), ask_first=False)

    def unmount(self, lazy: bool = False) -> bool:
        """As :func:`unmount`."""
        return unmount(self.path, lazy=lazy)

    def __fspath__(self) -> str:
        return str(self.path)

    def __enter__(self) -> Mount:
        return self

    def __exit__(self, *_: object) -> None:
        if self.existed:
            return
        try:
            self.unmount()
        except BusyError:
            # An open file is no reason to lose the error that led here, or to fail at all.
            self.unmount(lazy=True)
        except NotMountedError:
            pass

    def __repr__(self) -> str:
        return f"Mount({self.uri!r}, {str(self.path)!r})"

    def _repr_html_(self) -> str:
        try:
            return self.status()._repr_html_()
        except WarmfsError as error:
            return _html.note(str(error))


def mount(uri: str, path: Pathish, **options: Unpack[_options.Options]) -> Mount:
    """Makes ``uri`` a read-only folder at ``path`` and returns once it can be read.

    Running it again is success, and gives the mount the credentials of now. The mount and
    its cache outlive the cell, the kernel and an interrupt; :func:`unmount` ends it.
    """
    uri, path, flags = str(uri), _resolve(path), _options.flags(options)
    if not uri or uri.startswith("-"):
        raise InvalidError(f"{uri!r} is not a URI", "write s3://BUCKET[/PREFIX] or another scheme")
    cache = _cache_of(options)
    existed = _paths.mount_at(path, cache) is not None
    try:
        _binary.run(["mount", *flags, uri, str(path)], _binary.MOUNT_TIMEOUT_S)
    except DeniedError as refusal:
        secrets = _secrets.ask(uri, refusal)
        if secrets is None:
            raise
        _mount_with(secrets, uri, path, options)
    return Mount(uri, path, existed)


def unmount(path: Pathish, lazy: bool = False) -> bool:
    """Ends a mount, and returns once the cache is saved. With ``lazy`` also while it is in
    use: it is detached, and its open files stay readable.

    Returns whether it is gone entirely. What a dead daemon left is cleaned up.
    """
    path = _resolve(path)
    found = _paths.mount_at(path)
    if found is None:
        # A stale mount, or one that is not ours: the program knows them apart.
        flags = ["--lazy"] if lazy else []
        _binary.run(["unmount", *flags, str(path)], _client.UNMOUNT_TIMEOUT_S)
        return True
    return _unmount(found[0], path, lazy)


def status(path: Optional[Pathish] = None, cache_dir: Optional[Pathish] = None) -> Status:
    """The state of the daemon that serves ``path``, or ``cache_dir``, or of the only one."""
    if path is not None:
        return _paths.status_of(_paths.find(path).client)
    return _paths.status_of(daemon(os.fspath(cache_dir) if cache_dir is not None else None))


def daemon(cache_dir: Optional[str] = None) -> Client:
    """The daemon of a cache directory: of the default one, or else the only one there is."""
    cache = _sockets.cache_dir(cache_dir)
    client = _client.of_cache(cache)
    if client:
        return client
    others = [] if cache_dir else _client.all_clients()
    if len(others) == 1:
        return others[0]
    if others:
        raise InvalidError(f"{len(others)} daemons serve caches", "choose one with cache_dir=")
    raise NotMountedError(
        f"no daemon serves the cache {cache}", "warmfs.mount(uri, path) starts one"
    )


def login(path: Optional[Pathish] = None) -> list[MountStatus]:
    """Gives the mount at ``path``, or every mount, other credentials: on Colab those that the
    notebook has, which are asked for; elsewhere those of this process's environment.

    Returns the mounts that have them.
    """
    if path is not None:
        found = _paths.find(path)
        mounts = [(found.client, found.mount)]
    else:
        mounts = _paths.mounts()
    if not mounts:
        raise NotMountedError("nothing is mounted", "warmfs.mount(uri, path) does it")
    for client, mount in mounts:
        _renew(client, mount, ask_first=True)
    return [mount for _, mount in mounts]


def _renew(client: Client, mount: MountStatus, ask_first: bool) -> None:
    secrets = _secrets.ask(mount.uri) if ask_first else {}
    try:
        _send_renew(client, mount.dir, secrets or {})
    except DeniedError as refusal:
        asked = None if ask_first else _secrets.ask(mount.uri, refusal)
        if asked is None:
            raise
        _send_renew(client, mount.dir, asked)


def _send_renew(client: Client, path: str, secrets: Mapping[str, str]) -> None:
    body = {"dir": path, "env": _caller_env.of_process(secrets)}
    client.send("POST", "/v1/renew", body, _client.REMOTE_TIMEOUT_S)


def _mount_with(
    secrets: Mapping[str, str], uri: str, path: Path, options: Mapping[str, Any]
) -> None:
    """Sends the request for a mount that needs secrets."""
    body = {
        "uri": uri,
        "dir": str(path),
        "env": _caller_env.of_process(secrets),
        **_options.request(options),
    }
    cache = _cache_of(options)
    client = _client.of_cache(cache)
    if client:
        _send_mount(client, body)
        return
    with _kept(cache, options) as client:
        _send_mount(client, body)


def _send_mount(client: Client, body: Mapping[str, Any]) -> None:
    client.send("POST", "/v1/mounts", body, _client.REMOTE_TIMEOUT_S)


@contextlib.contextmanager
def _kept(cache: Path, options: Mapping[str, Any]) -> Iterator[Client]:
    """A new daemon of a cache, kept alive by the mount of a folder of our own until the
    caller has its own: a daemon lives as long as it has a mount, and only the program
    knows how to start one.
    """
    daemon_flags = _options.flags({k: v for k, v in options.items() if k in _options.DAEMON})
    with tempfile.TemporaryDirectory(prefix="warmfs-") as folder:
        source, point = Path(folder, "source"), Path(folder, "mount")
        source.mkdir()
        (source / "empty").touch()
        args = ["mount", *daemon_flags, "--warm=off", source.as_uri(), str(point)]
        _binary.run(args, _binary.MOUNT_TIMEOUT_S)
        client = _client.of_cache(cache)
        if client is None:
            raise DaemonGoneError(f"the daemon of the cache {cache} ended at once", "see its log")
        try:
            yield client
        finally:
            _unmount(client, point, lazy=True)


def _unmount(client: Client, path: Path, lazy: bool) -> bool:
    # Opened before the request, while the process is certain to be that daemon.
    pid = int(client.get("/v1/ping").get("pid", 0))
    process = _open_process(pid)
    try:
        body = {"dir": str(path), "lazy": lazy}
        reply = client.send("DELETE", "/v1/mounts", body, _client.UNMOUNT_TIMEOUT_S)
        if reply.get("daemon_exits") and process is not None:
            _wait_for_exit(process, pid)
    finally:
        if process is not None:
            os.close(process)
    return not reply.get("still_in_use")


def _open_process(pid: int) -> Optional[int]:
    """A handle on a process; ``None`` where there is none: a kernel before 5.3, or it ended."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _wait_for_exit(process: int, pid: int) -> None:
    """With the process goes its lock on the cache: the next mount finds it free."""
    if not select.select([process], [], [], EXIT_TIMEOUT_S)[0]:
        raise MachineError(
            f"unmounted, but the daemon (process {pid}) has not ended", "see its log"
        )


def _at(path: Path) -> tuple[Client, MountStatus]:
    found = _paths.find(path)
    if found.mount.dir != str(path):
        raise NotMountedError(f"{path} is not a warmfs mount", "warmfs.status() lists them")
    return found.client, found.mount


def _cache_of(options: Mapping[str, Any]) -> Path:
    named = options.get("cache_dir")
    return _sockets.cache_dir(os.fspath(named) if named is not None else None)


def _resolve(path: Pathish) -> Path:
    """The canonical form of a mount point, whose end is not looked into."""
    text = os.fspath(path)
    if not text or "\0" in text:
        raise InvalidError(f"{text!r} is not a path", "give the folder to mount at")
    return _paths.walk(text)
