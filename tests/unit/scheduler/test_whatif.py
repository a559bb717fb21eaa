"""What if: each kind of change, what it does to a queue that can be worked out by hand, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from quota.clock import Clock
from quota.schemas.fair_share import ProgramShare
from quota.schemas.scheduling import FeedItem
from quota.schemas.what_if import WhatIfRequest
from scheduler.core.policy import PRESETS
from scheduler.translate import policy_of
from scheduler.whatif.changing import BadChange, change
from scheduler.whatif.playing import what_if
from scheduler.whatif.presets import fair_share_of
from tests.unit.scheduler.quota_objects import a_policy
from tests.unit.scheduler.saved_states import (
    GPU_HOUR_US,
    HOUR_MS,
    NOW_MS,
    SchedulerState,
    a_firm,
    a_node,
    a_running,
    a_small_hub,
    a_state,
    a_waiting,
    the_grant,
)


def _asked(*changes: dict[str, Any], **more: Any) -> WhatIfRequest:
    return WhatIfRequest.model_validate({"changes": changes, "horizon_h": 10} | more)


@pytest.fixture
def queue() -> SchedulerState:
    """One full node; what runs ends in two hours, then two jobs of 8 GPUs and an hour follow."""
    waiting = [a_waiting("job-a", gpus_per_pod=8), a_waiting("job-b", "beta", gpus_per_pod=8)]
    return a_small_hub(*a_running("job-run", "n0", 8), *waiting, nodes=[a_node(used=8)])


def test_the_future_as_it_is(queue: SchedulerState) -> None:
    future = what_if(queue, _asked({"kind": "cluster", "id": "sim", "paused": False})).base
    # both wait an hour already; one starts in two hours, the other in three
    assert (future.all_jobs.jobs, future.all_jobs.started, future.all_jobs.ended) == (2, 2, 2)
    assert future.all_jobs.mean_wait_ms == 3 * HOUR_MS + HOUR_MS // 2
    assert future.all_jobs.p95_wait_ms == 4 * HOUR_MS
    assert future.occupied_gpu_ms == (2 + 1 + 1) * 8 * HOUR_MS
    assert sorted(of.mean_wait_ms for of in future.organizations.values()) == [3 * HOUR_MS, 4 * HOUR_MS]
    assert (future.sizes["1-4"].jobs, future.sizes["5-31"].jobs, future.sizes["32+"].jobs) == (0, 2, 0)
    # alpha's running attempt is charged for its four hours, its waiting job for one
    assert future.organizations["alpha"].used_gpu_us == (4 + 1) * 8 * GPU_HOUR_US
    assert future.organizations["beta"].used_gpu_us == 8 * GPU_HOUR_US
    assert future.grants["g-alpha"].used_gpu_us == (4 + 1) * 8 * GPU_HOUR_US


def test_more_nodes_let_them_start_at_once(queue: SchedulerState) -> None:
    reply = what_if(queue, _asked({"kind": "nodes", "gpu_class": "h100", "change": 2}))
    assert reply.changed_to == ("2 nodes with 8 h100 more in cluster sim",)
    assert reply.changed.all_jobs.mean_wait_ms == HOUR_MS
    assert reply.difference.all_jobs.mean_wait_ms == -2 * HOUR_MS - HOUR_MS // 2
    assert {name: of.mean_wait_ms for name, of in reply.difference.organizations.items()}.keys() == {
        "alpha",
        "beta",
    }
    assert reply.difference.organizations["alpha"].used_gpu_us == 0
    assert (reply.taken_at, reply.until) == (NOW_MS, NOW_MS + 10 * HOUR_MS)


def test_fewer_nodes_take_away_the_emptiest(queue: SchedulerState) -> None:
    state = a_state(*queue.items, a_node("n1", used=0), a_node("n2", used=0))
    reply = what_if(state, _asked({"kind": "nodes", "gpu_class": "h100", "change": -2}))
    assert reply.base.all_jobs.mean_wait_ms == HOUR_MS
    assert reply.changed.all_jobs.mean_wait_ms == 3 * HOUR_MS + HOUR_MS // 2
    with pytest.raises(BadChange, match=r"changes\.0\.change: only 3 nodes with h100 take jobs"):
        change(state, _asked({"kind": "nodes", "gpu_class": "h100", "change": -4}).changes)


def test_a_larger_grant_lets_a_job_start_that_never_would(queue: SchedulerState) -> None:
    poor = [item for item in queue.items if "beta" not in item.id]
    state = a_state(*poor, *a_firm("beta", granted_gpu_h=10, used_gpu_h=5))
    request = _asked({"kind": "grant", "id": "g-beta", "gpu_hours": "20.5"})
    reply = what_if(a_state(*state.items, a_waiting("job-p", "beta", gpus_per_pod=8)), request)
    assert reply.changed_to == ("grant g-beta: gpu_hours 10 -> 20.5",)
    assert reply.base.organizations["beta"].started == 0
    # it waits to the end of the ten hours, and has done so for one
    assert reply.base.organizations["beta"].mean_wait_ms == 11 * HOUR_MS
    assert reply.difference.organizations["beta"].started == 1
    assert reply.difference.organizations["beta"].used_gpu_us == 8 * GPU_HOUR_US
    assert reply.difference.grants["g-beta"].granted_gpu_us == GPU_HOUR_US * 21 // 2
    assert (reply.base.grants["g-beta"].delivered_thousandths) == 500
    assert (reply.changed.grants["g-beta"].delivered_thousandths) == 1000 * 13 * 10 // 205


def test_shorter_runs_end_sooner(queue: SchedulerState) -> None:
    # the running job has two of four hours left: of these a quarter is half an hour
    base = what_if(queue, _asked({"kind": "hub", "paused": False}, runs_thousandths=250)).base
    assert base.all_jobs.mean_wait_ms == HOUR_MS + HOUR_MS // 2 + HOUR_MS // 8
    assert base.grants["g-beta"].used_gpu_us + base.grants["g-alpha"].used_gpu_us == (
        GPU_HOUR_US * 8 * 5 // 2 + 2 * GPU_HOUR_US * 8 // 4
    )


@pytest.mark.parametrize(
    "stop",
    [
        {"kind": "hub", "paused": True},
        {"kind": "cluster", "id": "sim", "paused": True},
        {"kind": "gpu_class", "id": "h100", "paused": True},
    ],
)
def test_pauses_keep_everybody_waiting_and_let_run_what_runs(
    queue: SchedulerState, stop: dict[str, Any]
) -> None:
    reply = what_if(queue, _asked(stop))
    assert (reply.base.all_jobs.started, reply.changed.all_jobs.started) == (2, 0)
    assert reply.changed.occupied_gpu_ms == 2 * 8 * HOUR_MS


def test_a_frozen_organization_and_a_cap_keep_only_their_own_waiting(queue: SchedulerState) -> None:
    frozen = what_if(queue, _asked({"kind": "organization", "id": "beta", "frozen": True})).difference
    assert {name: of.started for name, of in frozen.organizations.items()} == {"alpha": 0, "beta": -1}
    capped = what_if(queue, _asked({"kind": "grant", "id": "g-alpha", "max_gpus": 7})).difference
    assert {name: of.started for name, of in capped.organizations.items()} == {"alpha": -1, "beta": 0}
    lifted = change(
        queue,
        _asked(
            {"kind": "grant", "id": "g-alpha", "max_gpus": 7},
            {"kind": "grant", "id": "g-alpha", "max_gpus": None},
        ).changes,
    )
    assert the_grant(lifted.items, "g-alpha").max_gpus is None
    assert lifted.told == ("grant g-alpha: max_gpus none -> 7", "grant g-alpha: max_gpus 7 -> none")


def test_a_dearer_class_uses_more_of_the_grant(queue: SchedulerState) -> None:
    reply = what_if(queue, _asked({"kind": "gpu_class", "id": "h100", "rate_thousandths": 2000}))
    assert reply.difference.organizations["beta"].used_gpu_us == 8 * GPU_HOUR_US


def test_a_grant_that_ends_sooner_pays_no_longer(queue: SchedulerState) -> None:
    soon = "2027-01-15T10:00:00.000Z"
    assert NOW_MS < 1_800_007_200_000
    reply = what_if(queue, _asked({"kind": "grant", "id": "g-beta", "ends_at": soon}))
    assert reply.difference.organizations["beta"].started == -1


def test_jobs_that_come_besides_wait_their_turn(queue: SchedulerState) -> None:
    more = {
        "kind": "jobs",
        "organization_id": "beta",
        "gpu_class": "h100",
        "gpus_per_pod": 8,
        "walltime_s": 3600,
        "count": 2,
        "in_s": 1800,
        "every_s": 60,
    }
    reply = what_if(queue, _asked(more))
    assert (reply.difference.all_jobs.jobs, reply.difference.all_jobs.started) == (2, 2)
    assert reply.changed.organizations["beta"].jobs == 3
    assert reply.difference.occupied_gpu_ms == 2 * 8 * HOUR_MS
    late = what_if(queue, _asked(more | {"in_s": 11 * 3600}))
    assert late.difference.all_jobs.jobs == 0


def test_the_policy_is_another_one_and_its_numbers_are_told(queue: SchedulerState) -> None:
    asked = _asked(
        {"kind": "fair_share", "preset": "fifo-skip"},
        {"kind": "fair_share", "changes": {"reservations": 3, "preemption": {"notice_ms": 5}, "lane": {}}},
    )
    changed = change(queue, asked.changes)
    policy = next(item.policy for item in changed.items if item.policy is not None)
    assert policy.fair_share.ranking == "fifo"
    assert policy.fair_share.reservations == 3
    assert policy.fair_share.preemption is not None
    assert policy.fair_share.preemption.notice_ms == 5
    assert "fair_share.ranking grant -> fifo" in changed.told
    assert "fair_share.preemption on -> off" in changed.told
    assert "fair_share.reservations 0 -> 3" in changed.told


def test_who_weighs_more_goes_first_and_a_preset_leaves_that_as_it_is(queue: SchedulerState) -> None:
    """Both are behind by the same and ask for the same: whoever weighs more has the node first."""
    for heavy, light in (("alpha", "beta"), ("beta", "alpha")):
        both = {"organization_weights": {heavy: 3000, light: 500}}
        weights = {"kind": "fair_share", "changes": both}
        plain = {"kind": "fair_share", "changes": both | {"floor_thousandths": 0, "lane": None}}
        for asked in (_asked(plain), _asked(weights, {"kind": "fair_share", "preset": "grant-skip"})):
            waits = what_if(queue, asked).changed.organizations
            assert waits[heavy].mean_wait_ms < waits[light].mean_wait_ms


def test_reserved_parts_come_to_the_whole_pool_at_most(queue: SchedulerState) -> None:
    def reserved(program: str, thousandths: int) -> dict[str, Any]:
        return {
            "kind": "fair_share",
            "changes": {"programs": {program: {"reserved_thousandths": thousandths}}},
        }

    program = next(item.grant.program_id for item in queue.items if item.grant is not None)
    changed = change(queue, _asked(reserved(program, 600), reserved(program, 700)).changes)
    assert f"fair_share.programs.{program}.reserved_thousandths 600 -> 700" in changed.told
    policy = next(item.policy for item in queue.items if item.policy is not None)
    full = policy.fair_share.model_copy(
        update={"programs": {"other": ProgramShare(reserved_thousandths=500)}}
    )
    items = tuple(
        item
        if item.policy is None
        else item.model_copy(update={"policy": policy.model_copy(update={"fair_share": full})})
        for item in queue.items
    )
    with pytest.raises(BadChange, match="come to 1100 thousandths; at most 1000 are possible"):
        change(queue.model_copy(update={"items": items}), _asked(reserved(program, 600)).changes)


def test_the_state_stays_as_it_was(queue: SchedulerState) -> None:
    before = queue.model_dump_json()
    asked = _asked({"kind": "hub", "paused": True}, {"kind": "grant", "id": "g-beta", "gpu_hours": 1})
    assert what_if(queue, asked) == what_if(queue, asked)
    assert queue.model_dump_json() == before


def test_numbers_of_bookings_are_carried_too() -> None:
    policy = replace(
        PRESETS["gpuhub"],
        booking_lead_ms=1,
        booking_over_ms=2,
        booking_unused_ms=3,
        opportunistic_notice_ms=4,
    )
    assert policy_of(a_policy(fair_share=fair_share_of(policy)), Clock()) == policy


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_cores_policy(name: str) -> None:
    clock = Clock()
    policy = policy_of(a_policy(fair_share=fair_share_of(PRESETS[name])), clock)
    assert policy == PRESETS[name]


@pytest.mark.parametrize(
    ("wrong", "field", "told"),
    [
        ({"kind": "grant", "id": "g-7", "gpu_hours": 1}, "id", "no grant g-7; there are g-alpha, g-beta"),
        ({"kind": "cluster", "id": "x", "paused": True}, "id", "no cluster x; there are sim"),
        ({"kind": "fair_share", "preset": "luck"}, "preset", "no policy luck; there are fifo-skip"),
        ({"kind": "nodes", "gpu_class": "a1", "change": 1}, "gpu_class", "no gpu_class a1; there are h100"),
        ({"kind": "grant", "id": "g-beta", "ends_at": "2020-01-01T00:00:00Z"}, "ends_at", "before now"),
    ],
)
def test_a_change_that_cannot_be_says_which_and_what_would_be_right(
    queue: SchedulerState, wrong: dict[str, Any], field: str, told: str
) -> None:
    fine = {"kind": "hub", "paused": False}
    with pytest.raises(BadChange) as refused:
        change(queue, _asked(fine, wrong).changes)
    assert refused.value.field == f"changes.1.{field}"
    assert told in refused.value.detail


def test_no_grant_becomes_smaller_than_what_it_has_spent() -> None:
    state = a_small_hub(*a_firm("gamma", granted_gpu_h=10, used_gpu_h=5))
    with pytest.raises(BadChange, match=r"has used and holds 5 GPU hours"):
        change(state, _asked({"kind": "grant", "id": "g-gamma", "gpu_hours": "4.9"}).changes)


def a_fund(program: str = "p", hours: int = 100) -> FeedItem:
    """What a programme pays opportunistic jobs from: a grant of nobody."""
    grant = the_grant(a_firm("alpha"), "g-alpha")
    account = (
        grant.paths[0]
        .accounts[-1]
        .model_copy(update={"id": f"a-fund-{program}", "granted_gpu_us": hours * GPU_HOUR_US})
    )
    path = grant.paths[0].model_copy(update={"accounts": (account,), "organization_id": ""})
    fund = grant.model_copy(
        update={"id": f"fund-{program}", "organization_id": "", "program_id": program, "paths": (path,)}
    )
    return FeedItem(kind="grant", id=fund.id, seq=1, grant=fund)


def some_spare(**more: Any) -> dict[str, Any]:
    fields = {"kind": "jobs", "organization_id": "beta", "gpu_class": "h100", "gpus_per_pod": 8}
    return fields | {"walltime_s": 3600, "count": 2, "opportunistic": True} | more


def test_opportunistic_jobs_that_come_besides_wait_for_everybody_else(queue: SchedulerState) -> None:
    program = the_grant(queue.items, "g-beta").program_id
    state = a_state(*queue.items, a_fund(program))
    reply = what_if(state, _asked(some_spare()))
    assert reply.changed_to == (
        f"2 jobs of beta more, each 1 x 8 h100 for 3600 s, opportunistic, paid by {program}",
    )
    assert (reply.difference.all_jobs.jobs, reply.difference.all_jobs.started) == (2, 2)
    # four hours for everybody else, then one after the other
    assert reply.difference.organizations["beta"].jobs == 2
    assert reply.changed.all_jobs.p95_wait_ms == 5 * HOUR_MS
    assert reply.difference.grants["g-beta"].used_gpu_us == 0
    assert reply.base.all_jobs.mean_wait_ms == 3 * HOUR_MS + HOUR_MS // 2
    named = change(state, _asked(some_spare(program_id=program)).changes)
    assert {job.program_id for job in named.arrivals} == {program}


def test_who_pays_for_opportunistic_jobs_has_to_be_known(queue: SchedulerState) -> None:
    program = the_grant(queue.items, "g-beta").program_id
    with pytest.raises(BadChange, match=r"changes\.0\.program_id: name a programme that pays .*: none"):
        change(queue, _asked(some_spare()).changes)
    other = a_state(*queue.items, a_fund("other"), a_fund(program))
    with pytest.raises(BadChange, match=f": {program}"):
        change(other, _asked(some_spare(program_id="other")).changes)
    assert change(other, _asked(some_spare()).changes).arrivals[0].program_id == program


@pytest.mark.parametrize("wrong", [{"grant_id": "g-beta"}, {"opportunistic": False, "program_id": "p"}])
def test_an_opportunistic_job_is_paid_by_a_programme_and_no_other_is(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is paid by a programme|is for opportunistic jobs"):
        _asked(some_spare(**wrong))
