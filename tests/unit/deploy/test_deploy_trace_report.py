"""What a lived-through day came to, from made-up jobs and a made-up journal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.player import submission
from deploy.quota_start import latest_ms
from deploy.trace import shares
from deploy.trace_report import deliveries, ends, percentile, running_gpu_ms, use, waits
from quota.schemas.jobs import JobDetail
from quota.schemas.programs import Grant
from scheduler.replay.traces import TraceJob

T0 = 1_790_000_000_000
HOUR = 3_600_000


def a_job(
    gpus: int = 1, waited_s: int | None = 60, organization: str = "alpha-lab", charged: int = 0
) -> JobDetail:
    attempt = {
        "attempt": 1,
        "state": "ended",
        "cluster": "sim",
        "pods": [{"index": 0, "node": "sim-0", "gpu_class": "h100", "count": gpus}],
        "grant_id": "grant-1",
        "hold_id": "job-1:1:hold",
        **dict.fromkeys(
            ("held_gpu_us", "settled_gpu_us", "refunded_gpu_us", "released_gpu_us", "platform_gpu_us"), 0
        ),
        "hold_resolved": True,
        "walltime_s": 3600,
        "claimed_at": T0,
        "first_started_at": None if waited_s is None else T0 + waited_s * 1000,
        "last_started_at": None,
        "ended_at": T0 + HOUR,
        **dict.fromkeys(("exit_code", "end_reason", "stop_reason", "stop_at")),
    }
    return JobDetail.model_validate(
        {
            "id": "job-1",
            "name": "n",
            "organization_id": organization,
            "state": "ended",
            "end_reason": "succeeded",
            "gpu_class": "h100",
            "gpus_per_pod": gpus,
            "pods": 1,
            "walltime_s": 3600,
            "grace_s": 30,
            "grant_id": "grant-1",
            "restartable": False,
            "submitted_at": T0,
            "ended_at": T0 + HOUR,
            "cancel_requested_at": None,
            "cost_limit_gpu_us": 0,
            "cost_limit_gpu_hours": 0,
            "attempt": 1,
            "waiting": None,
            "position": None,
            "charged_gpu_us": charged,
            "charged_gpu_hours": 0,
            "attempts": [attempt] if waited_s is not None else [],
            "measured": [],
        }
    )


def a_grant(granted: int, organization: str = "alpha-lab") -> Grant:
    return Grant.model_validate(
        {
            "id": "grant-1",
            "program_id": "trace",
            "organization_id": organization,
            "account_id": "a-1",
            "state": "active",
            "starts_at": T0,
            "ends_at": T0 + 100 * HOUR,
            "granted_gpu_us": granted,
            **dict.fromkeys(("held_gpu_us", "used_gpu_us", "available_gpu_us"), 0),
            **dict.fromkeys(
                ("granted_gpu_hours", "held_gpu_hours", "used_gpu_hours", "available_gpu_hours"), 0
            ),
            "pace": None,
            "created_at": T0,
        }
    )


def a_journal(folder: Path, *events: dict[str, object]) -> Path:
    path = folder / "journal.jsonl"
    lines = [json.dumps({"n": n, **event}) for n, event in enumerate(events, 1)]
    path.write_text("\n".join(lines) + '\n{"t": 9999999999999, "event": "pod_sta')
    return path


def started(name: str, t: int, gpus: int) -> dict[str, object]:
    return {"t": t, "event": "pod_started", "name": name, "pod_index": 0, "gpu_uuids": ["g"] * gpus}


def ended(name: str, t: int) -> dict[str, object]:
    return {"t": t, "event": "pod_ended", "name": name, "pod_index": 0}


def test_waits_by_size_count_who_never_started_apart() -> None:
    rows = waits([a_job(1, 10), a_job(4, 30), a_job(8, 5), a_job(64, None)])
    assert [(row.size, row.started, row.never_started, row.mean_s, row.p95_s) for row in rows] == [
        ("1-4 GPUs", 2, 0, 20.0, 30.0),
        ("5-31 GPUs", 1, 0, 5.0, 5.0),
        ("32+ GPUs", 0, 1, 0.0, 0.0),
    ]


@pytest.mark.parametrize(("count", "value"), [(0, 0.0), (1, 1.0), (19, 19.0), (20, 19.0), (100, 95.0)])
def test_the_95th_percentile_is_a_value_that_was_seen(count: int, value: float) -> None:
    assert percentile([float(n) for n in range(count, 0, -1)], 0.95) == value


def test_due_is_the_grant_times_the_elapsed_share() -> None:
    jobs = [a_job(charged=300), a_job(charged=200), a_job(organization="beta", charged=999)]
    (row,) = deliveries(jobs, [a_grant(10_000)], T0 + 10 * HOUR)
    assert (row.due_gpu_us, row.charged_gpu_us, row.ratio) == (1000, 500, 0.5)


def test_ends_are_counted_by_reason() -> None:
    assert ends([a_job(), a_job()]) == {"succeeded": 2}


def test_running_time_is_cut_at_the_window_and_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    journal = a_journal(
        tmp_path,
        {"t": T0 - 5000, "event": "node_added", "node": "sim-0"},
        started("before", T0 - 5000, 2),
        started("whole", T0 + 1000, 4),
        ended("before", T0 + 500),
        ended("whole", T0 + 2000),
        started("open", T0 + 9000, 1),
    )
    assert running_gpu_ms(journal, T0, T0 + 10_000) == 2 * 500 + 4 * 1000 + 1 * 1000


def test_use_compares_what_was_held_with_what_ran(tmp_path: Path) -> None:
    journal = a_journal(tmp_path, started("job-1-1", T0 + HOUR // 10, 4), ended("job-1-1", T0 + HOUR))
    used = use([a_job(gpus=4)], journal, 8, T0, T0 + HOUR)
    assert used.utilisation == pytest.approx(0.45)
    assert used.held_idle == pytest.approx(0.1)
    assert used.measured_busy is None


def test_the_latest_time_of_a_journal(tmp_path: Path) -> None:
    assert latest_ms(tmp_path / "missing") == 0
    assert latest_ms(a_journal(tmp_path, started("a", T0 + 5, 1), ended("b", T0 + 3))) >= T0 + 5


def test_shares_follow_demand_and_never_exceed_the_budget_by_more_than_an_hour_each() -> None:
    jobs = [
        TraceJob("k1", "big", 0, 8, 3000, 3600),
        TraceJob("k2", "small", 0, 1, 8000, 14_400),
        TraceJob("k3", "none", 0, 1, 0, 3600),
    ]
    assert shares(jobs, 100) == {"big": 74, "none": 1, "small": 24}


def test_a_trace_job_is_submitted_as_it_was() -> None:
    body = submission(TraceJob("k1", "big", 0, 20, 3000, 3600), 8)
    assert (body.pods, body.gpus_per_pod, body.walltime_s, body.name) == (4, 5, 3600, "k1")
    assert body.annotations["simulate.gpuhub/duration_s"] == "3000"
