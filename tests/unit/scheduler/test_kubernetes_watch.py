"""The mirror of one kind of object: events lost, doubled, reordered, and lists that know better."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest

from scheduler.clusters.kubernetes.api import Pace
from scheduler.clusters.kubernetes.watch import Gone, Mirror, version_number
from scheduler.clusters.port import ClusterUnavailable


@dataclass(frozen=True)
class Thing:
    uid: str
    value: str


def thing(uid: str, version: int, value: str = "") -> dict:
    return {"metadata": {"uid": uid, "resourceVersion": str(version)}, "value": value}


def event(kind: str, uid: str, version: int, value: str = "") -> dict:
    return {"type": kind, "object": thing(uid, version, value)}


class Told:
    """A mirror and all changes that it told."""

    def __init__(self) -> None:
        self.changes: list[tuple[str | None, str | None]] = []
        self.mirror: Mirror[Thing] = Mirror("things", self._read, self._take, threading.Condition())

    @staticmethod
    def _read(raw: dict) -> Thing | None:
        return None if raw["value"] == "unwanted" else Thing(raw["metadata"]["uid"], raw["value"])

    def _take(self, changes) -> None:
        for change in changes:
            before, after = (None if one is None else one.value for one in (change.before, change.after))
            self.changes.append((before, after))

    def news(self) -> list[tuple[str | None, str | None]]:
        news, self.changes = self.changes, []
        return news


@pytest.fixture
def told() -> Told:
    told = Told()
    told.mirror.replace([thing("a", 5, "one"), thing("b", 6, "two")], "10")
    assert told.news() == [(None, "one"), (None, "two")]
    return told


def test_event_changes_one_object_and_moves_the_version(told):
    told.mirror.take(event("MODIFIED", "a", 11, "changed"))
    assert told.news() == [("one", "changed")]
    assert told.mirror.version == 11


def test_bookmark_moves_only_the_version(told):
    told.mirror.take({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "15"}}})
    assert (told.news(), told.mirror.version) == ([], 15)


def test_event_that_comes_twice_is_told_once(told):
    for _ in range(2):
        told.mirror.take(event("MODIFIED", "a", 11, "changed"))
    assert told.news() == [("one", "changed")]


def test_older_event_after_a_newer_one_is_left_out(told):
    told.mirror.take(event("MODIFIED", "a", 12, "newest"))
    told.mirror.take(event("MODIFIED", "a", 11, "older"))
    assert told.news() == [("one", "newest")]
    assert told.mirror.version == 12


def test_deletion_tells_the_last_state(told):
    told.mirror.take(event("DELETED", "a", 11, "its end"))
    assert told.news() == [("its end", None)]


def test_event_after_the_deletion_brings_nothing_back(told):
    told.mirror.take(event("DELETED", "a", 12, "its end"))
    told.mirror.take(event("MODIFIED", "a", 11, "late"))
    assert told.news() == [("its end", None)]


def test_object_that_is_not_wanted_any_more_goes(told):
    told.mirror.take(event("MODIFIED", "a", 11, "unwanted"))
    assert told.news() == [("one", None)]


def test_list_repairs_what_the_watches_missed(told):
    told.mirror.replace([thing("b", 20, "other"), thing("c", 21, "new")], "30")
    assert told.news() == [("one", None), ("two", "other"), (None, "new")]
    assert (told.mirror.version, told.mirror.repaired) == (30, 3)


def test_list_that_knows_nothing_new_tells_nothing(told):
    told.mirror.replace([thing("a", 5, "one"), thing("b", 6, "two")], "40")
    assert told.news() == []
    assert told.mirror.repaired == 0


def test_expired_version_is_told_from_other_errors(told):
    with pytest.raises(Gone):
        told.mirror.take({"type": "ERROR", "object": {"code": 410, "message": "too old"}})
    with pytest.raises(ClusterUnavailable, match="etcd is away"):
        told.mirror.take({"type": "ERROR", "object": {"code": 500, "message": "etcd is away"}})


@pytest.mark.parametrize("text", ["", "v1", "-1", "1.5"])
def test_server_that_counts_otherwise_is_refused(text):
    with pytest.raises(ClusterUnavailable, match="not a number"):
        version_number(text)


class TestPace:
    @staticmethod
    def paced(qps: float, burst: int) -> tuple[Pace, list[float], list[float]]:
        now, slept = [0.0], []
        return Pace(qps, burst, lambda: now[0], slept.append), now, slept

    def test_burst_goes_at_once_and_then_in_turn(self):
        pace, _, slept = self.paced(10, 2)
        for _ in range(4):
            pace.take()
        assert slept == [pytest.approx(0.1), pytest.approx(0.2)]

    def test_rest_fills_the_bucket_only_to_its_brim(self):
        pace, now, slept = self.paced(10, 2)
        now[0] = 1000.0
        for _ in range(3):
            pace.take()
        assert slept == [pytest.approx(0.1)]

    def test_pause_that_the_server_asks_for_holds_everyone(self):
        pace, _, slept = self.paced(10, 5)
        pace.hold(3.0)
        pace.take()
        assert slept == [pytest.approx(3.1)]
