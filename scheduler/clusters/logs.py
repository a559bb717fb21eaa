"""The part of the `Cluster` port that is about logs: what is asked for, what comes, and why nothing may come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Protocol, Self


class ClusterUnavailable(Exception):
    """The cluster did not answer; nothing is known about what the call did."""


class NoLogsReason(StrEnum):
    """Why a pod has no log to read."""

    NOT_STARTED = "not_started"
    """It has not run yet; it may."""
    GONE = "gone"
    """Its pod is no more, and its log with it, or it never was."""


class NoLogs(Exception):
    """There is no log, and `reason` says why."""

    def __init__(self, reason: NoLogsReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class LogRequest:
    """Which part of a log."""

    tail_lines: int
    """The last so many lines of what there is at the beginning."""
    since_s: int | None = None
    """Only what was written in the last so many seconds of the cluster's time."""
    follow: bool = False
    """Go on with what is written until the pod ends."""
    timestamps: bool = False
    """Begin every line with when it was written."""
    limit_bytes: int = 10 * 1024 * 1024
    """Not much more than this is needed; an implementation may stop there."""
    limit_s: float = 600.0
    """For so long somebody reads, in wall seconds."""


class LogStream(Protocol):
    """One pod's log, oldest first. Whose block it is reads it; leaving the block gives its connection back."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __iter__(self) -> Iterator[bytes]:
        """Chunks as they come, until the log ends. Raises ClusterUnavailable where it breaks off."""
        ...

    def interrupt(self) -> None:
        """End it now, from any thread, also while another waits for its next chunk. Again does nothing."""
        ...


class OpenLog:
    """A `LogStream` over a connection."""

    def __init__(
        self, chunks: Iterator[bytes], shut: Callable[[], None], release: Callable[[], None]
    ) -> None:
        """`shut` lets a read that is under way in another thread find the end; `release` ends the connection."""
        self._chunks = chunks
        self._shut = shut
        self._release = release
        self._interrupted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def __iter__(self) -> Iterator[bytes]:
        """Chunks as they come, until the log ends. Raises ClusterUnavailable where it breaks off."""
        try:
            for chunk in self._chunks:
                if self._interrupted:
                    return
                yield chunk
        except ClusterUnavailable:
            if not self._interrupted:
                raise

    def interrupt(self) -> None:
        """End it now, from any thread, also while another waits for its next chunk. Again does nothing."""
        self._interrupted = True
        self._shut()
