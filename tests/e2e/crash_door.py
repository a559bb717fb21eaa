"""A door before the quota service that loses, delays and doubles: HTTP in, HTTP out, each request with its fate."""

from __future__ import annotations

import http.client
import itertools
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOST = "127.0.0.1"
HOP = ("host", "connection", "content-length", "transfer-encoding")
"""Headers that speak of one connection only."""


class Fate(StrEnum):
    """What becomes of one request."""

    DELIVER = "deliver"
    LOSE_REQUEST = "lose the request"
    LOSE_REPLY = "lose the reply"
    LATE_REPLY = "late reply"
    LATE_REQUEST = "late request"
    """It reaches the service only after the caller has given up and asked again."""
    TWICE = "twice"
    """It reaches the service once more, a moment later."""
    HOLD = "hold"
    """It waits at the door until it is released."""


@dataclass(frozen=True, slots=True)
class Passage:
    """One request that went through, with the service's answer."""

    method: str
    path: str
    body: bytes
    status: int
    answer: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service said."""

    status: int
    headers: dict[str, str]
    body: bytes


Rule = Callable[[str, str, bytes], Fate]


@dataclass
class Door:
    """`open(port)` puts it before a port of this machine. `rule` decides; the default lets everything pass."""

    late_s: float = 1.6
    """Longer than a caller waits."""
    rule: Rule = field(default=lambda method, path, body: Fate.DELIVER)
    met: dict[Fate, int] = field(default_factory=dict)
    held: list[threading.Event] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    """What was held or late, as the service answered it in the end."""

    def open(self, port: int) -> int:
        """Listen; answers the door's own port."""
        self._behind = port
        self._turn = threading.Lock()
        self._server = _Server((HOST, 0), self)
        threading.Thread(target=self._server.serve_forever, name="door", daemon=True).start()
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Let go of everything."""
        self.release()
        self._server.shutdown()
        self._server.server_close()

    def mishear(self, path: str, fates: tuple[Fate, ...]) -> None:
        """From now on every second request for a path (by its end) meets one of these fates, in turn."""
        turns = itertools.cycle(step for fate in fates for step in (fate, Fate.DELIVER))

        def rule(_method: str, asked: str, _body: bytes) -> Fate:
            return next(turns) if asked.partition("?")[0].endswith(path) else Fate.DELIVER

        self.rule = rule

    def release(self) -> None:
        """Let the held requests go on to the service."""
        self.rule = lambda method, path, body: Fate.DELIVER
        for held in self.held:
            held.set()

    def decide(self, method: str, path: str, body: bytes) -> Fate:
        """The fate of a request, counted."""
        with self._turn:
            fate = self.rule(method, path, body)
            self.met[fate] = self.met.get(fate, 0) + 1
            return fate

    def wait_before(self, fate: Fate) -> None:
        """What a request waits for before it reaches the service."""
        if fate is Fate.LATE_REQUEST:
            time.sleep(self.late_s)
        if fate is Fate.HOLD:
            held = threading.Event()
            self.held.append(held)
            held.wait(120)

    def pass_on(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        """Ask the service. Raises OSError or HTTPException when it does not answer."""
        line = http.client.HTTPConnection(HOST, self._behind, timeout=90)
        try:
            line.request(method, path, body or None, headers)
            answer = line.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            line.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], door: Door) -> None:
        self.door = door
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Callers come and go; that is what this is for."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        door = self.server.door
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
        asked = (self.command, self.path, body, headers)
        fate = door.decide(self.command, self.path, body)
        self.close_connection = fate is not Fate.DELIVER
        if fate is Fate.LOSE_REQUEST:
            return
        door.wait_before(fate)
        try:
            answer = door.pass_on(*asked)
        except (OSError, http.client.HTTPException):
            self.close_connection = True
            return
        if fate in (Fate.HOLD, Fate.LATE_REQUEST):
            door.passages.append(Passage(self.command, self.path, body, answer.status, answer.body))
        if fate is Fate.TWICE:
            threading.Thread(target=_again, args=(door, asked), daemon=True).start()
        if fate is Fate.LATE_REPLY:
            time.sleep(door.late_s)
        if fate is not Fate.LOSE_REPLY:
            self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        with suppress(OSError):
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in (*HOP, "server", "date"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _again(door: Door, asked: tuple[str, str, bytes, dict[str, str]]) -> None:
    time.sleep(random.uniform(0, door.late_s))
    with suppress(OSError, http.client.HTTPException):
        door.pass_on(*asked)
