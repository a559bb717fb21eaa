"""The scheduler's own small HTTP door: metrics, health, and why the waiting jobs wait."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

LINES_SHOWN = 500
METRICS_TYPE = "text/plain; version=1.0.0; charset=utf-8"


class PortTaken(Exception):
    """The door cannot listen there; the text says why in one line."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether this process leads, and if not, why."""

    ready: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Windows:
    """What the door shows, asked for at each request from the door's thread."""

    metrics: Callable[[], bytes]
    readiness: Callable[[], Readiness]
    waiting: Callable[[], list[str]]
    """One line per waiting job, first to be served first."""


class Door:
    """Serves from a thread of its own until it is closed."""

    def __init__(self, host: str, port: int, windows: Windows) -> None:
        """Listen at once. Raises PortTaken."""
        try:
            self._server = _Server((host, port), windows)
        except OSError as error:
            raise PortTaken(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="door", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], windows: Windows) -> None:
        self.windows = windows
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away is nobody's trouble."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "gpuhub-scheduler"
    sys_version = ""
    timeout = 10

    def do_GET(self) -> None:
        """The four pages."""
        windows = self.server.windows
        match self.path.partition("?")[0]:
            case "/metrics":
                self._answer(HTTPStatus.OK, windows.metrics(), METRICS_TYPE)
            case "/-/healthy":
                self._answer_json(HTTPStatus.OK, {"status": "ok"})
            case "/-/ready":
                readiness = windows.readiness()
                status = HTTPStatus.OK if readiness.ready else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer_json(
                    status,
                    {"status": "leading" if readiness.ready else "standby", "reason": readiness.reason},
                )
            case "/-/waiting":
                text = "".join(f"{line}\n" for line in windows.waiting()[:LINES_SHOWN])
                self._answer(HTTPStatus.OK, text.encode(), "text/plain; charset=utf-8")
            case _:
                self._answer_json(HTTPStatus.NOT_FOUND, {"status": "not found"})

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not worth a log line."""

    def _answer_json(self, status: HTTPStatus, body: dict[str, str]) -> None:
        self._answer(status, json.dumps(body).encode(), "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
