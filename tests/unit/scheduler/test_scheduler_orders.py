"""What people order while jobs wait and run: requeue, the end of a grant, more time, caps and pauses."""

from __future__ import annotations

import pytest

from quota.schemas.scheduling import EndReason, JobState, StopReason, WaitReason
from tests.unit.scheduler.quota_objects import a_grant, a_path, an_organization
from tests.unit.scheduler.scheduler_world import World

HOUR_MS = 3_600_000
GPU_HOUR = HOUR_MS * 1000


def a_running_world(*jobs: str, run_ms: int = 10**12, walltime_ms: int = HOUR_MS) -> World:
    """Nodes are reported, these jobs run."""
    world = World()
    world.cluster.run_ms = run_ms
    world.boot()
    world.rounds(4)
    for job in jobs:
        world.quota.submit(job, walltime_ms=walltime_ms)
    world.rounds(4)
    return world


def why(world: World, job: str) -> WaitReason:
    """The reason that was published last."""
    told = {job: said for document in world.quota.rankings for job, said in document.reasons.items()}
    return told[job].code


def limit_ms(world: World) -> int:
    """When the running job's time is over."""
    attempt = world.quota.attempt("job-1-1")
    assert attempt is not None
    assert attempt.last_started_at is not None
    return attempt.last_started_at + attempt.walltime_ms


def pass_until(world: World, at_ms: int) -> None:
    """One round at that moment."""
    world.round(pass_ms=at_ms - world.time.now_ms)


# --- stops that the quota service asks for -----------------------------------------------------------


def test_requeued_attempt_is_stopped_with_its_grace_and_the_job_starts_again() -> None:
    world = a_running_world("job-1")
    world.quota.ask_stop("job-1", StopReason.REQUEUED)
    world.rounds(1)
    attempt = world.quota.attempt("job-1-1")
    assert attempt is not None
    assert attempt.stop is not None
    assert (attempt.stop.reason, attempt.stop.grace_ms) == (StopReason.REQUEUED, attempt.grace_ms)
    world.rounds(6)
    assert world.quota.ends == {"job-1-1": [EndReason.REQUEUED]}
    assert world.quota.starts == {"job-1-1": 1, "job-1-2": 1}
    assert [verb for verb, name in world.cluster.calls if name == "job-1-1"] == ["start", "stop"]


def test_job_whose_grant_ended_is_stopped_for_good() -> None:
    world = a_running_world("job-1")
    world.quota.ask_stop("job-1", StopReason.GRANT_ENDED)
    world.rounds(6)
    assert world.quota.job_ends == {"job-1": EndReason.GRANT_ENDED}
    assert world.quota.starts == {"job-1-1": 1}


def test_attempt_that_never_started_can_be_sent_back_too() -> None:
    world = a_running_world()
    world.cluster.faults = ["refuse"] * 1_000
    world.quota.submit("job-1")
    world.rounds(2)
    world.quota.ask_stop("job-1", StopReason.REQUEUED)
    world.rounds(2)
    world.cluster.faults.clear()
    world.rounds(20)
    assert world.quota.ends == {"job-1-1": [EndReason.REQUEUED]}
    assert world.cluster.runs == {"job-1-2": 1}


def test_cancel_outweighs_a_requeue() -> None:
    world = a_running_world("job-1")
    world.quota.ask_stop("job-1", StopReason.REQUEUED)
    world.quota.cancel("job-1")
    world.rounds(6)
    assert world.quota.job_ends == {"job-1": EndReason.CANCELLED}


@pytest.mark.parametrize("fault", ["drop", "forget", "double"])
def test_stop_that_was_asked_for_is_recorded_once_whatever_is_lost(fault: str) -> None:
    world = a_running_world("job-1")
    world.quota.ask_stop("job-1", StopReason.REQUEUED)
    world.quota.faults = [fault]
    world.rounds(20)
    sent = sum(b'"requeued"' in body for body in world.quota.bodies)
    assert sent == (1 if fault == "double" else 2)
    assert world.quota.ends == {"job-1-1": [EndReason.REQUEUED]}
    assert world.quota.starts["job-1-2"] == 1


# --- more time -------------------------------------------------------------------------------------


def test_extended_job_runs_on_to_its_new_limit() -> None:
    world = a_running_world("job-1")
    old_ms = limit_ms(world)
    world.quota.extend("job-1", HOUR_MS)
    pass_until(world, old_ms)
    attempt = world.quota.attempt("job-1-1")
    assert attempt is not None
    assert attempt.state is JobState.RUNNING
    pass_until(world, old_ms + HOUR_MS - 1)
    assert world.quota.ends == {}
    pass_until(world, old_ms + HOUR_MS)
    world.rounds(4)
    assert world.quota.job_ends == {"job-1": EndReason.TIME_LIMIT}


def test_extension_counts_although_the_stop_was_planned_and_its_batch_lost() -> None:
    world = a_running_world("job-1")
    old_ms = limit_ms(world)
    world.rounds(2)
    batches = len(world.quota.bodies)
    world.quota.faults = ["", "drop"]
    pass_until(world, old_ms)
    assert any(b"time_limit" in body for body in world.quota.bodies[batches:]), "the stop was under way"
    world.quota.extend("job-1", HOUR_MS)
    world.rounds(10, pass_ms=1_000)
    assert world.quota.faults == []
    assert world.quota.bodies.count(next(b for b in world.quota.bodies if b"time_limit" in b)) == 2
    assert [verb for verb, _ in world.cluster.calls] == ["start"]
    pass_until(world, old_ms + HOUR_MS)
    world.rounds(4)
    assert world.quota.job_ends == {"job-1": EndReason.TIME_LIMIT}
    assert world.quota.ends == {"job-1-1": [EndReason.TIME_LIMIT]}


def test_next_look_follows_the_newest_limit() -> None:
    world = a_running_world("job-1")
    assert world.process is not None
    assert world.process.term is not None
    assert world.process.term.next_due_ms() == limit_ms(world)
    world.quota.extend("job-1", 5)
    world.rounds(1)
    assert world.process.term.next_due_ms() == limit_ms(world)


# --- limits ----------------------------------------------------------------------------------------


def test_cap_holds_until_an_attempt_frees_its_gpus() -> None:
    world = a_running_world()
    world.quota.put(("grant", "g1", a_grant(world.time.now_ms, max_gpus=3)))
    for number in range(3):
        world.quota.submit(f"job-{number}", gpus_per_pod=2 if number else 1)
    world.rounds(8)
    assert sorted(world.quota.starts) == ["job-0-1", "job-1-1"]
    assert world.quota.rankings[-1].order == ("job-2",)
    assert why(world, "job-2") is WaitReason.GRANT_CAP
    world.quota.cancel("job-1")
    world.rounds(8)
    assert sorted(world.quota.starts) == ["job-0-1", "job-1-1", "job-2-1"]


def test_each_party_starts_on_its_own_path_or_hears_which_account_is_short() -> None:
    world = a_running_world()
    now_ms = world.time.now_ms
    paths = (a_path("alpha", "s-alpha", "a1"), a_path("beta", "s-beta", "a1", granted_gpu_us=GPU_HOUR))
    world.quota.put(
        ("organization", "beta", an_organization("beta", now_ms)),
        ("grant", "g1", a_grant(now_ms, paths=paths)),
    )
    world.quota.submit("job-a", walltime_ms=HOUR_MS)
    world.quota.submit("job-b", organization_id="beta", gpus_per_pod=2, walltime_ms=HOUR_MS)
    world.rounds(8)
    assert world.quota.starts == {"job-a-1": 1}
    assert any(b'"account_path":["s-alpha","a1"]' in body for body in world.quota.bodies)
    told = world.quota.rankings[-1].reasons["job-b"]
    assert (told.code, told.numbers["account"]) == (WaitReason.GRANT_EXHAUSTED, "s-beta")


@pytest.mark.parametrize("what", ["hub", "gpu_class", "cluster"])
def test_pause_starts_nothing_says_what_it_is_and_lets_running_jobs_go_on(what: str) -> None:
    world = a_running_world("job-1")
    world.quota.pause(what, True)
    world.quota.submit("job-2")
    world.rounds(8)
    attempt = world.quota.attempt("job-1-1")
    assert attempt is not None
    assert attempt.state is JobState.RUNNING
    assert list(world.quota.starts) == ["job-1-1"]
    told = world.quota.rankings[-1].reasons["job-2"]
    assert (told.code, told.numbers["what"]) == (WaitReason.PLACEMENT_PAUSED, what)
    world.quota.pause(what, False)
    world.rounds(2)
    assert "job-2-1" in world.quota.starts
