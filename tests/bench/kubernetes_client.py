"""Bare clients for the benchmarks: raw bytes over connections that stay open, and nothing of the hub's."""

from __future__ import annotations

import asyncio
import http.client
import multiprocessing
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

JSON = "application/json"

Call = tuple[str, str, bytes, str]
"""Method, path, body, and the body's type."""


@dataclass(frozen=True, slots=True)
class Server:
    """An API server and who calls."""

    url: str
    ca_file: Path
    token: str

    def connect(self, timeout_s: float = 60.0) -> http.client.HTTPSConnection:
        """One connection."""
        trust = ssl.create_default_context(cafile=str(self.ca_file))
        return http.client.HTTPSConnection(urlsplit(self.url).netloc, timeout=timeout_s, context=trust)


class Line:
    """One open connection; used by one thread."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connection = server.connect()
        self._headers = {"Authorization": f"Bearer {server.token}", "Accept": JSON}

    def call(self, method: str, path: str, body: bytes, content: str = JSON) -> tuple[int, bytes]:
        """Status and answer."""
        self._connection.request(method, path, body, {**self._headers, "Content-Type": content})
        reply = self._connection.getresponse()
        return reply.status, reply.read()


def post_all(server: Server, calls: Sequence[tuple[str, bytes]], threads: int) -> tuple[float, float]:
    """Create everything as fast as the server takes it, from another process; answers first and last moment."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        began_s, done_s = pool.apply(_post_all, (server, list(calls), threads))
        return float(began_s), float(done_s)


def _post_all(server: Server, calls: list[tuple[str, bytes]], threads: int) -> tuple[float, float]:
    waiting = iter(calls)
    lock = threading.Lock()
    troubles: list[str] = []

    def work() -> None:
        line = Line(server)
        while True:
            with lock:
                call = next(waiting, None)
            if call is None:
                return
            status, answer = line.call("POST", call[0], call[1])
            if status != 201:
                troubles.append(f"{status} {answer[:300]!r}")

    began_s = time.time()
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not troubles, f"{len(troubles)} were refused; the first: {troubles[0]}"
    return began_s, time.time()


class HubLine:
    """One open connection to the quota service."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Status and answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        header = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(header.split(b"content-length:")[1].split(b"\r\n")[0])
        return int(header.split(b" ", 2)[1]), await reader.readexactly(length)


def submit_all(port: int, token: str, bodies: Sequence[bytes], connections: int) -> float:
    """Submit jobs to the quota service from another process; answers the seconds it took."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(_submit_all, (port, token, list(bodies), connections)))


def _submit_all(port: int, token: str, bodies: list[bytes], connections: int) -> float:
    began_s = time.perf_counter()
    asyncio.run(_submit_async(port, token, bodies, connections))
    return time.perf_counter() - began_s


async def _submit_async(port: int, token: str, bodies: list[bytes], connections: int) -> None:
    async def work(share: list[bytes]) -> None:
        line = HubLine(port, token)
        for body in share:
            status, answer = await line.post("/v1/jobs", body)
            assert status == 201, (status, answer[:300])

    await asyncio.gather(*(work(bodies[first::connections]) for first in range(connections)))


def in_threads(count: int, work: Callable[[], Any]) -> list[threading.Thread]:
    """Start threads that end with the process."""
    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads
