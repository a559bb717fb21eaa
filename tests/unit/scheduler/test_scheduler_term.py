"""A whole term over models of both neighbours: what jobs meet from their submission to their end."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quota.schemas.scheduling import EndReason, JobState, WaitReason
from scheduler.crash import POINTS
from scheduler.specs import spec_of
from tests.unit.scheduler.cluster_model import a_pod, an_object
from tests.unit.scheduler.quota_objects import an_attempt
from tests.unit.scheduler.scheduler_world import World

DAY_MS = 86_400_000


def a_leading_world(*, run_ms: int = 60_000) -> World:
    """Nodes are reported, nothing waits."""
    world = World()
    world.cluster.run_ms = run_ms
    world.boot()
    world.rounds(4)
    return world


def verbs(world: World, name: str = "job-1-1") -> list[str]:
    """What the cluster was asked about one object."""
    return [verb for verb, asked in world.cluster.calls if asked == name]


def state(world: World, name: str = "job-1-1") -> JobState | None:
    """An attempt's state in quota."""
    attempt = world.quota.attempt(name)
    return None if attempt is None else attempt.state


def test_job_starts_runs_and_ends() -> None:
    world = a_leading_world()
    world.quota.submit("job-1")
    world.rounds(1)
    assert world.cluster.runs == {"job-1-1": 1}, "claimed and created in the same step"
    world.rounds(2)
    assert state(world) is JobState.RUNNING
    world.rounds(4, pass_ms=20_000)
    assert world.quota.job_ends == {"job-1": EndReason.SUCCEEDED}
    assert world.quota.used() == 0
    assert world.quota.breaches == []
    assert verbs(world) == ["start"]


def test_every_waiting_job_is_ranked_with_a_reason() -> None:
    world = a_leading_world()
    for number in range(20):
        world.quota.submit(f"job-{number:02d}")
    world.rounds(8)
    ranking = world.quota.rankings[-1]
    assert len(ranking.order) == 4
    assert len(world.quota.starts) == 16
    told = {job: why for document in world.quota.rankings for job, why in document.reasons.items()}
    assert {told[job].code for job in ranking.order} == {WaitReason.NO_FREE_GPU}


def test_first_ranking_of_a_term_is_complete_and_the_next_says_what_changed() -> None:
    world = a_leading_world()
    for number in range(20):
        world.quota.submit(f"job-{number:02d}")
    world.rounds(8)
    world.quota.submit("job-late")
    world.rounds(8)
    assert world.quota.rankings[0].base_cycle is None
    last = world.quota.rankings[-1]
    assert last.base_cycle == world.quota.rankings[-2].cycle
    assert set(last.reasons) == {"job-late"}
    before = len(world.quota.rankings)
    world.boot()
    world.rounds(6)
    assert world.quota.rankings[before].base_cycle is None
    assert len(world.quota.rankings[before].reasons) == 5


def test_cancelled_job_is_stopped_after_the_decision() -> None:
    world = a_leading_world()
    world.quota.submit("job-1")
    world.rounds(4)
    world.quota.cancel("job-1")
    world.rounds(1)
    assert state(world) is JobState.STOPPING
    assert verbs(world) == ["start", "stop"]
    world.rounds(3)
    assert world.quota.job_ends == {"job-1": EndReason.CANCELLED}
    assert verbs(world) == ["start", "stop"], "stopping is asked for once"


def test_walltime_ends_a_job_at_its_limit() -> None:
    world = a_leading_world(run_ms=10 * DAY_MS)
    world.quota.submit("job-1", walltime_ms=60_000)
    world.rounds(4)
    attempt = world.quota.attempt("job-1-1")
    assert attempt is not None
    assert attempt.last_started_at is not None
    assert world.process is not None
    assert world.process.term is not None
    due_ms = world.process.term.next_due_ms()
    assert due_ms is not None
    world.round(pass_ms=due_ms - world.time.now_ms - 1)
    assert state(world) is JobState.RUNNING
    world.round(pass_ms=1)
    stopped = world.quota.attempt("job-1-1")
    assert stopped is not None
    assert stopped.stop is not None
    assert stopped.stop.stop_at == due_ms
    world.rounds(3)
    assert world.quota.job_ends == {"job-1": EndReason.TIME_LIMIT}


def test_start_that_the_cluster_refuses_is_tried_again_until_its_limit() -> None:
    world = a_leading_world()
    world.cluster.faults = ["refuse"] * 10_000
    world.quota.submit("job-1")
    world.rounds(620, pass_ms=1_000)
    starts = verbs(world).count("start")
    assert 10 < starts < 100, f"{starts} tries: with pauses in between"
    world.cluster.faults.clear()
    world.rounds(70, pass_ms=1_000)
    assert world.quota.ends["job-1-1"] == [EndReason.ABANDONED]
    assert "job-1-1" not in world.cluster.runs


def test_start_that_arrives_after_its_attempt_was_given_up_finds_a_tombstone() -> None:
    world = a_leading_world()
    world.cluster.faults = ["late"]
    world.quota.submit("job-1")
    world.rounds(1)
    world.quota.cancel("job-1")
    world.rounds(3)
    world.cluster.deliver_late()
    world.rounds(3)
    assert world.cluster.runs == {}
    assert world.quota.job_ends == {"job-1": EndReason.CANCELLED}


def test_lost_node_ends_the_attempt_and_frees_its_room_when_it_is_back() -> None:
    world = a_leading_world(run_ms=DAY_MS)
    world.quota.submit("job-1", gpus_per_pod=8)
    world.rounds(4)
    attempt = world.quota.attempt("job-1-1")
    assert attempt is not None
    node = attempt.pods[0].node
    world.cluster.lose(node)
    world.rounds(4)
    assert world.quota.ends == {"job-1-1": [EndReason.NODE_FAILED]}
    assert state(world) is JobState.ENDED
    assert "stop" in verbs(world), "what comes back with the node must not run on"
    assert world.quota.used() == 16, "the second attempt runs elsewhere, the first keeps its room"
    world.cluster.find(node)
    world.rounds(3)
    assert world.quota.attempt("job-1-1") is None
    assert world.quota.used() == 8


def test_refused_start_waits_a_moment_and_says_why() -> None:
    world = a_leading_world()
    world.quota.refuse_starts = ["capacity_taken"]
    world.quota.submit("job-1")
    world.rounds(1)
    assert world.quota.starts == {}
    assert world.process is not None
    assert world.process.term is not None
    world.rounds(2)
    why = world.quota.rankings[-1].reasons["job-1"]
    assert why.code is WaitReason.START_REFUSED
    assert why.numbers["code"] == "capacity_taken"
    world.rounds(4)
    assert world.quota.starts == {"job-1-1": 1}


def test_cluster_that_was_not_seen_for_a_minute_receives_nothing() -> None:
    world = a_leading_world()
    assert world.process is not None
    view = world.process.views["sim"]
    observe = world.cluster.observe
    world.cluster.observe = lambda wait_s: replace(observe(wait_s), objects=())  # type: ignore[method-assign]
    view.take = lambda observation, now_ms: None  # type: ignore[method-assign]
    world.rounds(62, pass_ms=1_000)
    world.quota.submit("job-1")
    world.rounds(5)
    assert world.quota.starts == {}
    assert world.quota.rankings[-1].reasons["job-1"].code is WaitReason.CLUSTER_UNSEEN


def test_watermark_is_told_without_events_and_never_ahead_of_them() -> None:
    world = a_leading_world()
    before_ms = world.quota.through_ms
    world.rounds(5)
    assert before_ms < world.quota.through_ms <= world.time.now_ms


def test_unknown_object_is_a_finding_and_is_stopped_only_if_it_surely_runs() -> None:
    world = a_leading_world()
    stranger = an_object(spec_of(an_attempt("job-strange")), world.time.now_ms, (a_pod(started_ms=1),))
    world.cluster.run_ms = 10**15
    world.cluster.add(stranger)
    world.rounds(30, pass_ms=1_000)
    assert verbs(world, "job-strange-1") == []
    world.rounds(100, pass_ms=1_000)
    assert verbs(world, "job-strange-1") == ["stop"]
    assert [finding.code for finding in world.quota.findings] == ["unknown_object"]


def test_name_taken_by_another_object_is_a_finding_and_abandons_the_attempt() -> None:
    world = a_leading_world(run_ms=10**15)
    spec = replace(spec_of(an_attempt("job-1")), image="somebody-else")
    world.cluster.add(an_object(spec, world.time.now_ms, (a_pod(started_ms=world.time.now_ms),)))
    world.quota.submit("job-1")
    world.rounds(12)
    assert [finding.code for finding in world.quota.findings] == ["name_conflict"]
    assert world.quota.ends["job-1-1"] == [EndReason.ABANDONED]
    assert world.quota.starts["job-1-2"] == 1


def test_old_ends_are_forgotten_after_a_day() -> None:
    world = a_leading_world()
    world.quota.submit("job-1")
    world.rounds(10, pass_ms=20_000)
    assert "job-1-1" in world.cluster.objects
    world.rounds(3, pass_ms=DAY_MS)
    assert world.cluster.objects == {}


def test_nothing_is_done_while_the_lease_is_not_held() -> None:
    world = a_leading_world()
    world.quota.submit("job-1")
    assert world.process is not None
    term = world.process.term
    assert term is not None
    world.time.now_ms += 60_000
    term.step()
    assert world.quota.starts == {}
    assert world.cluster.calls == []


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_named_point_the_next_process_finishes_what_was_begun(point: str) -> None:
    world = a_leading_world()
    world.quota.submit("job-1")
    world.quota.submit("job-2")
    world.crash.arm(point, 1)
    for turn in range(60):
        world.round(pass_ms=2_000)
        if turn == 4:
            world.quota.cancel("job-2")
        if world.process is None:
            world.boot()
    assert world.instances == 2, f"it never passed {point}"
    assert world.quota.job_ends == {"job-1": EndReason.SUCCEEDED, "job-2": EndReason.CANCELLED}
    assert world.cluster.runs == {"job-1-1": 1, "job-2-1": 1}
    assert world.quota.used() == 0
    assert world.quota.breaches == []
