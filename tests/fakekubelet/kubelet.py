"""A kubelet's PodResources socket: grpcio's server, and a list that tests change."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import grpc

from tests.fakekubelet.messages import FakePod, allocatable, response

SERVICE = "v1.PodResourcesLister"


class FakeKubelet:
    """Serves `pods` and `offered` on `socket` while it is started; `refuse` and `delay_s` are its moods."""

    def __init__(self, socket: Path, offered: dict[str, list[str]] | None = None) -> None:
        self.socket = socket
        self.pods: list[FakePod] = []
        self.offered = offered
        """Healthy devices by resource; None: an old kubelet, which does not have the method."""
        self.refuse_offered: grpc.StatusCode | None = None
        self.asked_offered = 0
        self.refuse: grpc.StatusCode | None = None
        self.delay_s = 0.0
        self.raw: bytes | None = None
        """Answered instead of the list."""
        self.before_answer: Callable[[], None] = lambda: None
        """Called with every question: lets the list change."""
        self.asked = 0
        self.changed = threading.Condition()
        self._server: grpc.Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on a new socket."""
        self.socket.unlink(missing_ok=True)
        self._server = grpc.server(ThreadPoolExecutor(4))
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(method)
            for name, method in (("List", self._list), ("GetAllocatableResources", self._offer))
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        assert self._server.add_insecure_port(f"unix:{self.socket}")
        self._server.start()

    def stop(self) -> None:
        """Go away; the socket's file goes, too."""
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None
        self.socket.unlink(missing_ok=True)

    def wait_asked(self, times: int = 2, timeout_s: float = 30) -> None:
        """Until it was asked so many times more: the last but one of the answers has been taken by then."""
        with self.changed:
            until = self.asked + times
            assert self.changed.wait_for(lambda: self.asked >= until, timeout_s), "the agent does not ask"

    def _list(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        with self.changed:
            self.asked += 1
            self.changed.notify_all()
        self.before_answer()
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.refuse is not None:
            context.abort(self.refuse, "not now: not a good moment")
        assert request == b""
        return response(self.pods) if self.raw is None else self.raw

    def _offer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.asked_offered += 1
        if self.refuse_offered is not None:
            context.abort(self.refuse_offered, "not now")
        if self.offered is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method GetAllocatableResources")
        assert request == b""
        return allocatable(self.offered or {})
