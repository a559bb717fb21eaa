"""What only Kubernetes can do to an object: gates, evictions, images, hands that delete, and ends that nobody saw."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from kubernetes_subject import NAMESPACE, KubernetesUnderTest

from agents.pods.names import part_of
from scheduler.clusters.port import PodPhase, StartOutcome, StartRefused
from tests.kubernetes_plane import until

pytestmark = pytest.mark.kubernetes

PENDING, RUNNING = PodPhase.PENDING, PodPhase.RUNNING
SUCCEEDED, FAILED, UNKNOWN = PodPhase.SUCCEEDED, PodPhase.FAILED, PodPhase.UNKNOWN

JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


@pytest.fixture(params=["kubernetes"])
def subject(subject):
    """Only on Kubernetes."""
    return subject


@pytest.fixture
def world(kubernetes: KubernetesUnderTest) -> KubernetesUnderTest:
    return kubernetes


def get(world: KubernetesUnderTest, path: str) -> dict:
    status, body = world.plane.api.get(path)
    assert status == 200, body
    return body


def delete(world: KubernetesUnderTest, path: str) -> None:
    status, body = world.plane.api.delete(path)
    assert status in (200, 202), body


def pod_of(world: KubernetesUnderTest, name: str, index: int = 0) -> dict:
    label = "batch.kubernetes.io/job-completion-index"
    return next(pod for pod in world.pods(name) if pod["metadata"]["labels"][label] == str(index))


class TestStarting:
    def test_single_pod_costs_one_write(self, subject, world):
        spec = subject.spec(duration_s=50)
        subject.cluster.observe(wait_s=1)
        before = len(world.proxy.asked)
        subject.cluster.start(spec)
        subject.until_phases(spec, SUCCEEDED)
        writes = [one for one in world.proxy.asked[before:] if one.method != "GET"]
        assert [(one.method, one.path) for one in writes] == [("POST", JOBS)]

    def test_gang_on_whole_nodes_costs_its_service_and_one_write(self, subject, world):
        spec = subject.spec((0, subject.nodes[0], 8), (1, subject.nodes[1], 8))
        subject.cluster.observe(wait_s=1)
        before = len(world.proxy.asked)
        subject.cluster.start(spec)
        thing = subject.until_phases(spec, RUNNING, RUNNING)
        assert {pod.node for pod in thing.pods} == set(subject.nodes)
        writes = [one for one in world.proxy.asked[before:] if one.method != "GET"]
        assert [one.path.rpartition("/")[2] for one in writes] == ["services", "jobs"]

    def test_gang_that_shares_nodes_gets_each_pod_where_it_belongs(self, subject, world):
        spec = subject.spec((0, subject.nodes[0], 3), (1, subject.nodes[1], 3), (2, subject.nodes[0], 3))
        subject.cluster.observe(wait_s=1)
        subject.cluster.start(spec)
        thing = subject.until(spec, lambda thing: thing.gated)
        assert {pod.phase for pod in thing.pods} == {PENDING}
        thing = subject.until_phases(spec, RUNNING, RUNNING, RUNNING)
        assert [pod.node for pod in thing.pods] == [subject.nodes[0], subject.nodes[1], subject.nodes[0]]

    def test_gates_that_were_opened_in_part_are_opened_to_the_end(self, subject):
        spec = subject.spec((0, subject.nodes[0], 3), (1, subject.nodes[1], 3))
        subject.cluster.observe(wait_s=1)
        subject.cluster.start(spec)
        until(lambda: subject.cluster.get(spec.name), lambda thing: thing.gated)
        opened = []

        def die_after_one(point: str) -> None:
            opened.append(point)
            raise InterruptedError

        dying = subject.connect(10.0)
        dying._step = die_after_one
        with pytest.raises(InterruptedError):
            dying.place(spec)
        half = subject.cluster.get(spec.name)
        assert half.gated
        assert opened == ["after_gate"]
        subject.until_phases(spec, RUNNING, RUNNING)

    def test_pods_of_a_gang_can_find_each_other(self, subject, world):
        spec = subject.spec((0, subject.nodes[0], 8), (1, subject.nodes[1], 8))
        subject.cluster.observe(wait_s=1)
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING, RUNNING)
        service = get(world, f"/api/v1/namespaces/{NAMESPACE}/services/{spec.name}")
        assert service["spec"]["clusterIP"] == "None"
        slices = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"
        found = until(
            lambda: [
                endpoint["hostname"]
                for one in get(world, f"{slices}?labelSelector=kubernetes.io/service-name={spec.name}")[
                    "items"
                ]
                for endpoint in one["endpoints"] or ()
            ],
            lambda names: len(names) == 2,
        )
        assert sorted(found) == [f"{spec.name}-0", f"{spec.name}-1"]
        variables = {
            one["name"]: one.get("value") for one in pod_of(world, spec.name)["spec"]["containers"][0]["env"]
        }
        assert variables["MASTER_ADDR"] == f"{spec.name}-0.{spec.name}"

    def test_service_of_a_gang_goes_with_it(self, subject, world):
        spec = subject.spec((0, subject.nodes[0], 8), (1, subject.nodes[1], 8), duration_s=25)
        subject.cluster.observe(wait_s=1)
        subject.cluster.start(spec)
        subject.until_phases(spec, SUCCEEDED, SUCCEEDED)
        assert subject.cluster.delete(spec.name)
        assert world.plane.api.get(f"/api/v1/namespaces/{NAMESPACE}/services/{spec.name}")[0] == 404

    def test_start_in_a_namespace_that_is_not_there_is_refused_with_what_to_do(self, subject):
        spec = replace(subject.spec(), organization_id="nobody")
        with pytest.raises(StartRefused, match="gpuhub scheduler provision"):
            subject.cluster.start(spec)

    def test_job_that_the_cluster_cannot_run_is_refused_with_the_reason(self, subject):
        with pytest.raises(StartRefused, match="names no image"):
            subject.cluster.start(replace(subject.spec(), image=""))


class TestWhatBecomesOfPods:
    def test_memory_that_ran_out_is_told(self, subject):
        spec = subject.spec(duration_s=50, end="oom")
        subject.cluster.start(spec)
        (pod,) = subject.until_phases(spec, FAILED).pods
        assert (pod.exit_code, pod.reason) == (137, "oom_killed")

    def test_image_that_cannot_be_pulled_is_told(self, subject):
        spec = subject.spec(start="image_pull_error")
        subject.cluster.start(spec)
        (pod,) = subject.until(spec, lambda thing: thing.pods and thing.pods[0].reason is not None).pods
        assert (pod.phase, pod.reason, pod.started_ms) == (PENDING, "ImagePullBackOff", None)

    def test_the_names_of_its_pods_tell_an_agent_whose_they_are(self, subject, world):
        spec = subject.spec((0, subject.nodes[0], 1), (1, subject.nodes[0], 1))
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING, RUNNING)
        named = {part_of(NAMESPACE, pod["metadata"]["name"], "hub-") for pod in world.pods(spec.name)}
        assert named == {(spec.job_id, spec.attempt, index) for index in range(2)}

    def test_evicted_pod_ends_the_attempt_and_is_not_its_own_fault(self, subject, world):
        spec = subject.spec()
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING)
        name = pod_of(world, spec.name)["metadata"]["name"]
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": NAMESPACE},
        }
        assert world.plane.api.post(f"{PODS}/{name}/eviction", eviction)[0] == 201
        (pod,) = subject.until_phases(spec, FAILED).pods
        assert pod.reason == "evicted"
        assert pod.ended_ms >= pod.started_ms

    def test_deleted_pod_is_never_replaced_inside_the_attempt(self, subject, world):
        spec = subject.spec()
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING)
        first = pod_of(world, spec.name)["metadata"]
        delete(world, f"{PODS}/{first['name']}")
        (pod,) = subject.until_phases(spec, FAILED).pods
        assert pod.reason == "gang_failed"
        job = until(lambda: get(world, f"{JOBS}/{spec.name}"), lambda job: job["status"].get("failed"))
        assert job["status"]["failed"] == 1
        assert {one["metadata"]["uid"] for one in world.pods(spec.name)} <= {first["uid"]}

    def test_second_pod_that_an_administrator_forces_is_none_of_the_attempt(self, subject, world):
        """Without the Job controller's finalizer nobody counts the first one, and a second one is made."""
        spec = subject.spec((0, subject.nodes[0], 3))
        subject.cluster.start(spec)
        first = subject.until_phases(spec, RUNNING).pods[0]
        name = pod_of(world, spec.name)["metadata"]["name"]
        assert world.plane.api.patch(f"{PODS}/{name}", {"metadata": {"finalizers": None}})[0] == 200
        delete(world, f"{PODS}/{name}?gracePeriodSeconds=0")
        (pod,) = subject.until(spec, lambda thing: thing.settled and thing.pods[0].phase is FAILED).pods
        assert (pod.started_ms, pod.reason) == (first.started_ms, "gang_failed")
        until(
            lambda: world.pods(spec.name),
            lambda pods: [pod["status"]["phase"] for pod in pods] == ["Running"],
        )
        observation = subject.until_observed(lambda observation: observation.nodes is not None)
        foreign = {node.node: dict(node.foreign) for node in observation.nodes}
        assert foreign[subject.nodes[0]] == {"h100": 3}
        subject.cluster.stop(spec, abandoned=False)
        until(lambda: world.pods(spec.name)[0]["status"]["phase"], lambda phase: phase == "Failed")

    def test_job_deleted_by_hand_is_over_when_its_pod_is_and_tells_its_end(self, subject, world):
        spec = subject.spec(stop_s="2")
        spec = replace(spec, grace_ms=10_000)
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING)
        delete(world, f"{JOBS}/{spec.name}?propagationPolicy=Background")
        dying = subject.until(spec, lambda thing: thing.suspended)
        assert (dying.pods[0].phase, dying.settled) == (RUNNING, False)
        thing = subject.until(spec, lambda thing: thing.settled)
        (pod,) = thing.pods
        assert (pod.phase, pod.reason) == (FAILED, "gang_failed")
        assert pod.ended_ms > pod.started_ms
        assert subject.cluster.get(spec.name) is None
        assert subject.cluster.delete(spec.name)
        subject.until_observed(lambda observation: spec.name in observation.gone)

    def test_cluster_s_own_limit_ends_what_nobody_stopped(self, subject, world):
        spec = subject.spec()
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING)
        world.plane.api.patch(f"{JOBS}/{spec.name}", {"spec": {"activeDeadlineSeconds": 1}})
        (pod,) = subject.until(spec, lambda thing: thing.settled).pods
        assert (pod.phase, pod.reason) == (FAILED, "deadline_exceeded")

    def test_extension_moves_the_cluster_s_own_limit(self, subject, world):
        spec = subject.spec()
        subject.cluster.start(spec)
        before = get(world, f"{JOBS}/{spec.name}")["spec"]["activeDeadlineSeconds"]
        longer = replace(spec, walltime_ms=spec.walltime_ms + 600_000)
        subject.cluster.extend(longer)
        assert get(world, f"{JOBS}/{spec.name}")["spec"]["activeDeadlineSeconds"] == before + 600
        subject.until(spec, lambda thing: thing.walltime_ms == longer.walltime_ms)
        assert subject.cluster.start(longer) is StartOutcome.ADOPTED


def test_announced_stop_is_told_to_the_pod_where_it_can_read_it(subject, world):
    spec = subject.spec()
    subject.cluster.start(spec)
    assert not subject.until_phases(spec, RUNNING).notified
    for _ in range(2):
        subject.cluster.notify(spec, 1_900_000_000_000, "preempted")
    subject.until(spec, lambda thing: thing.notified)
    pod = pod_of(world, spec.name)
    assert pod["metadata"]["annotations"]["hub/stop-at"] == "2030-03-17T17:46:40+00:00"
    assert pod["metadata"]["annotations"]["hub/stop-reason"] == "preempted"
    (mount,) = pod["spec"]["containers"][0]["volumeMounts"]
    assert (mount["name"], mount["mountPath"]) == ("hub", "/etc/hub")
    paths = [item["path"] for item in pod["spec"]["volumes"][0]["downwardAPI"]["items"]]
    assert paths == ["stop-at", "stop-reason"]


class TestEndsThatNobodySaw:
    def test_stopped_pod_s_end_waits_until_it_is_acknowledged(self, subject, world):
        spec = subject.spec()
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING)
        subject.cluster.stop(spec, abandoned=False)
        until(lambda: world.pods(spec.name), lambda pods: pods[0]["status"]["phase"] == "Failed")
        late = subject.connect(10.0)
        thing = until(lambda: late.get(spec.name), lambda thing: thing.settled)
        (seen,) = [one for one in late.observe(wait_s=5).objects if one.name == spec.name]
        assert seen == thing
        assert thing.pods_kept
        assert (thing.pods[0].phase, thing.pods[0].reason) == (FAILED, "stopped")
        assert thing.pods[0].ended_ms is not None
        late.acknowledge(spec.name)
        until(lambda: world.pods(spec.name), lambda pods: not pods)
        late.acknowledge(spec.name)
        tombstone = late.get(spec.name)
        assert (tombstone.suspended, tombstone.settled) == (True, True)

    def test_gang_whose_pods_are_gone_ended_with_its_job(self, subject, world):
        spec = subject.spec((0, subject.nodes[0], 8), (1, subject.nodes[1], 8))
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING, RUNNING)
        world.fail_pod(spec.name, 1, 9)
        until(
            lambda: get(world, f"{JOBS}/{spec.name}")["status"].get("conditions") or [],
            lambda conditions: "Failed" in {one["type"] for one in conditions},
        )
        late = subject.connect(10.0)
        (thing,) = [one for one in late.observe(wait_s=5).objects if one.name == spec.name]
        assert [pod.phase for pod in thing.pods] == [FAILED, FAILED]
        assert thing.pods[1].exit_code == 9
        assert None not in {pod.ended_ms for pod in thing.pods}

    def test_suspension_that_came_half_way_is_finished_by_the_next_stop(self, subject):
        spec = subject.spec()
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING)
        dying = subject.connect(10.0)

        def die(point: str) -> None:
            assert point == "between_finalizers_and_suspend"
            raise InterruptedError

        dying._step = die
        with pytest.raises(InterruptedError):
            dying.stop(spec, abandoned=False)
        kept = subject.cluster.get(spec.name)
        assert (kept.pods_kept, kept.suspended) == (True, False)
        subject.cluster.stop(spec, abandoned=False)
        assert subject.until_phases(spec, FAILED).pods_kept


class TestNamespaces:
    def test_nothing_can_be_where_no_namespace_is(self, subject):
        spec = replace(subject.spec(), organization_id="nobody")
        assert subject.cluster.stop(spec, abandoned=True) is False

    def test_namespace_being_deleted_ends_what_ran_in_it_and_refuses_the_rest(self, subject, world):
        api = world.plane.api
        assert api.post("/api/v1/namespaces", {"metadata": {"name": "hub-leaving"}})[0] == 201
        world.plane.await_namespace("hub-leaving")
        spec = replace(subject.spec(stop_s="5"), organization_id="leaving", grace_ms=20_000)
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING)
        delete(world, "/api/v1/namespaces/hub-leaving")
        until(
            lambda: get(world, "/api/v1/namespaces/hub-leaving"),
            lambda found: found["status"]["phase"] == "Terminating",
        )
        late = replace(subject.spec(), organization_id="leaving")
        with pytest.raises(StartRefused):
            subject.cluster.start(late)
        assert subject.cluster.stop(late, abandoned=True) is False
        thing = subject.until(spec, lambda thing: thing.suspended and thing.settled)
        (pod,) = thing.pods
        assert (pod.phase, pod.reason) == (FAILED, "gang_failed")
        assert pod.ended_ms > pod.started_ms


class TestNodes:
    def nodes(self, subject) -> dict:
        subject.cluster.forget_observations()
        return {node.node: node for node in subject.cluster.observe(wait_s=0).nodes}

    def test_cordoned_node_takes_nothing_and_what_runs_goes_on(self, subject, world):
        spec = subject.spec()
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING)
        path = f"/api/v1/nodes/{subject.nodes[0]}"
        world.plane.api.patch(path, {"spec": {"unschedulable": True}})
        observation = subject.until_observed(lambda observation: observation.nodes is not None)
        assert not {node.node: node.ready for node in observation.nodes}[subject.nodes[0]]
        assert subject.cluster.get(spec.name).pods[0].phase is RUNNING
        world.plane.api.patch(path, {"spec": {"unschedulable": None}})
        subject.until_observed(lambda _: self.nodes(subject)[subject.nodes[0]].ready)

    def test_fewer_gpus_than_before_are_told(self, subject, world):
        subject.cluster.observe(wait_s=1)
        path = f"/api/v1/nodes/{subject.nodes[0]}/status"
        fewer = {"status": {"capacity": {"nvidia.com/gpu": "7"}, "allocatable": {"nvidia.com/gpu": "7"}}}
        assert world.plane.api.patch(path, fewer)[0] == 200
        observation = subject.until_observed(lambda observation: observation.nodes is not None)
        found = {node.node: dict(node.classes) for node in observation.nodes}
        assert found[subject.nodes[0]] == {"h100": 7}

    def test_deleted_node_loses_its_pods_and_frees_them_when_they_are_gone(self, subject, world):
        spec = subject.spec()
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING)
        delete(world, f"/api/v1/nodes/{subject.nodes[0]}")
        lost = subject.until_phases(spec, UNKNOWN)
        assert lost.pods[0].last_seen_ms >= lost.pods[0].started_ms
        assert subject.nodes[0] not in self.nodes(subject)
        pod = pod_of(world, spec.name)["metadata"]["name"]
        # what pod garbage collection does after a minute of its own
        status = {
            "status": {
                "phase": "Failed",
                "conditions": [
                    {
                        "type": "DisruptionTarget",
                        "status": "True",
                        "reason": "DeletionByPodGC",
                        "lastTransitionTime": "2026-11-29T00:00:00Z",
                    }
                ],
            }
        }
        assert world.plane.api.patch(f"{PODS}/{pod}/status", status)[0] == 200
        thing = subject.until_phases(spec, FAILED)
        assert thing.pods[0].reason == "node_lost"
        world.plane.add_nodes(f"{subject.nodes[0]}:h100=8")

    def test_pod_without_a_job_takes_room_that_is_told_as_foreign(self, subject, world):
        """Deleting a Job and orphaning its pods is what only an administrator can do."""
        spec = subject.spec((0, subject.nodes[0], 5))
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING)
        delete(world, f"{JOBS}/{spec.name}?propagationPolicy=Orphan")
        until(lambda: world.plane.api.get(f"{JOBS}/{spec.name}")[0], lambda status: status == 404)
        fresh = subject.connect(10.0)
        found = until(
            lambda: {node.node: dict(node.foreign) for node in fresh.observe(wait_s=1).nodes or ()},
            lambda nodes: nodes.get(subject.nodes[0]) == {"h100": 5},
        )
        assert found[subject.nodes[1]] == {}


def test_what_was_written_can_be_read_back(subject, world):
    """The placement, the hash and the limits, as people and the oracle find them on the object."""
    spec = subject.spec((0, subject.nodes[0], 2))
    subject.cluster.start(spec)
    notes = get(world, f"{JOBS}/{spec.name}")["metadata"]["annotations"]
    assert json.loads(notes["hub/placement"]) == [[0, subject.nodes[0], "h100", 2]]
    assert notes["hub/spec-hash"] == spec.spec_hash()
