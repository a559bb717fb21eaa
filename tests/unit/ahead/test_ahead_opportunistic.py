"""A look ahead carries opportunistic jobs; a forecast tells the others as if there were none."""

from __future__ import annotations

from dataclasses import replace

from scheduler.ahead.outlook import Outlook
from scheduler.ahead.play import look_ahead
from scheduler.core.model import Account, Attempt, Change, Fund, Job, JobState, Node, Organization
from scheduler.core.policy import MINUTE_MS, Policy, Preemption
from scheduler.core.spare import seen_by_others
from tests.unit.ahead.test_ahead_live import DAY_MS, GPU_HOUR, HOUR_MS, NOW_MS, a_hub, a_job, a_run

FUND = Fund("fund", "p", Account("a-fund", 100 * GPU_HOUR, 8 * GPU_HOUR), 0, 2000 * HOUR_MS)


def a_spare_run(**more: object) -> tuple[Job, Attempt]:
    """It has run for an hour of two on all four GPUs."""
    job, attempt = a_run("s1", **more)
    return replace(job, program_id="p"), replace(attempt, grant_id="fund", opportunistic=True)


def ahead(*more: Change, used: int = 0) -> Outlook:
    objects = a_hub(Policy(preemption=Preemption()), FUND, *more, used=used)
    return look_ahead(objects, NOW_MS, lambda job: job.walltime_ms, horizon_ms=3 * DAY_MS)


def test_an_opportunistic_job_is_stopped_for_another_and_comes_again() -> None:
    job, attempt = a_spare_run()
    outlook = ahead(replace(job, restartable=True), attempt, a_job(hours=3), used=4)
    assert outlook.jobs["j1"].start_ms == NOW_MS + MINUTE_MS
    spare = outlook.jobs["s1"]
    assert (spare.preemptions, spare.grant_id) == (1, "fund")
    # an hour of the two was saved, and coming back costs ten minutes
    assert spare.end_ms == NOW_MS + 11 * MINUTE_MS + 4 * HOUR_MS
    assert outlook.used_gpu_us["fund"] == 8 * GPU_HOUR


def test_one_that_is_not_restartable_ends_when_it_is_stopped() -> None:
    job, attempt = a_spare_run()
    spare = ahead(replace(job, restartable=False), attempt, a_job(), used=4).jobs["s1"]
    assert (spare.preemptions, spare.end_ms) == (0, NOW_MS + MINUTE_MS)


def test_it_starts_when_nobody_else_does_and_pays_from_its_fund() -> None:
    spare = replace(a_job("s1", gpus=2), program_id="p")
    outlook = ahead(spare, a_job("j1"), a_job("j2"))
    starts = {id: each.start_ms for id, each in outlook.jobs.items()}
    assert starts == {"j1": NOW_MS, "j2": NOW_MS + 2 * HOUR_MS, "s1": NOW_MS + 4 * HOUR_MS}
    assert outlook.used_gpu_us == {"g1": 16 * GPU_HOUR, "fund": 4 * GPU_HOUR}


def test_two_firms_take_turns_by_what_their_opportunistic_jobs_used() -> None:
    jobs = [
        replace(a_job(f"s{n}", submitted_at_ms=NOW_MS + n - 9), program_id="p", organization_id=owner)
        for n, owner in enumerate(("o1", "o1", "o2"))
    ]
    outlook = ahead(Organization("o2"), *jobs)
    assert [outlook.jobs[f"s{n}"].start_ms for n in (0, 2, 1)] == [NOW_MS + n * 2 * HOUR_MS for n in range(3)]


def test_others_see_nothing_of_them() -> None:
    job, attempt = a_spare_run()
    waits = replace(a_job("s2"), program_id="p")
    seen = seen_by_others(a_hub(FUND, job, attempt, waits, a_job("j1"), used=4), NOW_MS)
    assert [each.id for each in seen if isinstance(each, Job | Attempt | Fund)] == ["j1"]
    (node,) = [each for each in seen if isinstance(each, Node)]
    assert node.capacities["h100"].used == 0


def test_others_see_what_nobody_knows_the_end_of() -> None:
    _, attempt = a_spare_run(state=JobState.ENDED)
    attempt = replace(attempt, ends_at_ms=None)
    seen = seen_by_others(a_hub(FUND, attempt, a_job("j1"), used=4), NOW_MS)
    assert [each.id for each in seen if isinstance(each, Attempt)] == [attempt.id]
    assert look_ahead(seen, NOW_MS, lambda job: 1, horizon_ms=DAY_MS).jobs["j1"].start_ms is None
