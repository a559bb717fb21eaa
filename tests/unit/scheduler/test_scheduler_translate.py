"""Words of quota, of the core and of clusters."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

import pytest

from quota.clock import Clock
from quota.schemas import fair_share
from quota.schemas.scheduling import (
    FeedItem,
    FeedKind,
    OrganizationObject,
    StopReason,
    StopRecord,
    WaitReason,
)
from scheduler.clusters.port import NodeStatus
from scheduler.core import model
from scheduler.core.policy import PRESETS, Entitlement, Lane, Policy, Preemption, Ranking
from scheduler.specs import node_reports, spec_of, stop_spec_of
from scheduler.translate import (
    Moment,
    changes_of,
    job_of,
    policy_of,
    preempt_item,
    reservation_of,
    reservations_of,
    start_item,
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
    changes = changes_of(items, Clock(speed=60), Moment(last_seen={"sim": 7}))
    assert {type(change).__name__ for change in changes} == {
        "Policy", "Cluster", "GpuClass", "Organization", "Grant", "Job", "Attempt"
    }  # fmt: skip
    assert model.Cluster("sim", 7) in changes
    policy = next(change for change in changes if isinstance(change, Policy))
    assert policy.cluster_unseen_ms == 3_600_000


def test_limits_and_pauses_reach_the_core() -> None:
    own = a_path("beta", "share", "grant")
    beta = OrganizationObject(
        id="beta", frozen=False, decayed_usage_gpu_us=1.5, decayed_as_of=7, max_gpus=12, pool_thousandths=400
    )
    grant = a_grant(YEAR_MS, paths=(a_path("alpha", "grant"), own), max_gpus=7)
    items = [
        FeedItem(kind="grant", id="g1", seq=1, grant=grant),
        FeedItem(kind="gpu_class", id="h100", seq=1, gpu_class=a_class(paused=True)),
        FeedItem(kind="policy", id="default", seq=1, policy=a_policy(placement_paused=True)),
        FeedItem(kind="attempt", id="job-1-1", seq=1, attempt=an_attempt(grant_id="g7")),
        FeedItem(kind="organization", id="beta", seq=1, organization=beta),
    ]
    taken, gpu_class, policy, attempt, organization = changes_of(items, Clock(), Moment())
    assert isinstance(taken, model.Grant)
    assert taken.max_gpus == 7
    assert taken.parties == ("alpha", "beta")
    assert [[a.id for a in path.accounts] for path in taken.paths] == [["grant"], ["share", "grant"]]
    assert gpu_class == model.GpuClass("h100", 1000, paused=True)
    assert isinstance(policy, Policy)
    assert policy.placement_paused
    assert isinstance(attempt, model.Attempt)
    assert (attempt.grant_id, attempt.gpus_held) == ("g7", 1)
    assert attempt.organization_id == an_attempt().organization_id != ""
    assert organization == model.Organization("beta", False, 1.5, 7, 12, 400)


@pytest.mark.parametrize("reason", list(StopReason))
def test_every_stop_keeps_its_reason(reason: StopReason) -> None:
    stop = StopRecord(reason=reason, stop_at=1, grace_ms=5)
    attempt = an_attempt(state="stopping", stop=stop)
    item = FeedItem(kind="attempt", id=attempt.id, seq=1, attempt=attempt)
    assert [c.stop for c in changes_of([item], Clock(), Moment()) if isinstance(c, model.Attempt)] == [
        model.Stop(reason.value)
    ]
    assert stop_spec_of(attempt).grace_ms == 5


def test_every_kind_but_the_policy_can_be_buried() -> None:
    items = [FeedItem(kind=kind, id="x", seq=1, gone=True) for kind in get_args(FeedKind)]
    kinds = {
        change.kind for change in changes_of(items, Clock(), Moment()) if isinstance(change, model.Tombstone)
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


def test_a_racks_name_that_quota_cannot_take_is_left_out() -> None:
    nodes = [NodeStatus(f"n{i}", True, 0, (), (), rack) for i, rack in enumerate(("B_1.a", "", "b/1"))]
    reports, left_out = node_reports(nodes)
    assert ([report.rack for report in reports], left_out) == (["B_1.a", None, None], ())


# --- how the hub shares -----------------------------------------------------------------------------


def test_the_hubs_defaults_are_the_cores_own_policy() -> None:
    """Change one, and the other has to follow: `quota/schemas/fair_share.py`, `scheduler/core/policy.py`."""
    assert policy_of(a_policy(), Clock()) == PRESETS["gpuhub"]


def test_every_number_of_how_the_hub_shares_reaches_the_core() -> None:
    share = fair_share.FairShare(
        ranking=fair_share.Ranking.DECAY,
        lag_bound_thousandths=125,
        idle_lag_thousandths=62,
        floor_thousandths=375,
        floor_lag_ms=17,
        hold_share_thousandths=250,
        gang_first_gpus=5,
        larger_gangs_first=True,
        reservations=3,
        reservations_per_organization=2,
        reservation_gpus=4,
        promise_gpus=9,
        promises_per_organization=6,
        booking_lead_ms=18,
        booking_over_ms=19,
        booking_unused_ms=20,
        opportunistic_notice_ms=21,
        lane=fair_share.Lane(
            gpus=2,
            area_gpu_h=7,
            tapers=(fair_share.Taper(walltime_ms=60_000, spare_thousandths=-25),),
            delivery_weight_thousandths=1500,
        ),
        preemption=fair_share.Preemption(
            gang_gpus=2,
            gangs=1,
            gangs_at_once=10,
            victim_gpus=1,
            lead_ms=11,
            protected_ms=12,
            cooldown_ms=13,
            times_per_day=3,
            notice_ms=14,
            checkpoint_ms=1500,
            restart_ms=16,
        ),
        programs={
            "poc": fair_share.ProgramShare(reserved_thousandths=100),
            "ax": fair_share.ProgramShare(weight_thousandths=500),
        },
        organization_weights={"beta": 2000, "alpha": 750},
    )
    wanted = a_policy(fair_share=share, organization_pool_thousandths=250, organization_pool_from_gpus=40)
    policy = policy_of(wanted, Clock())
    assert policy.entitlements == (Entitlement("ax", 500, 0), Entitlement("poc", 1000, 100))
    assert policy.organization_weights == (("alpha", 750), ("beta", 2000))
    assert (policy.organization_pool_thousandths, policy.organization_pool_from_gpus) == (250, 40)
    assert policy.lane == Lane(2, 7 * 3_600_000, ((60_000, -0.025),), 1.5)
    assert policy.preemption == Preemption(2, 1, 10, 1, 11, 12, 13, 3, 14, 1500, 16)
    assert (policy.ranking, policy.hold_share) == (Ranking.DECAY, 0.25)
    assert (policy.lag_bound_share, policy.idle_lag_share) == (0.125, 0.062)
    assert (policy.floor_share, policy.floor_lag_ms) == (0.375, 17)
    assert policy.gang_first_gpus == 5
    assert policy.larger_gangs_first is True
    assert (policy.booking_lead_ms, policy.booking_over_ms, policy.booking_unused_ms) == (18, 19, 20)
    assert policy.opportunistic_notice_ms == 21
    assert (policy.promise_gpus, policy.promises_per_organization) == (9, 6)
    assert (policy.reservations, policy.reservations_per_organization, policy.reservation_gpus) == (3, 2, 4)
    others = {"half_life_ms", "cluster_unseen_ms", "placement_paused", "walltime_step_ms"}
    same = {
        each.name for each in fields(Policy) if getattr(policy, each.name) == getattr(Policy(), each.name)
    }
    assert same == others, "a number that the hub does not set yet"
    off = policy_of(a_policy(fair_share=fair_share.FairShare(lane=None, preemption=None)), Clock())
    assert (off.lane, off.preemption) == (None, None)


@pytest.mark.parametrize("name", ["lane", "preemption"])
def test_the_core_has_no_number_that_the_hub_does_not_set(name: str) -> None:
    theirs = {"lane": Lane, "preemption": Preemption}[name]
    ours = {"lane": fair_share.Lane, "preemption": fair_share.Preemption}[name]
    units = {"area_gpu_h": "area_gpu_ms", "delivery_weight_thousandths": "delivery_weight"}
    assert [units.get(field, field) for field in ours.model_fields] == [
        field.name for field in fields(theirs)
    ]


@pytest.mark.parametrize(
    ("changes", "ends_ms"),
    [
        ({"claimed_at": 1000}, 1000 + 600 + 60),
        ({"claimed_at": 1000, "first_started_at": 1100}, 1000 + 600 + 60),
        ({"claimed_at": 1000, "last_started_at": 1200, "state": "running"}, 1200 + 60),
        ({"last_started_at": 1200, "state": "stopping", "stop": ("preempted", 1210, 5)}, 1215),
        ({"last_started_at": 1200, "state": "ended", "ended_at": 1250}, None),
    ],
)
def test_when_an_attempt_ends_at_the_latest(changes: dict[str, Any], ends_ms: int | None) -> None:
    if "stop" in changes:
        reason, stop_at, grace_ms = changes["stop"]
        changes["stop"] = StopRecord(reason=reason, stop_at=stop_at, grace_ms=grace_ms)
    attempt = an_attempt(walltime_ms=60, **changes)
    item = FeedItem(kind="attempt", id=attempt.id, seq=1, attempt=attempt)
    (taken,) = changes_of([item], Clock(), Moment(start_limit_ms=600))
    assert isinstance(taken, model.Attempt)
    assert (taken.started_at_ms, taken.ends_at_ms) == (attempt.last_started_at, ends_ms)


def test_who_may_be_stopped_for_others_reaches_the_core() -> None:
    job = a_job(preempted_at=(5, 6))
    assert (job_of(job, None).restartable, job_of(job, None).preempted_at_ms) == (True, (5, 6))
    assert not job_of(a_job(restartable=False), None).restartable
    assert not job_of(job, None, spared=True).restartable


def test_a_preemption_is_a_stop_with_the_attempts_whole_grace() -> None:
    item = preempt_item(model.Preempt("job-1", 2, "job-9", 77), an_attempt(number=2, grace_ms=30))
    assert (item.job_id, item.attempt, item.reason) == ("job-1", 2, StopReason.PREEMPTED)
    assert (item.stop_at, item.grace_ms, item.for_job) == (77, 30, "job-9")


def test_promised_room_comes_back_as_it_was() -> None:
    kept = model.Reservation("job-1", "sim", "h100", 99, {"n0": 8, "n1": 3}, 7, 0)
    assert reservations_of([reservation_of(kept)]) == model.Reservations((kept,))
