"""The day of `builders.py` as an API server's audit log would tell it, with what only Kubernetes can do."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.oracle.builders import DAY, Files, World, a_world, at, gpu, write

Json = dict[str, Any]

HUB = "system:serviceaccount:gpuhub-system:scheduler"
CONTROLLER = "system:serviceaccount:kube-system:job-controller"
COLLECTOR = "system:serviceaccount:kube-system:generic-garbage-collector"
PODS_URI = "/api/v1/pods?limit=500"
GATE = [{"name": "hub/placement"}]
SHARED = {"bravo-1"}
"""Gangs that share nodes with others, so their pods are told their nodes one by one."""
TOLD = ("alpha", "bravo", "charlie", "delta", "echo", "golf")
"""Jobs whose life in the log follows from the simulated journal; `_more` tells that of the others itself."""


@dataclass
class AuditLog:
    """Objects while they live, and the events of what is done to them."""

    events: list[Json] = field(default_factory=list)
    there: dict[str, Json] = field(default_factory=dict)
    version: int = 100
    made: int = 0

    def write(
        self, moment: int, verb: str, resource: str, name: str, change: Callable[[Json], None], by: str = CONTROLLER,
        sub: str = "",
    ) -> None:  # fmt: skip
        """Change an object and tell it."""
        body = self.there[name]
        change(body)
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.tell(moment, verb, resource, name, body, by, sub)

    def tell(
        self, moment: int, verb: str, resource: str, name: str, body: Json, by: str = CONTROLLER, sub: str = "",
        code: int = 200, uri: str = "", stage: str = "ResponseComplete",
    ) -> None:  # fmt: skip
        """One event, answered 5 ms after it was asked."""
        self.made += 1
        target = {"resource": resource, "namespace": "hub-lab", "name": name} | (
            {"subresource": sub} if sub else {}
        )
        event = {
            "kind": "Event", "stage": stage, "auditID": f"audit-{self.made}", "verb": verb, "objectRef": target,
            "requestURI": uri or f"/any/{resource}/{name}", "user": {"username": by}, "responseStatus": {"code": code},
            "requestReceivedTimestamp": stamp(moment, micros=True),
            "stageTimestamp": stamp(moment + 5, micros=True), "responseObject": deepcopy(body),
        }  # fmt: skip
        self.events.append(event)

    def create(self, moment: int, resource: str, name: str, body: Json, by: str) -> None:
        body["metadata"] |= {"name": name, "namespace": "hub-lab", "uid": f"uid-{name}-{self.made}"}
        body["metadata"]["creationTimestamp"] = stamp(moment)
        self.there[name] = body
        self.write(moment, "create", resource, name, lambda _: None, by)

    # --- what happens to Jobs and pods

    def job(self, attempt_of: Json, *, suspended: bool = False, labels: Json | None = None) -> None:
        """A Job as the journal's `object_created` wants it; its pods a second later."""
        event, moment = attempt_of, attempt_of["t"]
        name, pods = event["name"], event["pods"]
        known = {
            "hub/job-id": event["job_id"],
            "hub/attempt": str(event["attempt"]),
            "hub/organization": "lab",
        }
        known |= {"hub/gpu-class": pods[0]["gpu_class"]} | (labels or {})
        spec = pod_spec(pods[0]["count"])
        body = {
            "kind": "Job",
            "metadata": {"labels": known},
            "spec": {"suspend": suspended, "completions": len(pods), "template": {"spec": spec}},
            "status": {},
        }
        self.create(moment, "jobs", name, body, HUB)
        for pod in [] if suspended else pods:
            self.pod(moment + 1000, name, pod["index"], pod["count"], known, gated=name in SHARED)

    def pod(
        self, moment: int, job: str, index: int, count: int, labels: Json, *, gated: bool = False
    ) -> None:
        name = pod_name(job, index)
        spec = pod_spec(count) | ({"schedulingGates": GATE} if gated else {})
        owner = {"kind": "Job", "name": job, "uid": self.there[job]["metadata"]["uid"], "controller": True}
        metadata = {
            "labels": labels,
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
            "ownerReferences": [owner],
            "finalizers": ["batch.kubernetes.io/job-tracking"],
        }
        self.create(
            moment,
            "pods",
            name,
            {"kind": "Pod", "metadata": metadata, "spec": spec, "status": {}},
            CONTROLLER,
        )
        if gated:
            self.write(
                moment + 100, "patch", "pods", name, lambda pod: pod["spec"].pop("schedulingGates"), HUB
            )

    def run(self, moment: int, name: str, node: str, devices: list[str] | None) -> None:
        """It is bound and runs; a moment later its devices are told."""

        def start(pod: Json) -> None:
            pod["spec"]["nodeName"] = node
            state = {"running": {"startedAt": stamp(moment)}}
            pod["status"] = {"phase": "Running", "containerStatuses": [{"name": "main", "state": state}]}

        self.tell(
            moment - 500, "create", "pods", name, {"kind": "Status"}, "system:kube-scheduler", "binding", 201
        )
        self.write(moment + 200, "patch", "pods", name, start, "kwok", "status")
        if devices is not None:
            note = {"simulate.gpuhub/gpus": ",".join(devices)}
            self.write(
                moment + 300,
                "patch",
                "pods",
                name,
                lambda pod: pod["metadata"]["annotations"].update(note),
                "admin",
            )

    def finish(self, moment: int, name: str, code: int) -> None:
        """Its containers end by themselves, or because they were told to."""

        def end(pod: Json) -> None:
            state = pod["status"]["containerStatuses"][0]["state"]
            started = (state.get("running") or state["terminated"])["startedAt"]
            ended = {"startedAt": started, "finishedAt": stamp(moment), "exitCode": code}
            pod["status"]["containerStatuses"][0]["state"] = {"terminated": ended}
            pod["status"]["phase"] = "Failed" if code else "Succeeded"

        self.write(moment + 400, "patch", "pods", name, end, "kwok", "status")

    def complete(self, moment: int, job: str, kind: str) -> None:
        """The Job's controller has seen all its pods end."""
        condition = {"type": kind, "status": "True"}
        self.write(
            moment,
            "update",
            "jobs",
            job,
            lambda body: body["status"].update(conditions=[condition]),
            sub="status",
        )

    def suspend(self, moment: int, job: str, *, abandoned: bool = False) -> None:
        def change(body: Json) -> None:
            body["spec"]["suspend"] = True
            body["metadata"]["labels"] |= {"hub/abandoned": "true"} if abandoned else {}

        self.write(moment, "patch", "jobs", job, change, HUB)

    def ask_to_end(self, moment: int, name: str, grace_s: int, by: str = CONTROLLER) -> None:
        deadline = {
            "deletionTimestamp": stamp(moment + 1000 * grace_s),
            "deletionGracePeriodSeconds": grace_s,
        }
        self.write(moment, "delete", "pods", name, lambda pod: pod["metadata"].update(deadline), by)

    def die_unstarted(self, moment: int, name: str) -> None:
        def end(pod: Json) -> None:
            state = {"terminated": {"exitCode": 137, "startedAt": None, "finishedAt": None}}
            pod["status"] = {"phase": "Failed", "containerStatuses": [{"name": "main", "state": state}]}

        self.write(moment, "patch", "pods", name, end, "kwok", "status")

    def remove(self, moment: int, name: str) -> None:
        """The last finalizer goes, and the pod with it; its version stays what it was."""
        pod = self.there.pop(name)
        pod["metadata"] |= {"deletionTimestamp": stamp(moment), "deletionGracePeriodSeconds": 0}
        pod["metadata"].pop("finalizers", None)
        self.tell(moment, "patch", "pods", name, pod, HUB)

    def watched(self, begin: int, end: int) -> None:
        """The hub's scheduler watched all pods, after a list of them."""
        listed = {"kind": "PodList", "metadata": {"resourceVersion": "1", "continue": "more"}, "items": []}
        self.tell(begin - 10, "list", "pods", "", listed, HUB, uri=PODS_URI)
        watch = "/api/v1/pods?allowWatchBookmarks=true&watch=true"
        self.tell(begin, "watch", "pods", "", {}, HUB, uri=watch, stage="ResponseStarted")
        self.tell(begin, "watch", "pods", "", {}, HUB, uri=watch)
        self.events[-1] |= {"auditID": self.events[-2]["auditID"], "stageTimestamp": stamp(end, micros=True)}


def pod_name(job: str, index: int) -> str:
    """What the Job's controller would call a pod, with less luck."""
    return f"{job}-{index}-abcde"


def pod_spec(count: int) -> Json:
    """What a pod asks for."""
    asked = {"cpu": "8", "nvidia.com/gpu": str(count)}
    resources = {"requests": asked, "limits": asked}
    return {"containers": [{"name": "main", "resources": resources}], "terminationGracePeriodSeconds": 30}


def stamp(moment: int, *, micros: bool = False) -> str:
    """A time as Kubernetes writes it: in objects without the part of a second."""
    text = datetime.fromtimestamp(moment // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{moment % 1000:03}000Z" if micros else f"{text}Z"


def a_kubernetes_world(*, still_running: bool = False) -> tuple[World, AuditLog]:
    """A day on which every rule has something to judge; with `still_running` one job has not ended."""
    world = a_world(still_running=still_running, more=_more)
    log = AuditLog()
    log.watched(DAY, at(800))
    for line in world.journal:
        if line.get("job_id", line.get("name", "")).split("-")[0] in TOLD:
            _tell(log, line)
    _tell_hotel(log, world)
    _tell_india(log, world)
    _tell_juliet(log, world)
    _tell_foreign(log)
    log.events.sort(key=lambda event: event["requestReceivedTimestamp"])
    return world, log


def write_kubernetes(world: World, log: AuditLog, folder: Path) -> Files:
    """The world as a SQLite file and an audit log."""
    files = write(world, folder)
    files.journal = folder / "audit.jsonl"
    files.write_lines = lambda lines: write_log(files.journal, lines)  # type: ignore[method-assign]
    files.write_lines(log.events)
    return files


def write_log(path: Path, events: list[Json]) -> None:
    """As the API server writes: the shortest JSON, one event a line."""
    path.write_text("".join(json.dumps(event, separators=(",", ":")) + "\n" for event in events))


def _tell(log: AuditLog, line: Json) -> None:
    """What the simulated cluster's journal says, in Kubernetes' words."""
    moment, job = line["t"], line.get("name", "")
    match line["event"]:
        case "object_created":
            log.job(line)
        case "pod_started":
            log.run(moment, pod_name(job, line["pod_index"]), line["node"], line["gpu_uuids"])
        case "object_suspended":
            log.suspend(moment, job, abandoned=line["abandoned"])
            log.ask_to_end(moment + 20, pod_name(job, 0), 30)
            if line["abandoned"]:
                log.die_unstarted(moment + 30, pod_name(job, 0))
                log.remove(moment + 40, pod_name(job, 0))
        case "pod_ended" if line["reason"] == "node_lost":
            # the cluster notices late, and never hears how the pod ended
            log.ask_to_end(at(662), pod_name(job, 0), 30, "node-controller")
            log.remove(at(662.5), pod_name(job, 0))
            log.complete(at(662.6), job, "Failed")
        case "pod_ended":
            log.finish(moment, pod_name(job, line["pod_index"]), line["exit_code"])
            others = [name for name in log.there if name.startswith(f"{job}-")]
            if all(log.there[name]["status"]["phase"] != "Running" for name in others):
                log.complete(moment + 900, job, "Complete")


def _more(world: World) -> None:
    _hotel(world)
    _india(world)
    _juliet(world)


def _hotel(world: World) -> None:
    """A gang of whole nodes: which of its pods runs where is left to Kubernetes."""
    hotel = world.claim("hotel", 709, [("sim-2", 8), ("sim-3", 8)], 60)
    for index in (0, 1):
        world.start(hotel, index, 710, list(range(8)))
        world.stop(hotel, index, 715, "completed", 0)
    world.slice(hotel, 710, 715)
    world.end(hotel, 715, "succeeded", exit_code=0)


def _tell_hotel(log: AuditLog, world: World) -> None:
    log.job(_created(world, "hotel-1"))
    for index, node in enumerate(("sim-3", "sim-2")):
        log.run(at(710), pod_name("hotel-1", index), node, [gpu(node, number) for number in range(8)])
    for index in (0, 1):
        log.finish(at(715), pod_name("hotel-1", index), 0)
    log.complete(at(715) + 900, "hotel-1", "Complete")


def _india(world: World) -> None:
    """Somebody deletes its pod by force: what is recorded is when the hub missed it."""
    india = world.claim("india", 719, [("sim-2", 4)], 60)
    world.start(india, 0, 720, [0, 1, 2, 3])
    world.stop(india, 0, 722, "failed", None)
    world.slice(india, 720, 722)
    world.end(india, 722, "failed")


def _tell_india(log: AuditLog, world: World) -> None:
    """Nobody told the devices of this one."""
    log.job(_created(world, "india-1"))
    log.run(at(720), pod_name("india-1", 0), "sim-2", None)
    log.remove(at(722) - 300, pod_name("india-1", 0))
    log.complete(at(722), "india-1", "Failed")


def _juliet(world: World) -> None:
    """Stopped before it was created: its object is a tombstone."""
    juliet = world.claim("juliet", 725, [("sim-2", 4)], 60)
    stopped = {"stop_reason": "cancelled", "stop_at_ms": at(726), "stop_grace_ms": 30_000}
    world.end(juliet, 726, "cancelled", **stopped)


def _tell_juliet(log: AuditLog, world: World) -> None:
    tombstone = _created(world, "juliet-1") | {"t": at(726)}
    log.job(tombstone, suspended=True, labels={"hub/abandoned": "true"})


def _tell_foreign(log: AuditLog) -> None:
    """A pod of somebody else, and two writes that were refused and so changed nothing."""
    body = {
        "kind": "Pod",
        "metadata": {"labels": {}},
        "spec": pod_spec(2) | {"nodeName": "sim-0"},
        "status": {},
    }
    log.create(at(750), "pods", "foreign", body, "somebody")
    log.run(at(750), "foreign", "sim-0", None)
    refused = {"kind": "Status", "status": "Failure"}
    log.tell(at(608), "create", "jobs", "alpha-1", refused, HUB, code=404)
    log.tell(at(611), "create", "jobs", "alpha-1", refused, HUB, code=409)
    late = deepcopy(log.there["alpha-1"])
    late["spec"]["suspend"] = True
    log.tell(at(612), "patch", "jobs", "alpha-1", late, HUB, code=500)


def _created(world: World, name: str) -> Json:
    return next(
        line for line in world.journal if (line["event"], line.get("name")) == ("object_created", name)
    )
