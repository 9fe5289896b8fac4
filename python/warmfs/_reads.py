"""Reads of files at the daemon's socket: one request after the other on a connection that
each thread has for itself.

It speaks HTTP/1.1 as :mod:`._client` does, and no more of it than a read takes: Python's own
client takes twice as long to make a small request as the daemon takes to answer it.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from ._client import (
    BODY_BYTES_MAX,
    PROTOCOL,
    REMOTE_TIMEOUT_S,
    check_protocol,
    connected,
    gone,
    guarded,
    refusal,
    unusable,
)

TARGET = "/v1/read"

# Longest head of an answer; a daemon's has 200 bytes.
HEAD_BYTES_MAX = 8_192

# Digits of a status and a length: no file has more bytes.
NUMBERS_DIGITS_MAX = 22

_HEAD = f"POST {TARGET} HTTP/1.1\r\nhost: warmfs\r\nwarmfs-protocol: {PROTOCOL}\r\n"


class _Kept(threading.local):
    """The connections of a thread."""

    pid = 0
    connections: dict[Path, socket.socket]


_kept = _Kept()


def read(path: Path, body: Mapping[str, Any], into: memoryview) -> int:
    """Reads bytes of a file into memory; how many came. It may be fewer than there are: what
    failed on the way is told to who asks again from there.
    """
    return guarded(lambda: _exchange(path, body, into), path, TARGET, REMOTE_TIMEOUT_S)


def _exchange(path: Path, body: Mapping[str, Any], into: memoryview) -> int:
    text = json.dumps(body)
    request = f"{_HEAD}content-length: {len(text)}\r\n\r\n{text}".encode()
    # Until all of its answer was read it is of no use to anybody else.
    connection = _take(path) or connected(path, REMOTE_TIMEOUT_S)
    try:
        connection.sendall(request)
        status, length, begun = _head(connection, path)
        if status != 200:
            raise refusal(_rest(connection, begun, min(length, BODY_BYTES_MAX)), status, path)
        done = _fill(connection, into[:length], begun)
    except BaseException:
        connection.close()
        raise
    if done == length:
        _kept.connections[path] = connection
    else:
        connection.close()
        if not done:
            raise gone(path)
    return done


def _take(path: Path) -> Optional[socket.socket]:
    """This thread's connection. A process that was forked begins anew: on its parent's, answers
    would be anybody's.
    """
    if _kept.pid != os.getpid():
        _kept.pid, _kept.connections = os.getpid(), {}
    return _kept.connections.pop(path, None)


def _head(connection: socket.socket, path: Path) -> tuple[int, int, bytes]:
    """The status of an answer, the length of its body, and what of that came along."""
    data = b""
    while (end := data.find(b"\r\n\r\n")) < 0:
        part = connection.recv(HEAD_BYTES_MAX)
        if not part or len(data) > HEAD_BYTES_MAX:
            raise gone(path)
        data += part
    status, *lines = data[:end].decode("latin-1").split("\r\n")
    fields = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in fields}
    check_protocol(headers.get("warmfs-protocol"), headers.get("warmfs-version"))
    words, length = status.split(" "), headers.get("content-length", "")
    is_sound = len(words) > 1 and words[1].isdecimal() and length.isdecimal()
    if not is_sound or len(words[1] + length) > NUMBERS_DIGITS_MAX:
        raise unusable(path, "its answer has no length")
    return int(words[1]), int(length), data[end + 4 :]


def _fill(connection: socket.socket, into: memoryview, begun: bytes) -> int:
    """Reads until there is no room or no more; how many bytes came."""
    done = min(len(begun), len(into))
    into[:done] = begun[:done]
    while done < len(into):
        count = connection.recv_into(into[done:])
        if not count:
            break
        done += count
    return done


def _rest(connection: socket.socket, begun: bytes, length: int) -> bytes:
    room = bytearray(length)
    return bytes(room[: _fill(connection, memoryview(room), begun)])
