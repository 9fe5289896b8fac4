"""What the tests share: a real daemon of the built program, real mounts, and a watchdog.

Each test that mounts has a ``World``: a home, a runtime directory, a cache and a source of
its own. When its time is up the watchdog aborts its mounts and kills its daemons, so that a
mount that hangs fails one test and not the machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Optional

import IPython.lib.pretty
import pytest

import warmfs
from warmfs import _caller_env, _paths, _sockets

# Longer than any test takes on a loaded machine with two cores: the large frameworks take a
# while to be imported, three times over.
WANTS_HEAVY = os.environ.get("WARMFS_TEST_FRAMEWORKS") == "all"
TEST_TIMEOUT_S = 300.0 if WANTS_HEAVY else 90.0

REPOSITORY = Path(__file__).parents[2]


# What tests need of the environment they are run in.
KEPT = ("PATH", "PWD", "HOME", "WARMFS_BINARY", "WARMFS_TEST_HOME", "WARMFS_WHEEL")


class World:
    """What one test has for itself."""

    def __init__(self, root: Path):
        self.root = root
        self.source = root / "source"
        self.point = root / "mount"
        self.cache = root / "cache"
        self.pids: list[int] = []
        """Processes to kill when the time is up."""

    def fill(self, files: int = 4, size: int = 300_000) -> dict[str, bytes]:
        """Files in the source: their names and bytes."""
        content = {f"{i % 2}/{i:03}.bin": os.urandom(size) for i in range(files)}
        for name, data in content.items():
            path = self.source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return content

    @property
    def uri(self) -> str:
        """The source's."""
        return self.source.as_uri()

    def mount(self, **options: object) -> warmfs.Mount:
        """Mounts the source, without fetching ahead."""
        return warmfs.mount(self.uri, self.point, **{"warm": "off", **options})  # type: ignore[arg-type]

    def daemon_pid(self) -> int:
        """The process that serves the cache."""
        return warmfs.status(cache_dir=self.cache).pid

    def clean(self) -> None:
        """Ends all that the test may have left."""
        below = [point for point in _paths.mount_points() if self.root in point.parents]
        for point in below:
            _abort(point)
            subprocess.run(["umount", "-l", str(point)], check=False, capture_output=True)
        for pid in [*self.pids, *_holders(self.root)]:
            _kill(pid)


def _abort(point: Path) -> None:
    """Ends every request of a mount: who waits for it cannot be killed before."""
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        devices = [f[2] for f in map(str.split, lines) if f[4] == str(point)]
    for device in devices:
        abort = Path("/sys/fs/fuse/connections", device.partition(":")[2], "abort")
        if abort.exists():
            abort.write_text("1")


def _holders(root: Path) -> list[int]:
    """Daemons whose cache is below ``root``."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
        except OSError:
            continue
        is_below = any(word.startswith(os.fsencode(root)) for word in words)
        if is_below and {b"daemon", b"supervise"} & set(words):
            found.append(int(entry.name))
    return found


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def pretty(value: object) -> str:
    """What a terminal of IPython shows of a value."""
    return str(IPython.lib.pretty.pretty(value))  # type: ignore[no-untyped-call]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        taken = name in _caller_env.NAMES or name.startswith((*_caller_env.PREFIXES, "WARMFS_"))
        if taken and name not in KEPT:
            monkeypatch.delenv(name)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    # Not pytest's own folder, whose path is too long for a socket.
    root = Path(tempfile.mkdtemp(prefix="wf-"))
    world = World(root)
    world.source.mkdir()
    (root / "run").mkdir(mode=0o700)
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(root / "run"))
    monkeypatch.setenv("WARMFS_CACHE_DIR", str(world.cache))
    # Other daemons of the machine are none of the test's.
    monkeypatch.setattr(_sockets, "_folders", lambda: iter([root / "run/warmfs"]))
    fired = threading.Event()

    def fire() -> None:
        fired.set()
        print(f"watchdog: {TEST_TIMEOUT_S:.0f} s are over", file=sys.stderr)
        world.clean()

    timer = threading.Timer(TEST_TIMEOUT_S, fire)
    timer.start()
    try:
        yield world
    finally:
        timer.cancel()
        world.clean()
        shutil.rmtree(root, ignore_errors=True)
    assert not fired.is_set(), "the watchdog ended this test"


@pytest.fixture
def wait_until() -> Callable[[Callable[[], Optional[object]]], None]:
    """Waits for what nothing announces; fails in the end."""

    def wait(condition: Callable[[], Optional[object]]) -> None:
        pause = threading.Event()
        for _ in range(1_000):
            if condition():
                return
            pause.wait(0.02)
        raise AssertionError("what was waited for did not come")

    return wait


def pytest_configure(config: pytest.Config) -> None:
    if "WARMFS_BINARY" not in os.environ:
        built = REPOSITORY / "target/debug/warmfs"
        if not built.exists():
            raise pytest.UsageError(f"{built} is missing: build it, or name one in WARMFS_BINARY")
        os.environ["WARMFS_BINARY"] = str(built)
