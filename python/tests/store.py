"""An S3 store of a few lines that lets in who has the right key, or anybody.

It looks at the name of the key, not at the signature: who may read is what the tests change.
"""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Optional
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Store:
    """The bucket ``bucket`` at :attr:`endpoint`."""

    def __init__(self, objects: dict[str, bytes], key: Optional[str]):
        self.objects = objects
        self.key = key
        """The access key that is let in; ``None`` lets in anybody."""
        self.requests: list[str] = []
        """What was asked: method, path, and the key it was asked with."""
        store = self

        class Handler(_Handler):
            bucket = store

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Store:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    bucket: Store
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        found = re.search(r"Credential=([^/]+)/", self.headers.get("Authorization") or "")
        key = found[1] if found else None
        self.bucket.requests.append(f"{self.command} {self.path} {key}")
        url = urlsplit(self.path)
        name = unquote(url.path).lstrip("/").partition("/")[2]
        if self.bucket.key is not None and key != self.bucket.key:
            self._send(403, _error("AccessDenied"), with_body)
        elif not name:
            query = parse_qs(url.query)
            self._send(200, self._listing(query), with_body)
        elif name not in self.bucket.objects:
            self._send(404, _error("NoSuchKey"), with_body)
        else:
            self._send_object(self.bucket.objects[name], with_body)

    def _send_object(self, data: bytes, with_body: bool) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not found:
            return self._send(200, data, with_body)
        first = int(found[1])
        last = min(int(found[2] or len(data) - 1), len(data) - 1)
        extra = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        return self._send(206, data[first : last + 1], with_body, extra)

    def _listing(self, query: dict[str, list[str]]) -> bytes:
        prefix, delimiter = (query.get(name, [""])[0] for name in ("prefix", "delimiter"))
        contents, folders = [], set()
        for name, data in sorted(self.bucket.objects.items()):
            rest = name[len(prefix) :]
            if not name.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                contents.append(
                    f"<Contents><Key>{escape(name)}</Key><Size>{len(data)}</Size>"
                    "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                    '<ETag>"e"</ETag></Contents>'
                )
        prefixes = [
            f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in folders
        ]
        body = "".join(contents + sorted(prefixes))
        return (
            '<?xml version="1.0"?><ListBucketResult><Name>bucket</Name>'
            f"<IsTruncated>false</IsTruncated>{body}</ListBucketResult>"
        ).encode()

    def _send(
        self, status: int, body: bytes, with_body: bool, extra: Optional[dict[str, str]] = None
    ) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "ETag": '"e"', **(extra or {})}
        headers["Last-Modified"] = "Thu, 01 Jan 2026 00:00:00 GMT"
        headers["x-amz-bucket-region"] = "us-east-1"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
