"""Events of GPUs: XIDs above all, each told once by the driver."""

from __future__ import annotations

import time

import pynvml

from agents.gpus.nvml import wire
from agents.gpus.nvml.codes import EVENT_TYPES
from agents.gpus.nvml.driver.library import Refused, address, ask, identity

TIMEOUT = 10


class EventSet:
    """Waits for events of GPUs. Raises Refused from everything but `close`."""

    def __init__(self, indices: range) -> None:
        self._set = ask("event_set", pynvml.nvmlEventSetCreate)
        self._uuids: dict[int, str] = {}
        self.refused: dict[int, int] = {}
        """GPUs (by index) that events cannot be had of, and the code."""
        for index in indices:
            try:
                self._register(index)
            except Refused as refused:
                self.refused[index] = refused.code

    def _register(self, index: int) -> None:
        handle = ask("handle", lambda: pynvml.nvmlDeviceGetHandleByIndex(index))
        uuid = ask("uuid", lambda: identity(handle))
        offered = ask("event_types", lambda: pynvml.nvmlDeviceGetSupportedEventTypes(handle))
        wanted = offered & sum(EVENT_TYPES)
        if wanted:
            ask("event_register", lambda: pynvml.nvmlDeviceRegisterEvents(handle, wanted, self._set))
        self._uuids[address(handle)] = uuid

    def wait(self, timeout_ms: int) -> wire.Event | None:
        """The next event, or None if there was none in time. Raises Refused."""
        try:
            data = ask("event_wait", lambda: pynvml.nvmlEventSetWait_v2(self._set, timeout_ms))
        except Refused as refused:
            if refused.code == TIMEOUT:
                return None
            raise
        uuid = self._uuids.get(address(data.device), "")
        return wire.Event(uuid, time.time_ns() // 1000, int(data.eventType), int(data.eventData))

    def close(self) -> None:
        """Give the set back."""
        try:
            ask("event_free", lambda: pynvml.nvmlEventSetFree(self._set))
        except Refused:
            return  # The library forgot it already.
