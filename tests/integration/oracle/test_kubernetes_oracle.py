"""The oracle of Kubernetes says nothing of a consistent day, and names the rule that any planted lie breaks."""

from __future__ import annotations

import ast
import atexit
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from test_oracle import LIES, Lie

from tests.oracle import audit_journal, kubernetes_oracle, oracle
from tests.oracle.audit_builders import HUB, a_kubernetes_world, pod_name, stamp, write_kubernetes, write_log
from tests.oracle.builders import Files, at

ROOT = Path(oracle.__file__).parents[2]

Json = dict[str, Any]
Events = list[Json]
Edit = Callable[[Events], object]


# --- lies in the audit log


def told_of(events: Events, name: str) -> Events:
    """The events that answered this object."""
    return [event for event in events if (event["responseObject"].get("metadata") or {}).get("name") == name]


def everywhere(name: str, change: Callable[[Json], object]) -> Edit:
    """Change an object wherever it is shown."""
    return lambda events: [change(event["responseObject"]) for event in told_of(events, name)]


def states_of(body: Json) -> Iterable[Json]:
    for container in body["status"].get("containerStatuses") or ():
        yield from container["state"].values()


def times(name: str, **texts: str | None) -> Edit:
    """Other times of a pod's container."""

    def change(body: Json) -> None:
        for state in states_of(body):
            state.update({key: text for key, text in texts.items() if key in state})

    return everywhere(name, change)


def without_end(name: str) -> Edit:
    """Nothing is told of a pod once it runs."""

    def change(events: Events) -> None:
        for event in told_of(events, name):
            body = event["responseObject"]
            if body["status"].get("phase") in ("Succeeded", "Failed") or body["metadata"].get(
                "deletionTimestamp"
            ):
                events.remove(event)

    return change


def annotated(name: str, devices: str) -> Edit:
    """Other devices wherever any are told."""

    def change(body: Json) -> None:
        notes = body["metadata"]["annotations"]
        if "simulate.gpuhub/gpus" in notes:
            notes["simulate.gpuhub/gpus"] = devices

    return everywhere(name, change)


def annotated_once(name: str, devices: str) -> Edit:
    """Other devices in the last thing that is told."""
    return lambda events: told_of(events, name)[-1]["responseObject"]["metadata"]["annotations"].update(
        {"simulate.gpuhub/gpus": devices}
    )


def moved(name: str, node: str) -> Edit:
    """Another node wherever one is told."""
    return everywhere(
        name, lambda body: body["spec"].update(nodeName=node) if "nodeName" in body["spec"] else None
    )


def labelled(name: str, **labels: str) -> Edit:
    texts = {f"hub/{key.replace('_', '-')}": text for key, text in labels.items()}
    return everywhere(name, lambda body: body["metadata"]["labels"].update(texts))


def asking(name: str, resource: str, count: int) -> Edit:
    """Another request, wherever it is shown."""
    wanted = {"requests": {resource: str(count)}, "limits": {resource: str(count)}}
    return everywhere(name, lambda body: body["spec"]["containers"][0].update(resources=wanted))


def copied(name: str, uid: str, change: Callable[[Json], object] = lambda _: None, **also: str) -> Edit:
    """The whole life of an object once more, as another one. `also`: a Job whose pod it then is."""

    def edit(events: Events) -> None:
        for number, event in enumerate(told_of(events, name)):
            twin = deepcopy(event) | {"auditID": f"{uid}-{number}"}
            twin["responseObject"]["metadata"]["uid"] = uid
            change(twin["responseObject"])
            for owner in twin["responseObject"]["metadata"].get("ownerReferences", ()):
                owner["uid"] = also.get("owner", owner["uid"])
            events.append(twin)

    return edit


def later(name: str, seconds: float) -> Edit:
    """Everything told of an object comes later."""

    def change(events: Events) -> None:
        for event in told_of(events, name):
            for key in ("requestReceivedTimestamp", "stageTimestamp"):
                event[key] = stamp(audit_journal.moment(event[key]) + round(seconds * 1000), micros=True)

    return change


def suspended_before(job: str, pod: str) -> Edit:
    """A Job was suspended at the very version before its pod was made."""

    def change(events: Events) -> None:
        version = int(told_of(events, pod)[0]["responseObject"]["metadata"]["resourceVersion"])
        first = told_of(events, job)[0]
        twin = deepcopy(first) | {"verb": "patch", "auditID": "early"}
        twin["responseObject"]["spec"]["suspend"] = True
        twin["responseObject"]["metadata"]["resourceVersion"] = str(version - 1)
        told_of(events, pod)[0]["responseObject"]["metadata"]["resourceVersion"] = str(version)
        events.append(twin)

    return change


def restarted(name: str) -> Edit:
    def change(events: Events) -> None:
        told_of(events, name)[-1]["responseObject"]["status"]["containerStatuses"][0]["restartCount"] = 1

    return change


def told_once_otherwise(name: str, **texts: str) -> Edit:
    """A node that got no answer tells its times anew, and otherwise; what it tells then stays."""

    def change(events: Events) -> None:
        told = next(
            event
            for event in told_of(events, name)
            for state in states_of(event["responseObject"])
            if texts.keys() <= state.keys()
        )
        twin = deepcopy(told) | {"auditID": "told otherwise"}
        for state in states_of(twin["responseObject"]):
            state.update(texts)
        twin["requestReceivedTimestamp"] = stamp(
            audit_journal.moment(told["requestReceivedTimestamp"]) - 1, micros=True
        )
        events.append(twin)

    return change


def second_start(name: str, start: float, end: float) -> Edit:
    """A second pod of the same index, at another time and on no device that is known."""

    def change(body: Json) -> None:
        body["metadata"]["annotations"].pop("simulate.gpuhub/gpus", None)
        for state in states_of(body):
            state.update({"startedAt": stamp(at(start))})
            if "finishedAt" in state:
                state["finishedAt"] = stamp(at(end))

    return copied(name, "uid-second", change)


def ghost(events: Events) -> None:
    """A job that only the cluster knows."""
    for name, uid in (("alpha-1", "uid-ghost"), (pod_name("alpha-1", 0), "uid-ghost-pod")):

        def rename(body: Json) -> None:
            body["metadata"]["name"] = body["metadata"]["name"].replace("alpha", "ghost")
            body["metadata"]["labels"]["hub/job-id"] = "ghost"

        copied(name, uid, rename, owner="uid-ghost")(events)


def orphan(name: str) -> Edit:
    return everywhere(name, lambda body: body["metadata"].pop("ownerReferences"))


def tombstone_first(job: str) -> Edit:
    """Before the Job there was a tombstone of its name, of which nothing more is told."""

    def change(events: Events) -> None:
        twin = deepcopy(told_of(events, job)[0]) | {"auditID": "tombstone"}
        twin["responseObject"]["metadata"] |= {"uid": "uid-tombstone", "resourceVersion": "1"}
        twin["responseObject"]["spec"]["suspend"] = True
        twin["requestReceivedTimestamp"] = stamp(at(600), micros=True)
        events.append(twin)

    return change


def abandoned_at(job: str, minute: float) -> Edit:
    """The Job was labelled long before its pod ran."""

    def change(events: Events) -> None:
        twin = deepcopy(told_of(events, job)[0]) | {"verb": "patch", "auditID": "abandoned"}
        twin["responseObject"]["metadata"]["labels"]["hub/abandoned"] = "true"
        twin["requestReceivedTimestamp"] = stamp(at(minute), micros=True)
        events.append(twin)

    return change


def unsuspended(job: str) -> Edit:
    return everywhere(job, lambda body: body["spec"].update(suspend=False))


def forget(name: str) -> Edit:
    def change(events: Events) -> None:
        for event in told_of(events, name):
            events.remove(event)

    return change


ALPHA, DELTA, CHARLIE = pod_name("alpha-1", 0), pod_name("delta-1", 0), pod_name("charlie-1", 0)
BRAVO, HOTEL, INDIA = pod_name("bravo-1", 1), pod_name("hotel-1", 1), pod_name("india-1", 0)

KUBERNETES_LIES: dict[str, dict[str, Lie | Edit]] = {
    "gpu_exclusive": {
        "one GPU in two pods": annotated(DELTA, "GPU-sim-0-3,GPU-sim-0-4"),
        "a pod outlives its successor's start": times(ALPHA, finishedAt=stamp(at(652) + 1000)),
        "a pod that never ended": without_end(ALPHA),
        "fewer devices than asked for": annotated(DELTA, "GPU-sim-0-4"),
        "other devices later": annotated_once(DELTA, "GPU-sim-0-6,GPU-sim-0-7"),
        "a GPU on two nodes": annotated(HOTEL, ",".join(f"GPU-sim-3-{number}" for number in range(8))),
    },
    "node_not_overfull": {
        "a pod of others leaves no room": asking("foreign", "nvidia.com/gpu", 9),
        "more runs than the node has, though no device is known": (
            annotated(DELTA, ""),
            asking(DELTA, "nvidia.com/gpu", 5),
        ),
        "its successor comes before it ends": times(BRAVO, finishedAt=stamp(at(720))),
        "given back while it runs": "UPDATE attempts SET capacity_held = 0 WHERE job_id = 'golf'",
        "a node that shrank": "UPDATE node_capacity SET total = 3 WHERE node = 'sim-1'",
    },
    "one_run_per_attempt": {
        "an attempt unknown to the database": ghost,
        "an object unknown to the database": labelled("echo-1", job_id="other"),
        "a second pod": second_start(ALPHA, 641, 642),
        "a second object": copied("alpha-1", "uid-twin"),
        "an object in spite of a tombstone": tombstone_first("alpha-1"),
        "a tombstone that could run": (tombstone_first("juliet-1"), unsuspended("juliet-1")),
        "a pod of no object": orphan(ALPHA),
        "a Job that nobody told of": forget("alpha-1"),
        "made though its object was suspended": suspended_before("alpha-1", ALPHA),
        "started after it was abandoned": abandoned_at("alpha-1", 609.4),
        "ran after its attempt was over": (
            f"UPDATE attempts SET ended_at_ms = {at(609)} WHERE job_id = 'alpha'"
        ),
        "its container started twice": restarted(ALPHA),
        "two attempts at once, none lost": (
            "UPDATE attempts SET lost = 0",
            times(CHARLIE, startedAt=stamp(at(665))),
        ),
        "it ran before it was claimed": f"UPDATE attempts SET claimed_at_ms = {at(611)} WHERE job_id = 'alpha'",
        "made before it was claimed": f"UPDATE attempts SET claimed_at_ms = {at(609.5)} WHERE job_id = 'alpha'",
        "another organization's": labelled("alpha-1", organization="other"),
        "another attempt's name": everywhere("alpha-1", lambda body: body["metadata"].update(name="alpha-2")),
        "a success that was none": everywhere(
            ALPHA, lambda body: [state.update(exitCode=1) for state in states_of(body)]
        ),
    },
    "placement_as_decided": {
        "another node": "UPDATE placements SET node = 'sim-1' WHERE job_id = 'alpha'",
        "another count": "UPDATE placements SET gpus = 3 WHERE job_id = 'delta'",
        "another class": "UPDATE placements SET gpu_class = 'a100' WHERE job_id = 'bravo'",
        "the class of a MIG device": asking(DELTA, "nvidia.com/mig-1g.10gb", 2),
        "a gang's pod on another's node": moved(BRAVO, "sim-0"),
        "two pods of a whole-node gang on one node": moved(HOTEL, "sim-3"),
        "the pods of a gang changed places": (
            "UPDATE placements SET pod_index = 9 WHERE job_id = 'bravo' AND pod_index = 0",
            "UPDATE placements SET pod_index = 0 WHERE job_id = 'bravo' AND pod_index = 1",
            "UPDATE placements SET pod_index = 1 WHERE job_id = 'bravo' AND pod_index = 9",
        ),
    },
    "ledger_equals_journal": {
        "a pod ended a second later": times(BRAVO, finishedAt=stamp(at(685) + 1000)),
        "a pod started a second later": times(ALPHA, startedAt=stamp(at(610) + 1000)),
        "a run that nobody recorded": (
            "UPDATE attempts SET first_started_at_ms = NULL, last_started_at_ms = NULL WHERE job_id = 'alpha'"
        ),
        "a running job started otherwise": times(pod_name("golf-1", 0), startedAt=stamp(at(709) + 1000)),
        "a vanished pod started a second later": times(INDIA, startedAt=stamp(at(720) + 1000)),
        "the recorded end of a vanished pod is too late": (
            f"UPDATE attempts SET ended_at_ms = {at(722) + 9000} WHERE job_id = 'india'"
        ),
    },
    "charge_bounds": {
        "the gang was whole later": times(BRAVO, startedAt=stamp(at(656))),
        "a pod of the gang never ran": forget(BRAVO),
        "the end came earlier": times(ALPHA, finishedAt=stamp(at(639))),
        "the correction of a lost attempt is missing": LIES["ledger_equals_journal"][
            "the correction is missing"
        ],
    },
    "ends_agree": {
        "over in the books, but it runs": without_end(ALPHA),
        "over on the cluster, but not in the books": (
            "UPDATE attempts SET state = 'running', settled = 0, ended_at_ms = NULL WHERE job_id = 'alpha'"
        ),
        "over in the books, but it never ran": forget(ALPHA),
        "the recorded end of a vanished pod is too early": (
            f"UPDATE attempts SET ended_at_ms = {at(721)} WHERE job_id = 'india'"
        ),
        "lost before it ran": f"UPDATE attempts SET ended_at_ms = {at(604)} WHERE job_id = 'charlie' AND attempt = 1",
        "lost after it was gone": f"UPDATE attempts SET ended_at_ms = {at(663)} WHERE job_id = 'charlie' AND lost",
    },
    "evidence": {
        "a GPU that nobody gave it": annotated(ALPHA, "GPU-sim-0-1,GPU-sim-0-2,GPU-sim-0-3,GPU-sim-0-7"),
        "it ran shorter than was observed": (times(ALPHA, finishedAt=stamp(at(638))), later(ALPHA, -120)),
    },
    "final": {
        "a pod still running": without_end(BRAVO),
        "a Job that could still run": unsuspended("juliet-1"),
    },
}


NOT_TOLD = ("observed longer than it ran", "the correction is missing")
"""Lies about a pod of a lost node, whose end Kubernetes cannot tell; of a correction the bounds of the charge speak."""


def in_database(lie: Lie) -> bool:
    return all(isinstance(part, str) for part in (lie if isinstance(lie, tuple) else (lie,)))


SHARED_LIES = {
    rule: {name: lie for name, lie in lies.items() if in_database(lie) and name not in NOT_TOLD}
    for rule, lies in LIES.items()
}
"""What is wrong with the books is wrong on every cluster."""
ALL_LIES: dict[str, dict[str, Any]] = {
    rule: SHARED_LIES.get(rule, {}) | KUBERNETES_LIES.get(rule, {})
    for rule in LIES.keys() | KUBERNETES_LIES.keys()
}
CASES = [
    pytest.param(rule, name, id=f"{rule}: {name}") for rule in sorted(ALL_LIES) for name in ALL_LIES[rule]
]


@cache
def _honest(running: bool) -> Files:
    folder = tempfile.mkdtemp(prefix="hub-kubernetes-oracle-")
    atexit.register(shutil.rmtree, folder, True)
    return write_kubernetes(*a_kubernetes_world(still_running=running), Path(folder))


@cache
def said_of(rule: str, name: str) -> tuple[str, ...]:
    """What the oracle says once this lie is told."""
    with tempfile.TemporaryDirectory() as folder:
        honest = _honest(running=rule != "final")
        files = Files(*(Path(shutil.copy(path, folder)) for path in (honest.database, honest.journal)))
        lie = ALL_LIES[rule][name]
        for part in lie if isinstance(lie, tuple) else (lie,):
            if isinstance(part, str):
                files.change(part)
            else:
                events = files.lines()
                part(events)
                write_log(files.journal, events)
        return tuple(judge(files, final=rule == "final", tolerance_ms=0))


def judge(files: Files, *, final: bool = False, **more: Any) -> list[str]:
    return kubernetes_oracle.judge(str(files.database), files.journal, final, **more)


def rules(found: Iterable[str]) -> set[str]:
    return {line.split(":")[0] for line in found}


@pytest.fixture
def consistent(tmp_path: Path) -> Files:
    """A world in which all has ended."""
    return write_kubernetes(*a_kubernetes_world(), tmp_path)


@pytest.fixture
def running(tmp_path: Path) -> Files:
    """A world in which one job still runs."""
    return write_kubernetes(*a_kubernetes_world(still_running=True), tmp_path)


def test_nothing_is_said_of_a_consistent_world(consistent: Files) -> None:
    assert judge(consistent, final=True, tolerance_ms=0) == []


def test_nothing_is_said_of_a_world_that_still_runs(running: Files) -> None:
    assert judge(running, tolerance_ms=0) == []
    assert rules(judge(running, final=True)) == {"final"}


@pytest.mark.parametrize(("rule", "name"), CASES)
def test_a_planted_lie_makes_its_rule_speak(rule: str, name: str) -> None:
    assert rule in rules(said_of(rule, name))


def test_every_check_is_made_to_speak() -> None:
    spoken = {line for case in CASES for line in said_of(*map(str, case.values))}
    checks = re.findall(r"^(\w+) [^:]+: (.+?)\s+IF", kubernetes_oracle.checks(), re.M)
    assert {": ".join(check) for check in checks} == {": ".join(line.split(": ")[:2]) for line in spoken}
    assert {rule for rule, _ in checks} == set(ALL_LIES)
    assert min(len(lies) for lies in ALL_LIES.values()) >= 2


def test_every_check_of_the_books_is_used() -> None:
    shared = re.findall(r"^\w+ [^:]+: (.+?)\s+IF", oracle.CHECKS, re.M)
    used = re.findall(r"^\w+ [^:]+: (.+?)\s+IF", kubernetes_oracle.checks(), re.M)
    assert set(shared) - set(used) == set(kubernetes_oracle.NOT_HERE)


def test_an_end_that_the_hub_missed_may_lie_as_late_as_its_first_look(consistent: Files) -> None:
    consistent.change(f"UPDATE attempts SET ended_at_ms = {at(722) + 1700} WHERE job_id = 'india'")
    assert rules(judge(consistent)) == {"ledger_equals_journal", "charge_bounds"}, (
        "only the books do not follow"
    )
    assert not [line for line in judge(consistent) if "recorded times" in line]


def test_a_run_of_which_the_hub_saw_nothing_costs_nothing(consistent: Files) -> None:
    """The hub did not look while the pod ran, and was gone before it looked again."""
    consistent.change(
        "DELETE FROM transfers WHERE job_id = 'india' AND type IN ('settle', 'release')",
        "DELETE FROM transfer_legs WHERE transfer_id NOT IN (SELECT id FROM transfers)",
        "DELETE FROM slices WHERE job_id = 'india'",
        "UPDATE attempts SET first_started_at_ms = NULL, last_started_at_ms = NULL WHERE job_id = 'india'",
    )
    assert "ledger_equals_journal" in rules(judge(consistent))
    events = consistent.lines()
    shorten_watch(events, at(719.9))
    write_log(consistent.journal, events)
    assert "ledger_equals_journal" not in rules(judge(consistent))


def shorten_watch(events: Events, end: int) -> None:
    for event in events:
        if event["verb"] == "watch" and event["stage"] == "ResponseComplete":
            event["stageTimestamp"] = stamp(end, micros=True)


@pytest.mark.parametrize("first", [at(610), at(610) + 2000])
def test_of_two_starts_that_were_told_either_may_be_recorded(consistent: Files, first: int) -> None:
    events = consistent.lines()
    times(ALPHA, startedAt=stamp(first))(events)
    told_once_otherwise(ALPHA, startedAt=stamp(at(610)))(events)
    write_log(consistent.journal, events)
    assert judge(consistent, tolerance_ms=0) == []
    consistent.change(f"UPDATE attempts SET first_started_at_ms = {at(610) + 1000} WHERE job_id = 'alpha'")
    assert "ledger_equals_journal" in rules(judge(consistent))


def test_of_two_ends_that_were_told_either_may_be_recorded(consistent: Files) -> None:
    events = consistent.lines()
    told_once_otherwise(ALPHA, finishedAt=stamp(at(640) - 1000))(events)
    write_log(consistent.journal, events)
    assert judge(consistent, tolerance_ms=0) == []


def test_what_was_made_after_the_database_was_read_is_left_out(running: Files) -> None:
    running.change("DELETE FROM attempts WHERE job_id = 'juliet'")
    events = running.lines()
    unsuspended("juliet-1")(events)
    write_log(running.journal, events)
    assert "one_run_per_attempt" in rules(judge(running))
    assert "one_run_per_attempt" not in rules(judge(running, horizon_ms=at(725.9)))


def test_a_class_has_the_resource_of_its_devices() -> None:
    assert kubernetes_oracle.resource_of("h100") == "nvidia.com/gpu"
    assert kubernetes_oracle.resource_of("a100-40gb") == "nvidia.com/gpu"
    assert kubernetes_oracle.resource_of("a100-40gb-1g.5gb") == "nvidia.com/mig-1g.5gb"


@pytest.mark.parametrize("module", [audit_journal, kubernetes_oracle])
def test_it_imports_nothing_of_what_it_judges(module: Any) -> None:
    tree = ast.parse(Path(module.__file__).read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in nodes
        for alias in node.names
    }
    own = {name for name in names if name.startswith("tests.oracle")}
    assert {name.split(".")[0] for name in names - own} <= sys.stdlib_module_names


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "tests.oracle.kubernetes_oracle", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_program_says_ok_with_what_it_looked_at(consistent: Files) -> None:
    done = run(consistent.database, consistent.journal, "--final")
    events = len(consistent.lines())
    assert done.stdout == f"oracle: ok (9 attempts, 9 pods, 41 transfers, {events} events)\n"
    assert (done.returncode, done.stderr) == (0, "")


def test_the_program_prints_each_violation_and_their_number(running: Files) -> None:
    done = run(running.database, running.journal, "--final")
    assert len(done.stdout.splitlines()) > 1
    assert done.stdout.splitlines()[-1] == f"oracle: {len(done.stdout.splitlines()) - 1} violations"
    assert done.returncode == 1


@pytest.mark.parametrize("missing", ["database", "journal"])
def test_what_is_missing_cannot_be_judged(consistent: Files, missing: str) -> None:
    getattr(consistent, missing).unlink()
    done = run(consistent.database, consistent.journal)
    assert done.returncode == 2
    assert done.stdout.startswith("oracle: cannot judge: ")
    assert len(done.stdout.splitlines()) == 1


def test_another_file_is_no_audit_log(consistent: Files) -> None:
    consistent.journal.write_text(json.dumps({"t": 1, "n": 1, "event": "pod_started", "by": HUB}) + "\n")
    assert run(consistent.database, consistent.journal).returncode == 2
