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
import re
import select
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

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

# What a mount is refused with on a machine that has no FUSE for it.
WITHOUT_FUSE = re.compile(r"/dev/fuse|fusermount3")

# Options of a mount, which a file system of fsspec is given among others.
MADE_OPTIONS = frozenset(_options.NAMES)

# How long a daemon whose last mount went may take to save its index.
EXIT_TIMEOUT_S = 60.0


class Mount:
    """A mount that was made or found by :func:`mount`.

    As a context manager it is unmounted at the end, unless it was there before.
    """

    def __init__(self, uri: str, place: Union[Path, str], existed: bool = False):
        self.uri = uri
        """What is mounted, as it was written."""
        self.existed = existed
        """Whether the same mount was there before."""
        # What the daemon knows it by: the mount point, or a view's URI.
        self._place = str(place)

    @property
    def path(self) -> Path:
        """Where; ``mount.path / "train"`` and ``os.listdir(mount)`` work."""
        return Path(self._place)

    def status(self) -> MountStatus:
        """The state of this mount alone."""
        return _at(self._place)[1]

    def renew(self) -> None:
        """Gives the mount the credentials of this process, or Colab's if these are refused."""
        _renew(*_at(self._place), ask_first=False)

    def unmount(self, lazy: bool = False) -> bool:
        """As :func:`unmount`."""
        return unmount(self._place, lazy=lazy)

    def __fspath__(self) -> str:
        return self._place

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
        return f"Mount({self.uri!r}, {self._place!r})"

    def _repr_html_(self) -> str:
        try:
            return self.status()._repr_html_()
        except WarmfsError as error:
            return _html.note(str(error))


def mount(uri: str, path: Optional[Pathish] = None, **options: Unpack[_options.Options]) -> Mount:
    """Makes ``uri`` a read-only folder at ``path`` and returns once it can be read.

    Running it again is success, and gives the mount the credentials of now. The mount and
    its cache outlive the cell, the kernel and an interrupt; :func:`unmount` ends it.

    Where the machine has no FUSE, it says so and returns a file system of the same cache in
    place of the folder (``warmfs://`` of fsspec). Without a ``path`` that is what was asked for.
    """
    uri = str(uri)
    if not uri or uri.startswith("-"):
        raise InvalidError(f"{uri!r} is not a URI", "write s3://BUCKET[/PREFIX] or another scheme")
    if path is not None:
        try:
            return _mount_at(uri, _resolve(path), options)
        except MachineError as error:
            if not WITHOUT_FUSE.search(str(error)):
                raise
            _say_there_is_no_folder(error, path)
    from ._view import view

    place, existed = attach(_paths.uri_of(uri), options)
    return view(uri, place, existed, options)


def _mount_at(uri: str, path: Path, options: Mapping[str, Any]) -> Mount:
    flags = _options.flags(options)
    existed = _paths.mount_at(path, _cache_of(options)) is not None
    with _asking_for_secrets(uri) as secrets:
        _binary.run(["mount", *flags, uri, str(path)], _binary.MOUNT_TIMEOUT_S)
    if secrets:
        _mount_with(secrets, uri, str(path), options)
    return Mount(uri, path, existed)


def attach(uri: str, options: Mapping[str, Any]) -> tuple[str, bool]:
    """Attaches a remote to the cache, with no folder: what the daemon knows the view by, and
    whether it was there before.
    """
    flags = _options.flags(options)
    before = {mount.dir for _, mount in mounts_for(options)}
    with _asking_for_secrets(uri) as secrets:
        said = _binary.run(["mount", "--no-fuse", *flags, uri], _binary.MOUNT_TIMEOUT_S)
        place = said.partition(" can be read from Python")[0]
    if secrets:
        place = str(_mount_with(secrets, uri, None, options).get("dir"))
    return place, place in before


def _say_there_is_no_folder(error: MachineError, path: Pathish) -> None:
    why = error.message.partition(": ")[0]
    message = (
        f"{why}, so there is nothing at {os.fspath(path)}. What warmfs.mount() returned is a file "
        "system over the same cache: use its open(path), or warmfs:// where fsspec is understood"
    )
    warnings.warn(f"warmfs: {message}", stacklevel=3)


@contextlib.contextmanager
def _asking_for_secrets(uri: str) -> Iterator[dict[str, str]]:
    """Runs what may be refused for lack of credentials, and then has Colab's."""
    secrets: dict[str, str] = {}
    try:
        yield secrets
    except DeniedError as refusal:
        asked = _secrets.ask(uri, refusal)
        if asked is None:
            raise
        secrets.update(asked)


def unmount(path: Pathish, lazy: bool = False) -> bool:
    """Ends a mount, and returns once the cache is saved. With ``lazy`` also while it is in
    use: it is detached, and its open files stay readable.

    Returns whether it is gone entirely. What a dead daemon left is cleaned up.
    """
    place = _place_of(path)
    found = _paths.mount_at(place)
    if found is None:
        # A stale mount, or one that is not ours: the program knows them apart.
        flags = ["--lazy"] if lazy else []
        _binary.run(["unmount", *flags, place], _client.UNMOUNT_TIMEOUT_S)
        return True
    return _unmount(found[0], place, lazy)


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
    secrets: Mapping[str, str], uri: str, path: Optional[str], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Sends the request for a mount that needs secrets, or without a path for a view."""
    body = {
        "uri": uri,
        "dir": path,
        "env": _caller_env.of_process(secrets),
        **_options.request(options),
    }
    cache = _cache_of(options)
    client = _client.of_cache(cache)
    if client:
        return _send_mount(client, body)
    with _kept(cache, options) as client:
        return _send_mount(client, body)


def _send_mount(client: Client, body: Mapping[str, Any]) -> dict[str, Any]:
    return client.send("POST", "/v1/mounts", body, _client.REMOTE_TIMEOUT_S)


@contextlib.contextmanager
def _kept(cache: Path, options: Mapping[str, Any]) -> Iterator[Client]:
    """A new daemon of a cache, kept alive by a view of a folder of our own until the
    caller has its own: a daemon lives as long as it has a mount, and only the program
    knows how to start one.
    """
    daemon_flags = _options.flags({k: v for k, v in options.items() if k in _options.DAEMON})
    with tempfile.TemporaryDirectory(prefix="warmfs-") as folder:
        Path(folder, "empty").touch()
        source = Path(os.path.realpath(folder)).as_uri()
        args = ["mount", "--no-fuse", *daemon_flags, "--warm=off", source]
        _binary.run(args, _binary.MOUNT_TIMEOUT_S)
        client = _client.of_cache(cache)
        if client is None:
            raise DaemonGoneError(f"the daemon of the cache {cache} ended at once", "see its log")
        try:
            yield client
        finally:
            _unmount(client, source, lazy=True)


def _unmount(client: Client, place: str, lazy: bool) -> bool:
    # Opened before the request, while the process is certain to be that daemon.
    pid = int(client.get("/v1/ping").get("pid", 0))
    process = _open_process(pid)
    try:
        body = {"dir": place, "lazy": lazy}
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


def mounts_for(options: Mapping[str, Any]) -> list[tuple[Client, MountStatus]]:
    """The mounts of the cache that the options name, or else of every daemon in reach."""
    return _paths.mounts(_cache_of(options), only=options.get("cache_dir") is not None)


def _at(place: str) -> tuple[Client, MountStatus]:
    if "://" in place and (view := _paths.mount_at(place)) is not None:
        return view
    found = _paths.find(place)
    if found.mount.dir != place:
        raise NotMountedError(f"{place} is not a warmfs mount", "warmfs.status() lists them")
    return found.client, found.mount


def _place_of(path: Pathish) -> str:
    """What the daemon knows a mount by: its mount point, or a view's URI."""
    text = os.fspath(path)
    return _paths.uri_of(text).rstrip("/") if "://" in text else str(_resolve(text))


def _cache_of(options: Mapping[str, Any]) -> Path:
    named = options.get("cache_dir")
    return _sockets.cache_dir(os.fspath(named) if named is not None else None)


def _resolve(path: Pathish) -> Path:
    """The canonical form of a mount point, whose end is not looked into."""
    text = os.fspath(path)
    if not text or "\0" in text:
        raise InvalidError(f"{text!r} is not a path", "give the folder to mount at")
    return _paths.walk(text)
