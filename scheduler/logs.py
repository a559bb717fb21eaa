"""Logs for the quota service, and for nobody else: opened on the clusters, passed on, and ended when nobody reads.

A reader that leaves is noticed while the log is silent, too: what it waits on is interrupted, so neither thread
nor connection stays behind.
"""

from __future__ import annotations

import hmac
import selectors
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from scheduler.clusters.logs import LogRequest, LogStream
from scheduler.clusters.port import Cluster, ClusterUnavailable


class TooManyLogs(Exception):
    """As many logs are open as may be."""


class LogDesk:
    """Opens logs for whoever carries the secret that the quota service gave with the lease."""

    def __init__(self, clusters: Mapping[str, Cluster], secret: Callable[[], str], at_once: int) -> None:
        """`secret` answers nothing while this process does not lead."""
        self._clusters = clusters
        self._secret = secret
        self._at_once = at_once
        self._lock = threading.Lock()
        self._open: set[LogStream] = set()
        self._taken = 0
        self.is_closing = False
        """The process is about to end: what is open is not read to its end."""

    def admits(self, authorization: str) -> bool:
        """Whether an Authorization header carries the present secret."""
        secret = self._secret()
        return bool(secret) and hmac.compare_digest(authorization.encode(), f"Bearer {secret}".encode())

    @contextmanager
    def opened(
        self, cluster: str, name: str, pod_index: int, request: LogRequest, reader: socket.socket
    ) -> Iterator[LogStream]:
        """A log for as long as the block, at most `limit_s`, and no longer than its reader's connection.

        Raises TooManyLogs, NoLogs or ClusterUnavailable.
        """
        found = self._clusters.get(cluster)
        if found is None:
            raise ClusterUnavailable(f"this scheduler has no cluster {cluster}")
        with self._place(), found.logs(name, pod_index, request) as stream:
            with self._lock:
                self._open.add(stream)
                late = self.is_closing
            if late:
                stream.interrupt()
            try:
                with _interrupted_when_gone(stream, reader, request.limit_s):
                    yield stream
            finally:
                with self._lock:
                    self._open.discard(stream)

    def open_now(self) -> int:
        """How many logs are being read."""
        with self._lock:
            return self._taken

    def close(self) -> None:
        """End all that is open."""
        with self._lock:
            self.is_closing = True
            streams = list(self._open)
        for stream in streams:
            stream.interrupt()

    @contextmanager
    def _place(self) -> Iterator[None]:
        with self._lock:
            if self._taken >= self._at_once:
                raise TooManyLogs(f"{self._at_once} logs are open")
            self._taken += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken -= 1


@contextmanager
def _interrupted_when_gone(stream: LogStream, reader: socket.socket, limit_s: float) -> Iterator[None]:
    """Watch from a second thread: the reader sends nothing more, so whatever comes from it is its end."""
    done, woken = socket.socketpair()

    def watch() -> None:
        with selectors.DefaultSelector() as either:
            either.register(reader, selectors.EVENT_READ)
            either.register(woken, selectors.EVENT_READ)
            either.select(limit_s)
        stream.interrupt()

    watcher = threading.Thread(target=watch, name="log-watch", daemon=True)
    with done, woken:
        watcher.start()
        try:
            yield
        finally:
            done.shutdown(socket.SHUT_RDWR)
            watcher.join()
