"""The cache kept in order, each figure against what is known of the files."""

from __future__ import annotations

import math
import re
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
from conftest import World, pretty

import warmfs
from warmfs import _binary, _html, _options, _progress, _upkeep
from warmfs._client import Client
from warmfs._status import Status, decode


def test_ls_and_du_say_what_is_cached(world: World) -> None:
    content = world.fill()
    data = world.mount()
    (data.path / "0/000.bin").read_bytes()
    rows = warmfs.ls(data.path / "0")
    assert [(row.name, row.is_cached) for row in rows] == [("000.bin", True), ("002.bin", False)]
    assert {row.name for row in warmfs.ls(data) if row.is_folder} == {"0", "1"}
    whole = warmfs.du(data, depth=1)
    total = next(row for row in whole if row.name == "")
    assert (total.objects, total.bytes) == (4, sum(map(len, content.values())))
    assert total.cached_bytes == 300_000
    assert len(whole) == 3
    assert "000.bin" in rows._repr_html_()
    assert not warmfs.ls(data, hidden=True)
    with pytest.raises(warmfs.NotFoundError):
        warmfs.ls(data.path / "none")
    with pytest.raises(warmfs.InvalidError):
        warmfs.du(data, depth=-1)


def test_pin_keeps_and_evict_takes(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    world.fill()
    data = world.mount()
    assert warmfs.pin(data.path / "1") == warmfs.Pinned(2, 600_000, 600_000)
    assert "pin" in capfd.readouterr().err
    (data.path / "0/000.bin").read_bytes()
    evicted = warmfs.evict(data, progress=False)
    assert (evicted.objects, evicted.pinned) == (1, 2)
    assert capfd.readouterr().err == ""
    assert warmfs.unpin(data.path / "1")
    assert not warmfs.unpin(data.path / "1")
    assert warmfs.evict(older_than_s=3_600, progress=False).objects == 0
    assert warmfs.evict(everything=True, progress=False).objects == 2
    for nothing in ({}, {"path": data, "everything": True}):
        with pytest.raises(warmfs.InvalidError, match=r"name a path"):
            warmfs.evict(**nothing)  # type: ignore[arg-type]


def test_refresh_and_verify(world: World) -> None:
    world.fill()
    data = world.mount()
    (data.path / "0/000.bin").read_bytes()
    assert len(warmfs.ls(data.path / "0")) == 2
    (world.source / "0/new.bin").write_bytes(b"new")
    assert not (data.path / "0/new.bin").exists(), "a listing is trusted for an hour"
    refreshed = warmfs.refresh(data)
    assert (refreshed.folders, refreshed.objects) == (3, 3), "what was listed until now"
    assert (data.path / "0/new.bin").read_bytes() == b"new"
    verified = warmfs.verify(data, progress=False)
    assert (verified.objects, verified.bytes) == (2, 300_003)
    assert verified.damaged_chunks == 0


def test_a_bar_shows_the_latest_figures_and_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, Optional[int], str]] = []

    class Bar:
        total: Optional[int] = None
        n = 0

        def set_postfix_str(self, text: str, refresh: bool) -> None:
            shown.append((self.n, self.total, text))

        def close(self) -> None:
            shown.append((self.n, self.total, "closed"))

    class Answering(Client):
        def upkeep(self, *call: Any) -> dict[str, Any]:
            call[2]("progress", {"objects_done": 0})
            assert not shown, "a bar without a figure"
            report = {"objects_done": 1, "objects_total": 2, "bytes_done": 3, "bytes_total": 4}
            call[2]("progress", report)
            return {"objects": 2, "bytes": 4, "cached_bytes": 4}

    def bar(total: Optional[int], **_: object) -> Bar:
        assert total == 4, "a bar of widgets that begins without a total stays a dot"
        return Bar()

    monkeypatch.setattr(_progress, "_find_tqdm", lambda: bar)
    _upkeep._shown(Answering(Path("/")), "/v1/pin", {}, True)
    assert shown == [(3, 4, "1 of 2 files"), (4, 4, "2 of 2 files"), (4, 4, "closed")]


def stand_in(world: World, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program in the place of one that has the verb; the others are the real one's."""
    real = _binary.find()
    path = world.root / "warmfs"
    path.write_text(f'#!/bin/sh\ncase "$1" in\n{script}\nesac\nexec {real} "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("WARMFS_BINARY", str(path))


def test_prefetch_fetches_what_is_named_and_says_how_much(
    world: World, wait_until: Callable[[Callable[[], object]], None]
) -> None:
    world.fill()
    data = world.mount()
    done = warmfs.prefetch([data.path / "0", f"{world.uri}/1/001.bin"], order="shuffled")
    assert (done.objects, done.bytes, done.cached_bytes) == (3, 900_000, 900_000)
    assert str(done) == "prefetched 3 objects, 879 KiB"
    assert warmfs.du(data)[0].cached_bytes == 900_000
    assert warmfs.prefetch(data, wait=False).detached
    wait_until(lambda: warmfs.du(data)[0].is_cached)
    assert warmfs.prefetch([]) == warmfs.Prefetched()
    with pytest.raises(warmfs.InvalidError, match=r"'listed' or 'shuffled'"):
        warmfs.prefetch(data, order="sorted")
    with pytest.raises(warmfs.NotFoundError, match=r"1 path does not exist, such as .*/a b: "):
        warmfs.prefetch([data.path / "0", data.path / "a\nb"])
    with pytest.raises(warmfs.NotMountedError):
        warmfs.prefetch("/tmp")


def test_what_was_done_is_a_sentence_with_units() -> None:
    mib = 1 << 20
    for done, text in (
        (warmfs.Pinned(1, 3 * mib, 3 * mib), "pinned 1 object, 3.00 MiB"),
        (warmfs.Pinned(2, 3 * mib, mib), "pinned 2 objects, 3.00 MiB; 1.00 MiB of it in the cache"),
        (
            warmfs.Prefetched(objects=2, bytes=mib, cached_bytes=0, unfit=1, capped=True),
            "prefetched 2 objects, 1.00 MiB; 0 B of it in the cache; 1 object did not fit the "
            "cache; max_download was reached",
        ),
        (warmfs.Evicted(4, mib), "evicted 4 objects, 1.00 MiB"),
        (warmfs.Evicted(4, mib, 1, 2), "evicted 4 objects, 1.00 MiB; 1 in use, 2 pinned stayed"),
        (warmfs.Refreshed(1, 2), "refreshed 1 folder, 2 objects"),
        (
            warmfs.Verified(2, mib, 1, 1, differing_objects=1),
            "verified 2 objects, 1.00 MiB: 1 damaged chunk, 1 repaired; 1 object differ from "
            "their store's",
        ),
    ):
        assert str(done) == text
        assert pretty(done) == text, "in a terminal of IPython, too"


def test_rows_are_a_table_as_text_too_and_no_more_than_a_browser_takes() -> None:
    row = warmfs.Row("<b>", False, 1, 1024, 512)
    rows = warmfs.Rows([row] * 1_000 + [warmfs.Row("", True, 1_000, 1_024_000, 0)])
    rows.append(warmfs.Row("not listed", True))
    html, text = rows._repr_html_(), str(rows)
    assert html.count("<tr>") == 1 + _html.ROWS_MAX + 1
    assert "<b>" not in html and "… 802 more rows …" in html
    assert text.splitlines()[1].split() == ["<b>", "1.00", "KiB", "50", "%", "1"]
    assert text.splitlines()[-2].split() == ["not", "listed/", "-", "-", "-"]
    assert text.splitlines()[-1] in html and "not listed yet" not in str(warmfs.Rows([row]))
    assert pretty(rows) == text


def test_doctor_tells_what_it_found_and_whether_all_is_well(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(world, monkeypatch, 'doctor) echo "OK  kernel $2"; [ -z "$2" ]; exit;;')
    assert warmfs.doctor() == warmfs.Diagnosis(True, "OK  kernel")
    assert not warmfs.doctor("s3://b").ok
    assert str(warmfs.doctor("s3://b")) == "OK  kernel s3://b"


def test_a_verb_that_the_program_has_not_is_said_to_be_missing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "doctor) echo \"error: unrecognized subcommand 'doctor'\" >&2; exit 2;;"
    stand_in(world, monkeypatch, script)
    with pytest.raises(warmfs.UnsupportedError, match=r"no `doctor` yet: install"):
        warmfs.doctor()


def test_a_program_that_hangs_or_is_missing_is_a_sentence(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_binary, "MOUNT_TIMEOUT_S", 0.2)
    stand_in(world, monkeypatch, "mount) exec sleep 60;;")
    with pytest.raises(warmfs.UnreachableError, match=r"`warmfs mount` took longer than"):
        world.mount()
    monkeypatch.setenv("WARMFS_BINARY", str(world.root / "none"))
    with pytest.raises(warmfs.MachineError, match=r"cannot be started"):
        world.mount()
    monkeypatch.delenv("WARMFS_BINARY")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(_binary, "_installed", lambda: iter(()))
    with pytest.raises(warmfs.MachineError, match=r"install the wheel"):
        world.mount()


def test_options_are_those_of_the_command_line() -> None:
    help_text = subprocess.run(
        [str(_binary.find()), "mount", "--help-all"], check=False, capture_output=True, text=True
    )
    theirs = set(re.findall(r"^ +(?:-\w, )?--([a-z-]+)", help_text.stdout, re.MULTILINE))
    ours = {name.replace("_", "-") for name in _options.NAMES}
    assert theirs - ours == {"help", "help-all", "foreground", "no-fuse", "record-trace"} & theirs
    assert ours <= theirs
    assert {"foreground", "record-trace"} <= theirs


def test_options_become_flags() -> None:
    assert _options.flags({"no_hedge": True, "allow_other": False, "region": None}) == [
        "--no-hedge"
    ]
    for value, text in (
        (timedelta(hours=1), "3600"),
        (math.inf, "inf"),
        (90, "90"),
        (0.4, "0"),
        ("1h", "1h"),
    ):
        assert _options.flags({"metadata_ttl": value}) == [f"--metadata-ttl={text}"]
    assert _options.flags({"file_mode": 0o444}) == ["--file-mode=444"]
    assert _options.flags({"cache_dir": Path("/a b")}) == ["--cache-dir=/a b"]


def test_flags_become_options() -> None:
    words = ["s3://b", "--cache-size", "20G", "--no-hedge", "--warm=all", "/m"]
    options = {"cache_size": "20G", "no_hedge": True, "warm": "all"}
    assert _options.parse(words) == (["s3://b", "/m"], options)
    for wrong in ("--foreground", "-o", "--cache-size", "--none=1"):
        with pytest.raises(warmfs.InvalidError):
            _options.parse([wrong])


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_bandwidth": "1Q"},
        {"max_bandwidth": "1.2.3G"},
        {"metadata_ttl": "1w"},
        {"metadata_ttl": "x"},
        {"max_requests": "-1"},
        {"file_mode": "9"},
    ],
)
def test_wrong_values_are_refused_before_they_are_sent(wrong: dict[str, str]) -> None:
    with pytest.raises(warmfs.InvalidError, match=r"is not "):
        _options.request(wrong)


def test_a_status_of_another_version_is_understood() -> None:
    status = decode(
        Status,
        {
            "pid": "seven",
            "new": 1,
            "mounts": [{"dir": "/m", "uptime_s": 3}, 7],
            "cache": {"expected_hit_rate": 1},
            "remote": [],
        },
    )
    assert status.pid == 0
    assert [mount.uptime_s for mount in status.mounts] == [3.0]
    assert status.cache.expected_hit_rate == 1.0
    assert status.remote.get.requests == 0
    assert "/m" in str(status)
