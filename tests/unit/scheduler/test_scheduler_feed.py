"""Snapshot, feed and replies reach the cache in any order; the greater sequence wins."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.client import ServiceProblem
from quota.schemas.scheduling import FeedItem, SnapshotPage
from scheduler.cache import Cache
from scheduler.feed import FeedFollower, FeedNews, FeedRead, SnapshotTaken
from tests.unit.scheduler.cluster_model import Time
from tests.unit.scheduler.quota_book import problem
from tests.unit.scheduler.quota_model import QuotaModel
from tests.unit.scheduler.quota_objects import a_job


def a_job_item(seq: int, attempt: int = 0, job_id: str = "job-1") -> FeedItem:
    """A job as of a sequence."""
    return FeedItem(kind="job", id=job_id, seq=seq, job=a_job(job_id, attempt=attempt))


def a_tombstone(seq: int, job_id: str = "job-1") -> FeedItem:
    """A job that has ended."""
    return FeedItem(kind="job", id=job_id, seq=seq, gone=True)


@pytest.mark.parametrize(
    "order", list(permutations([a_job_item(1), a_job_item(2, attempt=1), a_tombstone(3)]))
)
def test_tombstone_stays_whatever_arrives_late(order: tuple[FeedItem, ...]) -> None:
    cache = Cache()
    for item in order:
        cache.apply([item])
    assert cache.job("job-1") is None
    assert cache.changes()[-1].gone


@given(st.permutations([a_job_item(seq, attempt=seq) for seq in range(1, 7)]))
def test_newest_version_wins(order: list[FeedItem]) -> None:
    cache = Cache()
    for item in order:
        cache.apply([item])
    job = cache.job("job-1")
    assert job is not None
    assert job.attempt == 6


def test_changes_are_told_once_and_what_is_older_is_none() -> None:
    cache = Cache()
    cache.apply([a_job_item(5)])
    assert len(cache.changes()) == 1
    cache.apply([a_job_item(5), a_job_item(4)])
    assert cache.changes() == []
    cache.repeat("job", "job-1")
    assert len(cache.changes()) == 1


def test_snapshot_buries_what_it_does_not_list_unless_it_is_newer() -> None:
    cache = Cache()
    cache.apply([a_job_item(3, job_id="job-old"), a_job_item(9, job_id="job-new"), a_job_item(4)])
    cache.changes()
    cache.replace(6, [a_job_item(6, attempt=2)])
    assert {job.id for job in cache.jobs()} == {"job-1", "job-new"}
    assert {(item.id, item.gone) for item in cache.changes()} == {("job-old", True), ("job-1", False)}
    cache.apply([a_job_item(5, job_id="job-old")])
    assert cache.job("job-old") is None


def a_follower(quota: QuotaModel) -> tuple[FeedFollower, list[FeedNews]]:
    """A reader and what it told."""
    told: list[FeedNews] = []
    return FeedFollower(quota, 1, told.append, 0), told


def test_snapshot_comes_in_pages_and_the_feed_goes_on_from_its_cursor() -> None:
    quota = QuotaModel(Time())
    follower, told = a_follower(quota)
    follower.follow_once()
    quota.submit("job-1")
    follower.follow_once()
    snapshot, feed = told
    assert isinstance(snapshot, SnapshotTaken)
    assert {item.kind for item in snapshot.items} == {
        "policy",
        "cluster",
        "gpu_class",
        "organization",
        "grant",
    }
    assert isinstance(feed, FeedRead)
    assert [item.id for item in feed.items] == ["job-1"]
    follower.follow_once()
    assert len(told) == 2


def test_expired_cursor_means_a_new_snapshot() -> None:
    quota = QuotaModel(Time())
    follower, told = a_follower(quota)
    follower.follow_once()
    quota.submit("job-1")
    quota.expire_cursors()
    follower.follow_once()
    follower.follow_once()
    assert isinstance(told[-1], SnapshotTaken)
    assert "job-1" in {item.id for item in told[-1].items}


def test_other_refusals_are_for_the_caller() -> None:
    follower, told = a_follower(Closed(Time()))
    with pytest.raises(ServiceProblem, match="forbidden"):
        follower.follow_once()
    assert told == []


class Closed(QuotaModel):
    """A service that does not let us in."""

    def read_snapshot(self, after: str | None = None, limit: int = 3) -> SnapshotPage:
        """Refuse."""
        raise problem(403, "forbidden")
