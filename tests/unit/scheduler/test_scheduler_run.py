"""Rounds of the loop, one by one: whose term it is, and what ends it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from quota.client import ServiceUnavailable
from quota.schemas.scheduling import FeedPage
from scheduler.clusters.port import Observation
from scheduler.crash import CrashPlan
from scheduler.inbox import Inbox, Observed
from scheduler.metrics import Metrics
from scheduler.run import Lines, Scheduler
from scheduler.settings import Settings
from scheduler.streams import SteppedDown
from scheduler.term import Term
from tests.unit.scheduler.cluster_model import ClusterModel, Time
from tests.unit.scheduler.quota_model import QuotaModel
from tests.unit.scheduler.scheduler_world import HandClock


class QuietFeed(QuotaModel):
    """A service whose feed has nothing to say until the test is over."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.over = threading.Event()

    def follow_feed(self, after: int, wait_s: float = 25.0, limit: int = 2000) -> FeedPage:
        """Wait."""
        self.over.wait()
        raise ServiceUnavailable("over")


@pytest.fixture
def quota() -> Iterator[QuietFeed]:
    """Ends the feed's threads."""
    model = QuietFeed(Time())
    yield model
    model.over.set()


def a_scheduler(quota: QuietFeed) -> Scheduler:
    """A process whose threads have not been started."""
    lines = Lines(quota, quota, quota)
    clusters = {"sim": ClusterModel(quota.time)}
    settings = Settings(holder="one", clusters={"sim": "http://127.0.0.1:9"})
    return Scheduler(settings, HandClock(quota.time), lines, clusters, Metrics(), CrashPlan())


def a_leader(quota: QuietFeed) -> Scheduler:
    """After the lease was taken and the snapshot was loaded."""
    scheduler = a_scheduler(quota)
    assert scheduler.readiness().reason == "starting"
    scheduler._keeper.keep_once()
    scheduler.turn()
    while not scheduler.readiness().ready:
        scheduler._inbox.wait(5)
        scheduler.turn()
    return scheduler


def test_standby_does_nothing_but_look(quota: QuietFeed) -> None:
    scheduler = a_scheduler(quota)
    scheduler.turn()
    assert not scheduler.readiness().ready
    assert scheduler.waiting() == []


def test_leader_is_ready_once_the_snapshot_is_loaded(quota: QuietFeed) -> None:
    scheduler = a_leader(quota)
    assert scheduler.readiness().reason == "epoch 1"
    scheduler.stop()


@pytest.mark.parametrize(
    ("error", "epoch"),
    [(ZeroDivisionError(), 2), (SteppedDown("stale_sequence"), 2)],
)
def test_error_in_a_step_ends_the_term_and_a_new_epoch_begins(
    quota: QuietFeed, monkeypatch: pytest.MonkeyPatch, error: Exception, epoch: int
) -> None:
    scheduler = a_leader(quota)

    def fail(_: Term) -> None:
        raise error

    monkeypatch.setattr(Term, "step", fail)
    scheduler.turn()
    assert scheduler.readiness().reason == "taking_over_again"
    scheduler._keeper.keep_once()
    assert quota.epoch == epoch
    scheduler.turn()
    assert scheduler.readiness().reason == "loading", "it rests a moment first"


def test_superseded_leader_stands_aside(quota: QuietFeed, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = a_leader(quota)

    def fail(_: Term) -> None:
        raise SteppedDown("stale_epoch")

    monkeypatch.setattr(Term, "step", fail)
    scheduler.turn()
    assert scheduler.readiness().reason == "superseded"
    scheduler._keeper.keep_once()
    assert quota.epoch == 1
    assert scheduler.readiness().reason == "lease_held"


def test_watermark_alone_does_not_wake_the_loop() -> None:
    inbox = Inbox()
    inbox.put(Observed("sim", Observation(5, False, (), (), None), 5))
    assert not inbox._bell.is_set()
    inbox.put(Observed("sim", Observation(6, True, (), (), None), 6))
    assert inbox._bell.is_set()
    assert len(list(inbox.drain())) == 2
