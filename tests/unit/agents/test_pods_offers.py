"""What the kubelet offers, and what follows for each GPU; never more than its answer says."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.pods.offers import LONGEST_BACKOFF_S, Offer, offer_of, withdrawn
from agents.pods.podresources import Device
from tests.fakekubelet.messages import FakePod
from tests.unit.agents.logs import captured
from tests.unit.agents.pods_world import GPU, Pods

WHOLE = {"GPU-1": "", "GPU-2": ""}
CUT = {"GPU-1": "", "MIG-1": "GPU-1", "MIG-2": "GPU-1", "GPU-2": "", "MIG-3": "GPU-2"}


@pytest.fixture
def pods(tmp_path: Path) -> Pods:
    return Pods(tmp_path)


@pytest.mark.parametrize(
    ("devices", "known", "expected"),
    [
        # whole GPUs
        ({GPU: ["GPU-1", "GPU-2"]}, WHOLE, {"GPU-1": False, "GPU-2": False}),
        ({GPU: ["GPU-2"]}, WHOLE, {"GPU-1": True, "GPU-2": False}),
        # no GPU at all: the plugin is not there, or the kubelet has just started
        ({}, WHOLE, {"GPU-1": None, "GPU-2": None}),
        ({"example.com/nic": ["nic-0"]}, WHOLE, {"GPU-1": None, "GPU-2": None}),
        # replicas: one is enough
        ({f"{GPU}.shared": ["GPU-1::3", "GPU-2::0"]}, WHOLE, {"GPU-1": False, "GPU-2": False}),
        ({f"{GPU}.shared": ["GPU-2::0", "GPU-2::1"]}, WHOLE, {"GPU-1": True, "GPU-2": False}),
        # MIG devices: each by itself, their GPU with the last of them
        (
            {"nvidia.com/mig-1g.10gb": ["MIG-2", "MIG-3"]},
            CUT,
            {"GPU-1": False, "MIG-1": True, "MIG-2": False, "GPU-2": False, "MIG-3": False},
        ),
        (
            {"nvidia.com/mig-1g.10gb": ["MIG-3"]},
            CUT,
            {"GPU-1": True, "MIG-1": True, "MIG-2": True, "GPU-2": False, "MIG-3": False},
        ),
        # replicas of MIG devices
        (
            {GPU: ["MIG-1::0", "MIG-3::1"]},
            CUT,
            {"GPU-1": False, "MIG-1": False, "MIG-2": True, "GPU-2": False, "MIG-3": False},
        ),
        # a device that the driver does not show may be a part of the GPU in question
        ({GPU: ["GPU-2"], "nvidia.com/mig-1g.10gb": ["MIG-9"]}, WHOLE, {"GPU-1": None, "GPU-2": False}),
        # so may one without a UUID, of whatever kind of GPU
        ({GPU: ["GPU-2", "0"]}, WHOLE, {"GPU-1": None, "GPU-2": False}),
        ({GPU: ["GPU-2"], "nvidia.com/mig-1g.10gb": ["x"]}, WHOLE, {"GPU-1": None, "GPU-2": False}),
        ({GPU: ["0", "1"]}, WHOLE, {"GPU-1": None, "GPU-2": None}),
        # what is no GPU casts no doubt
        ({GPU: ["GPU-2"], "nvidia.com/rdma_shared": ["7"]}, WHOLE, {"GPU-1": True, "GPU-2": False}),
    ],
)
def test_a_gpu_is_withdrawn_when_nothing_that_is_offered_can_be_of_it(
    devices: dict[str, list[str]], known: dict[str, str], expected: dict[str, bool | None]
) -> None:
    offer = offer_of(Device(resource, each) for resource, ids in devices.items() for each in ids)
    assert withdrawn(offer, known) == expected


def test_without_an_answer_nothing_is_known() -> None:
    assert withdrawn(None, CUT) == dict.fromkeys(CUT)


def test_the_answer_is_asked_for_now_and_then_and_after_an_outage(pods: Pods) -> None:
    pods.offered = ["GPU-1"]
    for _ in range(10):
        pods.ask()
    assert pods.asked_offered == 4, "with every third list"
    assert pods.tracker.offer() == Offer(frozenset({"GPU-1"}))
    asked = pods.asked_offered
    pods.away = "absent"
    pods.ask()
    pods.away, pods.offered = "", ["GPU-1", "GPU-2"]
    pods.ask()
    assert pods.asked_offered == asked + 1
    assert pods.tracker.offer() == Offer(frozenset({"GPU-1", "GPU-2"}))


def test_an_answer_that_is_too_old_says_nothing(pods: Pods) -> None:
    pods.offered = ["GPU-1"]
    pods.ask()
    pods.away = "absent"
    pods.ask(27)
    assert pods.tracker.offer() is not None
    assert pods.series()["hub_agent_pods_offered_known"] == {(): 1}
    pods.ask(1)
    assert pods.tracker.offer() is None
    assert pods.series()["hub_agent_pods_offered_known"] == {(): 0}
    pods.away = ""
    pods.ask()
    assert pods.tracker.offer() is not None


def test_an_old_kubelet_tells_its_pods_all_the_same_and_is_asked_ever_more_rarely(pods: Pods) -> None:
    pods.start("job-a", "GPU-1")
    with captured() as logs:
        for _ in range(1_000):
            pods.ask()
    assert [line["event"] for line in logs] == ["kubelet_does_not_say_what_it_offers"]
    assert pods.tracker.view.known
    assert pods.tracker.offer() is None
    assert 3_000 / LONGEST_BACKOFF_S <= pods.asked_offered <= 3_000 / LONGEST_BACKOFF_S + 5
    series = pods.series()
    assert series["hub_agent_pods_offered_failures_total"] == {("unimplemented",): pods.asked_offered}
    assert (series["hub_agent_pods_up"], series["hub_agent_pods_gap_seconds_total"]) == ({(): 1}, {(): 0})
    # and then it is replaced by a newer one
    pods.offered = ["GPU-1"]
    pods.ask(LONGEST_BACKOFF_S)
    assert pods.tracker.offer() == Offer(frozenset({"GPU-1"}))


def test_a_garbled_answer_is_no_answer(pods: Pods) -> None:
    pods.tracker._offers._ask = lambda *_: b"\x0b"
    pods.ask()
    assert pods.tracker.offer() is None
    assert pods.series()["hub_agent_pods_offered_failures_total"] == {("malformed",): 1}


def test_where_claims_give_gpus_the_plugins_do_not_tell_all(pods: Pods) -> None:
    pods.offered = ["GPU-1"]
    pods.ask()
    assert pods.tracker.offer() is not None
    pods.listed.append(FakePod("default", "claimer", {}, [("gpu.nvidia.com", "gpu-0")]))
    pods.ask()
    assert pods.tracker.offer() is None
    pods.listed.clear()
    pods.ask()
    assert pods.tracker.offer() is not None
