"""A cluster and a quota service over real HTTP for agents in processes of their own.

The cluster's time moves only when somebody reads it, so nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, urlsplit

from quota.client import ServiceUnavailable
from quota.schemas.usage import EvidenceBatch
from tests.unit.agents.agent_world import Gpus, Service

STEP_MS = 337_000
"""How far the cluster's time moves with every read: not a multiple of the sample period."""


class Stubs:
    """Both doors on one port, over one `Gpus` and one `Service`."""

    def __init__(self, gpus: Gpus, end_ms: int) -> None:
        self.gpus, self.service = gpus, Service()
        self.changed = threading.Condition()
        self._end_ms = end_ms
        stubs = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 65_536  # one segment per answer: no waiting for delayed acknowledgements

            def do_GET(self) -> None:
                after_ms = int(parse_qs(urlsplit(self.path).query)["after_ms"][0])
                self._answer(200, stubs.read_all(after_ms))

            def do_POST(self) -> None:
                if self.path == "/v1/gpu-reports":
                    self.rfile.read(int(self.headers["content-length"]))
                    self._answer(200, {"gpus": 0, "verdicts": 0, "conflicts": 0})
                    return
                assert self.headers["content-encoding"] == "gzip"
                body = gzip.decompress(self.rfile.read(int(self.headers["content-length"])))
                try:
                    reply = stubs.deliver(EvidenceBatch.model_validate_json(body))
                except ServiceUnavailable:
                    self.close_connection = True
                    return
                self._answer(200, reply)

            def _answer(self, status: int, document: object) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda request, address: None  # a killed agent leaves broken pipes
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def read_all(self, after_ms: int) -> object:
        with self.changed:
            readings = self.gpus.read_all(after_ms)
            now_ms = self.gpus.now_ms
            self.gpus.now_ms = min(now_ms + STEP_MS, self._end_ms)
            self.changed.notify_all()
            return {"now_ms": now_ms, "nodes": [asdict(reading) for reading in readings]}

    def deliver(self, batch: EvidenceBatch) -> object:
        with self.changed:
            reply = self.service.deliver_evidence(batch)
            self.changed.notify_all()
            return reply.model_dump(mode="json")

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 30) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, timeout_s), "the agent did not get that far"


ROOT = Path(__file__).parents[3]


@contextmanager
def a_process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process with its outputs on pipes, killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "GPUHUB_TOKEN": "token"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def killer(pid: int) -> Callable[[EvidenceBatch], None]:
    """A fault: the agent dies while its delivery is under way."""

    def kill(batch: EvidenceBatch) -> None:
        os.kill(pid, signal.SIGKILL)
        raise ServiceUnavailable("the agent is gone")

    return kill
