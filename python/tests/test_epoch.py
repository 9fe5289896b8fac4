"""What an epoch costs, against what is known of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Callable

import pytest
from conftest import World, pretty

import warmfs
from warmfs import _epoch, _html, _live, _mount, _sampler
from warmfs._status import CacheStatus, MountStatus, ReadStatus, Status


@pytest.fixture(autouse=True)
def no_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_epoch, "_epochs", [])


def read_all(data: warmfs.Mount, content: dict[str, bytes]) -> None:
    for name, expected in content.items():
        assert (data.path / name).read_bytes() == expected


def test_an_epoch_has_the_daemons_bytes_and_requests(world: World) -> None:
    content = world.fill()
    data = world.mount()
    total = sum(map(len, content.values()))
    with warmfs.epoch("cold") as cold:
        read_all(data, content)
    assert (cold.miss_bytes, cold.hit_bytes) == (total, 0)
    assert (cold.get_requests, cold.get_bytes) == (4, total)
    assert cold.hit_rate == 0.0
    data.unmount()
    data = world.mount()
    with warmfs.epoch() as warm:
        read_all(data, content)
    assert (warm.miss_bytes, warm.get_requests, warm.hit_rate) == (0, 0, 1.0)
    assert warm.name == "epoch 2"
    assert "100 % hits" in str(warm)
    report = warmfs.report()
    assert report.epochs == [cold, warm]
    html = report._repr_html_()
    assert html.count("<title>") == 2
    assert "<script" not in html


def test_an_epoch_counts_a_mount_that_was_made_in_it(world: World) -> None:
    content = world.fill()
    with warmfs.epoch("all") as cost:
        read_all(world.mount(), content)
    assert cost.miss_bytes == sum(map(len, content.values()))
    assert not cost.problem


def test_an_epoch_without_a_daemon_says_so(world: World) -> None:
    with pytest.raises(ZeroDivisionError), warmfs.epoch("<b>") as cost:
        raise ZeroDivisionError
    assert cost.problem == "no daemon runs: nothing is mounted"
    assert "nothing is mounted" in str(cost)
    assert "<b>" not in warmfs.report()._repr_html_()


def test_waiting_is_seen_in_threads_mappings_and_other_programs(world: World) -> None:
    """Behind a bandwidth of less than what is read, each of them waits in the kernel."""
    world.fill(files=6, size=500_000)
    data = world.mount(max_bandwidth="1M")
    files = sorted(path for path in data.path.rglob("*.bin"))
    for path in files[4:]:
        path.read_bytes()  # What may come at once has come.

    def mapped() -> None:
        import mmap

        with open(files[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as m:
            assert len(bytes(m)) == 500_000

    def threaded() -> None:
        thread = threading.Thread(target=files[0].read_bytes)
        thread.start()
        thread.join()

    def program() -> None:
        subprocess.run(["cat", str(files[2])], check=True, stdout=subprocess.DEVNULL)

    for reader in (threaded, mapped, program, files[3].read_bytes):
        with warmfs.epoch() as cost:
            reader()
        assert cost.wait_s is not None, reader
        assert cost.wait_s > 0, reader
        assert cost.reader_wait_s is not None
        assert cost.wait_s <= cost.reader_wait_s


def test_sleep_and_computing_are_no_waiting_for_files(world: World) -> None:
    with warmfs.epoch() as nothing:
        pass
    assert nothing.wait_s == 0.0
    with warmfs.epoch() as cost:
        time.sleep(0.2)
        sum(range(2_000_000))
    assert cost.wait_s == 0.0


def test_what_cannot_be_sampled_is_not_measured(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_epoch, "SAMPLER_TIMEOUT_S", 0.2)
    silent = world.root / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 60\n")
    silent.chmod(0o755)
    for program in ("/nowhere/python", "/bin/true", str(silent)):
        monkeypatch.setattr(sys, "executable", program)
        with warmfs.epoch() as cost:
            pass
        assert cost.wait_s is None
        assert "not measured" in str(cost)


def test_the_sampler_ends_with_whoever_started_it(
    world: World, wait_until: Callable[[Callable[[], object]], None]
) -> None:
    program = (
        "import os, warmfs; e = warmfs.epoch('x'); e.__enter__();"
        "print(open(f'/proc/self/task/{os.getpid()}/children').read(), flush=True); os._exit(0)"
    )
    package = str(Path(warmfs.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "PYTHONPATH": package},
    )
    sampler = Path("/proc", done.stdout.strip())
    wait_until(lambda: not sampler.exists())


def test_a_family_is_without_the_one_that_looks() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert _sampler.family(os.getpid()) == []
        assert _sampler.family(child.pid) == [child.pid]
        assert _sampler.family(os.getppid())[:1] == [os.getppid()]
    finally:
        child.kill()
        child.wait()


def test_a_counter_that_began_anew_is_not_negative() -> None:
    measured = _epoch.Epoch("x")
    then = Status(pid=1, mounts=[MountStatus(dir="/m", reads=ReadStatus(hit_bytes=100))])
    now = Status(pid=1, mounts=[MountStatus(dir="/m", reads=ReadStatus(hit_bytes=7))])
    _epoch._subtract(measured, {1: then}, {1: now})
    assert measured.hit_bytes == 7
    _epoch._subtract(measured, {1: then}, {2: now})
    assert "restarted" in str(measured.problem)


def test_a_picture_has_the_rates_and_the_fill() -> None:
    then = Status(mounts=[MountStatus(reads=ReadStatus(0, 0))])
    now = Status(
        mounts=[MountStatus(reads=ReadStatus(3 << 20, 1 << 20))],
        cache=CacheStatus(used_bytes=1 << 30, limit_bytes=4 << 30, objects=5),
    )
    point = _live._rates(then, now, 2.0)
    assert point == (1.5 * (1 << 20), 0.5 * (1 << 20))
    html = _live.picture(now, [point, point], 1.0, "<now>")
    for text in ("1.50 MiB/s warm", "512 KiB/s cold", "75 % of the last 2s", "1.00 GiB of 4.00"):
        assert text in html
    assert "1m 0s ago" in html and "&lt;now&gt;" in html
    assert "<polygon" in _live.picture(now, [], 1.0, "")
    assert _live._rates(now, then, 1.0) == (0.0, 0.0)


def test_a_curve_moves_and_is_not_stretched() -> None:
    """The newest point is at the right, and the others keep their distance."""

    def points(values: list[float]) -> list[str]:
        drawn = _html.areas((("red", values),), 101, "1m 40s")
        found = re.search(r'points="([^"]*)"', drawn)
        assert found
        return found[1].split()[: len(values)]

    right = 560 - _html.SCALE_PX
    assert points([1.0]) == [f"{right:.1f},0.0"]
    assert points([1.0, 2.0]) == [f"{right * 0.99:.1f},60.0", f"{right:.1f},0.0"]


@pytest.mark.parametrize(
    ("value", "end", "text"),
    [
        (0, 1, "1 B/s"),
        (3, 5, "5 B/s"),
        (501, 1024, "1 KiB/s"),
        (7.6 * 1024**2, 10 * 1024**2, "10 MiB/s"),
        (600 * 1024**2, 1024**3, "1 GiB/s"),
    ],
)
def test_a_scale_ends_with_a_round_number(value: float, end: float, text: str) -> None:
    assert _html.ceiling(value) == end
    drawn = _html.areas((("red", [value]),), 10, "10s")
    assert f">{text}<" in drawn and ">0<" in drawn


def test_bars_have_names_and_figures_and_are_not_too_many() -> None:
    rows = [(f"<epoch {n}>", (("red", float(n)),), f"{n} s") for n in range(100)]
    drawn = _html.bars(rows, "time")
    assert drawn.count("<rect") == _html.BARS_MAX
    assert "&lt;epoch 99&gt;" in drawn and ">99 s<" in drawn
    assert "epoch 69" not in drawn


def test_a_report_has_no_figures_where_there_are_none() -> None:
    lost = _epoch.Epoch("lost", wall_s=75.0, problem="the daemon was restarted")
    warm = _epoch.Epoch("warm", wall_s=0.5, wait_s=0.1, reader_wait_s=0.1)
    assert _epoch._cells(lost) == ["lost", "1m 15s", *["-"] * 5]
    assert [_html.format_seconds(s) for s in (0, 1e-4, 0.0042, 0.0996, 59.99, 60)] == [
        "0.00 s", "1 ms", "4 ms", "0.10 s", "59.99 s", "1m 0s",
    ]  # fmt: skip
    assert _epoch._cells(warm)[1:4] == ["0.50 s", "0.10 s", "-"]
    assert "nothing was read through the daemon" in str(warm)
    assert pretty(warm) == str(warm)
    report = _epoch.EpochReport([lost] * 40)
    assert "Without the first 10." in report._repr_html_()


class Handle:
    """A display that keeps what it is shown."""

    def __init__(self, most: int = 100):
        self.shown: list[str] = []
        self.most = most

    def update(self, html: _live._Html) -> None:
        if len(self.shown) >= self.most:
            raise RuntimeError("closed")
        self.shown.append(html._repr_html_())


def test_a_watch_draws_until_it_is_stopped_or_its_daemon_ends(
    world: World, wait_until: Callable[[Callable[[], object]], None]
) -> None:
    world.fill()
    data = world.mount()
    client = _mount.daemon()
    for handle in (Handle(), Handle(most=2)):
        watch = _live.Watch(client, 0.02, 60, handle)
        wait_until(lambda handle=handle: len(handle.shown) > 1)  # type: ignore[misc]
        if handle.most > 2:
            watch.stop()
        wait_until(lambda watch=watch: not watch.is_running)  # type: ignore[misc]
        assert "<polygon" in handle.shown[-1]
        assert handle.most == 2 or "the picture ends: stopped" in handle.shown[-1]
    handle = Handle(most=10_000)
    watch = _live.Watch(client, 0.02, 60, handle)
    data.unmount()
    wait_until(lambda: not watch.is_running)
    assert "the picture ends: the daemon at" in handle.shown[-1]
    assert "<polygon" in handle.shown[-1], "the last picture stays"
    assert repr(watch) == "<Watch: ended>"


def test_a_watch_needs_a_notebook_and_some_time(world: World) -> None:
    with pytest.raises(warmfs.MachineError, match=r"draws in a notebook"):
        warmfs.watch()
    with pytest.raises(warmfs.InvalidError, match=r"too often"):
        warmfs.watch(interval_s=0)
