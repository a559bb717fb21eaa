"""An audit log is read whatever its order, its rotation, and what a killed API server left of it."""

from __future__ import annotations

import gzip
import json
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.oracle import audit_journal
from tests.oracle.audit_builders import COLLECTOR, CONTROLLER, HUB, AuditLog, pod_name, stamp, write_log
from tests.oracle.audit_journal import BadLog, JobLife, Journal, PodLife
from tests.oracle.builders import at

POD = pod_name("kilo-1", 0)


def a_log(*, watched: bool = True) -> AuditLog:
    """A Job whose pod ran from 610 to 640."""
    log = AuditLog()
    if watched:
        log.watched(at(600), at(700))
    pods = [{"index": 0, "node": "sim-0", "gpu_class": "h100", "count": 2}]
    log.job({"t": at(609), "name": "kilo-1", "job_id": "kilo", "attempt": 1, "pods": pods})
    log.run(at(610), POD, "sim-0", ["GPU-a", "GPU-b"])
    return log


def read(log: AuditLog, folder: Path) -> Journal:
    write_log(folder / "audit.jsonl", log.events)
    return audit_journal.read(folder / "audit.jsonl")


def the_pod(log: AuditLog, folder: Path) -> PodLife:
    [pod] = read(log, folder).pods
    return pod


def the_job(log: AuditLog, folder: Path) -> JobLife:
    [job] = read(log, folder).jobs
    return job


def test_a_pod_has_its_times_node_and_devices(tmp_path: Path) -> None:
    log = a_log()
    log.finish(at(640), POD, 0)
    pod = the_pod(log, tmp_path)
    assert (pod.job_id, pod.attempt, pod.index, pod.node, pod.gpus) == ("kilo", 1, 0, "sim-0", 2)
    assert (pod.started, pod.finished, pod.freed, pod.succeeded) == (at(610), at(640), at(640), True)
    assert pod.devices == ("GPU-a", "GPU-b")


def test_the_order_of_the_lines_does_not_matter(tmp_path: Path) -> None:
    log = a_log()
    log.suspend(at(630), "kilo-1")
    log.ask_to_end(at(630.1), POD, 30)
    log.finish(at(631), POD, 143)
    log.remove(at(632), POD)
    told = read(log, tmp_path)
    random.Random(4).shuffle(log.events)
    assert read(log, tmp_path) == told


def test_an_event_that_was_written_twice_counts_once(tmp_path: Path) -> None:
    log = a_log()
    told = read(log, tmp_path)
    log.events += deepcopy(log.events)
    assert read(log, tmp_path) == told


def test_what_was_refused_changed_nothing(tmp_path: Path) -> None:
    log = a_log()
    stopped = deepcopy(log.there["kilo-1"])
    stopped["spec"]["suspend"] = True
    stopped["metadata"]["resourceVersion"] = "9999"
    log.tell(at(620), "patch", "jobs", "kilo-1", stopped, HUB, code=409)
    assert the_job(log, tmp_path).suspended_version is None


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    log = a_log()
    told = read(log, tmp_path)
    with (tmp_path / "audit.jsonl").open("a") as lines:
        lines.write('{"kind":"Event","level":"Requ')
    found = audit_journal.read(tmp_path / "audit.jsonl")
    assert (found.pods, found.torn) == (told.pods, 1)


def test_what_a_new_server_writes_behind_a_torn_line_is_read(tmp_path: Path) -> None:
    log = a_log()
    log.finish(at(640), POD, 0)
    told = read(log, tmp_path)
    *before, last = (tmp_path / "audit.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "audit.jsonl").write_text("".join(before) + '{"kind":"Event","stage":"Resp' + last)
    found = audit_journal.read(tmp_path / "audit.jsonl")
    assert (found.pods, found.torn) == (told.pods, 1)


@pytest.mark.parametrize("compressed", [False, True])
def test_rotated_files_are_read_first(tmp_path: Path, compressed: bool) -> None:
    log = a_log()
    log.finish(at(640), POD, 0)
    told = read(log, tmp_path)
    lines = (tmp_path / "audit.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "audit.jsonl").write_text("".join(lines[5:]))
    name = "audit-2026-11-29T18-07-31.123.jsonl"
    old = "".join(lines[:5])
    if compressed:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(old.encode()))
    else:
        (tmp_path / name).write_text(old)
    assert audit_journal.read(tmp_path / "audit.jsonl") == told


def test_a_pod_is_gone_when_its_last_finalizer_is(tmp_path: Path) -> None:
    log = a_log()
    log.ask_to_end(at(620), POD, 30)
    assert the_pod(log, tmp_path).freed is None, "to be told to end is not to end"
    log.remove(at(621), POD)
    pod = the_pod(log, tmp_path)
    assert (pod.finished, pod.freed) == (None, at(621))
    assert (pod.ended_from, pod.ended_until) == (at(620) - 1, at(621) + 2000)


def test_an_end_without_times_is_an_end_that_nobody_told(tmp_path: Path) -> None:
    log = a_log()
    log.write(
        at(625),
        "patch",
        "pods",
        POD,
        lambda pod: pod["status"].update(phase="Failed"),
        "node-controller",
        "status",
    )
    pod = the_pod(log, tmp_path)
    assert (pod.finished, pod.freed, pod.succeeded) == (None, at(625), False)


def test_a_pod_that_never_started_has_no_start(tmp_path: Path) -> None:
    log = AuditLog()
    pods = [{"index": 0, "node": "sim-0", "gpu_class": "h100", "count": 2}]
    log.job({"t": at(609), "name": "kilo-1", "job_id": "kilo", "attempt": 1, "pods": pods})
    log.die_unstarted(at(612), POD)
    assert the_pod(log, tmp_path).started is None


def test_who_collects_garbage_lists_what_goes(tmp_path: Path) -> None:
    """A deleted collection answers the objects as they were before."""
    log = a_log()
    log.finish(at(640), POD, 0)
    log.write(at(641), "patch", "pods", POD, lambda pod: pod["metadata"].pop("finalizers"), CONTROLLER)
    things = {"kind": "PodList", "metadata": {"resourceVersion": "900"}, "items": [deepcopy(log.there[POD])]}
    log.tell(at(650), "deletecollection", "pods", "", things, COLLECTOR)
    job = {
        "kind": "JobList",
        "metadata": {"resourceVersion": "901"},
        "items": [deepcopy(log.there["kilo-1"])],
    }
    log.tell(at(651), "deletecollection", "jobs", "", job, COLLECTOR)
    told = read(log, tmp_path)
    assert told.jobs[0].gone == at(651)
    assert told.pods[0].freed == at(640)


def test_a_pod_whose_removal_was_not_written_is_missed_by_a_list(tmp_path: Path) -> None:
    """The API server was killed before it could write."""
    log = a_log()
    listed = {"kind": "PodList", "metadata": {"resourceVersion": "900"}, "items": []}
    log.tell(at(650), "list", "pods", "", listed, HUB, uri="/api/v1/pods?limit=500&labelSelector=other")
    assert the_pod(log, tmp_path).freed is None, "that list was of others"
    log.tell(at(651), "list", "pods", "", listed, HUB, uri="/api/v1/pods?limit=500")
    assert the_pod(log, tmp_path).freed == at(651)


def test_an_object_whose_making_was_not_written_is_known_from_what_follows(tmp_path: Path) -> None:
    log = a_log()
    lost = [
        event
        for event in log.events
        if event["verb"] == "create" and not event["objectRef"].get("subresource")
    ]
    log.suspend(at(630), "kilo-1")
    log.events = [event for event in log.events if event not in lost]
    told = read(log, tmp_path)
    assert (told.jobs[0].job_id, told.jobs[0].born_suspended) == ("kilo", False)
    assert (told.pods[0].started, told.pods[0].job_uid) == (at(610), told.jobs[0].uid)


def test_the_deletion_of_a_job_answers_only_its_uid(tmp_path: Path) -> None:
    log = a_log()
    done = {"kind": "Status", "status": "Success", "details": {"uid": log.there["kilo-1"]["metadata"]["uid"]}}
    log.tell(at(690), "delete", "jobs", "kilo-1", done, HUB)
    assert the_job(log, tmp_path).gone == at(690)
    log.events[-1]["responseObject"]["details"].pop("uid")
    assert the_job(log, tmp_path).gone == at(690)


def test_a_run_between_two_looks_is_unseen(tmp_path: Path) -> None:
    log = a_log(watched=False)
    log.remove(at(620), POD)
    log.watched(at(630), at(700))
    pod = the_pod(log, tmp_path)
    assert pod.unseen
    assert pod.ended_until == at(630) - 5 + 2000, "the first list without it"


def test_an_end_told_between_two_looks_is_unseen_but_no_earlier(tmp_path: Path) -> None:
    log = a_log(watched=False)
    log.watched(at(600), at(615))
    log.finish(at(618), POD, 0)
    log.remove(at(620), POD)
    log.watched(at(630), at(700))
    pod = the_pod(log, tmp_path)
    assert (pod.unseen, pod.finished, pod.freed) == (False, None, at(618))
    assert (pod.ended_from, pod.ended_until) == (at(618), at(630) - 5 + 2000)


def test_pods_without_gpus_are_nobodys_business(tmp_path: Path) -> None:
    log = a_log()
    metadata: dict[str, Any] = {"labels": {}}
    spec = {"containers": [{"name": "main", "resources": {}}]}
    log.create(
        at(650), "pods", "dns", {"kind": "Pod", "metadata": metadata, "spec": spec, "status": {}}, "admin"
    )
    assert [pod.pod_name for pod in read(log, tmp_path).pods] == [POD]


def test_moments_are_read_with_and_without_fractions() -> None:
    assert audit_journal.moment(stamp(at(610))) == at(610)
    assert audit_journal.moment("2026-11-29T18:07:31.020999Z") % 1000 == 20


@pytest.mark.parametrize("text", [None, "", "{}\n", json.dumps({"n": 1}) + "\n", "nothing\n"])
def test_what_is_no_audit_log_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "audit.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadLog):
        audit_journal.read(path)
