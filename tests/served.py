"""An application behind uvicorn on a free port of loopback, in a thread of the test's own process."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

PATIENCE_S = 20


class _Prompt(uvicorn.Server):
    """Looks a hundred times a second whether it is to end, not ten times: a thousand tests wait for that."""

    async def main_loop(self) -> None:
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += 1
            await asyncio.sleep(0.01)


@contextmanager
def served(config: uvicorn.Config) -> Iterator[str]:
    """The application's address; it is served as long as the block lasts."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _Prompt(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            _until_started(server, thread)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "the server did not stop"


def quiet(application: object) -> uvicorn.Config:
    """How most tests serve: nothing is logged, and no connection delays the end for more than a second."""
    return uvicorn.Config(application, log_level="critical", timeout_graceful_shutdown=1)  # type: ignore[arg-type]


def _until_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not server.started:
        assert thread.is_alive(), "the server died at its start"
        assert time.monotonic() < deadline, f"the server did not start within {PATIENCE_S} s"
        thread.join(0.01)
