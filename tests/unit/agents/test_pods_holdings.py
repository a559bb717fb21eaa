"""From lists to holdings: who held what, from when to when, whatever kubelet, cgroups and clock do."""

from __future__ import annotations

from collections.abc import Collection

from agents.model import Holding
from agents.pods.holdings import KEPT_MS, Holdings, Listed, judge
from agents.pods.podresources import Device, ListedPod

JOB, POD, SPACE = "job-a", "job-a-1-0-abcde", "hub-acme"


def a_pod(*ids: str, name: str = POD, space: str = SPACE, resource: str = "nvidia.com/gpu") -> ListedPod:
    return ListedPod(space, name, tuple(Device(resource, device_id) for device_id in ids))


def judged(
    *pods: ListedPod, at_ms: int = 1_000, living: Collection[str] | None = None, uid: str = ""
) -> Listed:
    uids = {(SPACE, POD): {uid}} if uid else {}
    return judge(pods, living, uids, "hub-", at_ms)


def held(listed: Listed) -> list[tuple[str, str, int, int, bool]]:
    return [
        (holding.gpu_uuid, holding.job_id, holding.attempt, holding.since_ms, holding.replica)
        for holding in listed.held.values()
    ]


def spans(holdings: Holdings) -> list[tuple[str, int, int | None]]:
    return [(holding.gpu_uuid, holding.since_ms, holding.until_ms) for holding in holdings.all()]


class TestJudging:
    def test_a_pod_holds_all_its_gpus_and_replicas_of_one_are_one(self) -> None:
        listed = judged(a_pod("GPU-1", "MIG-2", "GPU-3::1", "GPU-3::2"))
        assert held(listed) == [
            ("GPU-1", JOB, 1, 1_000, False),
            ("MIG-2", JOB, 1, 1_000, False),
            ("GPU-3", JOB, 1, 1_000, True),
        ]
        assert listed.pods == {"job": 1, "unverified": 1}

    def test_a_stranger_holds_without_a_job(self) -> None:
        listed = judged(a_pod("GPU-1", name="notebook"), a_pod("GPU-2", space="default"))
        assert [(gpu, job) for gpu, job, *_ in held(listed)] == [("GPU-1", ""), ("GPU-2", "")]
        assert listed.pods["foreign"] == 2

    def test_ids_that_name_no_gpu_are_counted_and_hold_nothing(self) -> None:
        claim = ListedPod(SPACE, POD, (Device("gpu.nvidia.com", "gpu-0", claimed=True),))
        listed = judged(a_pod("nvidia0/vgpu1", "0"), claim, a_pod("x", resource="example.com/fpga"))
        assert listed.held == {}
        assert listed.unknown == {"nvidia.com/gpu": 2, "gpu.nvidia.com": 1}
        assert listed.pods["job"] == 2

    def test_a_pod_that_ended_is_listed_and_holds_nothing(self) -> None:
        assert held(judged(a_pod("GPU-1"), living={"uid-1"}, uid="uid-1"))
        ended = judged(a_pod("GPU-1"), living={"another"}, uid="uid-1")
        assert (ended.held, ended.pods) == ({}, {"ended": 1})

    def test_a_pod_whose_cgroup_cannot_be_looked_up_is_believed(self) -> None:
        assert held(judged(a_pod("GPU-1"), living=None, uid="uid-1"))
        # no folder of logs yet: it has only just been given its devices
        assert held(judged(a_pod("GPU-1"), living=set()))


class TestLists:
    def see(self, holdings: Holdings, at_ms: int, *pods: ListedPod, living: set[str] | None = None) -> None:
        uids = {(SPACE, POD): {"uid-1"}}
        holdings.listed(judge(pods, living, uids, "hub-", at_ms).held, living, at_ms)

    def test_from_the_first_list_that_shows_it_to_the_first_that_does_not(self) -> None:
        holdings = Holdings()
        for at_ms in (1_000, 4_000, 7_000):
            self.see(holdings, at_ms, a_pod("GPU-1"))
        assert spans(holdings) == [("GPU-1", 1_000, None)]
        self.see(holdings, 10_000)
        assert spans(holdings) == [("GPU-1", 1_000, 10_000)]
        holdings.forget(9_999)
        assert spans(holdings) == [("GPU-1", 1_000, 10_000)]
        holdings.forget(10_000)
        assert spans(holdings) == []

    def test_hand_over_leaves_no_hole_and_no_overlap(self) -> None:
        holdings = Holdings()
        self.see(holdings, 1_000, a_pod("GPU-1"))
        self.see(holdings, 4_000, a_pod("GPU-1", name="job-b-1-0-fghij"))
        assert spans(holdings) == [("GPU-1", 1_000, 4_000), ("GPU-1", 4_000, None)]

    def test_a_kubelet_that_has_just_started_lists_nothing_and_the_cgroup_says_otherwise(self) -> None:
        holdings = Holdings()
        self.see(holdings, 1_000, a_pod("GPU-1"), living={"uid-1"})
        self.see(holdings, 4_000, living={"uid-1"})
        assert spans(holdings) == [("GPU-1", 1_000, None)]
        self.see(holdings, 7_000, a_pod("GPU-1"), living={"uid-1"})
        self.see(holdings, 10_000, living=set())
        assert spans(holdings) == [("GPU-1", 1_000, 10_000)]

    def test_a_cgroup_left_behind_is_believed_for_ten_minutes(self) -> None:
        holdings = Holdings()
        self.see(holdings, 1_000, a_pod("GPU-1"), living={"uid-1"})
        self.see(holdings, 1_000 + KEPT_MS, living={"uid-1"})
        assert spans(holdings) == [("GPU-1", 1_000, None)]
        self.see(holdings, 1_001 + KEPT_MS, living={"uid-1"})
        assert spans(holdings) == [("GPU-1", 1_000, 1_001 + KEPT_MS)]

    def test_without_an_answer_cgroups_tell_who_has_ended(self) -> None:
        holdings = Holdings()
        self.see(holdings, 1_000, a_pod("GPU-1"), living={"uid-1"})
        holdings.unanswered({"uid-1"}, 1_000 + 10 * KEPT_MS)
        assert spans(holdings) == [("GPU-1", 1_000, None)]
        holdings.unanswered({"another"}, 2_000 + 10 * KEPT_MS)
        assert spans(holdings) == [("GPU-1", 1_000, 2_000 + 10 * KEPT_MS)]

    def test_without_an_answer_and_without_cgroups_it_is_kept_for_ten_minutes(self) -> None:
        holdings = Holdings()
        self.see(holdings, 1_000, a_pod("GPU-1"))
        holdings.unanswered(None, 1_000 + KEPT_MS)
        assert spans(holdings) == [("GPU-1", 1_000, None)]
        holdings.unanswered(None, 1_001 + KEPT_MS)
        assert spans(holdings) == [("GPU-1", 1_000, 1_001 + KEPT_MS)]

    def test_a_clock_that_is_set_back_takes_the_beginning_with_it(self) -> None:
        holdings = Holdings()
        self.see(holdings, 900_000_000, a_pod("GPU-1"))
        holdings.unanswered(None, 5_000)
        assert len(holdings.open) == 1
        self.see(holdings, 6_000, a_pod("GPU-1"))
        assert spans(holdings) == [("GPU-1", 6_000, None)]

    def test_who_is_listed_after_a_restart_goes_on_and_who_is_not_gets_nothing_more(self) -> None:
        one, two = (Holding(gpu, "job-a", 1, 0, 1_000, None, False, SPACE, POD) for gpu in ("GPU-1", "GPU-2"))
        past = Holding("GPU-3", "job-z", 1, 0, 500, 900)
        holdings = Holdings((one, two, past))
        self.see(holdings, 9_000, a_pod("GPU-1"))
        assert spans(holdings) == [("GPU-3", 500, 900), ("GPU-1", 1_000, None)]
