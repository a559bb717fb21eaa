"""What an attempt becomes on Kubernetes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.clusters.kubernetes.manifests import (
    NodeShape,
    Pinning,
    Unstartable,
    deadline_s,
    gate_patch,
    job_of,
    pinning_of,
    service_of,
    tombstone_of,
)
from scheduler.clusters.kubernetes.settings import ClassForm, KubernetesSettings
from scheduler.clusters.port import ObjectSpec, PodPlacement

H100 = ClassForm(labels={"nvidia.com/gpu.product": "H100"}, cpu_milli=12_500, memory_mib=1024)
SLICE = ClassForm(
    labels={"nvidia.com/mig.strategy": "mixed"},
    resource="nvidia.com/mig-1g.10gb",
    cpu_milli=500,
    memory_mib=512,
)
SETTINGS = KubernetesSettings(
    classes={"h100": H100, "h100-1g.10gb": SLICE}, annotation_prefixes=("simulate.gpuhub/",)
)
NODES = {name: NodeShape(f"host-{name}", {"h100": 8}) for name in ("a", "b", "c")}


def a_spec(*pods: tuple[str, int], gpu_class: str = "h100", **changes: object) -> ObjectSpec:
    spec = ObjectSpec(
        name="job-1-1",
        job_id="job-1",
        attempt=1,
        pods=tuple(
            PodPlacement(index, node, gpu_class, count)
            for index, (node, count) in enumerate(pods or [("a", 1)])
        ),
        walltime_ms=3_600_000,
        grace_ms=30_000,
        organization_id="alpha",
        image="registry.example/train:1",
        command=("python", "train.py"),
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def pod_of(spec: ObjectSpec) -> dict:
    return job_of(spec, SETTINGS, NODES)["spec"]["template"]["spec"]


class TestPinning:
    def test_single_pod_is_pinned_by_its_node_s_hostname(self):
        assert pod_of(a_spec(("a", 3)))["nodeSelector"] == {"kubernetes.io/hostname": "host-a"}

    def test_gang_on_one_node_needs_no_gate(self):
        pod = pod_of(a_spec(("a", 2), ("a", 2)))
        assert pod["nodeSelector"] == {"kubernetes.io/hostname": "host-a"}
        assert "schedulingGates" not in pod

    def test_gang_that_fills_its_nodes_is_pinned_by_one_write(self):
        pod = pod_of(a_spec(("b", 8), ("a", 8)))
        terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert terms["nodeSelectorTerms"] == [
            {
                "matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": ["host-a", "host-b"]}
                ]
            }
        ]

    def test_gang_that_shares_its_nodes_waits_at_gates(self):
        assert pod_of(a_spec(("a", 8), ("b", 8), ("a", 8)))["schedulingGates"] == [{"name": "hub/placement"}]
        assert pinning_of(a_spec(("a", 4), ("b", 4)), NODES) is Pinning.GATES

    def test_gang_on_nodes_never_seen_waits_at_gates(self):
        assert pinning_of(a_spec(("a", 8), ("z", 8)), NODES) is Pinning.GATES

    def test_gate_opens_together_with_the_selector(self):
        test, add, remove = gate_patch(PodPlacement(1, "b", "h100", 4), NODES["b"])
        assert (test["op"], add["op"], remove["op"]) == ("test", "add", "remove")
        assert add["value"] == {"kubernetes.io/hostname": "host-b"}


class TestJob:
    def test_attempt_is_one_run_and_outlives_its_end_by_a_week(self):
        spec = job_of(a_spec(("a", 4), ("b", 4)), SETTINGS, NODES)["spec"]
        assert (spec["backoffLimit"], spec["podReplacementPolicy"]) == (0, "Failed")
        assert spec["podFailurePolicy"]["rules"][0]["action"] == "FailJob"
        assert (spec["completions"], spec["parallelism"], spec["suspend"]) == (2, 2, False)
        assert spec["ttlSecondsAfterFinished"] >= 24 * 3600

    def test_cluster_s_own_limit_comes_after_every_other(self):
        assert job_of(a_spec(), SETTINGS, NODES)["spec"]["activeDeadlineSeconds"] == 600 + 3600 + 30 + 60
        assert deadline_s(1, 1) == 600 + 1 + 1 + 60

    def test_gpus_come_with_their_cpu_and_memory(self):
        (container,) = pod_of(a_spec(("a", 3)))["containers"]
        assert container["resources"]["limits"] == {
            "nvidia.com/gpu": "3",
            "cpu": "37500m",
            "memory": "3072Mi",
        }
        assert container["resources"]["requests"] == container["resources"]["limits"]

    def test_mig_profile_is_asked_for_under_its_own_resource(self):
        (container,) = pod_of(a_spec(("a", 2), gpu_class="h100-1g.10gb"))["containers"]
        assert container["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == "2"
        assert "nvidia.com/gpu" not in container["resources"]["limits"]

    def test_pod_may_do_nothing_that_restricted_pods_may_not(self):
        pod = pod_of(a_spec())
        (container,) = pod["containers"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }

    def test_only_listed_annotations_reach_the_pod(self):
        asked = (("simulate.gpuhub/duration_s", "3"), ("k8s.v1.cni.cncf.io/networks", "host"))
        template = job_of(a_spec(annotations=asked), SETTINGS, NODES)["spec"]["template"]
        assert template["metadata"]["annotations"] == {"simulate.gpuhub/duration_s": "3"}

    def test_no_annotation_reaches_the_pod_unless_listed(self):
        settings = SETTINGS.model_copy(update={"annotation_prefixes": ()})
        spec = a_spec(annotations=(("simulate.gpuhub/duration_s", "3"),))
        assert job_of(spec, settings, NODES)["spec"]["template"]["metadata"]["annotations"] == {}

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            ({"image": ""}, "names no image"),
            ({"pods": (PodPlacement(0, "a", "b200", 1),)}, "has no class b200; it has h100, h100-1g.10gb"),
            (
                {"pods": (PodPlacement(0, "a", "h100", 1), PodPlacement(1, "b", "h100", 2))},
                "same number of GPUs",
            ),
            ({"name": "j" * 60}, "more than 52"),
        ],
    )
    def test_what_cannot_run_is_refused_with_the_reason(self, change, why):
        with pytest.raises(Unstartable, match=why):
            job_of(a_spec(**change), SETTINGS, NODES)


class TestRendezvous:
    @staticmethod
    def variables(spec: ObjectSpec) -> dict:
        (container,) = pod_of(spec)["containers"]
        names = [one["name"] for one in container["env"]]
        assert len(names) == len(set(names))
        return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}

    def test_gang_finds_its_first_pod_by_the_headless_service(self):
        spec = a_spec(("a", 4), ("b", 4))
        known = self.variables(spec)
        assert (known["MASTER_ADDR"], known["PET_MASTER_ADDR"]) == ("job-1-1-0.job-1-1",) * 2
        assert (known["NNODES"], known["NPROC_PER_NODE"], known["WORLD_SIZE"]) == ("2", "4", "8")
        assert "job-completion-index" in known["NODE_RANK"]["fieldRef"]["fieldPath"]
        service = service_of(spec, SETTINGS)
        assert (service["metadata"]["name"], pod_of(spec)["subdomain"]) == ("job-1-1", "job-1-1")
        assert service["spec"]["clusterIP"] == "None"

    def test_single_pod_has_no_service_and_no_master(self):
        assert service_of(a_spec(), SETTINGS) is None
        assert "MASTER_ADDR" not in self.variables(a_spec())

    def test_job_s_own_variables_win(self):
        spec = a_spec(("a", 4), ("b", 4), environment=(("MASTER_PORT", "1234"), ("EPOCHS", "3")))
        known = self.variables(spec)
        assert (known["MASTER_PORT"], known["EPOCHS"]) == ("1234", "3")


def test_tombstone_takes_the_same_name_and_never_runs():
    spec = a_spec()
    job, tombstone = (
        job_of(spec, SETTINGS, NODES),
        tombstone_of(replace(spec, image=""), SETTINGS, "hub-alpha"),
    )
    for key in ("name", "namespace"):
        assert tombstone["metadata"][key] == job["metadata"][key]
    assert tombstone["spec"]["suspend"] is True
    assert tombstone["metadata"]["labels"]["hub/abandoned"] == "true"
    assert "hub/abandoned" not in job["metadata"]["labels"]
