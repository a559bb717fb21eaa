"""What operators see: explanations, metrics, the door, the command line."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from http.client import HTTPConnection
from itertools import product
from types import SimpleNamespace
from typing import get_args

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from quota.schemas.scheduling import (
    BookedRoom,
    NodeCapacityObject,
    NodeObject,
    PodPlacement,
    StopReason,
    Waiting,
    WaitReason,
)
from scheduler.actions import Action
from scheduler.cli import app
from scheduler.crash import POINTS, CrashPlan
from scheduler.door import Door, PortTaken, Readiness, Windows
from scheduler.explain import explain
from scheduler.metrics import Metrics, Picture, Shares, Tally
from scheduler.picture import picture_of, shares_of, status_of
from tests.unit.scheduler.quota_objects import a_booking, a_grant, a_job, an_attempt


@pytest.mark.parametrize("code", list(WaitReason))
def test_every_reason_has_a_line_and_a_status(code: WaitReason) -> None:
    assert explain(Waiting(code=code))
    assert status_of(code) in ("active", "blocked", "held")


@pytest.mark.parametrize(
    ("waiting", "line"),
    [
        (
            Waiting(code=WaitReason.NO_FREE_GPU, numbers={"needed": 8, "free": 3, "gpu_class": "h100"}),
            "needs 8 h100, 3 are free",
        ),
        (
            Waiting(
                code=WaitReason.GRANT_ENDS_FIRST,
                numbers={"grant": "g1", "ends_at_ms": 1_800_000_000_000, "walltime_ms": 5_400_000},
            ),
            "grant g1 ends at 2027-01-15T08:00:00.000Z: a walltime of 90 min would fit",
        ),
        (
            Waiting(
                code=WaitReason.GRANT_EXHAUSTED,
                numbers={
                    "grant": "g1",
                    "account": "share-1",
                    "needed_gpu_us": 7_200_000_000,
                    "left_gpu_us": 1_800_000_000,
                },
            ),
            "needs 2 GPU hours, grant g1 has 0.5 GPU hours left (account share-1)",
        ),
        (
            Waiting(
                code=WaitReason.GRANT_EXHAUSTED,
                numbers={"grant": "g1", "account": "", "needed_gpu_us": 3_600_000_000, "left_gpu_us": 0},
            ),
            "needs 1 GPU hours, grant g1 has 0 GPU hours left (account none is open)",
        ),
        (
            Waiting(code=WaitReason.GRANT_CAP, numbers={"grant": "g1", "cap": 8, "in_use": 6, "needed": 4}),
            "needs 4 GPUs, 6 of the 8 that grant g1 may use at once are in use",
        ),
        (
            Waiting(code=WaitReason.PLACEMENT_PAUSED, numbers={"what": "hub", "name": ""}),
            "operators let nothing start on hub",
        ),
        (
            Waiting(code=WaitReason.PLACEMENT_PAUSED, numbers={"what": "gpu_class", "name": "h100"}),
            "operators let nothing start on gpu_class h100",
        ),
        (Waiting(code=WaitReason.NO_FREE_GPU), "needs ? ?, ? are free"),
    ],
)
def test_explanation_shows_the_numbers(waiting: Waiting, line: str) -> None:
    assert explain(waiting) == line


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Every sample by name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_gauges_come_from_the_last_picture_and_leave_nothing_behind() -> None:
    metrics = Metrics()
    full = Waiting(code=WaitReason.NO_FREE_GPU)
    frozen = Waiting(code=WaitReason.ORGANIZATION_FROZEN)
    node = NodeObject(
        cluster="sim",
        node="n0",
        schedulable=True,
        capacities=(NodeCapacityObject(gpu_class="h100", total=8, foreign=1, used=4),),
    )
    shut = node.model_copy(update={"schedulable": False})
    jobs = [(a_job("job-1", gpus_per_pod=4, pods=2), full), (a_job("job-2"), frozen)]
    metrics.lead(True)
    rooms = [
        BookedRoom(booking_id="b", cluster="sim", gpus_by_node={"n0": 8}, short_gpus=3),
        BookedRoom(booking_id="b", cluster="sim", gpus_by_node={}, released=True),
    ]
    booked = [(a_booking("b", gpus_per_pod=4, pods=2), room) for room in rooms]
    metrics.show(picture_of(jobs, [node, shut], {"sim": 5_000}, booked))
    seen = samples(metrics)
    assert seen["hub_sched_leader",] == 1
    assert seen["hub_sched_queue_jobs", "alpha", "active"] == 1
    assert seen["hub_sched_queue_gpus_requested", "alpha", "active"] == 8
    assert seen["hub_sched_queue_jobs", "alpha", "blocked"] == 1
    assert (
        seen["hub_sched_queue_oldest_timestamp_seconds", "alpha", "active"] == jobs[0][0].submitted_at / 1000
    )
    assert seen["hub_sched_unschedulable_jobs", "organization_frozen"] == 1
    assert [seen["hub_sched_gpus", "h100", state] for state in ("allocated", "foreign", "free", "quarantined")] == [
        8, 2, 3, 3
    ]  # fmt: skip
    assert [seen["hub_sched_booked_gpus", "h100", state] for state in ("kept", "short")] == [5, 3]
    assert seen["hub_sched_cluster_seen_timestamp_seconds", "sim"] == 5
    metrics.lead(False)
    seen = samples(metrics)
    assert seen["hub_sched_leader",] == 0
    assert not any(name == "hub_sched_queue_jobs" for name, *_ in seen)


def test_shares_are_those_of_who_holds_the_grants() -> None:
    day_ms = 86_400_000
    grants = [
        a_grant(0, id="g-alpha", organization_id="alpha", starts_at=0, ends_at=10 * day_ms),
        a_grant(0, id="g-beta", organization_id="beta", starts_at=0, ends_at=5 * day_ms),
        a_grant(0, id="g-late", organization_id="gamma", starts_at=5 * day_ms, ends_at=9 * day_ms),
    ]
    pods = (PodPlacement(index=0, node="n0", gpu_class="a100", count=5),)
    attempts = [
        an_attempt("job-1", organization_id="alpha", grant_id="g-alpha"),
        an_attempt("job-2", organization_id="guest", grant_id="g-beta", pods=pods),
        an_attempt("job-3", organization_id="alpha", grant_id="g-alpha", capacity_held=False),
        an_attempt("job-4", organization_id="alpha", grant_id="g-ended"),
    ]
    shares = shares_of(grants, attempts, {"h100": 1000, "a100": 400}, day_ms)
    alone = attempts[0].pods[0].count
    assert shares.gpus == {"alpha": 2 * alone, "guest": 5}
    assert shares.fair == pytest.approx({"alpha": 1 / 3, "beta": 2 / 3, "gamma": 0.0})
    assert shares.used == pytest.approx({"alpha": alone / (alone + 2), "beta": 2 / (alone + 2), "gamma": 0.0})
    metrics = Metrics()
    metrics.show(picture_of((), (), {}, (), shares))
    seen = samples(metrics)
    assert seen["hub_sched_organization_gpus_allocated", "guest"] == 5
    assert seen["hub_sched_organization_fair_share_ratio", "beta"] == pytest.approx(2 / 3)
    assert seen["hub_sched_organization_usage_ratio", "gamma"] == 0


def test_nobody_has_a_part_of_nothing() -> None:
    shares = shares_of([a_grant(0, starts_at=10, ends_at=20)], [], {}, 5)
    assert set(shares.fair.values()) == set(shares.used.values()) == {0.0}


def test_feed_is_shown_by_who_leads() -> None:
    metrics = Metrics()
    assert ("hub_sched_feed_seq",) not in samples(metrics)
    metrics.lead(True)
    metrics.fed(41)
    metrics.fed(42)
    assert samples(metrics)["hub_sched_feed_seq",] == 42
    metrics.lead(False)
    assert ("hub_sched_feed_seq",) not in samples(metrics)


def test_counters_and_histograms() -> None:
    metrics = Metrics()
    metrics.decided("started")
    metrics.stopped("requeued")
    metrics.admitted("alpha", "h100", 45)
    metrics.acted("start", "done")
    metrics.cycle(0.003)
    metrics.quota_failed()
    seen = samples(metrics)
    assert seen["hub_sched_decisions_total", "started"] == 1
    assert seen["hub_sched_decisions_total", "refused"] == 0
    assert {
        labels[0]: count for (name, *labels), count in seen.items() if name == "hub_sched_stops_total"
    } == {reason.value: int(reason is StopReason.REQUEUED) for reason in StopReason}
    assert seen["hub_sched_admitted_jobs_total",] == 1
    assert seen["hub_sched_organization_starts_total", "alpha"] == 1
    assert seen["hub_sched_organization_wait_seconds_total", "alpha"] == 45
    assert seen["hub_sched_cluster_actions_total", "done", "start"] == 1
    assert seen["hub_sched_quota_errors_total",] == 1
    assert [seen["hub_sched_queue_wait_seconds_bucket", "h100", bound] for bound in ("30", "60", "+Inf")] == [
        0, 1, 1
    ]  # fmt: skip
    assert seen["hub_sched_cycle_duration_seconds_count",] == 1
    assert not any("_created" in name for name, *_ in seen)


def test_what_may_happen_has_a_series_before_it_does() -> None:
    metrics = Metrics()
    metrics.show(Picture(gpus={("h100", "free"): 8}, shares=Shares(fair={"alpha": 1.0})))
    seen = samples(metrics)
    verbs = {
        kind(**{part.name: SimpleNamespace(name="job-1") for part in fields(kind)}).key[2]
        for kind in get_args(Action)
    }
    assert {tuple(labels) for (name, *labels) in seen if name == "hub_sched_cluster_actions_total"} == set(
        product(("done", "failed"), verbs)
    )
    assert seen["hub_sched_organization_starts_total", "alpha"] == 0
    assert seen["hub_sched_organization_wait_seconds_total", "alpha"] == 0
    assert seen["hub_sched_queue_wait_seconds_count", "h100"] == 0


def test_value_on_a_bound_falls_under_it() -> None:
    tally = Tally((10, 20))
    for value in (10, 10.5, 21):
        tally.add(value)
    assert tally.buckets() == ([("10", 1.0), ("20", 2.0), ("+Inf", 3.0)], 41.5)


def get(port: int, path: str) -> tuple[int, str]:
    """One page."""
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_door_tells_leader_from_standby() -> None:
    now = {"readiness": Readiness(False, "lease_held")}
    windows = Windows(Metrics().text, lambda: now["readiness"], lambda: ["1 job-1 needs 8 h100"])
    with Door("127.0.0.1", 0, windows) as door:
        assert get(door.port, "/-/healthy")[0] == 200
        status, body = get(door.port, "/-/ready")
        assert (status, json.loads(body)) == (503, {"status": "standby", "reason": "lease_held"})
        now["readiness"] = Readiness(True, "epoch 3")
        assert get(door.port, "/-/ready?x=1")[0] == 200
        assert "hub_sched_leader 0.0" in get(door.port, "/metrics")[1]
        assert get(door.port, "/-/waiting") == (200, "1 job-1 needs 8 h100\n")
        assert get(door.port, "/nothing")[0] == 404
        with pytest.raises(PortTaken, match="cannot listen on"):
            Door("127.0.0.1", door.port, windows)


GOOD = ["run", "--quota-url", "http://127.0.0.1:9", "--cluster", "sim=http://127.0.0.1:9"]


@pytest.mark.parametrize(
    ("words", "environment", "line"),
    [
        (GOOD[:3], {}, "name at least one cluster: --cluster NAME=URL or --kubernetes NAME=FILE"),
        (["run", "--cluster", "sim"], {}, "--cluster: 'sim' is not NAME=URL"),
        ([*GOOD, *GOOD[3:]], {}, "--cluster: sim is given twice"),
        (GOOD, {"GPUHUB_TOKEN": ""}, "--token-env: the environment has no GPUHUB_TOKEN"),
        (
            [*GOOD, "--cluster-token-env", "NOT_THERE"],
            {},
            "--cluster-token-env: the environment has no NOT_THERE",
        ),
        ([*GOOD, "--clock", "1,2"], {}, "clock '1,2' is not BUSINESS_MS,WALL_MS,SPEED"),
        ([*GOOD, "--cycle-interval-s", "0"], {}, "--cycle-interval-s: Input should be greater than 0"),
        ([*GOOD, "--port", "70000"], {}, "--port: Input should be less than or equal to 65535"),
        (GOOD, {"GPUHUB_CRASH_AT": "nowhere"}, "GPUHUB_CRASH_AT: 'nowhere' is none of"),
    ],
)
def test_bad_option_is_one_line_and_exit_2(words: list[str], environment: dict[str, str], line: str) -> None:
    result = CliRunner().invoke(app, words, env={"GPUHUB_TOKEN": "secret"} | environment)
    assert result.exit_code == 2
    assert line in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_taken_port_is_one_line_and_exit_2() -> None:
    windows = Windows(Metrics().text, lambda: Readiness(False, ""), list)
    with Door("127.0.0.1", 0, windows) as door:
        result = CliRunner().invoke(app, [*GOOD, "--port", str(door.port)], env={"GPUHUB_TOKEN": "secret"})
    assert result.exit_code == 2
    assert re.fullmatch(r"gpuhub scheduler run: cannot listen on .*\n", result.stderr)


@pytest.mark.parametrize("text", ["nowhere", "after_create:0", "after_create:x", "after_create:1:pause"])
def test_crash_plan_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="GPUHUB_CRASH_AT"):
        CrashPlan(text)


def test_crash_plan_reads_name_count_and_verb() -> None:
    for point in POINTS:
        CrashPlan(point).reach("after_create" if point != "after_create" else "before_ranking")
    plan = CrashPlan("after_create:2:stop")
    plan.reach("after_create")
    CrashPlan().reach("after_create")
