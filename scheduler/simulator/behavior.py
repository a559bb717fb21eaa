"""What the pods of an object do by themselves, read from its `simulate.gpuhub/...` annotations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.simulator.load import DEFAULT_LOAD, Load, milliseconds, read_load

PREFIX = "simulate.gpuhub/"

_KNOWN = ("duration_s", "exit_code", "start_s", "stop_s", "load")


class BadAnnotation(ValueError):
    """An annotation that the simulated cluster cannot read; `key` says which."""

    def __init__(self, key: str, detail: str) -> None:
        super().__init__(detail)
        self.key = key


@dataclass(frozen=True, slots=True)
class Behavior:
    """How long the pods take to start, to run and to die, how they exit, and how busy they are."""

    duration_ms: int
    exit_code: int
    start_ms: int
    stop_ms: int
    load: Load


def read_behavior(annotations: Mapping[str, str], walltime_ms: int) -> Behavior:
    """The behaviour that the annotations ask for, defaults filled in. Raises BadAnnotation."""
    for key in annotations:
        if key.startswith(PREFIX) and key.removeprefix(PREFIX) not in _KNOWN:
            raise BadAnnotation(key, f"unknown; known are {', '.join(_KNOWN)}")
    duration_ms = _milliseconds(annotations, "duration_s", walltime_ms // 2)
    return Behavior(
        # Never nothing: of the events of one millisecond all ends come before all starts.
        duration_ms=max(1, duration_ms),
        exit_code=_exit_code(annotations),
        start_ms=_milliseconds(annotations, "start_s", 1000),
        stop_ms=_milliseconds(annotations, "stop_s", 1000),
        load=_load(annotations, duration_ms),
    )


def _milliseconds(annotations: Mapping[str, str], word: str, otherwise_ms: int) -> int:
    text = annotations.get(PREFIX + word)
    if text is None:
        return otherwise_ms
    try:
        return milliseconds(text)
    except ValueError as trouble:
        raise BadAnnotation(PREFIX + word, str(trouble)) from trouble


def _exit_code(annotations: Mapping[str, str]) -> int:
    text = annotations.get(PREFIX + "exit_code", "0")
    if not (text.isascii() and text.isdigit() and int(text) <= 255):
        raise BadAnnotation(PREFIX + "exit_code", f"{text!r} is not an exit code from 0 to 255")
    return int(text)


def _load(annotations: Mapping[str, str], duration_ms: int) -> Load:
    text = annotations.get(PREFIX + "load", DEFAULT_LOAD)
    try:
        return read_load(text, duration_ms)
    except ValueError as trouble:
        raise BadAnnotation(PREFIX + "load", str(trouble)) from trouble
