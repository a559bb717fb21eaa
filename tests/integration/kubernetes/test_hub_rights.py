"""The API server's own log of who did what: the scheduler's account uses every right that it has, and has no other."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from scheduler.clusters.kubernetes.accounts import scheduler_rules
from scheduler.clusters.kubernetes.cluster import KubernetesCluster
from scheduler.clusters.logs import LogRequest, NoLogs
from scheduler.clusters.port import ObjectSpec, ObjectStatus, PodPhase, PodPlacement, StartOutcome
from tests.integration.kubernetes.isolated_world import SYSTEM, World, a_spec
from tests.kubernetes_plane import until

pytestmark = pytest.mark.kubernetes

ACCOUNT = f"system:serviceaccount:{SYSTEM}:scheduler"
Right = tuple[str, str, str]
"""Group, resource with its subresource, verb."""


def live(world: World) -> None:
    """All that a scheduler ever does on a cluster, once."""
    with world.cluster() as cluster:
        cluster.observe(wait_s=5)
        single = a_spec("job-0000000000000000rights", PodPlacement(0, "sim-0", "h100", 1))
        assert cluster.start(single) is StartOutcome.CREATED
        assert cluster.start(single) is StartOutcome.ADOPTED
        running(cluster, single)
        with_logs(cluster, single)
        cluster.extend(replace(single, walltime_ms=single.walltime_ms + 60_000))
        cluster.notify(single, 1_900_000_000_000, "preempted")
        cluster.stop(single, abandoned=False)
        over(cluster, single)
        gang = a_spec(
            "job-000000000000000000gang",
            PodPlacement(0, "sim-1", "h100", 2),
            PodPlacement(1, "sim-2", "h100", 2),
        )
        cluster.start(gang)
        until(lambda: seen(cluster, gang), lambda thing: thing.gated)
        cluster.place(gang)
        running(cluster, gang)
        cluster.stop(gang, abandoned=False)
        over(cluster, gang)
        for spec in (single, gang):
            cluster.acknowledge(spec.name)
            until(lambda spec=spec: cluster.delete(spec.name), bool)
        never = a_spec("job-00000000000000000never", PodPlacement(0, "sim-0", "h100", 1))
        cluster.stop(never, abandoned=True)
        assert cluster.delete(never.name)


def with_logs(cluster: KubernetesCluster, spec: ObjectSpec) -> None:
    try:
        with cluster.logs(spec.name, 0, LogRequest(tail_lines=10)) as lines:
            next(iter(lines), b"")
    except NoLogs:
        return  # whether played nodes have logs is not the question here, but whether it may ask


def seen(cluster: KubernetesCluster, spec: ObjectSpec) -> ObjectStatus:
    found = cluster.get(spec.name)
    assert found is not None
    return found


def running(cluster: KubernetesCluster, spec: ObjectSpec) -> None:
    everyone = len(spec.pods)
    until(
        lambda: [pod.phase for pod in seen(cluster, spec).pods],
        lambda phases: phases == [PodPhase.RUNNING] * everyone,
    )


def over(cluster: KubernetesCluster, spec: ObjectSpec) -> None:
    until(
        lambda: seen(cluster, spec),
        lambda thing: thing.settled and all(pod.phase is PodPhase.FAILED for pod in thing.pods),
    )


def held() -> set[Right]:
    return {
        (group, resource, verb)
        for rule in scheduler_rules()
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_scheduler_uses_every_right_that_it_has_and_needs_no_other(world):
    before = world.plane.audit_log.stat().st_size
    live(world)
    lines = world.plane.audit_log.read_bytes()[before:].decode().splitlines()
    events = [json.loads(line) for line in lines]
    mine = [event for event in events if event["user"].get("username") == ACCOUNT and "objectRef" in event]
    rights = {right(event) for event in mine}
    refused = [event["requestURI"] for event in mine if event.get("responseStatus", {}).get("code") == 403]
    assert rights == held()
    assert refused == []


def right(event: dict) -> Right:
    thing = event["objectRef"]
    resource = thing["resource"] + (f"/{thing['subresource']}" if "subresource" in thing else "")
    return (thing.get("apiGroup", ""), resource, event["verb"])


@pytest.mark.parametrize(
    "planted",
    [("", "secrets", "get"), ("", "pods", "delete"), ("batch", "jobs/status", "patch")],
)
def test_a_right_held_in_vain_would_be_found(world, planted):
    """The check above is a comparison of two sets; this shows that either side can differ."""
    mine = {
        right(event)
        for event in map(json.loads, world.plane.audit_log.read_text().splitlines())
        if event["user"].get("username") == ACCOUNT and "objectRef" in event
    }
    assert mine
    assert planted not in held()
    assert mine != held() | {planted}
