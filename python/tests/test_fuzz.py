"""Bytes that no daemon sends: what comes of them is a value or a sentence, never our own
exceptions. The cases are the same in each run.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import World

import warmfs
from warmfs import _client, _errors, _options, _paths, _reads, _sockets
from warmfs._status import Status, decode
from warmfs._upkeep import Row

CASES = 300

STATUS = {
    "schema": 1,
    "pid": 7,
    "mounts": [{"uri": "s3://b", "dir": "/m", "uptime_s": 1.5, "reads": {"hit_bytes": 3}}],
    "cache": {"used_bytes": 5, "limit_bytes": 9, "expected_hit_rate": 0.5},
    "remote": {"get": {"requests": 2, "bytes": 4}, "retries": {"stalled": 1}},
}

HEAD = b"HTTP/1.1 200 OK\r\nwarmfs-protocol: 1\r\nContent-Type: application/json\r\n"

LINES = (
    b'{"progress":{"objects_done":1,"objects_total":2,"bytes_done":0,"bytes_total":0}}\n'
    b'{"rows":[{"name":"a","is_folder":false,"objects":1,"bytes":3,"cached_bytes":3}]}\n'
    b'{"done":{"command":"rows","rows":1}}\n'
)

ODD: tuple[Any, ...] = (None, -1, 1 << 70, 1e999, float("nan"), "x", "\x1b[2J", [], {}, [[]], True)


def answers() -> list[bytes]:
    """Right ones, of each form."""
    status = json.dumps(STATUS).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (LINES[:90], LINES[90:]))
    return [
        HEAD + b"Content-Length: %d\r\n\r\n%s" % (len(status), status),
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n",
        HEAD.replace(b"200 OK", b"409 Conflict") + b'\r\n{"message":"m","code":"busy"}',
        HEAD + b"\r\n" + b"[" * 100_000,
        HEAD + b'\r\n{"error":7}\n',
        HEAD + b'\r\n{"done":7}\n{"rows":7}\n{"rows":[7,{"bytes":"x"}]}\n',
    ]


def damaged(dice: random.Random, answer: bytes) -> bytes:
    """An answer with some of its bytes changed, cut out, or doubled."""
    changed = bytearray(answer)
    for _ in range(dice.randrange(4)):
        at = dice.randrange(len(changed))
        kind = dice.randrange(3)
        if kind == 0:
            changed[at] = dice.randrange(256)
        elif kind == 1:
            del changed[at : at + dice.randrange(1, 40)]
        else:
            changed[at:at] = changed[at : at + dice.randrange(1, 40)]
    return bytes(changed)


@pytest.fixture
def peer(world: World) -> Iterator[tuple[_client.Client, list[bytes]]]:
    """A daemon that answers each request with what stands last in the list."""
    path = world.root / "peer.sock"
    queue: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(65_536)
                    if not queue:
                        return
                    connection.sendall(queue.pop())

        thread = threading.Thread(target=serve)
        thread.start()
        yield _client.Client(path), queue
        queue.clear()
        with pytest.raises(warmfs.WarmfsError):
            _client.Client(path).get("/")
        thread.join()


def check_line(kind: str, value: Any) -> None:
    """What a call does with a line."""
    if kind == "rows" and isinstance(value, list):
        assert all(decode(Row, row) for row in value if isinstance(row, dict))


def test_damaged_answers_are_values_or_sentences(
    peer: tuple[_client.Client, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A body that is shorter than it says ends with its connection, not with this.
    monkeypatch.setattr(_client, "QUICK_TIMEOUT_S", 10.0)
    client, queue = peer
    dice, right = random.Random(7), answers()
    for number in range(CASES):
        answer = damaged(dice, right[number % len(right)])
        queue.append(answer)
        with contextlib.suppress(warmfs.WarmfsError):
            str(_paths.status_of(client))
        queue[:] = [answer]
        with contextlib.suppress(warmfs.WarmfsError):
            client.upkeep("/v1/ls", {}, check_line)
        queue.clear()


def test_damaged_answers_to_a_read(peer: tuple[_client.Client, list[bytes]]) -> None:
    client, queue = peer
    head = HEAD.replace(b"application/json", b"application/octet-stream")
    right = head + b"Content-Length: 100\r\n\r\n" + bytes(100)
    dice, room = random.Random(7), memoryview(bytearray(100))
    for _ in range(CASES):
        queue[:] = [damaged(dice, right)]
        # Who asked for more than came hears of it when asking again.
        with contextlib.suppress(warmfs.WarmfsError):
            assert 0 <= _reads.read(client.socket, {}, room) <= 100
    queue.clear()


def test_odd_values_of_a_status_print() -> None:
    for path in paths_in(STATUS):
        for odd in ODD:
            status = decode(Status, replaced(STATUS, path, odd))
            assert "\n" in str(status)
            assert "<table" in status._repr_html_()


def paths_in(value: Any) -> list[list[Any]]:
    """The ways to every value in one of JSON."""
    if not isinstance(value, (dict, list)):
        return []
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [[key, *rest] for key, item in inner for rest in ([], *paths_in(item))]


def replaced(value: Any, path: list[Any], new: Any) -> Any:
    """A copy with another value at a place."""
    copy = json.loads(json.dumps(value))
    place = copy
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return copy


def test_odd_records_and_sentences(tmp_path: Path) -> None:
    dice = random.Random(7)
    record = b'{"pid":7,"socket":"/run/user/0/warmfs/0123456789abcdef.sock"}'
    sentence = b"warmfs: cannot mount s3://b: LIST: the store answered 403 x\n"
    for _ in range(CASES):
        (tmp_path / "lock").write_bytes(damaged(dice, record))
        _sockets.of_cache(tmp_path)
        error = _errors.from_command(damaged(dice, sentence).decode(errors="replace"))
        assert str(error)
        assert "\n" not in str(error)


def test_odd_values_of_options_are_refused_or_sent() -> None:
    for name in _options.NAMES:
        for odd in ODD:
            with contextlib.suppress(warmfs.InvalidError):
                json.dumps(_options.request({name: odd}))
            assert all(isinstance(word, str) for word in _options.flags({name: odd}))
