"""The order of an epoch, told to daemons that write it down, refuse it, and go along it."""

from __future__ import annotations

import json
import socketserver
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Optional

import pytest
from conftest import World

import warmfs
from warmfs import torch


class Daemon(socketserver.ThreadingUnixStreamServer):
    """A daemon with one mount that writes down what it is told."""

    daemon_threads = True

    def __init__(self, path: str, mount: str):
        super().__init__(path, _Handler)
        self.mount = mount
        self.hints: list[dict[str, Any]] = []
        self.refusal: dict[str, str] = {}
        self.refuses_all = False
        self.changed = threading.Condition()

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        """The hints with paths, once there are so many."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.hints) >= count, 20), self.hints
            return sorted(self.hints, key=lambda hint: (hint["order"], hint["first"]))


class _Handler(BaseHTTPRequestHandler):
    server: Daemon

    def do_GET(self) -> None:
        mounts = [{"uri": "s3://b", "dir": self.server.mount}]
        self._send(200, {"pid": 1, "mounts": mounts})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.refusal and (body["paths"] or self.server.refuses_all):
            return self._send(400, self.server.refusal)
        with self.server.changed:
            self.server.hints += [body] if body["paths"] else []
            self.server.changed.notify_all()
        return self._send(200, {})

    def address_string(self) -> str:
        return "socket"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _send(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("warmfs-protocol", "1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def daemon(world: World) -> Iterator[Daemon]:
    folder = world.root / "run/warmfs"
    folder.mkdir(mode=0o700)
    with Daemon(str(folder / "x.sock"), str(world.point)) as daemon:
        threading.Thread(target=daemon.serve_forever, daemon=True).start()
        yield daemon
        daemon.shutdown()


class Shuffled:
    """A sampler as torch has them."""

    def __init__(self, order: list[Any]):
        self.order = order
        self.epoch = 0

    def __iter__(self) -> Iterator[Any]:
        return iter(self.order)

    def __len__(self) -> int:
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def paths(world: World, count: int) -> list[Path]:
    return [world.point / f"{i}.jpg" for i in range(count)]


def test_each_epoch_is_told_in_the_order_of_use(world: World, daemon: Daemon) -> None:
    sampler = torch.hint(Shuffled([2, 0, 1]), paths(world, 3))
    assert len(sampler) == 3
    sampler.set_epoch(4)
    assert sampler.epoch == 4
    assert list(sampler) == [2, 0, 1]
    assert list(sampler) == [2, 0, 1]
    first, second = daemon.wait_for(2)
    assert first["paths"] == second["paths"] == ["2.jpg", "0.jpg", "1.jpg"]
    assert first["dir"] == str(world.point)
    assert first["order"] != second["order"]
    with pytest.raises(AttributeError):
        _ = sampler.none


def test_batches_are_told_flat_and_stay_batches(world: World, daemon: Daemon) -> None:
    sampler = torch.hint(Shuffled([[2, 0], (1,)]), paths(world, 3))
    assert list(sampler) == [[2, 0], (1,)]
    assert daemon.wait_for(1)[0]["paths"] == ["2.jpg", "0.jpg", "1.jpg"]


def test_long_orders_come_in_bounded_requests_behind_the_reader(
    world: World, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "PATHS_MAX", 10)
    monkeypatch.setattr(torch, "ITEMS_MAX", 25)
    order = list(range(59, -1, -1))
    assert list(torch.hint(Shuffled(order), paths(world, 60))) == order
    hints = daemon.wait_for(7)
    assert [hint["first"] for hint in hints] == [0, 10, 20, 25, 35, 45, 50]
    assert [path for hint in hints for path in hint["paths"]] == [f"{i}.jpg" for i in order]


def test_a_sampler_without_an_end_is_followed_in_pieces(
    world: World, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    import itertools

    monkeypatch.setattr(torch, "ITEMS_MAX", 4)
    endless = iter(torch.hint(itertools.cycle([0, 1, 2]), paths(world, 3)))
    assert [next(endless) for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    assert [len(hint["paths"]) for hint in daemon.wait_for(2)] == [4, 4]


def test_paths_through_a_link_are_those_of_the_mount(world: World, daemon: Daemon) -> None:
    (world.root / "link").symlink_to("mount")
    names = [f"{world.root}/link/{i}.jpg" for i in range(2)]
    assert list(torch.hint([1, 0], names)) == [1, 0]
    assert daemon.wait_for(1)[0]["paths"] == ["1.jpg", "0.jpg"]


def test_what_is_no_path_of_the_mount_is_refused(world: World, daemon: Daemon) -> None:
    with pytest.raises(warmfs.InvalidError, match=r"no paths"):
        torch.hint([], [])
    with pytest.raises(warmfs.InvalidError, match=r"/etc/passwd is not below .*one mount"):
        torch.hint([0], [*paths(world, 1), "/etc/passwd"])
    with pytest.raises(warmfs.NotMountedError, match=r"mount it first"):
        torch.hint([0], ["/etc/passwd"])
    with pytest.raises(warmfs.InvalidError, match=r"item 3, and there are 3 paths: give hint"):
        list(torch.hint([0, 3], paths(world, 3)))
    daemon.refusal = {"message": "0.jpg does not exist", "code": "not-found"}
    with pytest.raises(warmfs.NotFoundError, match=r"0.jpg does not exist"):
        list(torch.hint([0], paths(world, 1)))


def test_a_later_refusal_is_a_warning_and_training_goes_on(
    world: World, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned = threading.Event()
    monkeypatch.setattr(torch, "PATHS_MAX", 1)
    monkeypatch.setattr(warnings, "warn", lambda *_, **__: warned.set())
    items = iter(torch.hint([0, 1], paths(world, 2)))
    sent = torch.Hinted._send

    def send(self: torch.Hinted[int], names: list[str], first: int) -> None:
        daemon.refusal = {"message": "no", "code": "busy"} if first else {}
        sent(self, names, first)

    monkeypatch.setattr(torch.Hinted, "_send", send)
    assert list(items) == [0, 1]
    assert warned.wait(20)


def test_a_daemon_that_takes_no_hints_says_so(world: World, daemon: Daemon) -> None:
    daemon.refusal = {"message": "no such request: POST /v1/hint", "code": "invalid"}
    daemon.refuses_all = True
    with pytest.raises(warmfs.UnsupportedError, match=r"train without warmfs.torch.hint"):
        torch.hint([0], paths(world, 1))


def test_a_real_daemon_fetches_in_the_order_of_use(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Callable[[Callable[[], Optional[object]]], None],
) -> None:
    world.fill()
    data = world.mount()
    monkeypatch.setattr(torch, "PATHS_MAX", 3)
    files = sorted(path for path in data.path.rglob("*.bin"))
    order = list(range(len(files) - 1, -1, -1))
    assert list(torch.hint(Shuffled(order), files)) == order
    wait_until(lambda: warmfs.status().prefetched.objects == len(files))
    with pytest.raises(warmfs.NotFoundError, match=r"1 of 1 paths are no files here"):
        list(torch.hint(Shuffled([0]), [data.path / "none.bin"]))
