"""What only a live hub has: attempts under way, recorded stops, shared accounts, several clusters, pauses in time."""

from __future__ import annotations

from dataclasses import replace

from scheduler.ahead.outlook import Outlook
from scheduler.ahead.play import look_ahead
from scheduler.core.model import (
    Account,
    Attempt,
    Capacity,
    Change,
    Cluster,
    GpuClass,
    Grant,
    Job,
    JobState,
    Node,
    Organization,
    Path,
    PodPlacement,
    Stop,
)
from scheduler.core.policy import Policy

HOUR_MS = 3_600_000
GPU_HOUR = HOUR_MS * 1000
NOW_MS = 1000 * HOUR_MS
DAY_MS = 24 * HOUR_MS


def a_hub(
    *more: Change,
    used: int = 0,
    gpus: int = 4,
    hours: int = 1000,
    seen_ms: int = NOW_MS,
    grant: Grant | None = None,
) -> list[Change]:
    """One node of four GPUs, one firm with a grant of 1,000 GPU-hours."""
    return [
        GpuClass("h100", 1000),
        Cluster("c1", seen_ms),
        Node("c1", "n1", True, {"h100": Capacity(gpus, 0, used)}),
        Organization("o1"),
        grant or a_grant(hours=hours),
        *more,
    ]


def a_grant(
    id: str = "g1",
    hours: int = 1000,
    held: int = 0,
    used: int = 0,
    starts_ms: int = 0,
    ends_ms: int = 2000 * HOUR_MS,
    extra: tuple[Account, ...] = (),
    organization: str = "o1",
) -> Grant:
    own = Account(f"a-{id}", hours * GPU_HOUR, held * GPU_HOUR, used * GPU_HOUR)
    return Grant(id, "p", organization, starts_ms, ends_ms, (Path((*extra, own), organization),))


def a_job(id: str = "j1", gpus: int = 4, hours: int = 2, **more: object) -> Job:
    fields = {"submitted_at_ms": NOW_MS - HOUR_MS} | more
    return Job(id, "o1", None, "h100", gpus, 1, hours * HOUR_MS, **fields)  # type: ignore[arg-type]


def a_run(
    job: str = "r1", gpus: int = 4, hours: int = 2, ran_hours: float = 1, cluster: str = "c1", **more: object
) -> tuple[Job, Attempt]:
    """A job that has run for a while, and its attempt."""
    started_ms = NOW_MS - int(ran_hours * HOUR_MS)
    fields = {
        "state": JobState.RUNNING,
        "started_at_ms": started_ms,
        "ends_at_ms": started_ms + hours * HOUR_MS,
    } | more
    attempt = Attempt(
        job_id=job,
        attempt=1,
        grant_id="g1",
        cluster=cluster,
        pods=(PodPlacement("n1", "h100", gpus),),
        cost_gpu_us=hours * gpus * GPU_HOUR,
        claimed_at_ms=started_ms,
        walltime_ms=hours * HOUR_MS,
        **fields,  # type: ignore[arg-type]
    )
    return a_job(job, gpus, hours, state=attempt.state, attempt=1), attempt


def ahead(objects: list[Change], hours: float = 100, run_hours: float = 2, **more: object) -> Outlook:
    return look_ahead(
        objects,
        NOW_MS,
        lambda job: int(run_hours * HOUR_MS),
        horizon_ms=int(hours * HOUR_MS),
        **more,  # type: ignore[arg-type]
    )


def start_h(outlook: Outlook, id: str = "j1") -> float | None:
    """Hours from now."""
    start_ms = outlook.jobs[id].start_ms
    return None if start_ms is None else (start_ms - NOW_MS) / HOUR_MS


def test_a_job_waits_for_what_runs_and_for_no_longer_than_that_really_runs() -> None:
    run = a_run(hours=10, ran_hours=1)
    outlook = ahead(a_hub(*run, a_job(), used=4, grant=a_grant(held=40)), run_hours=3)
    assert start_h(outlook) == 2
    assert outlook.jobs["j1"].end_ms == NOW_MS + 4 * HOUR_MS, "its walltime is two hours"
    assert outlook.jobs["r1"].start_ms == NOW_MS - HOUR_MS
    assert outlook.complete
    assert outlook.busy_gpu_ms == 4 * 4 * HOUR_MS


def test_what_should_have_ended_by_now_ends_now() -> None:
    assert start_h(ahead(a_hub(*a_run(hours=10, ran_hours=5), a_job(), used=4), run_hours=1)) == 0


def test_an_attempt_that_starts_runs_from_now_on() -> None:
    job, attempt = a_run(state=JobState.STARTING, started_at_ms=None)
    outlook = ahead(a_hub(replace(job, state=JobState.STARTING), attempt, a_job(), used=4))
    assert start_h(outlook) == 2
    assert outlook.jobs["r1"].start_ms == attempt.claimed_at_ms


def test_a_recorded_stop_comes_at_its_moment_and_a_preempted_job_comes_again() -> None:
    job, attempt = a_run(
        hours=10,
        state=JobState.STOPPING,
        stop=Stop("preempted", "j1"),
        ends_at_ms=NOW_MS + HOUR_MS // 2,
    )
    stopping = replace(job, state=JobState.STOPPING, restartable=True)
    outlook = ahead(a_hub(stopping, attempt, a_job(), used=4), run_hours=5)
    assert start_h(outlook) == 0.5
    assert outlook.jobs["r1"].preemptions == 1
    # one of five hours was saved; j1 runs its two; ten minutes are the restart
    assert outlook.jobs["r1"].end_ms == NOW_MS + int((2.5 + 4) * HOUR_MS) + 600_000


def test_a_stop_for_good_ends_the_job() -> None:
    job, attempt = a_run(
        hours=10, state=JobState.STOPPING, stop=Stop("cancelled"), ends_at_ms=NOW_MS + HOUR_MS
    )
    outlook = ahead(a_hub(job, attempt, a_job(), used=4), run_hours=9)
    assert start_h(outlook) == 1
    assert outlook.jobs["r1"].end_ms == NOW_MS + HOUR_MS


def test_room_of_an_attempt_lost_from_sight_does_not_come_back() -> None:
    job, attempt = a_run(state=JobState.ENDED, ends_at_ms=None)
    outlook = ahead(a_hub(replace(job, state=JobState.QUEUED), attempt, a_job("j1", gpus=4), used=4))
    assert start_h(outlook) is None
    assert start_h(outlook, "r1") is None


def test_a_job_that_can_never_fit_has_no_start_and_the_rest_goes_on() -> None:
    outlook = ahead(a_hub(a_job("big", gpus=8), a_job("j1", gpus=2)))
    assert start_h(outlook, "big") is None
    assert outlook.jobs["big"].end_ms is None
    assert start_h(outlook) == 0
    assert not outlook.complete, "it waits"


def test_money_comes_back_when_holds_are_settled() -> None:
    # 12 GPU-hours: r1 holds 8 of them, uses 4; j1 needs 8
    run = a_run(hours=2, gpus=4)
    hub = a_hub(*run, a_job(), used=4, gpus=8, grant=a_grant(hours=12, held=8))
    outlook = ahead(hub, run_hours=1)
    assert start_h(outlook) == 0
    outlook = ahead(hub, run_hours=2)
    assert start_h(outlook) is None, "8 used, 4 are left"
    assert outlook.used_gpu_us == {"g1": 8 * GPU_HOUR}


def test_slices_that_were_charged_are_not_charged_again() -> None:
    run = a_run(hours=2, gpus=4)
    # the first hour of r1 was charged: 4 used, 4 held
    outlook = ahead(a_hub(*run, used=4, grant=a_grant(hours=12, held=4, used=4)), run_hours=1.5)
    assert outlook.used_gpu_us == {"g1": 6 * GPU_HOUR}
    outlook = ahead(a_hub(*run, used=4, grant=a_grant(hours=12, held=4, used=4)), hours=0.25, run_hours=1.5)
    assert outlook.used_gpu_us == {"g1": 5 * GPU_HOUR}, "and of what runs, what was used by then"


def test_grants_that_share_an_account_see_each_others_holds() -> None:
    shared = Account("shared", 10 * GPU_HOUR)
    first, second = a_grant("g1", extra=(shared,)), a_grant("g2", extra=(shared,))
    jobs = (replace(a_job("j1"), grant_id="g1"), replace(a_job("j2"), grant_id="g2"))
    hub = [each for each in a_hub(*jobs, gpus=8) if not isinstance(each, Grant)]
    outlook = ahead([*hub, first, second], run_hours=0.5)
    starts = sorted(start_h(outlook, id) or 0 for id in ("j1", "j2"))
    assert starts == [0, 0.5], "8 of 10 hours are held, then 6 of them come back"


def test_time_alone_wakes_a_cooldown_and_a_grant() -> None:
    assert start_h(ahead(a_hub(a_job(not_before_ms=NOW_MS + HOUR_MS)))) == 1
    assert start_h(ahead(a_hub(a_job(), grant=a_grant(starts_ms=NOW_MS + 3 * HOUR_MS)))) == 3


def test_a_grant_that_ends_first_starts_nothing() -> None:
    assert start_h(ahead(a_hub(a_job(), grant=a_grant(ends_ms=NOW_MS + HOUR_MS)))) is None


def test_a_cluster_in_sight_stays_in_sight_and_one_out_of_it_out() -> None:
    run = a_run(hours=10)
    assert start_h(ahead(a_hub(*run, a_job(), used=4), run_hours=10)) == 9
    assert start_h(ahead(a_hub(a_job(), seen_ms=NOW_MS - DAY_MS))) is None


def test_a_node_that_takes_no_jobs_gets_none_when_its_attempt_ends() -> None:
    hub = a_hub(*a_run(), a_job(), used=4)
    hub[2] = replace(hub[2], schedulable=False)  # type: ignore[type-var]
    assert start_h(ahead(hub)) is None


def test_arrivals_come_when_they_are_submitted() -> None:
    late = a_job("late", submitted_at_ms=NOW_MS + 5 * HOUR_MS)
    outlook = ahead(a_hub(a_job()), arrivals=[late])
    assert start_h(outlook, "late") == 5
    assert "late" not in ahead(a_hub(a_job()), hours=4, arrivals=[late]).jobs


def test_it_ends_once_all_awaited_have_started() -> None:
    jobs = [a_job(f"j{i}", submitted_at_ms=NOW_MS - (9 - i) * HOUR_MS) for i in range(5)]
    outlook = ahead(a_hub(*jobs), awaited=["j1"])
    assert outlook.until_ms == NOW_MS + 2 * HOUR_MS
    assert start_h(outlook, "j2") is None
    assert not outlook.complete


def test_decisions_at_intervals_only_are_late_by_at_most_that() -> None:
    jobs = [a_job(f"j{i}", submitted_at_ms=NOW_MS - (9 - i) * HOUR_MS) for i in range(3)]
    outlook = ahead(a_hub(*jobs), run_hours=1.1, every_ms=HOUR_MS // 2)
    assert [start_h(outlook, job.id) for job in jobs] == [0, 1.5, 3]


def test_a_cancelled_job_that_runs_ends_now_and_one_that_waits_never_starts() -> None:
    job, attempt = a_run(hours=10)
    hub = a_hub(
        replace(job, cancel_requested=True), attempt, a_job(), a_job("j2", cancel_requested=True), used=4
    )
    outlook = ahead(hub, run_hours=10)
    assert start_h(outlook) == 0
    assert start_h(outlook, "j2") is None


def test_policy_pauses_hold() -> None:
    assert start_h(ahead([*a_hub(a_job()), Policy(placement_paused=True)])) is None


def test_what_starts_in_the_future_counts_below_its_organizations_cap() -> None:
    jobs = [a_job(id, gpus=2) for id in ("j1", "j2")]
    hub = [each for each in a_hub(*jobs) if not isinstance(each, Organization)]
    outlook = ahead([*hub, Organization("o1", max_gpus=3)])
    assert [start_h(outlook, id) for id in ("j1", "j2")] == [0, 2]


def test_a_job_takes_the_class_that_is_free_first_and_pays_it() -> None:
    run = a_run(hours=10)
    spare = [GpuClass("a100", 500), Node("c1", "n2", True, {"a100": Capacity(4)})]
    hub = a_hub(*run, *spare, a_job(fallbacks=("a100",)), used=4, grant=a_grant(held=40))
    outlook = ahead(hub, run_hours=10)
    assert start_h(outlook) == 0
    assert outlook.used_gpu_us["g1"] == (10 * 4 + 2 * 4 // 2) * GPU_HOUR
