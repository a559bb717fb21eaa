"""An empty cluster of 500 nodes is filled with 4,000 one-GPU jobs: by the hub, and by a bare client beside it.

Both on one control plane in one run, the bare client before and after the hub, with the same manifests, accounts,
namespaces and policies. What is timed is submission → every pod has its node: for the hub from the moment at which an
operator lets placement go on (all jobs wait in the quota service), for the bare client from its first request.
While the 4,000 run, three answers are timed: from the submission of a job for which there is no room until the quota
service tells why it waits; from an operator's cancel until the API server is asked to suspend the Job; and the same
from the submission of a job for which the core takes a GPU from a firm further ahead, without notice.
`GPUHUB_BENCH_FILL=JOBS` makes it smaller.
"""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.controlplane.api import Api
from deploy.controlplane.programs import CONTROLLER_MANAGER
from quota.schemas.fair_share import FairShare, FairSharePut, Preemption
from quota.schemas.identity import Role
from quota.schemas.jobs import JobSubmission
from quota.schemas.scheduling import WaitReason
from quota.schemas.switches import PlacementChange
from scheduler.clusters.kubernetes import names
from scheduler.clusters.kubernetes.accounts import SCHEDULER, user_of
from scheduler.clusters.kubernetes.isolation_settings import IsolationSettings
from scheduler.clusters.kubernetes.manifests import job_of
from scheduler.clusters.port import ObjectSpec, PodPlacement
from tests.bench.kubernetes_audit import Asked, AuditLog, audit_rules, count_writes
from tests.bench.kubernetes_client import Server, post_all, submit_all
from tests.bench.kubernetes_world import (
    BenchHub,
    Ground,
    a_hub,
    await_true,
    load_text,
    provisioned,
    say,
    spent,
    uses,
)
from tests.kubernetes_plane import a_plane

JOBS = int(os.environ.get("GPUHUB_BENCH_FILL", "4000"))
GPUS_PER_NODE = 8
ORGANIZATIONS = tuple(f"firm-{number}" for number in range(8))
THREADS = 4
SAMPLES = 10
BEHIND = tuple(f"firm-behind-{number}" for number in range(SAMPLES))
"""They have grants and use nothing of them until the others have all GPUs. One for each reclaim: a job's hold is worth
minutes of pace, so who has one running is ahead for as long as a benchmark lasts."""
RECLAIM = FairShare(
    preemption=Preemption(
        gang_gpus=1, gangs=SAMPLES, gangs_at_once=SAMPLES, lead_ms=0, protected_ms=0, notice_ms=0
    )
)
FILL_S = 400.0
GRACE_S = 30
WALLTIME_S = 24 * 3600
ANNOTATIONS = {"simulate.gpuhub/duration_s": "86400"}


@dataclass(frozen=True, slots=True)
class Fill:
    """One filling of the cluster."""

    seconds: float
    asked: list[Asked] = field(repr=False)
    cpu_s: dict[str, float]
    load: str

    @property
    def rate(self) -> float:
        """Jobs per second."""
        return JOBS / self.seconds


def run() -> list[dict[str, Any]]:
    """Rows of `kubernetes-fill`; `ratio` is to the mean of the bare client's two runs."""
    with tempfile.TemporaryDirectory(prefix="gpuhub-bench-") as place:
        folder = Path(place)
        user = user_of(IsolationSettings(), SCHEDULER)
        nodes = f"sim-[0-{JOBS // GPUS_PER_NODE - 1}]:h100={GPUS_PER_NODE}"
        with a_plane(
            folder / "plane",
            nodes,
            audit=True,
            audit_rules=audit_rules(user),
            # fewer signs of life than of a real cluster, and nobody who doubts a node for that
            node_lease_s=400,
            arguments={CONTROLLER_MANAGER: ("--node-monitor-grace-period=600s",)},
        ) as plane:
            firms = (*ORGANIZATIONS, *BEHIND)
            ground = provisioned(plane, folder, ("h100",), firms)
            say(f"the cluster is provisioned; {load_text()}")
            before = _fill_barely(ground, "a")
            _empty(ground)
            with a_hub(folder / "hub", ground, firms, ("h100",)) as hub:
                filled = _fill_by_hub(hub, ground)
                await_true(lambda: _running(hub) == JOBS, "the hub knows that all run", 120.0)
                told = _time_reasons(hub)
                stops, stop_writes = _time_stops(hub, ground)
                reclaims = _time_reclaims(hub, ground)
                used = hub.uses()
            _empty(ground)
            after = _fill_barely(ground, "b")
    bare = statistics.mean((before.rate, after.rate))
    bare_s = statistics.mean((sum(before.cpu_s.values()), sum(after.cpu_s.values())))
    writes = count_writes(filled.asked, user)
    say(f"the hub's writes: {dict(writes)}; for {SAMPLES} stops: {stop_writes}")
    return [
        _row("jobs_per_second", filled.rate, "jobs/s", bare, cpu_s=filled.cpu_s, load=filled.load),
        _row("bare_before", before.rate, "jobs/s", None, cpu_s=before.cpu_s, load=before.load),
        _row("bare_after", after.rate, "jobs/s", None, cpu_s=after.cpu_s, load=after.load),
        # the same ratio by what it cost: others on the machine do not move it as they move seconds
        _row("cpu_per_job", sum(filled.cpu_s.values()) / JOBS * 1000, "ms", bare_s / JOBS * 1000),
        _row("writes_per_job", writes.total() / JOBS, "writes", None, goal=1.0),
        _row("writes_per_stop", stop_writes / SAMPLES, "writes", None),
        _row("stop_decision", statistics.median(stops), "s", None, goal=1.0),
        _row("stop_decision_worst", max(stops), "s", None, goal=1.0),
        _row("reclaim_decision", statistics.median(reclaims), "s", None, goal=1.0),
        _row("reclaim_decision_worst", max(reclaims), "s", None, goal=1.0),
        _row("unschedulable_told", statistics.median(told), "s", None, goal=1.0),
        _row("unschedulable_told_worst", max(told), "s", None, goal=1.0),
        *(_row(f"{name}_peak", use.peak_mib, "MiB", None) for name, use in sorted(used.items())),
    ]


def _row(metric: str, value: float, unit: str, limit: float | None, **more: Any) -> dict[str, Any]:
    compared = {} if limit is None else {"limit": round(limit, 2), "ratio": round(value / limit, 3)}
    return (
        {"bench": "kubernetes-fill", "metric": metric, "value": round(value, 3), "unit": unit}
        | compared
        | more
    )


# --- the two ways to fill ---


def _fill_barely(ground: Ground, run_name: str) -> Fill:
    settings = ground.settings
    calls: list[tuple[str, bytes]] = []
    for number in range(JOBS):
        job = job_of(_spec(number, run_name), settings, {})
        path = f"/apis/batch/v1/namespaces/{job['metadata']['namespace']}/jobs"
        calls.append((path, json.dumps(job).encode()))
    server = Server(ground.plane.url, ground.plane.ca_file, ground.token)
    log = AuditLog(ground.plane.audit_log)
    log.skip()
    used = uses(ground.plane.supervisor)
    began_s, posted_s = post_all(server, calls, THREADS)
    asked, bound_s = _await_bound(log)
    cpu_s = spent(used, uses(ground.plane.supervisor))
    fill = Fill(bound_s - began_s, asked, cpu_s, load_text())
    say(f"bare: all accepted in {posted_s - began_s:.1f} s; bound {fill.rate:.1f}/s; {cpu_s}; {fill.load}")
    return fill


def _spec(number: int, run_name: str) -> ObjectSpec:
    """As the hub's own attempts are, one GPU after the other."""
    job_id = f"job_{run_name * 20}{number:06d}".replace("_", "-")
    return ObjectSpec(
        name=f"{job_id}-1",
        job_id=job_id,
        attempt=1,
        pods=(PodPlacement(0, f"sim-{number // GPUS_PER_NODE}", "h100", 1),),
        walltime_ms=WALLTIME_S * 1000,
        grace_ms=GRACE_S * 1000,
        organization_id=ORGANIZATIONS[number % len(ORGANIZATIONS)],
        annotations=tuple(ANNOTATIONS.items()),
    )


def _fill_by_hub(hub: BenchHub, ground: Ground) -> Fill:
    with hub.client() as client:
        client.pause_hub(PlacementChange(paused=True, reason="benchmark"))
        hub.start_scheduler()
        bodies = [_submission(number).model_dump_json().encode() for number in range(JOBS)]
        took_s = submit_all(hub.ports["quota"], hub.tokens[Role.OPERATOR], bodies, 8)
        say(f"hub: {JOBS} jobs were submitted at {JOBS / took_s:.0f}/s")
        last = client.list_jobs(limit=1).items[0].id
        await_true(
            lambda: _is_told(client.read_job(last).waiting), "the queue of all jobs is published", 120.0
        )
        time.sleep(3.0)
        log = AuditLog(ground.plane.audit_log)
        log.skip()
        used = uses(ground.plane.supervisor) | hub.uses()
        began_s = time.time()
        client.pause_hub(PlacementChange(paused=False, reason="benchmark"))
    asked, bound_s = _await_bound(log)
    cpu_s = spent(used, uses(ground.plane.supervisor) | hub.uses())
    fill = Fill(bound_s - began_s, asked, cpu_s, load_text())
    posts = sorted(one.done_s - began_s for one in asked if one.resource == "jobs")
    say(f"hub: first POST after {posts[0]:.2f} s, last after {posts[-1]:.1f} s")
    say(f"hub: bound {fill.rate:.1f}/s; {cpu_s}; {fill.load}")
    return fill


def _submission(number: int, gpus: int = 1, firm: str | None = None) -> JobSubmission:
    return JobSubmission(
        name="bench",
        gpu_class="h100",
        gpus_per_pod=gpus,
        walltime_s=WALLTIME_S,
        grace_s=GRACE_S,
        restartable=True,
        organization_id=firm or ORGANIZATIONS[number % len(ORGANIZATIONS)],
        annotations=ANNOTATIONS,
    )


def _await_bound(log: AuditLog) -> tuple[list[Asked], float]:
    """Until every pod has its node; what was asked meanwhile, and when the last one got it."""
    asked: list[Asked] = []
    bound: set[str] = set()
    last_s = 0.0

    def all_bound() -> bool:
        nonlocal last_s
        for one in log.news():
            asked.append(one)
            if one.resource == "pods/binding" and one.is_done:
                bound.add(one.name)
                last_s = max(last_s, one.done_s)
        return len(bound) >= JOBS

    await_true(all_bound, f"all pods bound; {len(bound)} are", FILL_S, pause_s=0.5)
    return asked, last_s


def _empty(ground: Ground) -> None:
    """Delete all Jobs and their pods, and wait until they are gone and the controllers have come to rest."""
    api = Api(ground.plane.url, ground.plane.ca_file, ground.plane.token, timeout_s=120.0)
    began_s = time.monotonic()
    prefix = ground.settings.namespace_prefix
    spaces = [names.namespace_of(prefix, one) for one in (*ORGANIZATIONS, *BEHIND)]

    def is_empty() -> bool:
        found = [_count(api, f"/apis/batch/v1/namespaces/{space}/jobs", "Background") for space in spaces]
        found += [_count(api, f"/api/v1/namespaces/{space}/pods", "") for space in spaces]
        return not any(found)

    await_true(is_empty, "the cluster is empty again", FILL_S, pause_s=2.0)
    say(f"all was deleted after {time.monotonic() - began_s:.0f} s")
    time.sleep(10.0)


def _count(api: Api, path: str, policy: str) -> int:
    """How many are there yet; they are told to go."""
    listed = api.get(f"{path}?limit=1")[1]
    count = len(listed["items"]) + int(listed["metadata"].get("remainingItemCount") or 0)
    if count:
        api.delete(f"{path}?propagationPolicy={policy}" if policy else f"{path}?gracePeriodSeconds=0")
    return count


# --- the answers ---


def _time_reasons(hub: BenchHub) -> list[float]:
    """From the submission of a job for which there is no room until its reason can be read."""
    found: list[float] = []
    with hub.client() as client:
        for number in range(SAMPLES):
            time.sleep(1.0 + 0.37 * number)  # at no fixed moment of any other clock
            began_s = time.monotonic()
            job = client.submit_job(_submission(number, gpus=GPUS_PER_NODE))
            await_true(lambda job=job: _is_told(client.read_job(job.id).waiting), "told", 60.0, 0.02)  # type: ignore[misc]
            found.append(time.monotonic() - began_s)
            client.cancel_job(job.id)
    say(f"reasons were told after {_seconds(found)} s")
    return found


def _is_told(waiting: Any) -> bool:
    return waiting is not None and waiting.code is not WaitReason.NEW


def _time_stops(hub: BenchHub, ground: Ground) -> tuple[list[float], int]:
    """From a cancel until the API server is asked to suspend the Job; and all that the hub wrote for it."""
    found: list[float] = []
    seen: list[Asked] = []
    log = AuditLog(ground.plane.audit_log)
    log.skip()

    def asked_for(resource: str, ending: str = "") -> list[Asked]:
        seen.extend(log.news())
        return [one for one in seen if one.resource == resource and one.name.startswith(ending)]

    with hub.client() as client:
        for number, job_id in enumerate(_some_running(hub)):
            time.sleep(1.0 + 0.37 * number)
            began_s = time.time()
            client.cancel_job(job_id)
            await_true(lambda job_id=job_id: bool(asked_for("jobs", job_id)), "suspended", 60.0, 0.05)  # type: ignore[misc]
            found.append(asked_for("jobs", job_id)[0].came_s - began_s)
    # each pod is patched to keep its end readable, and once more to let it go when the end is recorded
    await_true(lambda: len(asked_for("pods")) >= 2 * SAMPLES, "the pods are let go", 60.0)
    say(f"stops reached the API server after {_seconds(found)} s")
    return found, count_writes(seen, ground.user).total()


def _time_reclaims(hub: BenchHub, ground: Ground) -> list[float]:
    """From the submission of a job of a firm behind its pace until the API server is asked to suspend another's."""
    found: list[float] = []
    log = AuditLog(ground.plane.audit_log)

    def is_ours(one: Asked) -> bool:
        return (one.user, one.verb, one.resource) == (ground.user, "patch", "jobs")

    with hub.client() as client:
        client.put_fair_share(FairSharePut(fair_share=RECLAIM, reason="benchmark"))
        for number in range(SAMPLES):
            client.submit_job(_submission(number))  # for those that were stopped
        for number, firm in enumerate(BEHIND):
            # nothing is free, and the last reclaim is over
            await_true(lambda: _running(hub) == JOBS, "all GPUs are in use", 60.0)
            time.sleep(1.0 + 0.37 * number)
            log.skip()
            began_s, seen = time.time(), list[Asked]()

            def is_asked(seen: list[Asked] = seen) -> bool:
                seen.extend(one for one in log.news() if is_ours(one))
                return bool(seen)

            client.submit_job(_submission(number, firm=firm))
            await_true(is_asked, "another's job is suspended", 60.0, 0.05)
            found.append(seen[0].came_s - began_s)
    # a pod whose end the hub has not recorded yet would stay for good when the hub is gone
    await_true(lambda: not _unrecorded(ground), "all ends are recorded", 60.0, 1.0)
    say(f"reclaims reached the API server after {_seconds(found)} s")
    return found


def _unrecorded(ground: Ground) -> int:
    """How many pods are kept until the hub has recorded their ends."""
    api = Api(ground.plane.url, ground.plane.ca_file, ground.plane.token, timeout_s=120.0)
    count, page = 0, ""
    while True:
        listed = api.get(f"/api/v1/pods?limit=500&continue={page}")[1]
        count += sum(names.END_SEEN in (pod["metadata"].get("finalizers") or ()) for pod in listed["items"])
        page = listed["metadata"].get("continue") or ""
        if not page:
            return count


def _some_running(hub: BenchHub) -> list[str]:
    with closing(sqlite3.connect(f"file:{hub.database}?mode=ro", uri=True)) as connection:
        asked = "select id from jobs where state = 'running' order by id limit ?"
        return [str(row[0]) for row in connection.execute(asked, (SAMPLES,))]


def _running(hub: BenchHub) -> int:
    with closing(sqlite3.connect(f"file:{hub.database}?mode=ro", uri=True)) as connection:
        asked = "select count(*) from jobs where state = 'running'"
        return int(connection.execute(asked).fetchone()[0])


def _seconds(found: list[float]) -> str:
    return ", ".join(f"{one:.2f}" for one in found)
