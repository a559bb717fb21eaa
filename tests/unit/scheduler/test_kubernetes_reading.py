"""What the API server's objects mean in the port's words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.clusters.kubernetes.facts import JobFacts, PodFacts, job_facts, node_facts, pod_facts
from scheduler.clusters.kubernetes.reading import node_status, object_status
from scheduler.clusters.kubernetes.settings import ClassForm
from scheduler.clusters.port import PodPhase, PodPlacement

AT = "2026-11-29T10:00:%02dZ"
AT_MS = 1_795_946_400_000


def second(number: int) -> int:
    return AT_MS + number * 1000


def a_pod(index: int = 0, phase: str = "Running", **state: object) -> dict:
    return {
        "metadata": {
            "uid": f"pod-{index}",
            "namespace": "hub-alpha",
            "name": f"job-1-1-{index}-x",
            "labels": {"hub/job-id": "job-1", "batch.kubernetes.io/job-name": "job-1-1"},
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
        },
        "spec": {"nodeName": "n-1", "containers": []},
        "status": {"phase": phase, "containerStatuses": [{"name": "main", "state": state}]},
    }


def a_job(**changes: object) -> JobFacts:
    job = JobFacts(
        uid="job",
        namespace="hub-alpha",
        name="job-1-1",
        job_id="job-1",
        attempt=1,
        suspended=False,
        abandoned=False,
        spec_hash="hash",
        created_ms=second(0),
        pods=(PodPlacement(0, "n-1", "h100", 1),),
        walltime_ms=60_000,
        grace_ms=30_000,
        finished_ms=None,
        failed_reason=None,
        completed=frozenset(),
    )
    return replace(job, **changes)  # type: ignore[arg-type]


def a_node(ready: str = "True", **spec: object) -> dict:
    return {
        "metadata": {"uid": "n", "name": "n-1", "labels": {"gpu": "h100", "kubernetes.io/hostname": "n-1"}},
        "spec": spec,
        "status": {
            "allocatable": {"nvidia.com/gpu": "8", "cpu": "96", "memory": "800Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": AT % 50}],
        },
    }


NODES = {"n-1": node_facts(a_node())}
RUNNING = {"running": {"startedAt": AT % 5}}


def ended(code: int, reason: str = "Error") -> dict:
    return {"terminated": {"startedAt": AT % 5, "finishedAt": AT % 9, "exitCode": code, "reason": reason}}


def the_pod(*things: dict, job: JobFacts | None = None, nodes=None, lost=()):
    facts = [pod_facts(thing) for thing in things]
    status = object_status(job or a_job(), facts, (), NODES if nodes is None else nodes, lost)
    return status.pods[0]


class TestPods:
    def test_running_pod_tells_its_start(self):
        pod = the_pod(a_pod(**RUNNING))
        assert (pod.phase, pod.started_ms, pod.ended_ms) == (PodPhase.RUNNING, second(5), None)

    def test_succeeded_pod_tells_its_end(self):
        pod = the_pod(a_pod(phase="Succeeded", **ended(0, "Completed")))
        assert (pod.phase, pod.ended_ms, pod.exit_code, pod.reason) == (
            PodPhase.SUCCEEDED,
            second(9),
            0,
            None,
        )

    @pytest.mark.parametrize(
        ("code", "cause", "reason"), [(7, "Error", "exited"), (137, "OOMKilled", "oom_killed")]
    )
    def test_failure_tells_why(self, code, cause, reason):
        pod = the_pod(a_pod(phase="Failed", **ended(code, cause)))
        assert (pod.phase, pod.exit_code, pod.reason) == (PodPhase.FAILED, code, reason)

    def test_waiting_pod_tells_what_it_waits_for(self):
        pod = the_pod(a_pod(phase="Pending", waiting={"reason": "ImagePullBackOff"}))
        assert (pod.phase, pod.reason, pod.started_ms) == (PodPhase.PENDING, "ImagePullBackOff", None)

    def test_pod_being_deleted_still_holds_its_gpus(self):
        thing = a_pod(**RUNNING)
        thing["metadata"]["deletionTimestamp"] = AT % 30
        assert the_pod(thing).phase is PodPhase.RUNNING

    @pytest.mark.parametrize(
        ("disruption", "reason"),
        [
            ("DeletionByPodGC", "node_lost"),
            ("DeletionByTaintManager", "node_lost"),
            ("EvictionByEvictionAPI", "evicted"),
            ("PreemptionByScheduler", "evicted"),
        ],
    )
    def test_disruption_is_told_from_failure(self, disruption, reason):
        thing = a_pod(phase="Failed", **ended(137))
        thing["status"]["conditions"] = [
            {"type": "DisruptionTarget", "status": "True", "reason": disruption, "lastTransitionTime": AT % 8}
        ]
        assert the_pod(thing).reason == reason

    def test_evicted_pod_without_container_ended_when_it_was_told_to(self):
        thing = a_pod(phase="Failed")
        thing["status"] = {
            "phase": "Failed",
            "conditions": [
                {"type": "DisruptionTarget", "status": "True", "reason": "X", "lastTransitionTime": AT % 8}
            ],
        }
        pod = the_pod(thing)
        assert (pod.started_ms, pod.ended_ms) == (None, second(8))

    def test_suspended_job_s_pod_was_stopped(self):
        thing = a_pod(phase="Failed", **ended(143))
        thing["metadata"]["deletionTimestamp"] = AT % 30
        assert the_pod(thing, job=a_job(suspended=True)).reason == "stopped"
        assert the_pod(thing).reason == "gang_failed"

    def test_pod_that_failed_before_the_stop_was_not_stopped(self):
        assert the_pod(a_pod(phase="Failed", **ended(1)), job=a_job(suspended=True)).reason == "exited"


class TestLostNodes:
    def test_pod_of_a_node_that_just_fell_silent_runs_as_far_as_known(self):
        pod = the_pod(a_pod(**RUNNING), nodes={"n-1": node_facts(a_node("Unknown"))})
        assert pod.phase is PodPhase.RUNNING

    def test_pod_of_a_node_given_up_is_unknown_since_its_last_beat(self):
        pod = the_pod(a_pod(**RUNNING), nodes={"n-1": node_facts(a_node("Unknown"))}, lost={"n-1"})
        assert (pod.phase, pod.last_seen_ms) == (PodPhase.UNKNOWN, second(50))

    def test_pod_of_a_node_that_is_gone_is_unknown(self):
        pod = the_pod(a_pod(**RUNNING), nodes={})
        assert (pod.phase, pod.last_seen_ms) == (PodPhase.UNKNOWN, second(5))

    def test_node_that_is_only_unwell_still_runs_its_pods(self):
        pod = the_pod(a_pod(**RUNNING), nodes={"n-1": node_facts(a_node("False"))})
        assert pod.phase is PodPhase.RUNNING

    def test_ended_pod_of_a_lost_node_has_ended(self):
        pod = the_pod(a_pod(phase="Succeeded", **ended(0)), nodes={})
        assert pod.phase is PodPhase.SUCCEEDED


class TestGangs:
    PODS = (PodPlacement(0, "n-1", "h100", 4), PodPlacement(1, "n-2", "h100", 4))

    def test_gated_only_when_all_pods_are_there(self):
        gated = a_pod(0, "Pending")
        gated["spec"]["schedulingGates"] = [{"name": "hub/placement"}]
        job = a_job(pods=self.PODS)
        one = [pod_facts(gated)]
        both = [*one, pod_facts(a_pod(1, "Pending"))]
        assert not object_status(job, one, (), NODES).gated
        assert object_status(job, both, (), NODES).gated
        assert not object_status(job, [pod_facts(a_pod(0)), pod_facts(a_pod(1))], (), NODES).gated

    def test_unscheduled_pod_shows_the_node_that_was_planned(self):
        thing = a_pod(1, "Pending")
        del thing["spec"]["nodeName"]
        status = object_status(a_job(pods=self.PODS), [pod_facts(thing)], (), NODES)
        assert status.pods[0].node == "n-2"

    def test_pods_that_nobody_saw_to_end_ended_with_their_job(self):
        job = a_job(pods=self.PODS, finished_ms=second(40), failed_reason="X", completed=frozenset({1}))
        first, second_pod = object_status(job, (), (), NODES).pods
        assert (first.phase, first.ended_ms, first.reason) == (PodPhase.FAILED, second(40), "vanished")
        assert (second_pod.phase, second_pod.exit_code) == (PodPhase.SUCCEEDED, 0)

    def test_missing_pods_say_nothing_before_the_watch_of_pods_has_come_as_far_as_their_job(self):
        """After an outage Jobs may be listed before pods: a Job that is over with pods that are not seen yet."""
        over = {"finished_ms": second(40), "completed": frozenset({0, 1}), "version": 50}
        job = a_job(pods=self.PODS, **over)
        early = object_status(job, (), (), NODES, pods_version=49)
        assert (early.pods, early.settled) == ((), False)
        late = object_status(job, (), (), NODES, pods_version=50)
        assert (len(late.pods), late.settled) == (2, True)
        both = [pod_facts(a_pod(index, "Succeeded", **ended(0))) for index in (0, 1)]
        assert object_status(job, both, (), NODES, pods_version=49).settled

    def test_suspended_job_without_pods_is_over_only_when_its_pods_were_looked_for(self):
        job = a_job(suspended=True, is_emptied=True, version=50)
        assert not object_status(job, (), (), NODES, pods_version=49).settled
        assert object_status(job, (), (), NODES, pods_version=50).settled

    def test_pod_that_is_gone_keeps_the_end_that_it_showed(self):
        gone: list[PodFacts] = [pod_facts(a_pod(0, "Failed", **ended(143)))]
        status = object_status(a_job(suspended=True), (), gone, NODES)
        assert (status.pods[0].ended_ms, status.pods_kept) == (second(9), False)


RAW_JOB = {
    "metadata": {
        "uid": "u",
        "namespace": "hub-alpha",
        "name": "job-1-1",
        "creationTimestamp": AT % 1,
        "labels": {"hub/job-id": "job-1", "hub/attempt": "2", "hub/abandoned": "true"},
        "annotations": {
            "hub/spec-hash": "abc",
            "hub/placement": '[[0,"n-1","h100",2]]',
            "hub/walltime-ms": "60000",
            "hub/grace-ms": "30000",
        },
    },
    "spec": {"suspend": True},
    "status": {
        "completedIndexes": "0,2-4",
        "conditions": [
            {"type": "Complete", "status": "False"},
            {
                "type": "Failed",
                "status": "True",
                "reason": "PodFailurePolicy",
                "lastTransitionTime": AT % 7,
            },
        ],
    },
}


class TestJobs:
    def test_everything_that_the_hub_wrote_is_read_back(self):
        job = job_facts(RAW_JOB)
        assert (job.job_id, job.attempt, job.spec_hash) == ("job-1", 2, "abc")
        assert (job.suspended, job.abandoned) == (True, True)
        assert job.pods == (PodPlacement(0, "n-1", "h100", 2),)
        assert (job.walltime_ms, job.grace_ms, job.created_ms) == (60_000, 30_000, second(1))
        assert (job.finished_ms, job.failed_reason) == (second(7), "PodFailurePolicy")
        assert job.completed == {0, 2, 3, 4}

    @pytest.mark.parametrize(
        "labels", [None, {}, {"hub/job-id": "x"}, {"hub/job-id": "x", "hub/attempt": "y"}]
    )
    def test_job_of_somebody_else_is_not_the_hub_s(self, labels):
        raw = RAW_JOB | {"metadata": RAW_JOB["metadata"] | {"labels": labels}}
        assert job_facts(raw) is None


class TestNodes:
    FORM = ClassForm(labels={"gpu": "h100"}, cpu_milli=12_000, memory_mib=100 * 1024)

    def status(self, *pods: dict, node: dict | None = None, form: ClassForm | None = None):
        classes = {"h100": form or self.FORM}
        return node_status(
            node_facts(node or a_node()),
            [pod_facts(pod) for pod in pods],
            classes,
            "topology.kubernetes.io/rack",
        )

    @staticmethod
    def foreign(phase: str = "Running", **resources: str) -> dict:
        return {
            "metadata": {"uid": "f", "namespace": "other", "name": "f"},
            "spec": {"nodeName": "n-1", "containers": [{"resources": {"requests": resources}}]},
            "status": {"phase": phase},
        }

    def test_a_rack_is_what_the_configured_label_says(self):
        node = a_node()
        assert self.status(node=node).rack == ""
        node["metadata"]["labels"] |= {"topology.kubernetes.io/rack": "b-12", "example.com/row": "4"}
        assert self.status(node=node).rack == "b-12"
        facts, classes = node_facts(node), {"h100": self.FORM}
        assert node_status(facts, [], classes, "example.com/row").rack == "4"

    def test_room_is_counted_in_gpus_with_their_cpu_and_memory(self):
        assert self.status().classes == (("h100", 8),)
        greedy = self.FORM.model_copy(update={"cpu_milli": 20_000})
        assert self.status(form=greedy).classes == (("h100", 4),)
        large = self.FORM.model_copy(update={"memory_mib": 300 * 1024})
        assert self.status(form=large).classes == (("h100", 2),)

    def test_gpus_of_others_are_foreign_until_their_pods_are_over(self):
        assert self.status(self.foreign(**{"nvidia.com/gpu": "3"})).foreign == (("h100", 3),)
        assert self.status(self.foreign("Succeeded", **{"nvidia.com/gpu": "3"})).foreign == ()

    def test_memory_of_others_takes_the_gpus_that_it_leaves_idle(self):
        assert self.status(self.foreign(memory="250Gi")).foreign == (("h100", 3),)

    def test_little_that_others_take_costs_nothing_while_there_is_slack(self):
        small = self.FORM.model_copy(update={"cpu_milli": 10_000, "memory_mib": 90 * 1024})
        assert self.status(self.foreign(cpu="2", memory="4Gi"), form=small).foreign == ()

    @pytest.mark.parametrize(
        ("ready", "spec", "expected"),
        [
            ("True", {}, True),
            ("True", {"taints": [{"key": "hub/managed", "effect": "NoSchedule"}]}, True),
            ("True", {"taints": [{"key": "prefer", "effect": "PreferNoSchedule"}]}, True),
            ("True", {"taints": [{"key": "other", "effect": "NoSchedule"}]}, False),
            ("True", {"unschedulable": True}, False),
            ("False", {}, False),
            ("Unknown", {}, False),
        ],
    )
    def test_only_a_well_node_takes_pods(self, ready, spec, expected):
        assert self.status(node=a_node(ready, **spec)).ready is expected

    def test_node_without_the_class_s_label_or_resource_is_not_the_hub_s(self):
        other = ClassForm(labels={"gpu": "a100"}, cpu_milli=1, memory_mib=1)
        assert self.status(form=other) is None
        mig = ClassForm(labels={"gpu": "h100"}, resource="nvidia.com/mig-1g.10gb", cpu_milli=1, memory_mib=1)
        assert self.status(form=mig) is None

    def test_node_that_lost_all_its_gpus_shows_none(self):
        node = a_node()
        node["status"]["allocatable"]["nvidia.com/gpu"] = "0"
        assert self.status(node=node).classes == (("h100", 0),)
