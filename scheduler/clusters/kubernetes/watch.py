"""List and watch one kind of object: a mirror that is never ahead of the API server and knows how far it is.

The official client's own watches are not used: they resume from the version of the last object, repeat old
events, stop at a 410 or hang on a half-open connection (see `docs/kubernetes.md`).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import structlog

from scheduler.backoff import Backoffs
from scheduler.clusters.kubernetes.api import Json, KubernetesApi
from scheduler.clusters.port import ClusterUnavailable

PAGE = 500
READ_SLACK_S = 6.0
"""A watch that is silent this much longer than it may last has lost its other end."""
PAUSE_S = 0.05
"""Between two watches that both ended as they should."""
DELETED_KEPT = 10_000

log = structlog.get_logger()


class Facts(Protocol):
    """What a mirror needs of an object."""

    @property
    def uid(self) -> str: ...


F = TypeVar("F", bound=Facts)


class Gone(Exception):
    """The server does not remember the version from which a watch was to go on."""


@dataclass(frozen=True, slots=True)
class Change(Generic[F]):
    """One object as it was and as it is; None: it was not, or is not, there."""

    before: F | None
    after: F | None


class Mirror(Generic[F]):
    """The objects of one kind. Fed by one thread; the lock and the bell are its owner's."""

    def __init__(
        self,
        kind: str,
        read: Callable[[Json], F | None],
        tell: Callable[[list[Change[F]]], None],
        lock: threading.Condition,
    ) -> None:
        """`read` turns an object into facts, or None for one that is not wanted. `tell` is called under the lock."""
        self.kind = kind
        self._read = read
        self._tell = tell
        self._lock = lock
        self._objects: dict[str, tuple[int, F]] = {}
        self._deleted: dict[str, None] = {}
        self.version = 0
        """Everything up to this resource version is in here; 0: nothing was listed yet."""
        self.repaired = 0
        """Objects about which a later list knew better than the watches."""

    def get(self, uid: str) -> F | None:
        """One object as last seen; to be asked under the lock."""
        known = self._objects.get(uid)
        return None if known is None else known[1]

    def replace(self, things: list[Json], version: str) -> None:
        """All objects there are, as listed at this version."""
        listed: dict[str, tuple[int, F]] = {}
        for thing in things:
            facts = self._read(thing)
            if facts is not None:
                listed[facts.uid] = (version_number(thing["metadata"]["resourceVersion"]), facts)
        with self._lock:
            first = not self.version
            changes: list[Change[F]] = []
            for uid, (_, before) in self._objects.items():
                if uid not in listed:
                    changes.append(Change(before, None))
                    self._remember_deleted(uid)
            for uid, (_, after) in listed.items():
                known = self._objects.get(uid)
                if known is None or known[1] != after:
                    changes.append(Change(None if known is None else known[1], after))
            self._objects = listed
            self.version = version_number(version)
            self.repaired += 0 if first else len(changes)
            self._tell(changes)
            self._lock.notify_all()

    def take(self, event: Json) -> None:
        """One line of a watch. Raises Gone or ClusterUnavailable for what the server calls an error."""
        kind, thing = event["type"], event["object"]
        if kind == "ERROR":
            if thing.get("code") == 410:
                raise Gone(thing.get("message", "expired"))
            raise ClusterUnavailable(f"watch of {self.kind}: {thing.get('message', thing)}")
        version = version_number(thing["metadata"]["resourceVersion"])
        facts = None if kind == "BOOKMARK" else self._read(thing)
        with self._lock:
            if facts is not None:
                change = self._delete(facts) if kind == "DELETED" else self._put(facts, version)
                if change is not None:
                    self._tell([change])
                    self._lock.notify_all()
            elif kind not in ("BOOKMARK", "DELETED"):
                self._unwant(thing["metadata"]["uid"])
            if version > self.version:
                self.version = version
                self._lock.notify_all()

    def _put(self, facts: F, version: int) -> Change[F] | None:
        known = self._objects.get(facts.uid)
        if facts.uid in self._deleted or (known is not None and known[0] >= version):
            return None  # an event that came twice, or too late
        self._objects[facts.uid] = (version, facts)
        before = None if known is None else known[1]
        return None if before == facts else Change(before, facts)

    def _delete(self, facts: F) -> Change[F] | None:
        """The event carries the last state, which may be the only one that tells its end."""
        self._remember_deleted(facts.uid)
        known = self._objects.pop(facts.uid, None)
        return None if known is None else Change(facts, None)

    def _unwant(self, uid: str) -> None:
        known = self._objects.pop(uid, None)
        if known is not None:
            self._tell([Change(known[1], None)])

    def _remember_deleted(self, uid: str) -> None:
        self._deleted[uid] = None
        while len(self._deleted) > DELETED_KEPT:
            del self._deleted[next(iter(self._deleted))]


class Reflector(Generic[F]):
    """Keeps a mirror up to date in a thread of its own, until it is told to stop."""

    def __init__(
        self,
        api: KubernetesApi,
        path: str,
        mirror: Mirror[F],
        *,
        selector: str | None,
        watch_s: int,
        relist_s: float,
        stopping: threading.Event,
    ) -> None:
        self._api = api
        self._path = path
        self._mirror = mirror
        self._selector = selector
        self._watch_s = watch_s
        self._relist_s = relist_s
        self._stopping = stopping
        self._listed_s = float("-inf")
        self._must_list = True
        self.trouble = ""
        """Why the last attempt failed; empty when it did not."""

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name=f"watch-{self._mirror.kind}", daemon=True).start()

    def follow_once(self) -> None:
        """List if need be, then watch until the server ends the watch. Raises ClusterUnavailable."""
        if self._must_list or time.monotonic() > self._listed_s + self._relist_s:
            self._list()
        try:
            for event in self._events():
                self._mirror.take(event)
                if self._stopping.is_set():
                    return
        except Gone as gone:
            log.info("watch_expired", kind=self._mirror.kind, detail=str(gone))
            self._must_list = True

    def _run(self) -> None:
        pauses: Backoffs[str] = Backoffs(random.Random(), time.monotonic, first_s=0.5, longest_s=15.0)
        while not self._stopping.is_set():
            try:
                self.follow_once()
            except ClusterUnavailable as trouble:
                self._failed(str(trouble), pauses)
            except (
                Exception
            ) as trouble:  # this thread's edge: without it the mirror would stand still for ever
                log.exception("watch_failed", kind=self._mirror.kind)
                self._must_list = True
                self._failed(repr(trouble), pauses)
            else:
                self.trouble = ""
                pauses.succeeded("watch")
                self._stopping.wait(PAUSE_S)

    def _failed(self, trouble: str, pauses: Backoffs[str]) -> None:
        self.trouble = trouble
        if not self._stopping.is_set():
            pause_s = pauses.failed("watch")
            log.warning(
                "watch_unavailable", kind=self._mirror.kind, trouble=trouble, again_in_s=round(pause_s, 1)
            )
            self._stopping.wait(pause_s)

    def _list(self) -> None:
        while True:
            try:
                things, version = self._pages()
                break
            except Gone:
                continue  # it took too long and the first page is forgotten: from the start
        self._mirror.replace(things, version)
        self._must_list = False
        self._listed_s = time.monotonic()

    def _pages(self) -> tuple[list[Json], str]:
        things: list[Json] = []
        going_on: str | None = None
        while True:
            page = self._api.get(
                self._path, fine=(410,), limit=PAGE, labelSelector=self._selector, **{"continue": going_on}
            )
            if page.status == 410:
                raise Gone(page.message)
            things += page.body.get("items") or ()
            metadata = page.body["metadata"]
            going_on = metadata.get("continue") or None
            if going_on is None:
                return things, metadata["resourceVersion"]

    def _events(self) -> Iterator[Json]:
        return self._api.lines(
            self._path,
            self._watch_s + READ_SLACK_S,
            expired=Gone,
            watch=True,
            allowWatchBookmarks=True,
            resourceVersion=str(self._mirror.version),
            timeoutSeconds=self._watch_s,
            labelSelector=self._selector,
        )


def version_number(text: str) -> int:
    """A resource version as a number: on one server a later state of anything has a greater one.

    The API guarantees this order (comparable resource versions, since Kubernetes 1.35; before it was so too).
    Raises ClusterUnavailable for a server that counts otherwise.
    """
    if not text.isdecimal():
        raise ClusterUnavailable(
            f"resource version {text!r} is not a number: this API server is not supported"
        )
    return int(text)
