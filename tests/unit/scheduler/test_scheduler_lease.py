"""The lease by the holder's own monotonic clock, and who may take it back."""

from __future__ import annotations

from collections.abc import Callable

from quota.client import ServiceUnavailable
from quota.schemas.scheduling import LeaseReply, LeaseRequest
from scheduler.lease import LeaseKeeper
from tests.unit.scheduler.cluster_model import Time
from tests.unit.scheduler.quota_book import problem
from tests.unit.scheduler.quota_model import QuotaModel


class Desk:
    """Quota's lease, with something that happens while the answer is under way."""

    def __init__(self, time: Time) -> None:
        self.quota = QuotaModel(time)
        self.asked: list[LeaseRequest] = []
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    def take_lease(self, body: LeaseRequest) -> LeaseReply:
        """Ask quota."""
        self.asked.append(body)
        self.before()
        reply = self.quota.take_lease(body)
        self.after()
        return reply


def a_keeper(desk: Desk, holder: str = "one") -> LeaseKeeper:
    """A process that wants to lead."""
    numbers = iter(range(1, 100))
    return LeaseKeeper(
        desk,
        holder,
        monotonic_s=desk.quota.time.monotonic_s,
        new_instance=lambda: f"{holder}-instance-{next(numbers)}",
    )


def fail(error: Exception) -> Callable[[], None]:
    """Something that goes wrong."""

    def raise_it() -> None:
        raise error

    return raise_it


def test_lease_runs_from_before_the_request_was_sent() -> None:
    desk = Desk(Time())
    desk.after = lambda: setattr(desk.quota.time, "now_ms", desk.quota.time.now_ms + 14_000)
    keeper = a_keeper(desk)
    assert keeper.keep_once()
    assert keeper.lease() is not None
    desk.quota.time.now_ms += 600
    assert keeper.lease() is None
    assert not keeper.holds(1)
    assert keeper.latest() is not None


def test_renewal_keeps_epoch_and_streams() -> None:
    desk = Desk(Time())
    keeper = a_keeper(desk)
    keeper.keep_once()
    first = keeper.lease()
    desk.quota.time.now_ms += 5_000
    desk.quota.streams.clear()
    keeper.keep_once()
    second = keeper.lease()
    assert first is not None
    assert second is not None
    assert (second.epoch, second.streams) == (first.epoch, first.streams)
    assert second.valid_until_s == first.valid_until_s + 5
    assert [request.epoch for request in desk.asked] == [None, 1]


def test_unanswered_renewal_leaves_the_lease_until_it_runs_out() -> None:
    desk = Desk(Time())
    keeper = a_keeper(desk)
    keeper.keep_once()
    desk.before = fail(ServiceUnavailable("no"))
    desk.quota.time.now_ms += 10_000
    assert keeper.keep_once()
    desk.quota.time.now_ms += 5_000
    assert not keeper.keep_once()
    desk.before = lambda: None
    assert keeper.keep_once()
    assert keeper.holds(1), "nobody took over: the same epoch goes on"


def test_other_refusal_than_409_is_no_loss() -> None:
    desk = Desk(Time())
    keeper = a_keeper(desk)
    keeper.keep_once()
    desk.before = fail(problem(401, "unauthenticated"))
    assert keeper.keep_once()


def test_standby_waits_until_the_leader_stops() -> None:
    desk = Desk(Time())
    leader, standby = a_keeper(desk, "one"), a_keeper(desk, "two")
    leader.keep_once()
    assert not standby.keep_once()
    assert standby.standby_reason == "lease_held"
    desk.quota.time.now_ms += 15_001
    assert standby.keep_once()
    assert standby.holds(2)
    assert not leader.keep_once()
    assert leader.latest() is None


def test_superseded_leader_does_not_take_the_lease_back_under_the_shared_name() -> None:
    desk = Desk(Time())
    old, new = a_keeper(desk), a_keeper(desk)
    old.keep_once()
    new._instance = "one-instance-of-the-next-start"
    assert new.keep_once()
    assert not old.keep_once()
    assert not old.keep_once()
    assert new.keep_once()
    assert new.holds(2)
    assert desk.asked[-2].holder.startswith("one~")


def test_step_down_takes_over_anew_with_another_epoch() -> None:
    desk = Desk(Time())
    keeper = a_keeper(desk)
    keeper.keep_once()
    keeper.step_down(1, superseded=False)
    assert keeper.latest() is None
    keeper.keep_once()
    assert keeper.holds(2)
    keeper.step_down(1, superseded=False)
    assert keeper.holds(2), "an epoch that is not held cannot be given up"


def test_answer_that_comes_after_stepping_down_is_ignored() -> None:
    desk = Desk(Time())
    keeper = a_keeper(desk)
    keeper.keep_once()
    desk.after = lambda: keeper.step_down(1, superseded=False)
    assert not keeper.keep_once()
    assert keeper.latest() is None
