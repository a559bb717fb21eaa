"""How the library is called: one call at a time, each refusal for itself, no error but `Refused`.

`pynvml` has habits that are dealt with here: NVMLError is unhashable and compares with errors only, and texts are
decoded strictly (a name that is not UTF-8 would end the read).
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

from agents.gpus.nvml.codes import GARBAGE, Meaning, meaning_of

T = TypeVar("T")

Handle = Any
"""An opaque pointer of the library's."""

_UUID = re.compile(r"[A-Za-z0-9-]{4,80}")


class Refused(Exception):
    """The library said no: `operation` and its `code`."""

    def __init__(self, operation: str, code: int) -> None:
        super().__init__(f"{operation}: {code}")
        self.operation, self.code = operation, code


def ask(operation: str, call: Callable[[], T]) -> T:
    """Call the library. Raises Refused, with GARBAGE for an answer that cannot be decoded."""
    try:
        return call()
    except pynvml.NVMLError as error:
        raise Refused(operation, int(error.value)) from error
    except (ValueError, ctypes.ArgumentError) as error:
        raise Refused(operation, GARBAGE) from error


def start() -> None:
    """Load the library and begin; a node without GPUs is no error. Raises Refused."""
    try:
        ask("init", lambda: pynvml.nvmlInitWithFlags(pynvml.NVML_INIT_FLAG_NO_GPUS))
    except Refused as refused:
        if meaning_of(refused.code) is not Meaning.UNSUPPORTED:
            raise
        # Drivers before R384 know no flags.
        ask("init", lambda: pynvml._nvmlCheckReturn(pynvml._nvmlGetFunctionPointer("nvmlInit_v2")()))


def shutdown() -> None:
    """Give everything back. Raises Refused."""
    ask("shutdown", pynvml.nvmlShutdown)


def system(errors: dict[str, int]) -> tuple[str, int | None]:
    """The driver's version and how many GPUs it counts; what went wrong goes into `errors`."""
    driver, count = "", None
    try:
        driver = text(ask("driver_version", lambda: pynvml.nvmlSystemGetDriverVersion.__wrapped__()))
    except Refused as refused:
        errors[refused.operation] = refused.code
    try:
        count = int(ask("count", pynvml.nvmlDeviceGetCount))
    except Refused as refused:
        errors[refused.operation] = refused.code
    return driver, count


class Asking:
    """One read of one device: collects what was refused, and asks no more once the GPU is lost."""

    def __init__(self) -> None:
        self.errors: dict[str, int] = {}
        self.unsupported: set[str] = set()
        self.lost = False

    def ask(self, operation: str, *calls: Callable[[], T], no_news: bool = False) -> T | None:
        """The first call's answer that this driver has; `no_news`: not found is no error here."""
        refused = 0
        for call in calls:
            if self.lost:
                return None
            try:
                return ask(operation, call)
            except Refused as error:
                refused = error.code
            if meaning_of(refused) is not Meaning.UNSUPPORTED:
                break
        self.refuse(operation, refused, no_news)
        return None

    def refuse(self, operation: str, code: int, no_news: bool = False) -> None:
        """Note that an operation was answered with this code."""
        match meaning_of(code):
            case Meaning.UNSUPPORTED:
                self.unsupported.add(operation)
            case Meaning.NO_NEWS if no_news:
                return
            case meaning:
                self.errors[operation] = code
                self.lost = self.lost or meaning is Meaning.LOST


def identity(handle: Handle) -> str:
    """The UUID; raises ValueError for one that nobody could have given it."""
    uuid = text(pynvml.nvmlDeviceGetUUID.__wrapped__(handle))
    if not _UUID.fullmatch(uuid):
        raise ValueError(f"not a UUID: {uuid!r}")
    return uuid


def text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode("utf-8", "replace")


def address(handle: Handle) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def number(kind: int, value: Any) -> float:
    """A tagged union's number; one of an unknown kind is not believed."""
    fields = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
    found = getattr(value, fields[kind]) if 0 <= kind < len(fields) else math.nan
    return found if math.isfinite(found) else -1
