"""Where daemons are looked for, and where not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from warmfs import _sockets


def folder(parent: Path, mode: int = 0o700) -> Path:
    path = parent / "warmfs"
    path.mkdir(parents=True)
    path.chmod(mode)
    return path


def test_sockets_of_this_user_are_found_newest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert list(_sockets._folders()) == [
        tmp_path / "warmfs",
        Path(f"/run/user/{os.geteuid()}/warmfs"),
        Path(f"/tmp/warmfs-{os.geteuid()}"),
    ]
    monkeypatch.setattr(_sockets, "_folders", lambda: iter([tmp_path / "warmfs"]))
    assert _sockets.all_sockets() == []
    place = folder(tmp_path)
    for age, name in enumerate(("new.sock", "old.sock", "other")):
        (place / name).touch()
        os.utime(place / name, (1_000 - age, 1_000 - age))
    assert _sockets.all_sockets() == [place / "new.sock", place / "old.sock"]


@pytest.mark.parametrize("how", ["open", "link", "file"])
def test_a_folder_that_others_could_have_made_is_not_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(_sockets, "_folders", lambda: iter([tmp_path / "warmfs"]))
    if how == "open":
        (folder(tmp_path, 0o755) / "x.sock").touch()
    elif how == "link":
        (folder(tmp_path / "elsewhere") / "x.sock").touch()
        (tmp_path / "warmfs").symlink_to("elsewhere/warmfs")
    else:
        (tmp_path / "warmfs").touch()
    assert _sockets.all_sockets() == []


@pytest.mark.parametrize("record", ["", "[]", '{"socket": 7}', "{", '{"pid": 1}'])
def test_a_lock_that_names_no_socket_is_nobodys(tmp_path: Path, record: str) -> None:
    assert _sockets.of_cache(tmp_path) is None
    (tmp_path / "lock").write_text(record.ljust(_sockets.RECORD_BYTES_MAX))
    assert _sockets.of_cache(tmp_path) is None


def test_the_cache_directory_is_what_was_given_or_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to("cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _sockets.cache_dir() == tmp_path / ".cache/warmfs"
    monkeypatch.setenv("WARMFS_CACHE_DIR", str(tmp_path / "link"))
    assert _sockets.cache_dir() == tmp_path / "cache"
    assert _sockets.cache_dir("/x/../y") == Path("/y")
