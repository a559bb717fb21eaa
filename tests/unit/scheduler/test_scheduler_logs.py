"""The scheduler's door for logs: who may come, what it answers, and what is left behind."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from urllib.parse import urlencode

import pytest

from scheduler.clusters.logs import ClusterUnavailable, LogRequest, NoLogs, NoLogsReason, OpenLog
from scheduler.door import Door, Readiness, Windows
from scheduler.logs import LogDesk

SECRET = "s3cret"
ASKED = {"cluster": "sim", "object": "job-1-1", "pod": 0, "tail_lines": 9, "limit_bytes": 1000, "limit_s": 30}
PATIENCE_S = 30


class Written:
    """A cluster with one log that the test writes."""

    def __init__(self) -> None:
        self.coming: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
        self.released: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.asked: list[tuple[str, int, LogRequest]] = []
        self.trouble: Exception | None = None

    def logs(self, name: str, pod_index: int, request: LogRequest) -> OpenLog:
        self.asked.append((name, pod_index, request))
        if self.trouble is not None:
            raise self.trouble
        return OpenLog(self._chunks(), lambda: self.coming.put(None), lambda: self.released.put(True))

    def _chunks(self) -> Iterator[bytes]:
        while (chunk := self.coming.get()) is not None:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


class Served:
    """A door over it."""

    def __init__(self, cluster: Written, desk: LogDesk, port: int) -> None:
        self.cluster, self.desk, self.port = cluster, desk, port
        self.lines: list[HTTPConnection] = []

    def ask(self, secret: str = SECRET, **changed: object) -> HTTPResponse:
        asked = {name: value for name, value in (ASKED | changed).items() if value is not None}
        line = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        self.lines.append(line)
        line.request("GET", f"/-/logs?{urlencode(asked)}", headers={"Authorization": f"Bearer {secret}"})
        return line.getresponse()

    def refused(self, status: int, **asked: object) -> dict[str, str]:
        answer = self.ask(**asked)  # type: ignore[arg-type]
        assert answer.status == status
        found: dict[str, str] = json.loads(answer.read())
        return found

    def nothing_left(self) -> None:
        for thread in threading.enumerate():
            if thread.name == "log-watch":
                thread.join(PATIENCE_S)
        pause = threading.Event()
        for _ in range(PATIENCE_S * 100):
            if not self.desk.open_now():
                return
            pause.wait(0.01)
        raise AssertionError("a log is still open")


@contextmanager
def served(at_once: int = 4, secret: str = SECRET) -> Iterator[Served]:
    cluster = Written()
    desk = LogDesk({"sim": cluster}, lambda: secret, at_once)  # type: ignore[dict-item]
    with Door("127.0.0.1", 0, Windows(bytes, lambda: Readiness(True, ""), list, desk)) as door:
        made = Served(cluster, desk, door.port)
        try:
            yield made
        finally:
            for line in made.lines:
                line.close()


def test_a_log_is_passed_on_as_it_comes() -> None:
    with served() as door:
        door.cluster.coming.put(b"one\n")
        answer = door.ask(since_s=5, follow="true", timestamps="true")
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
        assert answer.read1() == b"one\n"
        door.cluster.coming.put(b"")
        door.cluster.coming.put(b"two\n")
        door.cluster.coming.put(None)
        assert answer.read() == b"two\n"
        asked = LogRequest(9, 5, True, True, 1000, 30.0)
        assert door.cluster.asked == [("job-1-1", 0, asked)]
        assert door.cluster.released.get(timeout=PATIENCE_S)
        door.nothing_left()


@pytest.mark.parametrize("given", ["", "wrong", "s3cret ", "가"])
def test_without_the_secret_nobody_comes_in(given: str) -> None:
    with served() as door:
        assert door.refused(401, secret=given.encode().decode("latin-1")) == {"code": "unauthorized"}
        assert door.cluster.asked == []


def test_who_does_not_lead_lets_nobody_in() -> None:
    with served(secret="") as door:
        for given in ("", SECRET):
            assert door.refused(401, secret=given) == {"code": "unauthorized"}


@pytest.mark.parametrize(
    ("trouble", "status", "code"),
    [
        (NoLogs(NoLogsReason.NOT_STARTED, "waits"), 409, "not_started"),
        (NoLogs(NoLogsReason.GONE, "gone"), 410, "gone"),
        (ClusterUnavailable("silent"), 503, "unavailable"),
    ],
)
def test_why_there_is_none_is_told(trouble: Exception, status: int, code: str) -> None:
    with served() as door:
        door.cluster.trouble = trouble
        assert door.refused(status)["code"] == code
        door.nothing_left()


def test_a_cluster_that_it_does_not_have_is_unavailable() -> None:
    with served() as door:
        assert door.refused(503, cluster="other")["code"] == "unavailable"


@pytest.mark.parametrize(
    "changed", [{"pod": -1}, {"tail_lines": "x"}, {"limit_s": 0}, {"object": None}, {"surprise": 1}]
)
def test_a_parameter_that_cannot_be_is_named(changed: dict[str, object]) -> None:
    with served() as door:
        assert door.refused(422, **changed) == {"code": "invalid", "field": next(iter(changed))}


def test_so_many_are_open_at_once() -> None:
    with served(at_once=1) as door:
        door.cluster.coming.put(b"one\n")
        first = door.ask()
        assert first.read1() == b"one\n"
        assert door.refused(429)["code"] == "too_many"
        door.cluster.coming.put(None)
        assert first.read() == b""
        door.nothing_left()


def test_a_log_that_breaks_off_does_not_look_whole() -> None:
    with served() as door:
        door.cluster.coming.put(b"one\n")
        door.cluster.coming.put(ClusterUnavailable("silent"))
        with pytest.raises(IncompleteRead):
            door.ask().read()
        door.nothing_left()


def test_a_door_that_closes_breaks_off_what_is_open() -> None:
    with served() as door:
        door.cluster.coming.put(b"one\n")
        answer = door.ask()
        assert answer.read1() == b"one\n"
        door.desk.close()
        with pytest.raises(IncompleteRead):
            answer.read()
        door.nothing_left()


def test_a_log_ends_at_its_limit_of_bytes_and_of_time() -> None:
    with served() as door:
        door.cluster.coming.put(b"123456")
        assert door.ask(limit_bytes=4).read() == b"1234"
        assert door.ask(limit_s=0.05).read() == b""
        door.nothing_left()


def test_a_reader_that_leaves_a_silent_log_leaves_nothing() -> None:
    with served() as door:
        door.cluster.coming.put(b"one\n")
        assert door.ask().read1() == b"one\n"
        door.lines[0].close()
        del door.lines[:]
        assert door.cluster.released.get(timeout=PATIENCE_S)
        door.nothing_left()
