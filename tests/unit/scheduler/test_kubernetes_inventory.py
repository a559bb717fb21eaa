"""What the watches add up to: names that changed, Jobs taken away, pods that nobody accounts for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.clusters.kubernetes.facts import JobFacts, NodeFacts, PodFacts
from scheduler.clusters.kubernetes.inventory import ORPHAN_MS, Inventory
from scheduler.clusters.kubernetes.reading import NOW as LATEST
from scheduler.clusters.kubernetes.settings import ClassForm, KubernetesSettings
from scheduler.clusters.kubernetes.watch import Change
from scheduler.clusters.port import ObjectStatus, PodPhase, PodPlacement

START_MS = 1_800_000_000_000

JOB = JobFacts(
    uid="job-uid",
    namespace="hub-alpha",
    name="job-1-1",
    job_id="job-1",
    attempt=1,
    suspended=False,
    abandoned=False,
    spec_hash="hash",
    created_ms=START_MS,
    pods=(PodPlacement(0, "n-1", "h100", 2),),
    walltime_ms=60_000,
    grace_ms=30_000,
    finished_ms=None,
    failed_reason=None,
    completed=frozenset(),
    version=10,
)
POD = PodFacts(
    uid="pod-uid",
    namespace="hub-alpha",
    name="job-1-1-0-x",
    job="job-1-1",
    index=0,
    node="n-1",
    phase="Running",
    started_ms=START_MS,
    ended_ms=None,
    exit_code=None,
    cause=None,
    disruption=None,
    disrupted_ms=None,
    deleting_ms=None,
    gated=False,
    notified=False,
    kept=False,
    requests_milli={"nvidia.com/gpu": 2000, "cpu": 2000, "memory": 2 * 1024**3 * 1000},
)
NODE = NodeFacts(
    uid="node-uid",
    name="n-1",
    labels={"gpu": "h100"},
    allocatable_milli={"nvidia.com/gpu": 8000, "cpu": 64_000, "memory": 64 * 1024**3 * 1000},
    ready="True",
    cordoned=False,
    taints=frozenset(),
    silent_since_ms=None,
    heartbeat_ms=START_MS,
)


class World:
    """An inventory and its clock."""

    def __init__(self) -> None:
        self.now_ms = START_MS + 1000
        form = ClassForm(labels={"gpu": "h100"}, cpu_milli=1000, memory_mib=1024)
        self.inventory = Inventory(KubernetesSettings(classes={"h100": form}), lambda: self.now_ms)

    def jobs(self, *changes: tuple[JobFacts | None, JobFacts | None]) -> None:
        self.inventory.take_jobs([Change(before, after) for before, after in changes])

    def pods(self, *changes: tuple[PodFacts | None, PodFacts | None]) -> None:
        self.inventory.take_pods([Change(before, after) for before, after in changes])

    def nodes(self, *changes: tuple[NodeFacts | None, NodeFacts | None]) -> None:
        self.inventory.take_nodes([Change(before, after) for before, after in changes])

    def seen(self) -> dict[str, ObjectStatus]:
        return {thing.name: thing for thing in self.inventory.objects(LATEST, everything=False)}

    def foreign(self) -> dict[str, int]:
        nodes = self.inventory.nodes(everything=True)
        assert nodes is not None
        return {node.node: dict(node.foreign).get("h100", 0) for node in nodes}


@pytest.fixture
def world() -> World:
    world = World()
    world.nodes((None, NODE))
    world.jobs((None, JOB))
    world.pods((None, POD))
    world.seen()
    world.inventory.nodes(everything=True)
    return world


def test_only_what_changed_is_told(world: World) -> None:
    assert world.seen() == {}
    assert not world.inventory.has_news
    world.pods((POD, replace(POD, phase="Succeeded", ended_ms=START_MS + 500, exit_code=0)))
    assert world.inventory.has_news
    assert world.seen()["job-1-1"].pods[0].phase is PodPhase.SUCCEEDED


def test_job_taken_away_is_over_when_its_pod_is_and_tells_how_it_ended(world: World) -> None:
    world.jobs((JOB, None))
    dying = world.seen()["job-1-1"]
    assert (dying.suspended, dying.settled) == (True, False)
    world.pods((replace(POD, phase="Failed", ended_ms=START_MS + 700, deleting_ms=START_MS + 600), None))
    over = world.seen()["job-1-1"]
    assert (over.settled, over.pods[0].ended_ms, over.pods[0].reason) == (True, START_MS + 700, "gang_failed")
    world.inventory.expect_deletion("job-1-1")
    assert world.inventory.gone() == ("job-1-1",)


def test_job_that_the_hub_deletes_is_gone_at_once(world: World) -> None:
    world.inventory.expect_deletion("job-1-1")
    world.jobs((JOB, None))
    assert world.inventory.gone() == ("job-1-1",)
    assert world.seen() == {}


def test_deletion_of_an_earlier_job_of_that_name_is_none_of_the_later(world: World) -> None:
    world.jobs((None, replace(JOB, uid="another")))
    world.jobs((JOB, None))
    assert not world.seen()["job-1-1"].suspended


def test_pod_that_is_gone_without_a_word_ended_at_the_latest_now(world: World) -> None:
    world.pods((POD, None))
    (pod,) = world.seen()["job-1-1"].pods
    assert (pod.phase, pod.ended_ms) == (PodPhase.FAILED, world.now_ms)


def test_second_pod_is_foreign_and_the_first_one_s_end_stands(world: World) -> None:
    second = replace(POD, uid="second", started_ms=START_MS + 900)
    world.pods((replace(POD, phase="Failed", ended_ms=START_MS + 700, deleting_ms=START_MS + 600), None))
    world.pods((None, second))
    thing = world.seen()["job-1-1"]
    assert (thing.settled, thing.pods[0].ended_ms) == (True, START_MS + 700)
    assert world.foreign() == {"n-1": 2}
    world.pods((second, None))
    assert world.seen()["job-1-1"].pods[0].ended_ms == START_MS + 700
    assert world.foreign() == {"n-1": 0}


def test_pod_without_a_job_is_foreign_only_when_its_job_had_time_to_be_seen() -> None:
    world = World()
    world.nodes((None, NODE))
    world.pods((None, POD))
    assert world.foreign() == {"n-1": 0}
    world.now_ms = START_MS + ORPHAN_MS + 1
    assert world.foreign() == {"n-1": 2}
    world.jobs((None, JOB))
    assert world.foreign() == {"n-1": 0}


def test_silent_node_is_lost_when_its_time_has_run_out_and_only_then(world: World) -> None:
    silent = replace(NODE, ready="Unknown", silent_since_ms=START_MS)
    world.nodes((NODE, silent))
    assert world.seen() == {}
    world.now_ms = START_MS + 60_000
    assert world.seen()["job-1-1"].pods[0].phase is PodPhase.UNKNOWN
    world.nodes((silent, NODE))
    assert world.seen()["job-1-1"].pods[0].phase is PodPhase.RUNNING


def test_node_that_is_not_there_any_more_is_lost_at_once(world: World) -> None:
    world.nodes((NODE, None))
    assert world.seen()["job-1-1"].pods[0].phase is PodPhase.UNKNOWN


def test_job_whose_pods_are_not_known_yet_is_told_again_until_they_are(world: World) -> None:
    later = replace(JOB, uid="later", name="job-2-1", version=50)
    world.jobs((None, later))
    assert [thing.pods for thing in world.inventory.objects(49, everything=False)] == [()]
    assert [thing.name for thing in world.inventory.objects(49, everything=False)] == ["job-2-1"]
    world.inventory.objects(50, everything=False)
    assert world.inventory.objects(50, everything=False) == ()


def test_shapes_are_made_once_until_a_node_changes(world: World) -> None:
    first = world.inventory.shapes()
    assert world.inventory.shapes() is first
    world.nodes((NODE, replace(NODE, allocatable_milli=NODE.allocatable_milli | {"nvidia.com/gpu": 7000})))
    assert world.inventory.shapes()["n-1"].totals == {"h100": 7}
    assert first["n-1"].totals == {"h100": 8}
