"""A client's end of the control socket: HTTP/1.1 with JSON bodies, one request a connection.

The protocol is that of ``src/control/mod.rs``. Requests carry credentials, so a daemon of
another user is not talked to; root, who could read them anyway, may talk to any. Every
call has a time limit, and what a daemon sends is bounded.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

from . import _sockets
from ._errors import DaemonGoneError, MachineError, UnsupportedError, WarmfsError, from_reply

PROTOCOL = "1"

# For what a daemon answers from memory; generous, for a busy VM of two cores.
QUICK_TIMEOUT_S = 5.0

# For a mount or for other credentials: what a remote that answers at all takes.
REMOTE_TIMEOUT_S = 120.0

# For an unmount: the kernel's and the daemon's own bounds are shorter.
UNMOUNT_TIMEOUT_S = 30.0

# For the next line of an answer in lines. The daemon sends one a second at least.
STALL_TIMEOUT_S = 60.0

# Largest body in either direction, as the daemon has it.
BODY_BYTES_MAX = 1 << 20

# Longest line of an answer in lines; the daemon's are a few KiB.
LINE_BYTES_MAX = 1 << 20

OnLine = Callable[[str, Any], None]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Client:
    """The daemon that listens at ``socket``."""

    socket: Path

    def get(self, path: str) -> dict[str, Any]:
        """Asks for what the daemon has in memory."""
        return self.send("GET", path, None, QUICK_TIMEOUT_S)

    def send(
        self, method: str, path: str, body: Optional[Mapping[str, Any]], timeout_s: float
    ) -> dict[str, Any]:
        """Sends a request and returns its answer, or raises the daemon's error."""
        with _Exchange(self.socket, method, path, body, timeout_s) as exchange:
            return exchange.whole()

    def upkeep(
        self, path: str, body: Mapping[str, Any], on_line: Optional[OnLine] = None
    ) -> dict[str, Any]:
        """Runs what is answered in lines. ``on_line`` gets the kind and the value of each
        but the last. Leaving early, by an exception too, stops it in the daemon.
        """
        with _Exchange(self.socket, "POST", path, body, STALL_TIMEOUT_S) as exchange:
            for kind, value in exchange.lines():
                if kind == "done" and isinstance(value, dict):
                    return value
                if kind == "error":
                    raise from_reply(value if isinstance(value, dict) else {})
                if on_line:
                    on_line(kind, value)
        raise gone(self.socket)


def of_cache(cache: Path) -> Optional[Client]:
    """The daemon that serves a cache; ``None`` if nobody does."""
    path = _sockets.of_cache(cache)
    return Client(path) if path and _answers(Client(path)) else None


def all_clients(cache: Optional[Path] = None) -> list[Client]:
    """Every daemon in reach. That of ``cache``, or of the default one, is among them although
    its socket may lie in another session's runtime directory. Those that cannot be talked to
    are left out.
    """
    of_cache = _sockets.of_cache(cache or _sockets.cache_dir())
    paths = dict.fromkeys(([of_cache] if of_cache else []) + _sockets.all_sockets())
    return [client for client in map(Client, paths) if _answers_quietly(client)]


def _answers(client: Client) -> bool:
    try:
        client.get("/v1/ping")
    except DaemonGoneError:
        return False
    return True


def _answers_quietly(client: Client) -> bool:
    try:
        return _answers(client)
    except WarmfsError:
        return False


def connected(path: Path, timeout_s: Optional[float]) -> socket.socket:
    """A connection to a daemon of this user."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", peer)
        if os.geteuid() not in (0, uid):
            raise unusable(path, f"it belongs to user {uid}")
    except BaseException:
        connection.close()
        raise
    return connection


class _Connection(http.client.HTTPConnection):
    """A connection to a daemon of this user."""

    def __init__(self, path: Path, timeout_s: float):
        super().__init__("warmfs", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = connected(self._path, self.timeout)


class _Exchange:
    """A request that was sent, and its answer."""

    def __init__(
        self,
        path: Path,
        method: str,
        target: str,
        body: Optional[Mapping[str, Any]],
        timeout_s: float,
    ):
        self._path, self._target, self._timeout_s = path, target, timeout_s
        self._connection = _Connection(path, timeout_s)
        self._request = (method, target, None if body is None else json.dumps(body).encode())

    def __enter__(self) -> _Exchange:
        try:
            self._response = self._guarded(self._begin)
            self._check_protocol()
            if self._response.status != http.client.OK:
                raise self._refusal()
        except BaseException:
            self._connection.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def whole(self) -> dict[str, Any]:
        """The answer as one JSON object."""
        try:
            value = _json(self._body())
        except ValueError:
            raise unusable(self._path, "its answer is not JSON") from None
        # An answer without content is `null`.
        return value if isinstance(value, dict) else {}

    def lines(self) -> Iterator[tuple[str, Any]]:
        """The answer as pairs of a kind and a value. A line that is not understood is a
        later version's, and skipped.
        """
        while True:
            line = self._guarded(lambda: self._response.readline(LINE_BYTES_MAX + 1))
            if not line:
                return
            if len(line) > LINE_BYTES_MAX:
                raise unusable(self._path, "it answers with an endless line")
            try:
                value = _json(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield from value.items()

    def _begin(self) -> http.client.HTTPResponse:
        method, target, body = self._request
        headers = {"Connection": "close", "warmfs-protocol": PROTOCOL}
        # Who does not know a request answers without reading it to its end, and closes.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.request(method, target, body, headers)
        return self._connection.getresponse()

    def _check_protocol(self) -> None:
        headers = self._response.headers
        check_protocol(headers.get("warmfs-protocol"), headers.get("warmfs-version"))

    def _refusal(self) -> WarmfsError:
        return refusal(self._body(), self._response.status, self._path)

    def _body(self) -> bytes:
        body: bytes = self._guarded(lambda: self._response.read(BODY_BYTES_MAX + 1))
        if len(body) > BODY_BYTES_MAX:
            raise unusable(self._path, "it answers with more than a daemon has to say")
        return body

    def _guarded(self, step: Callable[[], Any]) -> Any:
        return guarded(step, self._path, self._target, self._timeout_s)


def guarded(step: Callable[[], _T], path: Path, target: str, timeout_s: float) -> _T:
    """A connection that breaks before its answer is a daemon that went away."""
    try:
        return step()
    except socket.timeout:
        raise unusable(path, f"no answer to {target} within {timeout_s:.0f} s") from None
    except (http.client.HTTPException, ConnectionError, FileNotFoundError):
        raise gone(path) from None
    except OSError as error:
        raise unusable(path, str(error)) from None


def check_protocol(protocol: Optional[str], version: Optional[str]) -> None:
    """Raises if a daemon speaks another one."""
    if protocol != PROTOCOL:
        raise UnsupportedError(
            f"the running daemon is warmfs {version or 'of an unknown version'}, this is another",
            "unmount its mounts with that version, or with umount, and try again",
        )


def refusal(body: bytes, status: int, path: Path) -> WarmfsError:
    """The error that a daemon answered with."""
    try:
        reply = _json(body)
    except ValueError:
        reply = None
    if isinstance(reply, dict):
        return from_reply(reply)
    return unusable(path, f"it answers {status}")


def _json(text: bytes) -> Any:
    """A value; ``ValueError`` for all that is none, nested without end included."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def gone(path: Path) -> DaemonGoneError:
    """It ended."""
    return DaemonGoneError(
        f"the daemon at {path} ended", "see its log, warmfs.log in the cache directory"
    )


def unusable(path: Path, why: str) -> MachineError:
    """It is there, and no use."""
    return MachineError(f"the daemon at {path} cannot be used: {why}")
