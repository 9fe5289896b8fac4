"""A bucket as a cloud has it: nginx, 30 ms to the first byte and 50 MB/s a connection.

What ``benches/rig/store.rs`` says of its store goes for this one, which is the same in small:
the pace is the kernel's, on a socket that is handed to nginx; listings are files that were
made beforehand; objects lie in memory, so that dropping the page cache leaves them warm. It
needs no build of Rust, which takes the time of a whole run of this bench.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Optional

from .process import cpu_s

BUCKET = "bench"
FIRST_BYTE_S = 0.030
RATE_BYTES_PER_S = 50_000_000

ECHO = "/usr/lib/nginx/modules/ngx_http_echo_module.so"

# From Linux's asm-generic/socket.h; Python has no name for it.
SO_MAX_PACING_RATE = 47

# Two hundred connections at once are normal here.
BACKLOG = 1_024

# Entries in a page of a listing, as S3 has it.
PAGE_KEYS = 1_000

START_TIMEOUT_S = 10.0
END_TIMEOUT_S = 10.0

CONFIGURATION = """
load_module {echo};
user root; worker_processes 2; daemon off; pid {root}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log {root}/access.log; error_log stderr crit;
  sendfile on; tcp_nopush on; tcp_nodelay on;
  keepalive_timeout 3600s; keepalive_requests 100000000;
  default_type application/octet-stream;
  map $args $kind {{ default all; "~(^|&)delimiter=(/|%2[Ff])" folder; }}
  map $args $page {{ default 0; "~(^|&)continuation-token=([0-9]+)" $2; }}
  map $arg_prefix $folder {{
    default none; "" of-; "~^(?<first>[^/%]+)(/|%2[Ff])$" of-$first-;
    "~^(?<outer>[^/%]+)(/|%2[Ff])(?<inner>[^/%]+)(/|%2[Ff])$" of-$outer-$inner-;
  }}
  map $args $listing {{
    default /.lists/$kind/$folder.$page.xml; "~(^|&)location" /.lists/location.xml;
  }}
  server {{
    listen {address}; root {root};
    location = /{bucket} {{ echo_sleep {delay}; echo_exec $listing; }}
    location = /{bucket}/ {{ echo_sleep {delay}; echo_exec $listing; }}
    location /{bucket}/ {{ echo_sleep {delay}; echo_exec /.raw$uri; }}
    location /.lists/ {{
      internal; types {{}} default_type application/xml; etag off;
      add_header x-amz-bucket-region us-east-1; try_files $uri /.lists/none.xml;
    }}
    location /.raw/ {{ internal; try_files $uri @nokey; }}
    location @nokey {{ default_type application/xml; return 404 "{no_key}"; }}
  }}
}}
"""

NO_KEY = "<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>"
LOCATION = '<LocationConstraint xmlns="http://s3.amazonaws.com/doc/2006-03-01/"/>'


class Store:
    """The files of a folder as objects below ``name/`` of the bucket, until it is left."""

    def __init__(self, source: Path, name: str):
        if not os.path.exists(ECHO):
            raise SystemExit(f"{ECHO} is missing: apt-get install nginx libnginx-mod-http-echo")
        self._root = Path(tempfile.mkdtemp(prefix="warmfs-bench-", dir="/dev/shm"))
        shutil.copytree(source, self._root / BUCKET / name)
        # The way to an object after the pause: a location of its own.
        (self._root / ".raw").symlink_to(".")
        _write_listings(self._root)
        self.uri = f"s3://{BUCKET}/{name}"
        self.endpoint = ""

    def __enter__(self) -> Store:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, RATE_BYTES_PER_S)
            listener.bind(("127.0.0.1", 0))
            listener.listen(BACKLOG)
            # Of two workers at one connection, one would wait in accept(2).
            listener.setblocking(False)
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            self.endpoint = f"http://{address}"
            self._start(listener, address)
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._nginx.terminate()
        self._nginx.wait(END_TIMEOUT_S)
        shutil.rmtree(self._root)

    def cpu_s(self) -> float:
        """CPU seconds of all its processes."""
        pid = self._nginx.pid
        workers = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        return cpu_s(pid) + sum(cpu_s(int(worker)) for worker in workers)

    def _start(self, listener: socket.socket, address: str) -> None:
        configuration = self._root / "nginx.conf"
        configuration.write_text(
            CONFIGURATION.format(
                echo=ECHO,
                root=self._root,
                address=address,
                bucket=BUCKET,
                delay=FIRST_BYTE_S,
                no_key=NO_KEY,
            ),
            encoding="ascii",
        )
        log = self._root / "access.log"
        self._nginx = subprocess.Popen(
            ["nginx", "-p", self._root, "-c", configuration, "-e", "stderr"],
            # As its predecessor would hand it over.
            env={**os.environ, "NGINX": f"{listener.fileno()};"},
            pass_fds=[listener.fileno()],
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not log.exists():
            if self._nginx.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("nginx did not start")
            time.sleep(0.01)


def _write_listings(root: Path) -> None:
    """Every answer to a LIST: a store that thinks would be measured, too."""
    lists = root / ".lists"
    bucket = root / BUCKET
    keys = sorted(str(path.relative_to(bucket)) for path in bucket.rglob("*.*"))
    contents = {key: _entry(bucket, key) for key in keys}
    for kind in ("all", "folder"):
        (lists / kind).mkdir(parents=True)
        for prefix in _prefixes(keys):
            name = f"of-{prefix.replace('/', '-')}"
            entries = list(_entries(contents, prefix, is_delimited=kind == "folder"))
            for number, start in enumerate(range(0, len(entries), PAGE_KEYS)):
                more = start + PAGE_KEYS < len(entries)
                page = _page(prefix, entries[start : start + PAGE_KEYS], number + 1 if more else 0)
                (lists / kind / f"{name}.{number}.xml").write_text(page, encoding="ascii")
    (lists / "none.xml").write_text(_page("", [], 0), encoding="ascii")
    (lists / "location.xml").write_text(LOCATION, encoding="ascii")


def _prefixes(keys: list[str]) -> set[str]:
    folders = {key.rpartition("/")[0] for key in keys}
    return {"", *(f"{f}/" for f in folders), *(f"{f.partition('/')[0]}/" for f in folders)}


def _entry(bucket: Path, key: str) -> str:
    found = (bucket / key).stat()
    # The etag that nginx makes of time and size.
    etag = f"{int(found.st_mtime):x}-{found.st_size:x}"
    return (
        f"<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;{etag}&quot;</ETag><Size>{found.st_size}</Size></Contents>"
    )


def _entries(contents: dict[str, str], prefix: str, is_delimited: bool) -> Iterator[str]:
    before = ""
    for key, entry in contents.items():
        if not key.startswith(prefix):
            continue
        folder, slash, _ = key[len(prefix) :].partition("/")
        if not (slash and is_delimited):
            yield entry
        elif folder != before:
            before = folder
            yield f"<CommonPrefixes><Prefix>{prefix}{folder}/</Prefix></CommonPrefixes>"


def _page(prefix: str, entries: list[str], following: int) -> str:
    token = f"<NextContinuationToken>{following}</NextContinuationToken>" if following else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{BUCKET}</Name><Prefix>{prefix}</Prefix><MaxKeys>{PAGE_KEYS}</MaxKeys>"
        f"<KeyCount>{len(entries)}</KeyCount><IsTruncated>{str(bool(following)).lower()}"
        f"</IsTruncated>{token}{''.join(entries)}</ListBucketResult>"
    )
