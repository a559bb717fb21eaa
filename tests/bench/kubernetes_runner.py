"""What stands in for people and machines in the benchmark beside Kueue: who submits, and who plays kubelet.

Without controllers no pod appears by itself, and the scheduler reads starts and ends from pods. So the player makes
each Job's pod, already on its node, lets it run and end, and marks the Job complete: four writes per job, where
Kueue's own runner needs one.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import random
import string
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scheduler.clusters.kubernetes import names
from tests.bench.kubernetes_client import HubLine, Line, Server

PLAYERS = 6
DURATION = "simulate.gpuhub/duration_s"
MERGE_PATCH = "application/merge-patch+json"
WATCH = f"/apis/batch/v1/jobs?watch=true&labelSelector={names.JOB_ID}&timeoutSeconds=7200"


@dataclass(frozen=True, slots=True)
class JobSet:
    """Jobs of one kind that one organization submits one after the other."""

    organization: str
    gpu_class: str
    size: str
    gpus: int
    run_s: float
    count: int
    interval_s: float


def submit(port: int, token: str, sets: Sequence[JobSet], told: Path) -> None:
    """Submit all sets at once, each at its own pace; leaves a line `id size seconds-since-1970` per job."""
    lines: list[str] = []
    asyncio.run(_submit(port, token, sets, lines))
    told.write_text("\n".join(lines) + "\n")


async def _submit(port: int, token: str, sets: Sequence[JobSet], lines: list[str]) -> None:
    async def work(jobs: JobSet) -> None:
        line = HubLine(port, token)
        submission = {
            "name": jobs.size,
            "gpu_class": jobs.gpu_class,
            "gpus_per_pod": jobs.gpus,
            "walltime_s": 60,
            "grace_s": 1,
            "organization_id": jobs.organization,
            "annotations": {DURATION: f"{jobs.run_s:g}"},
        }
        body = json.dumps(submission).encode()
        for _ in range(jobs.count):
            await asyncio.sleep(jobs.interval_s)
            began_s = time.time()
            status, answer = await line.post("/v1/jobs", body)
            assert status == 201, (status, answer[:300])
            lines.append(f"{json.loads(answer)['id']} {jobs.size} {began_s:.3f}")

    await asyncio.gather(*(work(jobs) for jobs in sets))


def play(server: Server, count: int, told: Path) -> None:
    """Run `count` Jobs; leaves a line `id seen ended` per job, in seconds since 1970."""
    player = _Player(server, count)
    player.run()
    told.write_text("\n".join(player.lines) + "\n")


class _Player:
    """A watch of Jobs, and threads that do what is due."""

    def __init__(self, server: Server, count: int) -> None:
        self._server = server
        self._left = count
        self._due: list[tuple[float, int, dict[str, Any], float, str]] = []
        self._bell = threading.Condition()
        self._number = 0
        self._seen: set[str] = set()
        self._failed = ""
        self.lines: list[str] = []

    def run(self) -> None:
        """Until all have ended. Raises AssertionError when a write was refused."""
        for work in (self._watch, *([self._work] * PLAYERS)):
            threading.Thread(target=self._guarded, args=(work,), daemon=True).start()
        with self._bell:
            while self._left and not self._failed:
                self._bell.wait()
        assert not self._failed, self._failed

    def _guarded(self, work: Any) -> None:
        try:
            work()
        except BaseException as trouble:
            with self._bell:
                self._failed = repr(trouble)
                self._bell.notify_all()
            raise

    def _watch(self) -> None:
        connection = self._server.connect(timeout_s=7200.0)
        connection.request("GET", WATCH, headers={"Authorization": f"Bearer {self._server.token}"})
        for line in connection.getresponse():
            event = json.loads(line)
            job = event["object"]
            if event["type"] != "ADDED" or job["metadata"]["uid"] in self._seen:
                continue
            self._seen.add(job["metadata"]["uid"])
            now_s = time.time()
            self._put(now_s, job, now_s, "")

    def _put(self, at_s: float, job: dict[str, Any], seen_s: float, pod: str) -> None:
        with self._bell:
            self._number += 1
            heapq.heappush(self._due, (at_s, self._number, job, seen_s, pod))
            self._bell.notify()

    def _next(self) -> tuple[dict[str, Any], float, str]:
        with self._bell:
            while True:
                wait_s = self._due[0][0] - time.time() if self._due else None
                if wait_s is not None and wait_s <= 0:
                    _, _, job, seen_s, pod = heapq.heappop(self._due)
                    return job, seen_s, pod
                self._bell.wait(wait_s)

    def _work(self) -> None:
        line = Line(self._server)
        while True:
            job, seen_s, pod = self._next()
            if not pod:
                name = _start(line, job)
                run_s = float(job["spec"]["template"]["metadata"]["annotations"][DURATION])
                self._put(seen_s + run_s, job, seen_s, name)
                continue
            _end(line, job, pod, seen_s)
            with self._bell:
                self.lines.append(f"{job['metadata']['labels'][names.JOB_ID]} {seen_s:.3f} {time.time():.3f}")
                self._left -= 1
                if not self._left:
                    self._bell.notify_all()


def _start(line: Line, job: dict[str, Any]) -> str:
    """The pod, bound and running; answers its name."""
    metadata, template = job["metadata"], job["spec"]["template"]
    name = f"{metadata['name']}-0-{''.join(random.choices(string.ascii_lowercase, k=5))}"
    owner = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
    }
    pod = {
        "metadata": {
            "name": name,
            "labels": template["metadata"]["labels"]
            | {names.JOB_NAME: metadata["name"], names.COMPLETION_INDEX: "0"},
            "annotations": template["metadata"]["annotations"] | {names.COMPLETION_INDEX: "0"},
            "ownerReferences": [owner],
        },
        "spec": template["spec"] | {"nodeName": template["spec"]["nodeSelector"][names.HOSTNAME]},
    }
    pods = f"/api/v1/namespaces/{metadata['namespace']}/pods"
    _done(line.call("POST", pods, json.dumps(pod).encode()))
    now = _now_text()
    status = {
        "phase": "Running",
        "startTime": now,
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}],
        "containerStatuses": [_container({"running": {"startedAt": now}}, is_running=True)],
    }
    _done(line.call("PATCH", f"{pods}/{name}/status", json.dumps({"status": status}).encode(), MERGE_PATCH))
    return name


def _end(line: Line, job: dict[str, Any], pod: str, seen_s: float) -> None:
    """The pod succeeded, and so the Job is complete."""
    metadata = job["metadata"]
    started, now = _text(seen_s), _now_text()
    terminated = {"exitCode": 0, "reason": "Completed", "startedAt": started, "finishedAt": now}
    status: dict[str, Any] = {
        "phase": "Succeeded",
        "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now}],
        "containerStatuses": [_container({"running": None, "terminated": terminated}, is_running=False)],
    }
    path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{pod}/status"
    _done(line.call("PATCH", path, json.dumps({"status": status}).encode(), MERGE_PATCH))
    status = {
        "startTime": started,
        "completionTime": now,
        "succeeded": 1,
        "ready": 0,
        "terminating": 0,
        "completedIndexes": "0",
        "uncountedTerminatedPods": {},
        "conditions": [
            {"type": kind, "status": "True", "reason": "CompletionsReached", "lastTransitionTime": now}
            for kind in ("SuccessCriteriaMet", "Complete")
        ],
    }
    path = f"/apis/batch/v1/namespaces/{metadata['namespace']}/jobs/{metadata['name']}/status"
    _done(line.call("PATCH", path, json.dumps({"status": status}).encode(), MERGE_PATCH))


def _container(state: dict[str, Any], *, is_running: bool) -> dict[str, Any]:
    return {
        "name": names.CONTAINER,
        "image": "none.invalid/simulated:1",
        "imageID": "",
        "ready": is_running,
        "started": is_running,
        "restartCount": 0,
        "state": state,
    }


def _done(reply: tuple[int, bytes]) -> None:
    assert reply[0] in (200, 201), f"{reply[0]}: {reply[1][:500]!r}"


def _now_text() -> str:
    return _text(time.time())


def _text(at_s: float) -> str:
    return datetime.fromtimestamp(int(at_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
