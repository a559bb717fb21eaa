"""Faults of the door itself: refusals, late answers and lost replies, each planted for a number of requests.

They live in memory only. What happens to pods and nodes is an event and lives in the journal.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import StrEnum

from starlette.types import ASGIApp, Message, Receive, Scope, Send

CUT = "gpuhub.cut"
"""The ASGI extension with which `run.py` lets an application cut its connection."""


class DoorPath(StrEnum):
    """The requests that a fault may be planted for."""

    CREATE = "create"
    SUSPEND = "suspend"
    LIST = "list"
    NODES = "nodes"
    GPUS = "gpus"


@dataclass(slots=True)
class Planted:
    """A fault for the next `count` requests of `path`, or of any path."""

    fault: str
    count: int
    path: DoorPath | None = None
    delay_s: float = 0.0


class DoorFaults:
    """The faults that still wait for a request."""

    def __init__(self) -> None:
        self._planted: list[Planted] = []

    def plant(self, fault: Planted) -> None:
        """Let the next requests meet `fault`."""
        assert fault.count > 0, "a fault is planted for at least one request"
        self._planted.append(fault)

    def clear(self) -> None:
        """Let nothing more go wrong."""
        self._planted.clear()

    def listing(self) -> list[dict[str, object]]:
        """What is planted, with the number of requests left."""
        return [
            {"fault": fault.fault, "count": fault.count, "path": fault.path, "delay_s": fault.delay_s}
            for fault in self._planted
        ]

    def take(self, fault: str, path: DoorPath | None) -> Planted | None:
        """The first fault of this kind that fits, counted down; None if all is well."""
        for planted in self._planted:
            if planted.fault == fault and planted.path in (None, path):
                planted.count -= 1
                if planted.count == 0:
                    self._planted.remove(planted)
                return planted
        return None


class FaultyDoor:
    """The application behind a door that may answer late or never."""

    def __init__(self, app: ASGIApp, faults: DoorFaults) -> None:
        self._app, self._faults = app, faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, with whatever is planted for it."""
        if scope["type"] != "http" or scope["path"].startswith(("/v1/faults", "/-/")):
            await self._app(scope, receive, send)
            return
        path = door_path(scope["method"], scope["path"])
        if self._faults.take("forget_reply", path) is not None:
            await self._app(scope, receive, _nowhere)
            await _cut(scope, receive)
            return
        late = self._faults.take("answer_late", path)
        if late is None:
            await self._app(scope, receive, send)
            return
        answer: list[Message] = []

        async def keep(message: Message) -> None:
            answer.append(message)

        await self._app(scope, receive, keep)
        await asyncio.sleep(late.delay_s)
        for message in answer:
            await send(message)


def door_path(method: str, path: str) -> DoorPath | None:
    """Which request this is, as far as faults tell them apart."""
    if path == "/v1/objects":
        return DoorPath.CREATE if method == "POST" else DoorPath.LIST
    if path.startswith("/v1/objects/"):
        return DoorPath.SUSPEND if method == "PATCH" else None
    if path == "/v1/nodes":
        return DoorPath.NODES
    return DoorPath.GPUS if path.endswith("/gpus") else None


async def _nowhere(message: Message) -> None:
    """Where an answer goes that nobody will get."""


async def _cut(scope: Scope, receive: Receive) -> None:
    scope["extensions"][CUT]["abort"]()
    while (await receive())["type"] != "http.disconnect":
        pass
