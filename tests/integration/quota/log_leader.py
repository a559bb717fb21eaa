"""A scheduler that leads, as far as logs and what-if questions go: the real door and desks over a cluster that tests
fill by hand."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from quota.dispatch.lease import take_lease
from quota.schemas.scheduling import LeaseRequest
from scheduler.clusters.logs import ClusterUnavailable, LogRequest, OpenLog
from scheduler.door import Door, Readiness, Windows
from scheduler.logs import LogDesk
from scheduler.whatif.desk import WhatIfDesk
from tests.builders import Hub

FOR_EVER_S = 10.0**6


class HandLog:
    """A log that a test writes while somebody reads it."""

    def __init__(self) -> None:
        self._coming: queue.SimpleQueue[bytes | Exception | None] = queue.SimpleQueue()
        self.released = queue.SimpleQueue[bool]()

    def write(self, chunk: bytes) -> None:
        self._coming.put(chunk)

    def end(self) -> None:
        self._coming.put(None)

    def break_off(self) -> None:
        self._coming.put(ClusterUnavailable("the node went away"))

    def open(self) -> OpenLog:
        return OpenLog(self._chunks(), self.end, lambda: self.released.put(True))

    def _chunks(self) -> Iterator[bytes]:
        while (chunk := self._coming.get()) is not None:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


@dataclass
class HandCluster:
    """Answers the log of every object with one line, unless a test says otherwise."""

    asked: list[tuple[str, int, LogRequest]] = field(default_factory=list)
    answers: dict[str, HandLog | Exception] = field(default_factory=dict)

    def logs(self, name: str, pod_index: int, request: LogRequest) -> OpenLog:
        self.asked.append((name, pod_index, request))
        answer = self.answers.get(name)
        if isinstance(answer, Exception):
            raise answer
        if answer is not None:
            return answer.open()
        return OpenLog(iter([f"{name} pod {pod_index} runs\n".encode()]), lambda: None, lambda: None)


@dataclass
class LogLeader:
    """The leader of one hub."""

    cluster: HandCluster
    desk: LogDesk
    url: str
    secret: str


@contextmanager
def a_log_leader(hub: Hub, at_once: int = 64, what_if: WhatIfDesk | None = None) -> Iterator[LogLeader]:
    """Hold the hub's lease for as long as the block, and answer for its logs and what-if questions."""
    secret = ""
    cluster = HandCluster()
    desk = LogDesk({"sim": cluster}, lambda: secret, at_once)  # type: ignore[dict-item]
    windows = Windows(bytes, lambda: Readiness(True, ""), list, desk, what_if or WhatIfDesk(desk.admits))
    with Door("127.0.0.1", 0, windows) as door:
        url = f"http://127.0.0.1:{door.port}"
        body = LeaseRequest(holder="scheduler-0", instance="instance-1", url=url, epoch=hub.epoch)
        secret = hub.database.write(lambda tx: take_lease(tx, body, FOR_EVER_S)).door_secret
        yield LogLeader(cluster, desk, url, secret)
