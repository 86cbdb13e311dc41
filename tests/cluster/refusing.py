"""A reverse proxy for an object store that answers some requests with 503, like a busy store, and counts them."""

import http.client
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_BUSY = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
_NEXT_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "date", "server")


class Refusals:
    """Decides from a seed which requests are refused; counts requests and refusals."""

    def __init__(self, share: float, seed: int) -> None:
        self.share, self.requests, self.refused = share, 0, 0
        self._random, self._lock = random.Random(seed), threading.Lock()

    def next(self) -> bool:
        with self._lock:
            refuse = self._random.random() < self.share
            self.requests += 1
            self.refused += refuse
            return refuse


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = (
        True  # header and body are two writes; without this, the second would wait for the acknowledgement of the first
    )
    store: str
    refusals: Refusals

    def _pass_on(self) -> None:
        content = self._content()  # always read the body: the rest of it would be parsed as the next request
        if self.refusals.next():
            self._answer(503, "Slow Down", [("Content-Type", "application/xml")], _BUSY)
            return
        store = http.client.HTTPConnection(self.store, timeout=60)
        try:
            # Keeps the original Host header, because the signature covers it.
            store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect", "transfer-encoding", "content-length"):
                    store.putheader(name, value)
            if content or self.command in ("PUT", "POST"):
                store.putheader("Content-Length", str(len(content)))
            store.endheaders(content or None)
            answer = store.getresponse()
            kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _NEXT_HOP]
            length = answer.headers.get("Content-Length")
            self._answer(answer.status, answer.reason, kept, answer.read(), length)
        finally:
            store.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on  # noqa: N815

    def _content(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(pieces)

    def _answer(
        self, status: int, reason: str, headers: list[tuple[str, str]], content: bytes, length: str | None = None
    ) -> None:
        self.send_response(status, reason)
        for name, value in headers:
            self.send_header(name, value)
        # The response to HEAD has a length but no content.
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore closed connections: a killed job ends in the middle of a request."""


@contextmanager
def refusing(store: str, share: float, seed: int) -> Iterator[tuple[str, Refusals]]:
    """Run the proxy until the end of the block; yield its address and the counts of refusals."""
    refusals = Refusals(share, seed)
    handler = type("Handler", (_Handler,), {"store": urlsplit(store).netloc, "refusals": refusals})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", refusals
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
