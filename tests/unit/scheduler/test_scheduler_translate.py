"""Words of quota, of the core and of clusters."""

from __future__ import annotations

from typing import get_args

import pytest

from quota.clock import Clock
from quota.schemas.scheduling import FeedItem, FeedKind, StopReason, StopRecord, WaitReason
from scheduler.clusters.port import NodeStatus
from scheduler.core import model
from scheduler.core.policy import Policy
from scheduler.translate import (
    changes_of,
    job_of,
    node_reports,
    spec_of,
    start_item,
    stop_spec_of,
    waiting_of,
)
from tests.unit.scheduler.cluster_model import Time
from tests.unit.scheduler.quota_model import QuotaModel
from tests.unit.scheduler.quota_objects import YEAR_MS, a_class, a_grant, a_job, a_path, a_policy, an_attempt
from tests.unit.scheduler.sighting_builders import GONE_ON


def test_every_kind_of_object_reaches_the_core() -> None:
    quota = QuotaModel(Time())
    quota.submit("job-1")
    items = [*quota.objects.values(), FeedItem(kind="attempt", id="job-1-1", seq=1, attempt=an_attempt())]
    changes = changes_of(items, Clock(speed=60), {}, {"sim": 7})
    assert {type(change).__name__ for change in changes} == {
        "Policy", "Cluster", "GpuClass", "Organization", "Grant", "Job", "Attempt"
    }  # fmt: skip
    assert model.Cluster("sim", 7) in changes
    policy = next(change for change in changes if isinstance(change, Policy))
    assert policy.cluster_unseen_ms == 3_600_000


def test_limits_and_pauses_reach_the_core() -> None:
    own = a_path("beta", "share", "grant")
    grant = a_grant(YEAR_MS, paths=(a_path("alpha", "grant"), own), max_gpus=7)
    items = [
        FeedItem(kind="grant", id="g1", seq=1, grant=grant),
        FeedItem(kind="gpu_class", id="h100", seq=1, gpu_class=a_class(paused=True)),
        FeedItem(kind="policy", id="default", seq=1, policy=a_policy(placement_paused=True)),
        FeedItem(kind="attempt", id="job-1-1", seq=1, attempt=an_attempt(grant_id="g7")),
    ]
    taken, gpu_class, policy, attempt = changes_of(items, Clock(), {}, {})
    assert isinstance(taken, model.Grant)
    assert taken.max_gpus == 7
    assert taken.parties == ("alpha", "beta")
    assert [[a.id for a in path.accounts] for path in taken.paths] == [["grant"], ["share", "grant"]]
    assert gpu_class == model.GpuClass("h100", 1000, paused=True)
    assert isinstance(policy, Policy)
    assert policy.placement_paused
    assert isinstance(attempt, model.Attempt)
    assert (attempt.grant_id, attempt.gpus_held) == ("g7", 1)


@pytest.mark.parametrize("reason", list(StopReason))
def test_every_stop_keeps_its_reason(reason: StopReason) -> None:
    stop = StopRecord(reason=reason, stop_at=1, grace_ms=5)
    attempt = an_attempt(state="stopping", stop=stop)
    item = FeedItem(kind="attempt", id=attempt.id, seq=1, attempt=attempt)
    assert [c.stop for c in changes_of([item], Clock(), {}, {}) if isinstance(c, model.Attempt)] == [
        model.Stop(reason.value)
    ]
    assert stop_spec_of(attempt).grace_ms == 5


def test_every_kind_but_the_policy_can_be_buried() -> None:
    items = [FeedItem(kind=kind, id="x", seq=1, gone=True) for kind in get_args(FeedKind)]
    kinds = {
        change.kind for change in changes_of(items, Clock(), {}, {}) if isinstance(change, model.Tombstone)
    }
    assert kinds == set(model.Kind)


def test_refused_job_is_held_back_at_least_as_long_as_it_says_itself() -> None:
    assert job_of(a_job(), None).not_before_ms is None
    assert job_of(a_job(not_before=9), 5).not_before_ms == 9
    assert job_of(a_job(not_before=5), 9).not_before_ms == 9


def test_states_and_reasons_have_the_same_names_on_both_sides() -> None:
    for reason in model.WaitReason:
        assert waiting_of(model.Reason(reason, {})).code.value == reason.value
    assert {reason.value for reason in model.WaitReason} | {"new", "start_refused"} == {
        reason.value for reason in WaitReason
    }


def test_pods_of_a_start_are_numbered() -> None:
    pods = (model.PodPlacement("n0", "h100", 2), model.PodPlacement("n1", "h100", 2))
    item = start_item(model.Start("job-1", 1, "g1", ("a1",), "sim", pods, 5))
    assert [(pod.index, pod.node, pod.count) for pod in item.pods] == [(0, "n0", 2), (1, "n1", 2)]


def test_object_is_named_like_its_attempt_and_stays_the_same_when_it_is_stopped() -> None:
    attempt = an_attempt(environment={"B": "2", "A": "1"}, annotations={"simulate.gpuhub/load": "idle"})
    spec = spec_of(attempt)
    assert spec.name == attempt.id == "job-1-1"
    assert spec.environment == (("A", "1"), ("B", "2"))
    assert stop_spec_of(GONE_ON).grace_ms == 30_000
    assert stop_spec_of(GONE_ON).spec_hash() == spec_of(GONE_ON).spec_hash()


def test_node_that_quota_cannot_name_is_left_out() -> None:
    good = NodeStatus("n0", True, 0, (("h100", 8),), (("h100", 1),))
    bad = NodeStatus("Not A Node", True, 0, (), ())
    reports, left_out = node_reports([bad, good])
    assert [(report.node, report.classes[0].total, report.classes[0].foreign) for report in reports] == [
        ("n0", 8, 1)
    ]
    assert left_out == ("Not A Node",)
