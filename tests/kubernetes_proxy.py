"""Between a client and a real API server: a plain-HTTP proxy that loses, delays and garbles on order."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

Lines = Callable[[Iterator[bytes]], Iterator[bytes]]


@dataclass
class Asked:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, list[str]]
    body: dict

    @property
    def is_watch(self) -> bool:
        return self.query.get("watch") == ["true"]


@dataclass
class Fault:
    """What to do to the next `count` requests that fit."""

    fits: Callable[[Asked], bool]
    count: int = 1
    refuse: tuple[int, str] | None = None
    """Answer this status and message instead of asking the server."""
    lose_reply: bool = False
    """Let the server do it, and hang up without a word."""
    delay_s: float = 0.0
    """Let the server do it, and answer this much later."""
    change_lines: Lines | None = None
    """What becomes of the lines of a watch."""
    silent: bool = False
    """A watch that stays open and says nothing: its other end is gone, only nobody has told."""


@dataclass
class Proxy:
    """A running proxy."""

    url: str
    asked: list[Asked] = field(default_factory=list)
    _faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def plant(self, fits: Callable[[Asked], bool], **fault: object) -> Fault:
        """Let something go wrong."""
        planted = Fault(fits, **fault)  # type: ignore[arg-type]
        with self._lock:
            self._faults.append(planted)
        return planted

    def clear(self) -> None:
        """Let nothing more go wrong."""
        with self._lock:
            self._faults.clear()

    def note(self, asked: Asked) -> Fault | None:
        """Remember a request; the fault that it meets, if any."""
        with self._lock:
            self.asked.append(asked)
            for fault in self._faults:
                if fault.fits(asked):
                    fault.count -= 1
                    if fault.count <= 0:
                        self._faults.remove(fault)
                    return fault
        return None

    def kubeconfig(self, path: Path, token: str) -> Path:
        """A kubeconfig that leads through this proxy."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "proxy",
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
            "clusters": [{"name": "proxy", "cluster": {"server": self.url}}],
            "users": [{"name": "proxy", "user": {"token": token}}],
        }
        path.write_text(json.dumps(content))
        path.chmod(0o600)
        return path


@contextmanager
def a_proxy(url: str, ca_file: Path) -> Iterator[Proxy]:
    """A proxy to the API server at `url` for as long as the block."""
    context = ssl.create_default_context(cafile=str(ca_file))
    upstream = urlsplit(url)
    assert upstream.hostname is not None
    where = (upstream.hostname, upstream.port or 443)
    handler = type("Handler", (_Handler,), {"where": where, "context": context})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")
    handler.proxy = proxy
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    """One connection of the client; `proxy`, `where` and `context` are set by the proxy that it belongs to."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy
    where: tuple[str, int]
    context: ssl.SSLContext

    def _serve(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = urlsplit(self.path)
        body = json.loads(raw) if raw else {}
        asked = Asked(self.command, parts.path, parse_qs(parts.query), body if isinstance(body, dict) else {})
        fault = self.proxy.note(asked)
        try:
            if fault is not None and fault.refuse is not None:
                self._refuse(*fault.refuse)
            else:
                self._forward(asked, raw, fault or Fault(lambda _: True))
        except (OSError, http.client.HTTPException):
            self.close_connection = True

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _serve

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""

    def _refuse(self, status: int, message: str) -> None:
        self._answer(status, json.dumps({"kind": "Status", "code": status, "message": message}).encode())

    def _forward(self, asked: Asked, raw: bytes, fault: Fault) -> None:
        dropped = ("host", "connection", "accept-encoding")
        kept = {key: value for key, value in self.headers.items() if key.lower() not in dropped}
        line = http.client.HTTPSConnection(*self.where, context=self.context, timeout=300)
        try:
            line.request(self.command, self.path, raw or None, kept)
            reply = line.getresponse()
            if asked.is_watch and reply.status == 200:
                self._stream(reply, fault)
                return
            content = reply.read()
            time.sleep(fault.delay_s)
            if fault.lose_reply:
                self.close_connection = True
                return
            self._answer(reply.status, content, reply.headers.get("content-type", "application/json"))
        finally:
            line.close()

    def _stream(self, reply: http.client.HTTPResponse, fault: Fault) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if fault.silent:
            self.proxy.closing.wait(300)
            self.close_connection = True
            return
        lines: Iterator[bytes] = iter(reply)
        for one in lines if fault.change_lines is None else fault.change_lines(lines):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(one), one))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def jobs_written(method: str) -> Callable[[Asked], bool]:
    """Requests that create (`POST`) or change (`PATCH`) Jobs."""
    return lambda asked: asked.method == method and "/jobs" in asked.path


def watches(kind: str) -> Callable[[Asked], bool]:
    """Watches of one kind of object."""
    return lambda asked: asked.is_watch and asked.path.endswith("/" + kind)
