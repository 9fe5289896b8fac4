"""Views: the same cache without a folder, read by warmfs.open() and through fsspec."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import fsspec
import pytest
from conftest import REPOSITORY, World

import warmfs
from warmfs import _client, _files, _mount, _paths, _reads
from warmfs._fsspec import WarmfsFileSystem
from warmfs._view import View

# Larger than a read may be, and than what is fetched as a whole.
LARGE = (20 << 20) + 321

# Runs Python where /dev has no fuse: with nothing of that name, or with what is none.
WITHOUT = """
for name in null zero urandom; do touch dev-$name; mount --bind /dev/$name dev-$name; done
mount -t tmpfs tmpfs /dev
for name in null zero urandom; do touch /dev/$name; mount --bind dev-$name /dev/$name; done
"""
HIDDEN = {"nothing": WITHOUT, "another": "mount --bind /dev/null /dev/fuse"}

SCRIPT = """
import json, os, sys, warnings
import warmfs

uri, point = sys.argv[1:]
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    data = warmfs.mount(uri, point, warm="off")
found = {
    "kind": type(data).__name__,
    "said": [str(one.message) for one in said],
    "point": os.path.exists(point),
    "names": sorted(data.find("")),
    "bytes": data.open("0/000.bin").read().hex(),
    "again": warmfs.mount(uri, warm="off").existed,
    "view": data.status().view,
}
data.unmount()
print(json.dumps(found))
"""


@pytest.fixture(autouse=True)
def forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What warmfs.open() knows of other tests' daemons."""
    monkeypatch.setattr(_files, "_anywhere", _files.Files(options={"warm": "off"}))


@pytest.fixture
def content(world: World) -> dict[str, bytes]:
    """Small files and a large one."""
    content = {**world.fill(), "large.bin": os.urandom(LARGE)}
    (world.source / "large.bin").write_bytes(content["large.bin"])
    return content


@pytest.fixture
def data(world: World, content: dict[str, bytes]) -> Any:
    """A view of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return warmfs.mount(world.uri, warm="off")


def url(world: World, name: str) -> str:
    return f"warmfs://file{world.source}/{name}"


def gets() -> int:
    return warmfs.status().remote.get.requests


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can hide /dev/fuse")
@pytest.mark.parametrize("how", list(HIDDEN))
def test_without_fuse_mount_says_so_and_returns_the_file_system(world: World, how: str) -> None:
    content = world.fill()
    script = f"set -e\n{HIDDEN[how]}\nexec {sys.executable} -c '{SCRIPT}' {world.uri} {world.point}"
    ran = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        cwd=world.root,
        check=False,
        capture_output=True,
        text=True,
        timeout=80,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "python")},
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["kind"] == "WarmfsFileSystem"
    [said] = found["said"]
    assert re.search(r"no /dev/fuse|kernel refused", said), said
    assert f"nothing at {world.point}" in said and "open(path)" in said
    assert not found["point"]
    assert found["names"] == sorted(content)
    assert bytes.fromhex(found["bytes"]) == content["0/000.bin"]
    assert found["again"] and found["view"]


def test_a_view_without_fsspec(
    world: World, content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.delitem(sys.modules, "warmfs._fsspec")
    with warmfs.mount(world.uri, warm="off") as data:
        assert type(data) is View and not data.existed
        assert data.open("large.bin").read() == content["large.bin"]
        assert [row.name for row in data.ls("0")] == ["000.bin", "002.bin"]
        data.prefetch(progress=False)
        assert all(row.is_cached for row in data.ls("1"))
        assert data.status().view and "no folder" in str(warmfs.status(data))
        assert [row.name for row in warmfs.ls(data)] == ["0", "1", "large.bin"]
        assert warmfs.pin(data, progress=False).objects == 5
        assert os.fspath(data) == world.uri
        with pytest.raises(warmfs.MachineError, match=r"no folder of .*open\(path\)"):
            data.path  # noqa: B018
        again = warmfs.mount(world.uri, warm="off")
        assert again.existed
        with pytest.raises(warmfs.WarmfsError, match=r"with other options: `warmfs unmount file:"):
            warmfs.mount(world.uri, warm="all")
    assert not _paths.mounts()


def test_open_reads_a_uri_as_a_file(world: World, content: dict[str, bytes], data: Any) -> None:
    (world.source / "text").write_bytes("zwölf\nlines\n".encode())
    warmfs.refresh(data)
    for name in (f"{world.uri}/large.bin", url(world, "large.bin")):
        with warmfs.open(name) as file:
            assert file.read(10) == content["large.bin"][:10]
            assert file.seek(-5, io.SEEK_END) == LARGE - 5
            assert file.read() == content["large.bin"][-5:]
            assert file.seek(1 << 40) and file.read(1) == b""
            file.seek(0)
            assert file.read() == content["large.bin"]
            assert file.name == f"{world.uri}/large.bin"
    raw: Any = warmfs.open(f"{world.uri}/large.bin", buffering=0)
    with raw:
        assert raw.readinto(bytearray(LARGE)) == _files.READ_BYTES_MAX
        with pytest.raises(OSError, match=r"no place -1"):
            raw.seek(-1)
    with pytest.raises(ValueError, match=r"closed"):
        raw.read(1)
    with warmfs.open(f"{world.uri}/text", "r", encoding="utf-8") as lines:
        assert list(lines) == ["zwölf\n", "lines\n"]
    with warmfs.open(world.source / "text") as plain:
        assert plain.readline() == "zwölf\n".encode()


def test_each_way_of_reading_begins_where_it_was_sought(
    world: World, content: dict[str, bytes], data: Any
) -> None:
    whole = content["large.bin"]
    with warmfs.open(f"{world.uri}/large.bin") as file:
        for read in ("read", "read1", "peek", "readinto", "readinto1", "readline"):
            file.seek(10)
            if read.startswith("readinto"):
                found = bytearray(4)
                getattr(file, read)(found)
            else:
                found = getattr(file, read)(4)
            assert bytes(found[:4]) == whole[10:14][: len(found)], read
            after = 10 if read == "peek" else 10 + len(found)
            assert (file.tell(), file.read(4)) == (after, whole[after : after + 4]), read
        file.seek(10)
        assert file.seek(5, io.SEEK_CUR) == 15
        assert file.read(4) == whole[15:19]


def test_a_folder_that_shows_something_else_is_not_read_for_the_first(
    world: World, content: dict[str, bytes]
) -> None:
    mount = world.mount()
    opened: Any = warmfs.open(f"{world.uri}/0/000.bin", buffering=0)
    assert opened.read(3) == content["0/000.bin"][:3]
    other = world.root / "other"
    (other / "0").mkdir(parents=True)
    (other / "0/000.bin").write_bytes(b"of another")
    kept = warmfs.mount(other.as_uri(), world.root / "kept", warm="off")
    mount.unmount()
    second = warmfs.mount(other.as_uri(), world.point, warm="off")
    with pytest.raises(OSError, match=r"no longer at") as ended:
        opened.read(3)
    assert ended.value.errno == errno.ENODEV
    # It is attached again, and what is there now is none of it: nobody was looked up since.
    assert warmfs.open(f"{world.uri}/0/000.bin").read() == content["0/000.bin"]
    assert warmfs.open(f"{other.as_uri()}/0/000.bin").read() == b"of another"
    second.unmount()
    kept.unmount()


def test_what_cannot_be_opened_is_an_error_of_a_file(world: World, data: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"does not exist") as missing:
        warmfs.open(f"{world.uri}/none")
    assert missing.value.filename == f"{world.uri}/none"
    with pytest.raises(IsADirectoryError):
        warmfs.open(f"{world.uri}/0")
    for mode in ("w", "ab", "r+", "x"):
        with pytest.raises(OSError, match=r"only reads: write to another folder") as refused:
            warmfs.open(f"{world.uri}/new", mode)
        assert refused.value.errno == errno.EROFS
    # It belongs to no mount, and cannot be attached.
    with pytest.raises(OSError, match=r"there is no|no such|does not exist"):
        warmfs.open("file:///no/such/folder/file")
    with pytest.raises(OSError, match=r"is not supported"):
        warmfs.open("ftp://host/file")


def test_what_is_in_no_mount_is_attached(world: World, content: dict[str, bytes]) -> None:
    with warmfs.open(f"{world.uri}/0/000.bin") as file:
        assert file.read() == content["0/000.bin"]
    [(_, mount)] = _paths.mounts()
    assert mount.view and mount.uri == f"{world.uri}/0"
    fs = fsspec.filesystem("warmfs", warm="off", cache_dir=str(world.cache))
    assert fs.cat_file(url(world, "large.bin")) == content["large.bin"]
    assert {mount.uri for _, mount in _paths.mounts()} == {world.uri, f"{world.uri}/0"}
    for uri, top in (
        ("s3://bucket/a/b", "s3://bucket"),
        ("az://account/container/a", "az://account/container"),
        ("ais://@aws/bucket/a/b", "ais://@aws/bucket"),
        ("file:///a", "file:///"),
    ):
        assert _files.top_of(uri) == top


def test_the_file_system_lists_and_reads(world: World, content: dict[str, bytes]) -> None:
    data = warmfs.mount(world.uri, warm="off")
    assert isinstance(data, WarmfsFileSystem)
    fs: Any = data
    assert fs.ls("", detail=False) == ["0", "1", "large.bin"]
    entry = fs.info("0/000.bin")
    assert (entry["type"], entry["size"], entry["cached_bytes"]) == ("file", 300_000, 0)
    assert fs.ls("0/000.bin") == [entry]
    assert fs.info("0")["type"] == "directory"
    assert fs.exists("0") and fs.isdir("0") and fs.isfile("0/000.bin") and not fs.exists("none")
    assert fs.find("") == sorted(content)
    assert fs.glob("*/00[01].bin") == ["0/000.bin", "1/001.bin"]
    assert [folder for folder, _, _ in fs.walk("")] == ["", "0", "1"]
    assert fs.size("large.bin") == LARGE and fs.du("") == sum(map(len, content.values()))
    modified = (world.source / "large.bin").stat().st_mtime
    assert abs(fs.modified("large.bin").timestamp() - modified) < 0.01
    large = content["large.bin"]
    assert fs.cat_file("large.bin", 5, 17 << 20) == large[5 : 17 << 20]
    assert fs.cat_file("large.bin", -9) == large[-9:] and fs.cat_file("large.bin", 9, 3) == b""
    assert fs.head("large.bin", 4) == large[:4] and fs.tail("large.bin", 4) == large[-4:]
    ranges = fs.cat_ranges(["large.bin", "0/000.bin", "none"], [1, 0, 0], [3, -1, 1])
    assert ranges[:2] == [large[1:3], content["0/000.bin"][:-1]]
    assert isinstance(ranges[2], FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["none"], 0, 1, on_error="raise")
    assert fs.cat("0/*") == {f"0/{name}.bin": content[f"0/{name}.bin"] for name in ("000", "002")}
    with fs.open("large.bin", block_size=64 << 10) as file:
        assert file.read(100) == large[:100]
    fs.get("0", str(world.root / "copy"), recursive=True)
    assert (world.root / "copy/002.bin").read_bytes() == content["0/002.bin"]
    with pytest.raises(FileNotFoundError):
        fs.ls("none")
    before = fs.ukey("large.bin")
    assert fs.info("large.bin")["cached_bytes"] == LARGE and fs.ukey("large.bin") == before
    assert fs.unstrip_protocol("0/000.bin") == url(world, "0/000.bin")
    assert fs.cat_file(url(world, "0/000.bin")) == content["0/000.bin"]
    fs.prefetch("1", progress=False)
    assert all(entry["cached_bytes"] for entry in fs.ls("1"))


def test_urls_are_known_to_fsspec(world: World, content: dict[str, bytes], data: Any) -> None:
    with fsspec.open(url(world, "0/000.bin")) as file:
        assert file.read() == content["0/000.bin"]
    fs, name = fsspec.url_to_fs(url(world, "0"))
    assert name == f"file{world.source}/0"
    assert fs.ls(name, detail=False) == [f"{name}/000.bin", f"{name}/002.bin"]
    assert fs.glob(f"{name}/*0.bin") == [f"{name}/000.bin"]
    assert fs.unstrip_protocol(name) == url(world, "0")
    text = (REPOSITORY / "pyproject.toml").read_text()
    [target] = re.findall(r'"fsspec\.specs"\]\nwarmfs = "([\w.]+)"', text)
    assert target == f"{WarmfsFileSystem.__module__}.{WarmfsFileSystem.__name__}"


@pytest.mark.parametrize(
    ("call", "args"),
    [
        ("mkdir", ["d"]),
        ("makedirs", ["d"]),
        ("rmdir", ["0"]),
        ("rm", ["0/000.bin"]),
        ("rm_file", ["0/000.bin"]),
        ("touch", ["t"]),
        ("mv", ["0/000.bin", "x"]),
        ("cp_file", ["0/000.bin", "x"]),
        ("copy", ["0/000.bin", "x"]),
        ("pipe", ["x", b"y"]),
        ("put_file", [__file__, "x"]),
        ("open", ["x", "wb"]),
        ("open", ["0/000.bin", "ab"]),
        ("write_text", ["x", "y"]),
    ],
)
def test_writes_are_refused(data: Any, call: str, args: list[Any]) -> None:
    with pytest.raises(OSError, match=r"only reads: write to another folder") as refused:
        getattr(data, call)(*args)
    assert refused.value.errno == errno.EROFS


def test_a_mount_and_a_view_share_the_cache(world: World, content: dict[str, bytes]) -> None:
    mount = world.mount()
    (mount.path / "large.bin").read_bytes()
    cold = gets()
    # The mount itself is read at the socket: no view is needed.
    assert warmfs.open(f"{world.uri}/large.bin").read() == content["large.bin"]
    assert len(_paths.mounts()) == 1
    data: Any = warmfs.mount(world.uri, warm="off")
    assert (data.status().view, mount.status().view) == (True, False)
    data.renew()
    assert data.cat_file("large.bin") == content["large.bin"]
    assert gets() == cold
    assert data.cat_file("1/001.bin") == content["1/001.bin"]
    cold = gets()
    assert (mount.path / "1/001.bin").read_bytes() == content["1/001.bin"]
    assert gets() == cold
    # Each is ended by its own name.
    assert mount.unmount() and not world.point.exists()
    assert data.cat_file("large.bin", 0, 3) == content["large.bin"][:3]
    assert data.unmount()
    assert not _paths.mounts()


def test_a_file_that_changes_is_stale(world: World, content: dict[str, bytes], data: Any) -> None:
    path = world.source / "large.bin"
    with data._raw("large.bin") as file:
        assert file.read(100) == content["large.bin"][:100]
        path.write_bytes(bytes(LARGE))
        os.utime(path, (1, 1))
        assert file.read_range(0, 100) == content["large.bin"][:100], "what is cached is served"
        for start in (LARGE - 100, 0):
            with pytest.raises(OSError, match=r"no longer what was opened.*open it again") as stale:
                file.read_range(start, start + 100)
            assert stale.value.errno == errno.ESTALE
    assert data.cat_file("large.bin", -100) == bytes(100)


def test_a_daemon_that_dies_is_read_on(world: World, content: dict[str, bytes], data: Any) -> None:
    with data.open("large.bin", block_size=4_096) as file:
        assert file.read(4_096) == content["large.bin"][:4_096]
        os.kill(world.daemon_pid(), signal.SIGKILL)
        assert file.read() == content["large.bin"][4_096:]
        before = world.daemon_pid()
        os.kill(before, signal.SIGKILL)
        assert data.ls("", detail=False) == ["0", "1", "large.bin"]
        assert world.daemon_pid() != before
    assert warmfs.status().restarts.count == 2


def test_a_view_that_was_ended(
    world: World, content: dict[str, bytes], data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files, "RETURN_LIMIT_S", 0.5)
    other = world.root / "other"
    other.mkdir()
    (other / "x").touch()
    with data.open("large.bin") as file, warmfs.mount(other.as_uri(), warm="off"):
        assert file.read(1) == content["large.bin"][:1]
        assert warmfs.unmount(world.uri)
        file.seek(1 << 20)
        with pytest.raises(OSError, match=r"is not a warmfs mount") as ended:
            file.read(1)
        assert ended.value.errno == errno.ENODEV
        # Who asks for a name has it attached again.
        assert data.cat_file("large.bin") == content["large.bin"]
        assert data.unmount()
    nobody = _client.Client(world.root / "no.sock")
    gone = _files.RawFile(nobody, _files.Stat(bytes=1), "x", _files.Stat)
    with pytest.raises(OSError, match=r"the daemon at .* ended"):
        gone.read()
    with pytest.raises(warmfs.NotMountedError):
        data.status()


def digest(fs: Any, name: str) -> tuple[int, str, set[int]]:
    """What a worker reads, who it is, and its connections."""
    with fs.open(name) as file:
        found = hashlib.sha256(file.read()).hexdigest()
    connections = _reads._kept.connections.values()
    return os.getpid(), found, {os.fstat(one.fileno()).st_ino for one in connections}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_read_by_themselves(
    world: World, content: dict[str, bytes], data: Any, method: str
) -> None:
    expected = hashlib.sha256(content["large.bin"]).hexdigest()
    # A connection is there already, which a forked worker must not use.
    before = data.open("large.bin")
    before.read(1 << 20)
    again = pickle.loads(pickle.dumps(data))
    assert (again.uri, again.existed) == (world.uri, True)
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        found = list(pool.map(digest, [data] * 9, ["large.bin"] * 9))
    assert {one for _, one, _ in found} == {expected}
    pid, again_here, ours = digest(data, "large.bin")
    assert again_here == expected
    assert all(other != pid and not theirs & ours for other, _, theirs in found)
    assert before.read() == content["large.bin"][1 << 20 :]


def test_threads_have_connections_of_their_own(
    world: World, content: dict[str, bytes], data: Any
) -> None:
    names = sorted(content) * 4
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(data.cat_file, names)) == [content[name] for name in names]
        # One file, read from many places.
        large = data._raw("large.bin")
        starts = range(0, LARGE, 1 << 20)
        parts = pool.map(lambda start: large.read_range(start, start + (1 << 20)), starts)
        assert b"".join(parts) == content["large.bin"]
    # One file that several read in, each by a seek and a read, as DuckDB does.
    with data.open("large.bin") as file, ThreadPoolExecutor(8) as pool:

        def part(start: int) -> bool:
            file.seek(start)
            return bool(file.read(5_000) == content["large.bin"][start : start + 5_000])

        assert all(pool.map(part, (n * 7_919_777 % LARGE for n in range(400))))
        file.seek(10)
        assert pool.submit(file.read, 5).result() == content["large.bin"][10:15]
        assert pool.submit(file.tell).result() == 15


def test_a_connection_that_was_ended_is_made_again(
    world: World, content: dict[str, bytes], data: Any
) -> None:
    data.cat_file("0/000.bin")
    kept = _reads._kept.connections
    _, first = kept.popitem()
    kept.clear()
    kept[_paths.mounts()[0][0].socket] = first
    data.cat_file("0/002.bin")
    assert list(kept.values()) == [first], "it is used again"
    first.shutdown(socket.SHUT_RDWR)
    assert data.cat_file("1/001.bin") == content["1/001.bin"]
    assert list(kept.values()) != [first]


def test_tables_are_read_by_every_framework(world: World) -> None:
    import duckdb
    import pandas
    import pyarrow.dataset
    import pyarrow.parquet

    rows = 200_000
    plain = pandas.DataFrame({"n": range(rows), "text": [f"row {n % 97}" for n in range(rows)]})
    for part in range(2):
        path = world.source / f"table/{part}.parquet"
        path.parent.mkdir(exist_ok=True)
        plain[part::2].to_parquet(path, row_group_size=20_000)
    data: Any = warmfs.mount(world.uri, warm="off")
    of_part = pandas.read_parquet(world.source / "table/0.parquet")
    assert pandas.read_parquet(url(world, "table/0.parquet")).equals(of_part)
    assert pandas.read_parquet("table/0.parquet", filesystem=data, columns=["n"]).equals(
        of_part[["n"]]
    )
    whole = pyarrow.dataset.dataset("table", filesystem=data, format="parquet").to_table()
    expected = pyarrow.dataset.dataset(str(world.source / "table"), format="parquet").to_table()
    assert whole.equals(expected)
    assert pyarrow.parquet.read_table(warmfs.open(f"{data.uri}/table/1.parquet")).equals(
        pyarrow.parquet.read_table(world.source / "table/1.parquet")
    )
    with duckdb.connect() as base:
        base.register_filesystem(fsspec.filesystem("warmfs"))
        found = base.sql(f"SELECT sum(n), count(*) FROM '{url(world, 'table/*.parquet')}'")
        assert found.fetchall() == [(sum(range(rows)), rows)]
    cold = gets()
    assert pandas.read_parquet(url(world, "table/1.parquet"))["n"].sum() == plain[1::2]["n"].sum()
    assert gets() == cold


def test_an_order_is_told_by_uris(world: World, content: dict[str, bytes], data: Any) -> None:
    paths = [f"{world.uri}/{name}" for name in sorted(content)]
    hinted = warmfs.torch.hint([2, 0, 1], paths)
    assert list(hinted) == [2, 0, 1]
    assert list(warmfs.torch.hint([1], [url(world, name) for name in sorted(content)])) == [1]


def test_an_empty_file_and_odd_names(world: World) -> None:
    names = ["empty", "with space", "ünï", "a%20b", "hash#1", "q?x", "d/.hidden"]
    for name in names:
        path = world.source / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode() if name != "empty" else b"")
    data: Any = warmfs.mount(world.uri, warm="off")
    assert sorted(data.find("")) == sorted(names)
    for name in names:
        expected = (world.source / name).read_bytes()
        assert data.cat_file(name) == expected
        assert warmfs.open(url(world, name)).read() == expected


def test_fuse_is_told_from_what_else_a_machine_lacks() -> None:
    for sentence, is_fuse in (
        ("there is no /dev/fuse: run `modprobe fuse`", True),
        ("only root can mount without fusermount3, which is not installed", True),
        ("the kernel refused: Operation not permitted: run it with `--device /dev/fuse`", True),
        ("the kernel refused: add `user_allow_other` to /etc/fuse.conf", False),
        ("the cache directory /c cannot be used, read-only file system", False),
    ):
        assert bool(_mount.WITHOUT_FUSE.search(sentence)) is is_fuse, sentence
