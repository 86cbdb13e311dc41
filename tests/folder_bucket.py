"""An object store over a folder, which answers each request after a fixed delay, as a distant bucket does.

It answers what opening a dataset needs: listings of all files below a prefix, and reads.
"""

import multiprocessing
import re
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest

from tests.shared_fixtures import set_bucket_address

_PAGE = 1000  # keys, as in S3
_DATE = "2024-01-01T00:00:00.000Z"
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@contextmanager
def folder_bucket(folder: Path, delay_s: float, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Any]]:
    """Serve a folder as the bucket `archive`, put its address into the environment, and yield its URI and a counter.

    The counter's `value` is the number of requests so far. The server has a process of its own.
    """
    context = multiprocessing.get_context("spawn")
    requests, port = context.Value("L", 0), context.Value("L", 0)
    server = context.Process(target=_serve, args=(folder, delay_s, requests, port), daemon=True)
    server.start()
    try:
        while not port.value:
            if not server.is_alive():
                raise RuntimeError("the server of the bucket did not start")
            time.sleep(0.05)
        set_bucket_address(monkeypatch, port.value)
        yield "s3://archive", requests
    finally:
        server.kill()
        server.join()


def _serve(folder: Path, delay_s: float, requests: Any, port: Any) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    _Handler.sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    _Handler.keys = sorted(_Handler.sizes)
    _Handler.folder, _Handler.delay_s, _Handler.requests = folder, delay_s, requests
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        port.value = server.server_port
        server.serve_forever()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder: Path
    sizes: dict[str, int]
    keys: list[str]
    delay_s: float
    requests: Any

    def do_GET(self) -> None:
        with self.requests.get_lock():
            self.requests.value += 1
        time.sleep(self.delay_s)
        url = urlsplit(self.path)
        key = unquote(url.path).removeprefix("/archive").removeprefix("/")
        if "delimiter" in url.query:
            self._send(501, b"<Error><Code>NotImplemented</Code></Error>")
        elif not key:
            self._send(200, self._page(parse_qs(url.query)) if "list-type" in url.query else b"")
        elif key not in self.sizes:
            self._send(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._send_file(key)

    do_HEAD = do_GET  # noqa: N815  # the name that http.server calls

    def _page(self, query: dict[str, list[str]]) -> bytes:
        prefix, after = query.get("prefix", [""])[0], query.get("continuation-token", query.get("start-after", [""]))[0]
        limit = min(int(query.get("max-keys", [str(_PAGE)])[0]), _PAGE)
        keys = [key for key in self.keys[bisect_right(self.keys, after) :] if key.startswith(prefix)]
        rest = f"<NextContinuationToken>{escape(keys[limit - 1])}</NextContinuationToken>" if keys[limit:] else ""
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{_DATE}</LastModified><Size>{self.sizes[key]}</Size>"
            "</Contents>"
            for key in keys[:limit]
        )
        truncated = "true" if rest else "false"
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult><Name>archive</Name>'
            f"<KeyCount>{len(keys[:limit])}</KeyCount><IsTruncated>{truncated}</IsTruncated>{rest}{found}"
            "</ListBucketResult>"
        ).encode()

    def _send_file(self, key: str) -> None:
        content = (self.folder / key).read_bytes()
        if match := _RANGE.fullmatch(self.headers.get("Range", "")):
            first, last = int(match[1]), min(int(match[2] or len(content)), len(content) - 1)
            span = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
            self._send(206, content[first : last + 1], span)
        else:
            self._send(200, content)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        dated = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "ETag": '"1"', **(headers or {})}
        for name, value in {**dated, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""
