"""Submissions per second through the API, against an endpoint of the same server that does nothing."""

from __future__ import annotations

import asyncio
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

from fastapi import Request, Response

from quota.app import create_app
from quota.schemas.identity import Role
from quota.schemas.jobs import JobSubmission
from quota.settings import Settings
from tests import databases
from tests.bench.world import World

REQUESTS = 1500
CONNECTIONS = 8


def run() -> list[dict[str, Any]]:
    """One row `submit`: submissions/s, the empty endpoint's as its limit."""
    with tempfile.TemporaryDirectory() as folder:
        world = World(databases.new_sqlite(Path(folder)))
        app = create_app(
            Settings(database=world.url, tasks=False, member_requests_per_s=0, staff_requests_per_s=0)
        )

        @app.post("/bench/empty")
        def empty(request: Request, body: JobSubmission) -> Response:
            """The same body, checked and thrown away."""
            return Response(b"{}", 201, media_type="application/json")

        body = world.submission().model_dump_json().encode()
        with world.serve(app):
            secret = world.secrets[Role.OPERATOR]
            limit = _rate(world.port, "/bench/empty", secret, body)
            value = _rate(world.port, "/v1/jobs", secret, body)
        world.close()
    return [
        {
            "bench": "api",
            "metric": "submit",
            "value": value,
            "unit": "1/s",
            "limit": limit,
            "ratio": value / limit,
        }
    ]


def _rate(port: int, path: str, secret: str, body: bytes) -> float:
    """Requests per second over some keep-alive connections, sent by another process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(_load, (port, path, secret, body, 100))
        return REQUESTS / pool.apply(_load, (port, path, secret, body, REQUESTS))


def _load(port: int, path: str, secret: str, body: bytes, count: int) -> float:
    return asyncio.run(_load_async(port, path, secret, body, count))


async def _load_async(port: int, path: str, secret: str, body: bytes, count: int) -> float:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secret}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    began = time.perf_counter()
    shares = [count // CONNECTIONS] * CONNECTIONS
    shares[0] += count - sum(shares)
    await asyncio.gather(*(_connection(port, head + body, share) for share in shares))
    return time.perf_counter() - began


async def _connection(port: int, request: bytes, count: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(count):
        writer.write(request)
        header = await reader.readuntil(b"\r\n\r\n")
        assert b" 201 " in header.split(b"\r\n", 1)[0] + b" ", header
        length = next(line for line in header.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
    writer.close()
    await writer.wait_closed()
