"""Streams to quota: what is lost, doubled or late takes effect once; a stale epoch takes none."""

from __future__ import annotations

import json

import pytest

from quota.client import ServiceUnavailable
from quota.schemas.scheduling import (
    DecisionItem,
    FindingItem,
    LeaseRequest,
    RankingDocument,
    StopItem,
    StopReason,
)
from scheduler.crash import CrashPlan
from scheduler.gateway import ClusterNews, Gateway
from scheduler.streams import SteppedDown
from tests.unit.scheduler.cluster_model import Time
from tests.unit.scheduler.quota_model import QuotaModel

STOP = StopItem(job_id="job-1", attempt=1, reason=StopReason.CANCELLED, stop_at=0, grace_ms=0)


def a_gateway(quota: QuotaModel, instance: str = "instance-1", *, held: bool = True) -> Gateway:
    """A leader's gateway after taking the lease."""
    lease = quota.take_lease(LeaseRequest(holder="one", instance=instance))
    return Gateway(quota, lease.epoch, lease.streams, lambda _: held, CrashPlan())


def news(*items: FindingItem, through_ms: int = 1_000) -> ClusterNews:
    """What a cluster shows."""
    return ClusterNews("sim", items, None, through_ms, 500)


def a_finding(number: int = 1) -> FindingItem:
    """Any report item."""
    return FindingItem(job_id="job-1", attempt=number, code="odd", detail="")


def seqs(quota: QuotaModel) -> list[int]:
    """The sequences of everything sent."""
    return [json.loads(body)["seq"] for body in quota.bodies]


@pytest.mark.parametrize("fault", ["drop", "forget", "late"])
def test_unknown_outcome_is_resent_byte_for_byte(fault: str) -> None:
    quota = QuotaModel(Time(), faults=[fault])
    gateway = a_gateway(quota)
    with pytest.raises(ServiceUnavailable):
        list(gateway.decide([STOP]))
    assert [answer.results[0].code for answer in gateway.resend()] == ["not_found"]
    quota.deliver_late()
    assert quota.bodies[0] == quota.bodies[1]
    assert list(gateway.resend()) == []
    assert seqs(quota) == [1, 1]
    list(gateway.decide([STOP]))
    assert seqs(quota) == [1, 1, 2]


def test_doubled_batch_takes_effect_once() -> None:
    quota = QuotaModel(Time(), faults=["double"])
    gateway = a_gateway(quota)
    list(gateway.report(news(a_finding())))
    assert len(quota.findings) == 1


def test_nothing_new_is_sent_while_an_outcome_is_unknown() -> None:
    quota = QuotaModel(Time(), faults=["drop"])
    gateway = a_gateway(quota)
    with pytest.raises(ServiceUnavailable):
        list(gateway.decide([STOP]))
    with pytest.raises(AssertionError, match="outcome of the last batch"):
        list(gateway.decide([STOP]))


def test_stale_epoch_steps_down_and_changes_nothing() -> None:
    quota = QuotaModel(Time())
    old = a_gateway(quota, "instance-1")
    new = a_gateway(quota, "instance-2")
    with pytest.raises(SteppedDown) as over:
        list(old.report(news(a_finding())))
    assert over.value.code == "stale_epoch"
    assert quota.findings == []
    list(new.report(news(a_finding())))
    assert len(quota.findings) == 1


def test_late_batch_of_an_old_epoch_is_refused() -> None:
    quota = QuotaModel(Time(), faults=["late"])
    old = a_gateway(quota, "instance-1")
    with pytest.raises(ServiceUnavailable):
        list(old.report(news(a_finding())))
    a_gateway(quota, "instance-2")
    quota.deliver_late()
    assert quota.findings == []


def test_take_over_goes_on_with_the_streams_next_number() -> None:
    quota = QuotaModel(Time())
    list(a_gateway(quota, "instance-1").decide([STOP]))
    list(a_gateway(quota, "instance-2").decide([STOP]))
    assert seqs(quota) == [1, 2]


def test_gap_in_a_sequence_steps_down() -> None:
    quota = QuotaModel(Time())
    gateway = a_gateway(quota)
    list(gateway.decide([STOP]))
    quota.streams["decisions"].seq = 7
    with pytest.raises(SteppedDown, match="stale_sequence"):
        list(gateway.decide([STOP]))


def test_lease_that_is_not_held_sends_nothing() -> None:
    quota = QuotaModel(Time())
    gateway = a_gateway(quota, held=False)
    with pytest.raises(ServiceUnavailable, match="lease"):
        list(gateway.decide([STOP]))
    assert quota.bodies == []


def test_long_batches_are_cut_and_only_the_last_moves_the_watermark() -> None:
    quota = QuotaModel(Time())
    gateway = a_gateway(quota)
    list(gateway.report(news(*(a_finding(number) for number in range(1_201)))))
    bodies = [json.loads(body) for body in quota.bodies]
    assert [len(body["items"]) for body in bodies] == [500, 500, 201]
    assert [body["observed_through"][-5:] for body in bodies] == [".500Z", ".500Z", ".000Z"]
    items: list[DecisionItem] = [STOP] * 501
    assert sum(len(answer.results) for answer in gateway.decide(items)) == 501


def test_no_decisions_are_no_batch() -> None:
    quota = QuotaModel(Time())
    assert list(a_gateway(quota).decide([])) == []
    assert quota.bodies == []


def test_ranking_on_an_unknown_base_must_be_sent_whole() -> None:
    quota = QuotaModel(Time())
    gateway = a_gateway(quota)
    changes = RankingDocument(epoch=1, cycle=2, base_cycle=1, at=0, order=(), reasons={})
    assert not gateway.rank(changes)
    assert gateway.rank(changes.model_copy(update={"base_cycle": None}))
