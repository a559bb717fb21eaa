"""The scheduler's own small HTTP door: metrics, health, why the waiting jobs wait, and logs and what-if
questions for the quota service."""

from __future__ import annotations

import json
import selectors
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scheduler.clusters.logs import ClusterUnavailable, LogRequest, LogStream, NoLogs, NoLogsReason
from scheduler.logs import LogDesk, TooManyLogs
from scheduler.whatif.desk import TookTooLong, TooManyQuestions, Unanswered, WhatIfDesk

LINES_SHOWN = 500
READER_RESTS_S = 60.0
"""For so long the reader of a log may take nothing before it counts as gone."""
MOST_QUESTION_BYTES = 512 * 1024 * 1024
"""A what-if question carries the whole state; one of 50,000 jobs has about 30 MB."""
LONGEST_QUESTION_S = 600
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
    logs: LogDesk | None = None
    what_if: WhatIfDesk | None = None


class _LogQuery(BaseModel):
    """What the quota service asks for."""

    model_config = ConfigDict(extra="forbid")

    cluster: str
    object: str
    pod: int = Field(ge=0)
    tail_lines: int = Field(ge=0)
    since_s: int | None = Field(default=None, ge=0)
    follow: bool = False
    timestamps: bool = False
    limit_bytes: int = Field(ge=1)
    limit_s: float = Field(gt=0, le=7200)


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
        if self._server.windows.logs is not None:
            self._server.windows.logs.close()
        if self._server.windows.what_if is not None:
            self._server.windows.what_if.close()
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
        """The pages, and the logs."""
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
            case "/-/logs" if windows.logs is not None:
                self._answer_log(windows.logs)
            case _:
                self._answer_json(HTTPStatus.NOT_FOUND, {"status": "not found"})

    def do_POST(self) -> None:
        """A what-if question of the quota service."""
        desk = self.server.windows.what_if
        self.close_connection = True
        if desk is None or self.path.partition("?")[0] != "/-/what-if":
            self._answer_json(HTTPStatus.NOT_FOUND, {"status": "not found"})
        elif not desk.admits(self.headers.get("Authorization", "")):
            self._answer_json(HTTPStatus.UNAUTHORIZED, {"code": "unauthorized"})
        else:
            self._answer_what_if(desk)

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not worth a log line."""

    def _answer_log(self, desk: LogDesk) -> None:
        if not desk.admits(self.headers.get("Authorization", "")):
            self._answer_json(HTTPStatus.UNAUTHORIZED, {"code": "unauthorized"})
            return
        given = {name: values[-1] for name, values in parse_qs(self.path.partition("?")[2]).items()}
        try:
            asked = _LogQuery.model_validate(given)
        except ValidationError as wrong:
            field = ".".join(map(str, wrong.errors()[0]["loc"]))
            self._answer_json(HTTPStatus.UNPROCESSABLE_ENTITY, {"code": "invalid", "field": field})
            return
        request = LogRequest(**asked.model_dump(exclude={"cluster", "object", "pod"}))
        self.close_connection = True
        try:
            with desk.opened(asked.cluster, asked.object, asked.pod, request, self.connection) as log:
                self._pass_on(desk, log, request)
        except NoLogs as none:
            status = HTTPStatus.GONE if none.reason is NoLogsReason.GONE else HTTPStatus.CONFLICT
            self._answer_json(status, {"code": none.reason.value, "detail": str(none)})
        except TooManyLogs as full:
            self._answer_json(HTTPStatus.TOO_MANY_REQUESTS, {"code": "too_many", "detail": str(full)})
        except ClusterUnavailable as trouble:
            self._answer_json(HTTPStatus.SERVICE_UNAVAILABLE, {"code": "unavailable", "detail": str(trouble)})

    def _answer_what_if(self, desk: WhatIfDesk) -> None:
        given = parse_qs(self.path.partition("?")[2]).get("limit_s", [""])[-1]
        size = self.headers.get("Content-Length", "")
        if not given.isdecimal() or not 1 <= int(given) <= LONGEST_QUESTION_S:
            self._answer_json(HTTPStatus.UNPROCESSABLE_ENTITY, {"code": "invalid", "field": "limit_s"})
            return
        if not size.isdecimal() or int(size) > MOST_QUESTION_BYTES:
            self._answer_json(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"code": "too_large"})
            return
        question = self.rfile.read(int(size))
        try:
            answer = desk.answer(question, int(given), self._is_gone)
        except TooManyQuestions:
            self._answer_json(HTTPStatus.TOO_MANY_REQUESTS, {"code": "too_many"})
        except TookTooLong:
            self._answer_json(HTTPStatus.GATEWAY_TIMEOUT, {"code": "too_long"})
        except Unanswered as trouble:
            self._answer_json(
                HTTPStatus.INTERNAL_SERVER_ERROR, {"code": "unanswered", "detail": str(trouble)}
            )
        else:
            self._answer(HTTPStatus.OK, answer, "application/json")

    def _is_gone(self) -> bool:
        """Whether the other side has hung up: it sends nothing after its question, so what is there is its end."""
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.connection, selectors.EVENT_READ)
            return bool(waiting.select(0))

    def _pass_on(self, desk: LogDesk, log: LogStream, request: LogRequest) -> None:
        """In chunks: a log that breaks off lacks the last one, so that its reader knows."""
        self.protocol_version = "HTTP/1.1"
        self.connection.settimeout(min(request.limit_s, READER_RESTS_S))
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        left = request.limit_bytes
        try:
            for chunk in log:
                part = chunk[:left]
                if not part:  # an empty one would say that this was all
                    continue
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
                left -= len(part)
                if not left:
                    break
        except ClusterUnavailable:
            return
        if desk.is_closing:
            return
        self.wfile.write(b"0\r\n\r\n")

    def _answer_json(self, status: HTTPStatus, body: dict[str, str]) -> None:
        self._answer(status, json.dumps(body).encode(), "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
