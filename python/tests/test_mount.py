"""Mounts: made, found, healed, ended, and refused with a sentence."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import REPOSITORY, World

import warmfs
from warmfs import _binary, _client, _errors, _options, _paths, _sockets


def test_a_mount_shows_the_files_and_says_who_serves_it(world: World) -> None:
    content = world.fill()
    data = world.mount()
    assert {name: (data.path / name).read_bytes() for name in content} == content
    assert sorted(os.listdir(data)) == ["0", "1"]
    status = data.status()
    assert (status.uri, status.dir) == (world.uri, str(world.point))
    whole = warmfs.status(data)
    assert whole.pid == world.daemon_pid() and whole.cache.dir == str(world.cache)
    assert whole.miss_bytes == sum(map(len, content.values()))
    assert data.unmount() and not world.point.exists()
    with open(world.cache / "lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # Held until the cache is saved.
    with pytest.raises(warmfs.NotMountedError, match=r"in no mount"):
        data.status()


def test_mounting_again_is_success_and_keeps_daemon_and_cache(world: World) -> None:
    world.fill()
    first = world.mount()
    (first.path / "0/000.bin").read_bytes()
    pid = world.daemon_pid()
    again = world.mount()
    assert not first.existed and again.existed and world.daemon_pid() == pid
    (again.path / "0/000.bin").read_bytes()
    assert warmfs.status().remote.get.requests == 1


def test_a_context_ends_what_it_made_and_leaves_what_was_there(world: World) -> None:
    world.fill()
    with world.mount() as data:
        with world.mount():
            pass
        assert data.status()
        held = open(data.path / "0/000.bin", "rb")  # noqa: SIM115
    assert not _paths.mounts()
    assert len(held.read()) == 300_000
    held.close()


def test_an_error_inside_a_context_is_not_lost(world: World) -> None:
    world.fill()
    with pytest.raises(ZeroDivisionError), world.mount() as data, open(data.path / "0/000.bin"):
        raise ZeroDivisionError
    assert not _paths.mounts()


def test_a_busy_mount_says_who_uses_it_and_goes_lazily(world: World) -> None:
    world.fill()
    data = world.mount()
    with open(data.path / "0/000.bin", "rb") as held:
        with pytest.raises(warmfs.BusyError, match=rf"process {os.getpid()} .*uses it: .*--lazy"):
            data.unmount()
        assert not data.unmount(lazy=True)
        assert len(held.read()) == 300_000


def test_what_a_dead_daemon_left_is_healed(world: World) -> None:
    content = world.fill()
    data = world.mount(no_supervisor=True)
    (data.path / "0/000.bin").read_bytes()
    _die(world)
    for call in (data.status, lambda: warmfs.ls(data)):
        with pytest.raises(warmfs.DaemonGoneError, match=r"does not answer: mount it again"):
            call()
    assert (world.mount(no_supervisor=True).path / "0/000.bin").read_bytes() == content["0/000.bin"]
    assert warmfs.unmount(data)
    world.mount(no_supervisor=True)
    _die(world)
    assert warmfs.unmount(data) and not _below(world)


def _die(world: World) -> None:
    pid = world.daemon_pid()
    process = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    _mount_wait(process)


def _mount_wait(process: int) -> None:
    from warmfs._mount import _wait_for_exit

    _wait_for_exit(process, 0)
    os.close(process)


def test_a_daemon_that_died_is_back_with_its_mounts(
    world: World, wait_until: Callable[[Callable[[], object]], None]
) -> None:
    content = world.fill()
    data = world.mount()
    os.kill(world.daemon_pid(), signal.SIGKILL)

    def is_back() -> bool:
        with contextlib.suppress(warmfs.WarmfsError):
            return data.status().uri == world.uri
        return False

    wait_until(is_back)
    assert (data.path / "0/000.bin").read_bytes() == content["0/000.bin"]
    assert warmfs.status().restarts.count == 1
    assert "started again 1 time, the last: " in str(warmfs.status())


def _below(world: World) -> list[Path]:
    return [point for point in _paths.mount_points() if world.root in point.parents]


@pytest.mark.parametrize(
    ("uri", "point", "options", "error", "text"),
    [
        ("foo://x", "m", {}, warmfs.InvalidError, "use s3://"),
        ("", "m", {}, warmfs.InvalidError, "is not a URI"),
        ("--help", "m", {}, warmfs.InvalidError, "is not a URI"),
        ("s3://", "m", {}, warmfs.InvalidError, "names no valid bucket"),
        ("file:///nowhere/at/all", "m", {}, warmfs.NotFoundError, "no such folder; check"),
        (None, "", {}, warmfs.InvalidError, "is not a path"),
        (None, "source", {}, warmfs.MountPointError, "overlap: choose a mount point"),
        (None, "/etc", {}, warmfs.MountPointError, "not empty: mount on an empty folder"),
        (None, "/etc/passwd", {}, warmfs.MountPointError, "choose another mount point"),
        (None, "m", {"cash_size": 1}, warmfs.InvalidError, "did you mean 'cache_size'"),
        (None, "m", {"cache_size": "much"}, warmfs.InvalidError, "such as 20G"),
        (None, "m", {"region": "a\0b"}, warmfs.InvalidError, "embedded null byte"),
        (None, "m", {"warm": "hot"}, warmfs.InvalidError, "invalid value 'hot'"),
        (None, "m", {"cache_dir": "/proc/x"}, warmfs.MachineError, "choose another"),
        (
            "s3://bucket",
            "m",
            {"endpoint_url": "http://127.0.0.1:9", "no_sign_request": True},
            warmfs.UnreachableError,
            "check the network and --endpoint-url",
        ),
    ],
)
def test_what_cannot_be_mounted_is_an_exception_with_what_to_do(
    world: World, uri: Any, point: str, options: Any, error: type[Exception], text: str
) -> None:
    world.fill()
    path = os.path.join(world.root, point) if point else ""
    with pytest.raises(error, match=text) as caught:
        warmfs.mount(world.uri if uri is None else uri, path, **options)
    assert "\n" not in str(caught.value) and type(caught.value) is error
    assert not _below(world)


def test_the_same_path_with_other_options_is_refused(world: World) -> None:
    world.fill()
    world.mount()
    with pytest.raises(warmfs.MountPointError, match=r"with other options: .*unmount.* first"):
        world.mount(file_mode=0o400)
    with pytest.raises(warmfs.InvalidError, match=r"in use with another size"):
        world.mount(cache_size="1G")


def test_a_daemon_that_hangs_hangs_no_call(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.fill()
    data = world.mount()
    os.kill(world.daemon_pid(), signal.SIGSTOP)
    monkeypatch.setattr(_client, "QUICK_TIMEOUT_S", 0.2)
    for call in (lambda: warmfs.ls(data.path / "0/none"), data.status, data.renew):
        with pytest.raises(warmfs.DaemonGoneError, match=r"does not answer"):
            call()


def test_commands_on_what_is_not_ours_say_so(world: World) -> None:
    with pytest.raises(warmfs.NotMountedError, match=r"starts one"):
        warmfs.status()
    with pytest.raises(warmfs.NotMountedError, match=r"mount it first"):
        warmfs.ls("/tmp")
    with pytest.raises(warmfs.NotMountedError, match=r"mount it first"):
        warmfs.du("s3://bucket/a")
    with pytest.raises(warmfs.NotMountedError, match=r"is not a warmfs mount"):
        warmfs.unmount("/tmp")
    with pytest.raises(warmfs.NotMountedError):
        warmfs.login()


def test_a_relative_path_and_links_lead_to_the_mount(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.fill()
    world.mount()
    (world.root / "link").symlink_to("mount/0")
    (world.root / "loop").symlink_to("loop")
    monkeypatch.chdir(world.root)
    assert [row.name for row in warmfs.ls("link")] == ["000.bin", "002.bin"]
    assert [row.name for row in warmfs.ls("./x/../mount/0/.")] == ["000.bin", "002.bin"]
    assert len(warmfs.ls(f"{world.uri}/0")) == 2
    with pytest.raises(warmfs.InvalidError, match=r"too many symbolic links"):
        warmfs.ls("loop")


def test_a_request_at_the_socket_is_the_command_lines_own(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal options are the same mount; one that differed would be refused."""
    world.fill()
    every: dict[str, Any] = {
        "endpoint_url": "http://127.0.0.1:9",
        "region": "r",
        "profile": "p",
        "no_sign_request": True,
        "requester_pays": True,
        "billing_project": "b",
        "virtual_host_style": True,
        "ca_file": "/etc/hosts",
        "max_bandwidth": "1.5G",
        "max_requests": 7,
        "max_download": 1 << 40,
        "max_download_strict": True,
        "no_hedge": True,
        "verify_remote": True,
        "credential_command": "true",
        "metadata_ttl": 90.0,
        "allow_other": True,
        "noexec": True,
        "uid": 3,
        "gid": 4,
        "file_mode": 0o440,
        "dir_mode": "550",
        "open_mode": "cached",
        "warm": "off",
    }
    left = set(_options.NAMES) - every.keys() - set(_options.DAEMON)
    assert left == {"index", "origin", "customer_key_file"}, "an option is tried by no test"
    for options in ({}, every, {"metadata_ttl": "inf"}, {"metadata_ttl": "2d", "warm": None}):
        monkeypatch.setenv("WARMFS_MAX_REQUESTS", "9")
        monkeypatch.setenv("WARMFS_NO_HEDGE", "no")
        _binary.run(["mount", *_options.flags(options), world.uri, str(world.point)], 60)
        client = _client.of_cache(world.cache)
        assert client
        body = {"uri": world.uri, "dir": str(world.point), "env": {}, **_options.request(options)}
        reply = client.send("POST", "/v1/mounts", body, 60)
        assert reply["existed"], options
        warmfs.unmount(world.point)


@pytest.mark.parametrize(
    ("struct", "ours"),
    [
        ("MountOptions", lambda options: options),
        ("RemoteOptions", lambda options: options["remote"]),
        ("TrafficOptions", lambda options: options["traffic"]),
    ],
)
def test_a_request_at_the_socket_has_every_option(struct: str, ours: Any) -> None:
    source = (REPOSITORY / "src/config.rs").read_text()
    body = source.partition(f"pub struct {struct} {{")[2].partition("\n}")[0]
    assert set(re.findall(r"pub (\w+):", body)) == set(ours(_options.request({})["options"]))


def test_a_daemon_that_is_silent_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_client, "QUICK_TIMEOUT_S", 0.2)
    world.cache.mkdir()
    path = world.root / "silent.sock"
    record = f'{{"pid":1,"socket":"{path}"}}'
    (world.cache / "lock").write_text(record.ljust(_sockets.RECORD_BYTES_MAX))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with pytest.raises(warmfs.NotMountedError):
            warmfs.status()
        listener.listen()
        with pytest.raises(warmfs.MachineError, match=r"no answer to /v1/ping within 0 s"):
            warmfs.status()


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (b"", warmfs.NotMountedError, "no daemon serves"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", warmfs.UnsupportedError, "of an unknown version"),
        (b"nonsense\r\n\r\n", warmfs.NotMountedError, "no daemon serves"),
        (b"HTTP/1.1 500 No\r\nwarmfs-protocol: 1\r\n\r\n[1]", warmfs.MachineError, "answers 500"),
        (b"HTTP/1.1 200 OK\r\nwarmfs-protocol: 1\r\n\r\n{", warmfs.MachineError, "is not JSON"),
        (
            b"HTTP/1.1 409 No\r\nwarmfs-protocol: 1\r\n\r\n"
            b'{"message":"a\\nb","hint":"do c","code":"busy"}',
            warmfs.BusyError,
            "^a b: do c$",
        ),
        (
            b"HTTP/1.1 400 No\r\nwarmfs-protocol: 1\r\n\r\n" + b" " * (1 << 20) + b"{}",
            warmfs.MachineError,
            "more than a daemon has to say",
        ),
    ],
)
def test_strange_answers_are_sentences(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    answer: bytes,
    error: type[Exception],
    text: str,
) -> None:
    monkeypatch.setattr(_client, "QUICK_TIMEOUT_S", 1.0)  # Nobody answers a second time.
    world.cache.mkdir()
    path = world.root / "odd.sock"
    (world.cache / "lock").write_text(f'{{"pid":1,"socket":"{path}"}}')
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(10)

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(65_536)
                with contextlib.suppress(OSError):  # It had heard enough.
                    peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(error, match=text):
            warmfs.status()
        thread.join()


def test_python_m_warmfs_is_the_command_line(world: World) -> None:
    import sys

    package = str(Path(warmfs.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "warmfs", "status"],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": package},
    )
    assert done.returncode == 1 and done.stderr.startswith("warmfs: no daemon serves")


@pytest.mark.parametrize(
    ("printed", "error"),
    [
        ("warmfs: LIST s3://b: the store answered 403 AccessDenied", warmfs.DeniedError),
        ("warmfs: s3://b: not readable without credentials, and none", warmfs.DeniedError),
        (
            "warmfs: s3://b keeps the credentials it has: x: no connection: y",
            warmfs.UnreachableError,
        ),
        ("warmfs: s3://b keeps the credentials it has: answered 404 x", warmfs.NotFoundError),
        ("warmfs: s3://b keeps the credentials it has: answered 403 x", warmfs.DeniedError),
        ("warmfs: cannot create /x: permission denied", warmfs.WarmfsError),
        ("warmfs: there is no /dev/fuse: run `modprobe fuse`", warmfs.MachineError),
        ("warmfs: s3://b: the store answered 404 NoSuchBucket", warmfs.NotFoundError),
        ("warmfs: something else", warmfs.WarmfsError),
    ],
)
def test_sentences_of_the_command_line_are_told_apart(printed: str, error: type[Exception]) -> None:
    assert type(_errors.from_command(printed)) is error


def test_a_sentence_is_found_in_what_a_program_printed() -> None:
    assert str(_errors.from_command("error: unexpected x\n\nUsage: y")) == "unexpected x"
    assert str(_errors.from_command("warmfs: pin: 1 of 2\nwarmfs: a: b\n")) == "a: b"
    assert str(_errors.from_command("")) == "the command failed without a word"


def test_a_request_that_is_refused_unread_is_still_answered(world: World) -> None:
    """The daemon closes without having read what it does not know."""
    world.fill()
    world.mount()
    client = _client.of_cache(world.cache)
    assert client
    for size in (1, 300_000):
        with pytest.raises(warmfs.InvalidError, match=r"no such request: POST /v1/none"):
            client.send("POST", "/v1/none", {"x": "y" * size}, 20)


def test_a_daemon_of_another_user_is_not_talked_to(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.fill()
    world.mount()
    client = _client.of_cache(world.cache)
    assert client
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(warmfs.MachineError, match=rf"belongs to user {os.getuid()}$"):
        client.get("/v1/ping")


def test_two_mounts_of_one_daemon_are_told_apart(world: World) -> None:
    world.fill()
    other = world.root / "other"
    other.mkdir()
    (other / "only.bin").write_bytes(b"x")
    world.mount()
    with warmfs.mount(other.as_uri(), world.root / "mount2", warm="off") as second:
        assert [row.name for row in warmfs.ls(second)] == ["only.bin"]
        assert [row.name for row in warmfs.ls(other.as_uri())] == ["only.bin"]
        assert [row.name for row in warmfs.ls(f"{world.uri}/0/")] == ["000.bin", "002.bin"]
        assert len(warmfs.status().mounts) == 2
        assert len(warmfs.login()) == 2
