"""A pod's name tells its attempt: by the scheduler's own naming, and nobody else's."""

from __future__ import annotations

import pytest

from agents.pods.names import Named, Part, device_named, part_of
from quota.ids import new_id
from scheduler.clusters.kubernetes.manifests import job_of
from scheduler.specs import spec_of
from tests.unit.scheduler.quota_objects import an_attempt
from tests.unit.scheduler.test_kubernetes_manifests import NODES, SETTINGS

GANG = tuple({"index": index, "node": "a", "gpu_class": "h100", "count": 1} for index in range(12))


@pytest.mark.parametrize("job_id", ["", "job-1", "a-7", "7-1-0-abcde"])
@pytest.mark.parametrize("attempt", [1, 41])
def test_the_name_of_a_pod_that_the_scheduler_started_tells_its_part(job_id: str, attempt: int) -> None:
    job_id = job_id or new_id("job")
    job = job_of(spec_of(an_attempt(job_id, attempt, pods=GANG, image="x")), SETTINGS, NODES)["metadata"]
    for index in range(len(GANG)):
        # as the Job controller names the pods of an Indexed Job
        pod = f"{job['name']}-{index}-h7x2q"
        assert part_of(job["namespace"], pod, SETTINGS.namespace_prefix) == Part(job_id, attempt, index)


@pytest.mark.parametrize(
    ("namespace", "pod", "part"),
    [
        ("hub-acme", "job-a-12-3-x9z0a", Part("job-a", 12, 3)),
        ("hub-acme", "job-a-1-0-12345", Part("job-a", 1, 0)),
        ("hub-acme", "job-7-2-1-0-abcde", Part("job-7-2", 1, 0)),
        ("hub-acme", "job-a-10000-0-abcde", Part("job-a", 10000, 0)),
        ("hub-acme", "job-a-10001-0-abcde", None),
        ("hub-acme", "job-a-0-0-abcde", None),
        ("hub-acme", "job-a-1-00-abcde", None),
        ("hub-acme", "job-a-1-0-abcd", None),
        ("hub-acme", "job-a-1-0-ABCDE", None),
        ("hub-acme", "job-a-1-0-abcde\n", None),
        ("hub-acme", "notebook", None),
        ("hub-", "job-a-1-0-abcde", None),
        ("default", "job-a-1-0-abcde", None),
        ("my-hub-acme", "job-a-1-0-abcde", None),
    ],
)
def test_names(namespace: str, pod: str, part: Part | None) -> None:
    assert part_of(namespace, pod, "hub-") == part


@pytest.mark.parametrize(
    ("device_id", "named"),
    [
        ("GPU-1b2c", Named("GPU-1b2c", False)),
        (
            "GPU-5d9e3c61-1111-2222-3333-444444444444::7",
            Named("GPU-5d9e3c61-1111-2222-3333-444444444444", True),
        ),
        (
            "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f",
            Named("MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", False),
        ),
        ("MIG-c6d4::0", Named("MIG-c6d4", True)),
        ("0", None),
        ("nvidia0", None),
        ("nvidia0/vgpu1", None),
        ("MIG-GPU-1b2c/7/0", None),
        ("GPU-", None),
        ("GPU-1::", None),
        ("GPU-1::x", None),
        ("gpu-0", None),
    ],
)
def test_device_ids(device_id: str, named: Named | None) -> None:
    assert device_named(device_id) == named
