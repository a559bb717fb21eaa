"""The life of the hub's Jobs and their pods, read from an API server's audit log (docs/oracle.md).

Standard library only, and nothing of the hub. Any answer that carries an object is a sighting of it: writes, reads and
lists alike. What an object was is told by the order of its resource versions, never by the order of the lines.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]

JOB_ID, ATTEMPT, ORGANIZATION = "hub/job-id", "hub/attempt", "hub/organization"
GPU_CLASS, ABANDONED = "hub/gpu-class", "hub/abandoned"
INDEX = "batch.kubernetes.io/job-completion-index"
DEVICES = "simulate.gpuhub/gpus"
"""Which devices a pod got, separated by commas: written by whoever plays the device plugin."""
VENDOR = "nvidia.com/"
TERMINAL = ("Succeeded", "Failed")
CHANGES = ("create", "update", "patch", "delete", "deletecollection")
SIGHTINGS = (*CHANGES, "get", "list")
EVENT = '{"kind":"Event"'
NEVER = 1 << 62


class BadLog(Exception):
    """This is not an audit log."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """An object as one answer showed it."""

    version: int
    received: int
    answered: int
    created: bool
    """Whether this answer made it."""
    body: Json

    @property
    def order(self) -> tuple[int, int]:
        """Taking the last finalizer of a deleted object leaves its version as it was."""
        return self.version, self.received


@dataclass(slots=True)
class Thing:
    """A Job or a pod while the log is read: all that was seen of it."""

    uid: str
    sightings: list[Sighting] = field(default_factory=list)
    gone: int | None = None

    def is_gone_at(self, moment: int) -> None:
        """It was there no more at this moment."""
        self.gone = moment if self.gone is None else min(self.gone, moment)


@dataclass(frozen=True, slots=True)
class JobLife:
    """A hub's Job. Times are milliseconds; a version of None: that never happened."""

    job_id: str
    attempt: int
    name: str
    namespace: str
    uid: str
    organization: str
    gpu_class: str
    created: int
    born_suspended: bool
    suspended_version: int | None
    abandoned: int | None
    pods: int
    resource: str
    gpus_per_pod: int
    grace: int
    finished: bool
    gone: int | None


@dataclass(frozen=True, slots=True)
class PodLife:
    """A pod that asks for GPUs; of others than the hub `job_id` is empty."""

    job_id: str
    attempt: int
    index: int
    pod_name: str
    uid: str
    job_uid: str
    gpu_class: str
    created_version: int
    node: str
    gated: bool
    resource: str
    gpus: int
    devices: tuple[str, ...] | None
    """None: nobody ever told."""
    given: int
    """How many different sets of devices were told."""
    started: int | None
    starts: tuple[int, ...]
    """Every start that was told: a node that got no answer may tell anew, and otherwise. The last one stays."""
    restarts: int
    finished: int | None
    """When its containers ended; None if that was not told, or only while the hub did not look."""
    ends: tuple[int, ...]
    """Every end that was told."""
    succeeded: bool
    freed: int | None
    """From then on it used no GPU for sure; None: it may still run."""
    told: int | None
    """When the API server told that; who plays the devices did not know before."""
    ended_from: int | None
    ended_until: int | None
    """Between these it ended, if its end was not told."""
    unseen: bool
    """It ran and was gone while the hub did not look."""


@dataclass(slots=True)
class Journal:
    """What a log tells, once it was read."""

    jobs: list[JobLife]
    pods: list[PodLife]
    events: int
    torn: int
    """Lines that were cut off: the API server was killed while it wrote."""
    last: int
    """When the latest event was answered."""


def read(path: Path) -> Journal:
    """The log with the older files that it was rotated into. Raises BadLog."""
    reader = _Reader()
    for file in _files(path):
        for line in _lines(file):
            reader.take(line)
    if not reader.events:
        raise BadLog(f"{path} holds no event of an API server")
    return reader.journal()


def _files(path: Path) -> list[Path]:
    """`audit-2026-11-29T18-07-31.123.jsonl` is older than `audit.jsonl`; rotated ones may be compressed."""
    older = sorted(
        file for file in path.parent.glob(f"{path.stem}-*") if path.suffix in (file.suffix, file.stem[-6:])
    )
    if not path.exists():
        raise BadLog(f"{path} is not there")
    return [*older, path]


def _lines(file: Path) -> Iterator[str]:
    if file.suffix == ".gz":
        with gzip.open(file, "rt", errors="replace") as lines:
            yield from lines
    else:
        with file.open(errors="replace") as lines:
            yield from lines


class _Reader:
    """Takes the lines in any order; `journal` puts everything where it belongs."""

    def __init__(self) -> None:
        self.events = self.torn = self.last = 0
        self.jobs: dict[str, Thing] = {}
        self.pods: dict[str, Thing] = {}
        self.deleted: list[tuple[str, str, str, int]] = []
        """(resource, namespace, name, when) of deletions that did not say which uid they meant."""
        self.listed: list[tuple[int, int, set[str]]] = []
        """(version, answered, uids) of lists of all pods."""
        self.looks: list[Json] = []
        self.seen: set[tuple[str, str]] = set()

    def take(self, line: str) -> None:
        event = self._event(line)
        if event is None:
            return
        key = (event.get("auditID", ""), event.get("stage", ""))
        if key in self.seen:
            return  # written twice
        self.seen.add(key)
        self.events += 1
        self.last = max(self.last, moment(event["stageTimestamp"]))
        target = event.get("objectRef") or {}
        if target.get("resource") not in ("jobs", "pods"):
            return
        if target["resource"] == "pods" and event["verb"] in ("list", "watch"):
            times = _times(event)
            kept = {name: event[name] for name in ("auditID", "stage", "verb", "requestURI", "user")}
            self.looks.append(kept | {"received": times[0], "answered": times[1]})
        code = (event.get("responseStatus") or {}).get("code", 0)
        if event["stage"] == "ResponseComplete" and event["verb"] in SIGHTINGS and 200 <= code < 300:
            self._sight(event, target)

    def _event(self, line: str) -> Json | None:
        """A line; of one that begins in the middle of another, that other's rest."""
        text = line.strip()
        while text:
            try:
                found = json.loads(text)
            except ValueError:
                self.torn += 1
                # a server that was killed while it wrote, and the next one's first line right behind
                start = text.find(EVENT, 1)
                text = text[start:] if start > 0 else ""
                continue
            return found if isinstance(found, dict) and found.get("kind") == "Event" else None
        return None

    def _sight(self, event: Json, target: Json) -> None:
        body = event.get("responseObject")
        if not isinstance(body, dict) or target.get("subresource") not in (None, "", "status"):
            return
        resource, (received, answered) = target["resource"], _times(event)
        if str(body.get("kind", "")).endswith("List") or "items" in body:
            self._sight_list(event, resource, body, received, answered)
        elif body.get("kind") == "Status":
            self._sight_deletion(event, target, body, received)
        elif (body.get("metadata") or {}).get("uid"):
            self._add(event, resource, body)

    def _sight_list(self, event: Json, resource: str, body: Json, received: int, answered: int) -> None:
        items = body.get("items") or []
        for item in items:
            self._add(event, resource, item)
            if event["verb"] == "deletecollection" and _goes_at_once(resource, item):
                self._things(resource)[item["metadata"]["uid"]].is_gone_at(received)
        if event["verb"] == "list" and resource == "pods" and _is_complete(event["requestURI"], body):
            uids = {item["metadata"]["uid"] for item in items}
            version = int(body["metadata"]["resourceVersion"])
            self.listed.append((version, answered, uids))

    def _sight_deletion(self, event: Json, target: Json, body: Json, received: int) -> None:
        """A deletion that answers no object: it is gone."""
        if event["verb"] != "delete" or body.get("status") != "Success":
            return
        uid = (body.get("details") or {}).get("uid")
        if uid:
            things = self._things(target["resource"])
            things.setdefault(uid, Thing(uid)).is_gone_at(received)
        else:
            place = target.get("namespace", ""), target.get("name", "")
            self.deleted.append((target["resource"], *place, received))

    def _add(self, event: Json, resource: str, body: Json) -> None:
        metadata = body["metadata"]
        thing = self._things(resource).setdefault(metadata["uid"], Thing(metadata["uid"]))
        received, answered = _times(event)
        created = event["verb"] == "create"
        slim = _slim_job(body) if resource == "jobs" else _slim_pod(body)
        if created:
            slim["by"] = event["user"].get("username", "")
        thing.sightings.append(Sighting(int(metadata["resourceVersion"]), received, answered, created, slim))
        if event["verb"] in CHANGES and slim["removed"]:
            thing.is_gone_at(received)

    def _things(self, resource: str) -> dict[str, Thing]:
        return self.jobs if resource == "jobs" else self.pods

    def journal(self) -> Journal:
        for thing in (*self.jobs.values(), *self.pods.values()):
            thing.sightings.sort(key=lambda sighting: sighting.order)
        self._settle_deletions()
        jobs = [_job_life(thing) for thing in self.jobs.values() if thing.sightings]
        known = [job for job in jobs if job is not None]
        looks = _Looks(self.looks, self._hub_users())
        pods = [_pod_life(thing, looks) for thing in self.pods.values() if thing.sightings]
        return Journal(known, [pod for pod in pods if pod is not None], self.events, self.torn, self.last)

    def _settle_deletions(self) -> None:
        for resource, namespace, name, when in self.deleted:
            for thing in self._things(resource).values():
                first = thing.sightings[0] if thing.sightings else None
                there = first and (first.body["namespace"], first.body["name"]) == (namespace, name)
                if first and there and thing.sightings[-1].received <= when:
                    thing.is_gone_at(when)
        for version, answered, uids in self.listed:
            for thing in self.pods.values():
                if thing.sightings and thing.uid not in uids and thing.sightings[-1].version <= version:
                    thing.is_gone_at(answered)

    def _hub_users(self) -> set[str]:
        """Whoever makes the hub's Jobs is the hub's scheduler."""
        return {
            sighting.body["by"]
            for thing in self.jobs.values()
            for sighting in thing.sightings
            if sighting.created and sighting.body["labels"].get(JOB_ID)
        }


class _Looks:
    """When the hub's scheduler looked at pods: its watches, as long as they were open, and its full lists."""

    OPEN_LONG = 10_000
    """A watch that was open this much longer has told whoever opened it."""
    SLACK = 2_000
    """From what is seen to the moment that is written down for it."""

    def __init__(self, looks: Iterable[Json], users: set[str]) -> None:
        own = [
            look for look in looks if look["user"].get("username") in users and _is_wide(look["requestURI"])
        ]
        self.lists = sorted(
            (look["received"], look["answered"])
            for look in own
            if look["verb"] == "list" and not _is_mark(look["requestURI"])
        )
        begun: dict[str, int] = {}
        ended: dict[str, int] = {}
        for look in own:
            if look["verb"] == "watch":
                begun[look["auditID"]] = min(look["received"], begun.get(look["auditID"], NEVER))
                if look["stage"] == "ResponseComplete":
                    ended[look["auditID"]] = look["answered"]
        starts = sorted(begun.values())
        self.watches = [
            # of one whose end was never written only this is sure: the next one came after it
            (start, ended.get(key, next((later for later in starts if later > start), NEVER)))
            for key, start in begun.items()
        ]

    def any_between(self, first: int, last: int) -> bool:
        """Whether anything that was there from `first` to `last` was looked at."""
        return any(begin <= last and end >= first for begin, end in (*self.watches, *self.lists))

    def told_by(self, gone: int) -> int:
        """The latest moment at which the hub may say that it first saw nothing of what was gone then."""
        if any(begin <= gone and end >= gone + self.OPEN_LONG for begin, end in self.watches):
            return gone + self.SLACK
        later = [answered for received, answered in self.lists if received >= gone]
        return min(later) + self.SLACK if later else NEVER


def _times(event: Json) -> tuple[int, int]:
    """When it was asked and when it was answered."""
    return moment(event["requestReceivedTimestamp"]), moment(event["stageTimestamp"])


def _is_wide(uri: str) -> bool:
    return urlsplit(uri).path == "/api/v1/pods"


def _is_mark(uri: str) -> bool:
    """A list that only asks how far the server is."""
    return parse_qs(urlsplit(uri).query).get("limit") == ["1"]


def _is_complete(uri: str, body: Json) -> bool:
    asked = parse_qs(urlsplit(uri).query)
    narrowed = {"labelSelector", "fieldSelector", "continue", "resourceVersion"} & asked.keys()
    return _is_wide(uri) and not narrowed and not (body.get("metadata") or {}).get("continue")


def _goes_at_once(resource: str, item: Json) -> bool:
    """Whether a deletion leaves nothing that somebody else must finish."""
    if item["metadata"].get("finalizers"):
        return False
    bound = (item.get("spec") or {}).get("nodeName")
    return resource == "jobs" or not bound or (item.get("status") or {}).get("phase") in TERMINAL


# --- what is kept of an answer


def _slim(body: Json) -> Json:
    metadata = body["metadata"]
    deleted = metadata.get("deletionTimestamp")
    held = bool(metadata.get("finalizers"))
    return {
        "namespace": metadata.get("namespace", ""),
        "name": metadata.get("name", ""),
        "labels": metadata.get("labels") or {},
        "born": moment(metadata["creationTimestamp"]),
        "deleted": bool(deleted),
        "removed": bool(deleted) and not held and not metadata.get("deletionGracePeriodSeconds"),
    }


def _slim_job(body: Json) -> Json:
    spec, status = body.get("spec") or {}, body.get("status") or {}
    pod = (spec.get("template") or {}).get("spec") or {}
    resource, gpus = _asked(pod)
    conditions = {one["type"] for one in status.get("conditions") or () if one.get("status") == "True"}
    return _slim(body) | {
        "suspended": bool(spec.get("suspend")),
        # its first specification: each change of it counts one up
        "untouched": body["metadata"].get("generation") == 1,
        "pods": spec.get("completions") or 1,
        "resource": resource,
        "gpus": gpus,
        "grace": 1000 * int(pod.get("terminationGracePeriodSeconds") or 0),
        "finished": bool(conditions & {"Complete", "Failed"}),
    }


def _slim_pod(body: Json) -> Json:
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    notes = metadata.get("annotations") or {}
    owners = [one["uid"] for one in metadata.get("ownerReferences") or () if one.get("kind") == "Job"]
    resource, gpus = _asked(spec)
    states = [one.get("state") or {} for one in status.get("containerStatuses") or ()]
    told = [one.get("terminated") or one.get("running") or {} for one in states]
    starts = [moment(one["startedAt"]) for one in told if one.get("startedAt")]
    ends = [one["terminated"] for one in states if one.get("terminated")]
    finished = [moment(one["finishedAt"]) for one in ends if one.get("finishedAt")]
    over = status.get("phase") in TERMINAL
    return _slim(body) | {
        "owner": owners[0] if owners else "",
        "index": int(notes.get(INDEX) or 0),
        "devices": notes.get(DEVICES),
        "node": spec.get("nodeName") or "",
        "gated": bool(spec.get("schedulingGates")),
        "resource": resource,
        "gpus": gpus,
        "over": over,
        "good": status.get("phase") == "Succeeded" and all(one.get("exitCode") == 0 for one in ends),
        "disrupted": any(
            one.get("type") == "DisruptionTarget" and one.get("status") == "True"
            for one in status.get("conditions") or ()
        ),
        "started": min(starts, default=None),
        "restarts": max(
            (one.get("restartCount") or 0 for one in status.get("containerStatuses") or ()), default=0
        ),
        "finished": max(finished) if over and len(finished) == len(states) and finished else None,
    }


def _asked(pod: Json) -> tuple[str, int]:
    """The GPUs that a pod asks for: the name of the resource and how many."""
    for container in pod.get("containers") or ():
        resources = container.get("resources") or {}
        for name, amount in ((resources.get("limits") or {}) | (resources.get("requests") or {})).items():
            if name.startswith(VENDOR):
                return name, int(amount)
    return "", 0


# --- lives


def _job_life(thing: Thing) -> JobLife | None:
    first, bodies = thing.sightings[0], [sighting.body for sighting in thing.sightings]
    labels = bodies[0]["labels"]
    if not labels.get(JOB_ID) or not labels.get(ATTEMPT, "").isdecimal():
        return None
    suspended = [sighting.version for sighting in thing.sightings if sighting.body["suspended"]]
    abandoned = [
        sighting.received for sighting in thing.sightings if sighting.body["labels"].get(ABANDONED) == "true"
    ]
    return JobLife(
        job_id=labels[JOB_ID],
        attempt=int(labels[ATTEMPT]),
        name=bodies[0]["name"],
        namespace=bodies[0]["namespace"],
        uid=thing.uid,
        organization=labels.get(ORGANIZATION, ""),
        gpu_class=labels.get(GPU_CLASS, ""),
        # an answer that was lost with its server leaves only the whole second, cut off
        created=first.received if first.created else bodies[0]["born"] + 999,
        born_suspended=all(body["suspended"] for body in bodies)
        and (first.created or bodies[0]["untouched"]),
        suspended_version=min(suspended, default=None),
        abandoned=min(abandoned, default=None),
        pods=bodies[0]["pods"],
        resource=bodies[0]["resource"],
        gpus_per_pod=bodies[0]["gpus"],
        grace=bodies[0]["grace"],
        finished=any(body["finished"] for body in bodies),
        gone=thing.gone,
    )


def _pod_life(thing: Thing, looks: _Looks) -> PodLife | None:
    bodies = [sighting.body for sighting in thing.sightings]
    first = bodies[0]
    if not first["gpus"]:
        return None
    starts, ends = _different(bodies, "started"), _different(bodies, "finished")
    over = next((sighting for sighting in thing.sightings if sighting.body["over"]), None)
    told = ends[-1] if ends else None
    proof = over.received if over is not None else thing.gone
    sets = list(dict.fromkeys(body["devices"] for body in bodies if body["devices"]))
    ended_from, ended_until = _end_bounds(thing, told, looks)
    return PodLife(
        job_id=first["labels"].get(JOB_ID, ""),
        attempt=int(first["labels"].get(ATTEMPT) or 0),
        index=first["index"],
        pod_name=first["name"],
        uid=thing.uid,
        job_uid=first["owner"],
        gpu_class=first["labels"].get(GPU_CLASS, ""),
        created_version=thing.sightings[0].version,
        node=next((body["node"] for body in bodies if body["node"]), ""),
        gated=any(body["gated"] for body in bodies),
        resource=first["resource"],
        gpus=first["gpus"],
        devices=tuple(sets[0].split(",")) if sets else None,
        given=len(sets),
        started=starts[-1] if starts else None,
        starts=starts,
        restarts=max(body["restarts"] for body in bodies),
        ends=ends,
        finished=None if _is_unseen(thing, "finished", looks) else told,
        succeeded=over is not None and over.body["good"],
        freed=_second(proof) if told is None else told,
        told=over.answered if over is not None else thing.gone,
        ended_from=ended_from,
        ended_until=ended_until,
        unseen=_is_unseen(thing, "started", looks),
    )


def _different(bodies: list[Json], what: str) -> tuple[int, ...]:
    """The times that were told, each once, in the order of their last telling."""
    told = [body[what] for body in reversed(bodies) if body[what] is not None]
    return tuple(reversed(dict.fromkeys(told)))


def _end_bounds(thing: Thing, told: int | None, looks: _Looks) -> tuple[int | None, int | None]:
    """From the first sign of its end to the moment at which the hub must have missed it."""
    over = [sighting.received for sighting in thing.sightings if sighting.body["over"]]
    proof = thing.gone if thing.gone is not None else min(over, default=None)
    if proof is None:
        return None, None
    signs = [
        sighting.received
        for sighting in thing.sightings
        if sighting.body["deleted"] or sighting.body["disrupted"] or sighting.body["over"]
    ]
    earliest = _second(min([*signs, proof]))
    assert earliest is not None
    # the hub's mark lies a millisecond before a whole second
    return earliest - 1 if told is None else told, looks.told_by(proof)


def _is_unseen(thing: Thing, what: str, looks: _Looks) -> bool:
    """Whether it told this, and was gone before the hub looked again."""
    told = [sighting.answered for sighting in thing.sightings if sighting.body[what] is not None]
    return bool(told) and thing.gone is not None and not looks.any_between(min(told), thing.gone)


def _second(moment_ms: int | None) -> int | None:
    """Kubernetes cuts times off to whole seconds, so what is compared with them is cut off, too."""
    return None if moment_ms is None else moment_ms // 1000 * 1000


def moment(text: str) -> int:
    """Milliseconds since 1970, cut off."""
    parsed = datetime.fromisoformat(text)
    return int(parsed.timestamp()) * 1000 + parsed.microsecond // 1000
