"""Real processes: a job from submission to its charge, and what kills and pauses leave behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from quota.schemas.scheduling import EndReason, JobState, WaitReason
from scheduler.crash import POINTS
from tests.integration.scheduler.scheduler_processes import (
    Hub,
    check_against_journal,
    free_port,
    open_hub,
    pods,
    until,
)

SLOW_TO_STOP = {"simulate.gpuhub/duration_s": "3000", "simulate.gpuhub/stop_s": "0.2"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Quota and a cluster that outlive many schedulers."""
    with open_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(shared: Hub) -> Iterator[Hub]:
    """The shared hub; the schedulers that a test starts are killed after it."""
    yield shared
    shared.end_schedulers()
    assert taken(shared) == 0, "something was started and never freed"


def taken(hub: Hub) -> int:
    """GPUs that quota has given away."""
    return sum(capacity.used for node in hub.operator.list_nodes().items for capacity in node.capacities)


@pytest.mark.e2e
def test_job_runs_and_is_charged_what_the_journal_says(hub: Hub) -> None:
    port = free_port()
    scheduler = hub.start_scheduler(port=port)
    job = hub.wait_for(hub.submit(gpus_per_pod=4, pods=2), JobState.ENDED)
    assert job.end_reason is EndReason.SUCCEEDED, hub.log("scheduler-one")
    check_against_journal(hub, job)

    def shown(line: str) -> bool:
        with urlopen(f"http://127.0.0.1:{port}/metrics") as page:
            return line in page.read().decode()

    assert shown('hub_sched_decisions_total{outcome="started"} 1.0')
    until(lambda: shown('hub_sched_gpus{gpu_class="h100",state="free"} 16.0'), "all GPUs are free again")
    with urlopen(f"http://127.0.0.1:{port}/-/ready") as ready:
        assert ready.status == 200
    scheduler.terminate()
    assert scheduler.wait(timeout=20) == 0, hub.log("scheduler-one")


@pytest.mark.e2e
def test_waiting_job_tells_why_and_starts_when_there_is_room(hub: Hub) -> None:
    hub.start_scheduler()
    first = hub.submit(gpus_per_pod=8, pods=2, annotations=SLOW_TO_STOP)
    hub.wait_for(first, JobState.RUNNING)
    second = hub.submit(gpus_per_pod=8)
    until(lambda: hub.operator.read_job(second).position == 1, "a position")
    found = hub.operator.read_job(second)
    assert found.waiting is not None
    assert found.waiting.code is WaitReason.NO_FREE_GPU
    numbers = dict(found.waiting.numbers)
    assert isinstance(numbers.pop("room_at_ms"), int)
    assert numbers == {"gpu_class": "h100", "needed": 8, "free": 0, "ending_job": first}
    assert found.waiting_text is not None
    assert found.waiting_text.startswith("needs 8 ")
    assert f"; {first} ends by " in found.waiting_text
    hub.operator.cancel_job(first)
    check_against_journal(hub, hub.wait_for(second, JobState.ENDED))
    stopped = hub.wait_for(first, JobState.ENDED)
    assert stopped.end_reason is EndReason.CANCELLED
    check_against_journal(hub, stopped)


@pytest.mark.e2e
@pytest.mark.crash
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_named_point_the_next_process_finishes(hub: Hub, point: str) -> None:
    dying = hub.start_scheduler(crash_at=point)
    if point == "before_ranking":
        assert dying.wait(timeout=40) == -signal.SIGKILL
        hub.start_scheduler()
    short, long = hub.submit(pods=2), hub.submit(annotations=SLOW_TO_STOP)
    if "stop" in point or "suspend" in point:
        hub.wait_for(long, JobState.RUNNING)
        hub.operator.cancel_job(long)
    if point != "before_ranking":
        assert dying.wait(timeout=40) == -signal.SIGKILL, hub.log("scheduler-one")
        hub.start_scheduler()
    assert hub.wait_for(short, JobState.ENDED).end_reason is EndReason.SUCCEEDED
    hub.wait_for(long, JobState.RUNNING, JobState.ENDED)
    hub.operator.cancel_job(long)
    assert hub.wait_for(long, JobState.ENDED).end_reason is EndReason.CANCELLED
    for job_id in (short, long):
        job = hub.operator.read_job(job_id)
        assert job.attempt == 1
        check_against_journal(hub, job)


@pytest.mark.e2e
def test_lost_node_ends_the_attempt_and_the_job_runs_elsewhere(hub: Hub) -> None:
    hub.start_scheduler()
    ten_seconds = {"simulate.gpuhub/duration_s": "10"}
    job_id = hub.submit(gpus_per_pod=8, restartable=True, annotations=ten_seconds)
    node = hub.wait_for(job_id, JobState.RUNNING).attempts[0].pods[0].node
    hub.plant(fault="lose_node", node=node, silent_ms=300)
    until(lambda: hub.operator.read_job(job_id).attempt == 2, "a second attempt")
    hub.wait_for(job_id, JobState.RUNNING)
    assert taken(hub) == 16, "nobody knows yet whether the first attempt's pods still run"
    hub.plant(fault="return_node", node=node)
    until(lambda: taken(hub) == 8, "the lost attempt's room is free")
    job = hub.wait_for(job_id, JobState.ENDED)
    assert job.end_reason is EndReason.SUCCEEDED
    assert job.attempts[0].end_reason is EndReason.NODE_FAILED
    check_against_journal(hub, job)


@pytest.mark.e2e
def test_lost_late_and_refused_answers_of_the_cluster_change_nothing(hub: Hub) -> None:
    hub.start_scheduler()
    hub.plant(fault="forget_reply", count=2, path="create")
    hub.plant(fault="answer_late", delay_s=6, count=1, path="create")
    hub.plant(fault="refuse_start", count=2)
    jobs = [hub.submit() for _ in range(4)]
    for job_id in jobs:
        job = hub.wait_for(job_id, JobState.ENDED)
        assert job.end_reason is EndReason.SUCCEEDED
        assert job.attempt == 1
        check_against_journal(hub, job)


@pytest.mark.e2e
def test_hours_pass_in_seconds_and_every_slice_closes(tmp_path: Path) -> None:
    with open_hub(tmp_path, speed=3600) as hub:
        hub.start_scheduler()
        short = hub.submit(walltime_s=12 * 3600, annotations={"simulate.gpuhub/duration_s": "21600"})
        long = hub.submit(walltime_s=3 * 3600, annotations={"simulate.gpuhub/duration_s": "999999"})
        job = hub.wait_for(short, JobState.ENDED)
        assert job.end_reason is EndReason.SUCCEEDED
        assert job.charged_gpu_us == 6 * 3_600_000_000
        check_against_journal(hub, job)
        stopped = hub.wait_for(long, JobState.ENDED)
        assert stopped.end_reason is EndReason.TIME_LIMIT
        assert stopped.charged_gpu_us == 3 * 3_600_000_000, "never more than was held"
        check_against_journal(hub, stopped)


@pytest.mark.e2e
@pytest.mark.crash
def test_paused_leader_that_wakes_up_after_another_took_over_changes_nothing(tmp_path: Path) -> None:
    with open_hub(tmp_path, lease_ttl_s=2.0) as hub:
        paused = hub.start_scheduler("one", crash_at="between_claim_and_create:1:stop")
        job_id = hub.submit()
        hub.wait_for(job_id, JobState.STARTING)
        hub.start_scheduler("two")
        assert hub.wait_for(job_id, JobState.ENDED).end_reason is EndReason.SUCCEEDED
        paused.send_signal(signal.SIGCONT)
        until(lambda: "lease_lost" in hub.log("scheduler-one"), "the paused one noticed")
        again = hub.wait_for(hub.submit(), JobState.ENDED)
        assert again.end_reason is EndReason.SUCCEEDED
        job = hub.operator.read_job(job_id)
        assert len(pods(hub, "object_created", f"{job_id}-1")) == 1
        check_against_journal(hub, job)
        check_against_journal(hub, again)
        assert hub.operator.list_findings().items == ()


@pytest.mark.e2e
@pytest.mark.crash
def test_scheduler_outlives_quota_and_cluster(tmp_path: Path) -> None:
    with open_hub(tmp_path) as hub:
        hub.start_scheduler()
        job_id = hub.submit(annotations={"simulate.gpuhub/duration_s": "4"})
        hub.wait_for(job_id, JobState.RUNNING)
        for child in hub.children[:2]:
            child.kill()
            child.wait()
        hub.start_cluster()
        hub.start_quota()
        until(hub.quota_answers, "quota is back")
        job = hub.wait_for(job_id, JobState.ENDED)
        assert job.end_reason is EndReason.SUCCEEDED
        check_against_journal(hub, job)
