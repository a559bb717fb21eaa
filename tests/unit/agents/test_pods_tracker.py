"""The tracker over a kubelet that answers, does not, or lies; restarts; full disks; processes and their pods."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.model import Shares
from agents.pods.tracker import MOST_ENDED_MS, PROCESSES_KEPT
from tests.unit.agents.logs import captured
from tests.unit.agents.pods_world import Pods, pod_of


@pytest.fixture
def pods(tmp_path: Path) -> Pods:
    return Pods(tmp_path)


def test_holders_are_known_from_the_first_answer(pods: Pods) -> None:
    assert not pods.tracker.view.known
    pods.start("job-a", "GPU-1")
    pods.ask()
    assert pods.tracker.view.known
    assert pods.spans() == [("GPU-1", "job-a", 1_003_000, None)]
    assert pods.series()["hub_agent_pods"] == {
        ("job",): 1,
        ("foreign",): 0,
        ("ended",): 0,
        ("unverified",): 0,
    }


def test_a_pod_that_has_ended_and_is_still_listed_holds_nothing(pods: Pods) -> None:
    pod = pods.start("job-a", "GPU-1")
    pods.ask()
    pods.end(pod)
    pods.ask()
    assert pods.spans() == [("GPU-1", "job-a", 1_003_000, 1_006_000)]
    assert pods.series()["hub_agent_pods"][("ended",)] == 1


def test_a_short_outage_changes_no_holder_and_is_counted(pods: Pods) -> None:
    pods.start("job-a", "GPU-1")
    pods.ask()
    pods.away = "absent"
    with captured() as logs:
        for _ in range(10):
            pods.ask()
    assert [line["event"] for line in logs] == ["kubelet_does_not_answer"]
    assert pods.spans() == [("GPU-1", "job-a", 1_003_000, None)]
    assert not pods.tracker.view.known
    series = pods.series()
    assert (series["hub_agent_pods_up"], series["hub_agent_pods_gap_seconds_total"]) == ({(): 0}, {(): 30})
    assert "hub_agent_pods" not in series
    pods.at[0] += 7_000
    assert pods.series()["hub_agent_pods_gap_seconds_total"] == {(): 37}, "it goes on"
    pods.away = ""
    pods.ask(23)
    assert pods.tracker.view.known
    assert pods.series()["hub_agent_pods_gap_seconds_total"] == {(): 60}, "from the last answer to the next"
    pods.ask()
    assert pods.series()["hub_agent_pods_gap_seconds_total"] == {(): 60}


def test_a_kubelet_that_does_not_answer_is_asked_less_often(pods: Pods) -> None:
    pods.away = "deadline_exceeded"
    for _ in range(100):
        pods.ask()
    # 300 s at 1, 2, 4, 8, 16, 30, 30 … s, each reached with the next of the usual 3 s
    assert 10 <= pods.asked <= 18
    failures = pods.series()["hub_agent_pods_failures_total"]
    assert failures == {("absent",): 0, ("broken",): 0, ("deadline_exceeded",): pods.asked}


def test_who_ends_during_an_outage_ends(pods: Pods) -> None:
    pod = pods.start("job-a", "GPU-1")
    pods.ask()
    pods.away = "absent"
    pods.ask()
    pods.end(pod)
    pods.ask()
    assert pods.spans() == [("GPU-1", "job-a", 1_003_000, 1_009_000)]


def test_a_garbled_answer_is_no_answer(pods: Pods) -> None:
    pods.start("job-a", "GPU-1")
    pods.ask()
    pods.tracker._ask = lambda *_: b"\x0b"
    pods.ask()
    assert pods.spans() == [("GPU-1", "job-a", 1_003_000, None)]
    failures = pods.series()["hub_agent_pods_failures_total"]
    assert {reason: count for reason, count in failures.items() if count} == {("malformed",): 1}


def test_a_restart_goes_on_where_it_was(pods: Pods) -> None:
    pods.start("job-a", "GPU-1")
    gone = pods.start("job-b", "GPU-2")
    pods.ask()
    pods.listed.remove(gone)
    pods.end(gone)
    pods.tracker = pods.made()
    # before the first answer they are believed; the reader is started after it
    assert len(pods.spans()) == 2
    pods.ask(60)
    assert pods.spans() == [("GPU-1", "job-a", 1_003_000, None)]
    assert pods.shelf.kept == pods.tracker.view.holdings


def test_only_changes_are_written_and_a_full_disk_is_offered_them_again(pods: Pods) -> None:
    pods.start("job-a", "GPU-1")
    for _ in range(5):
        pods.ask()
    assert pods.shelf.writes == 1
    pods.shelf.full = True
    pods.start("job-b", "GPU-2")
    pods.ask()
    assert (len(pods.tracker.view.holdings), len(pods.shelf.kept)) == (2, 1)
    pods.shelf.full = False
    pods.ask()
    assert pods.shelf.kept == pods.tracker.view.holdings


def test_what_ended_is_forgotten_when_it_was_counted_or_is_too_old_to_be(pods: Pods) -> None:
    pod = pods.start("job-a", "GPU-1")
    pods.ask()
    pods.listed.remove(pod)
    pods.end(pod)
    pods.ask()
    pods.tracker.read_until(1_005_999)
    pods.ask()
    assert len(pods.spans()) == 1
    pods.tracker.read_until(1_006_000)
    pods.ask()
    assert pods.spans() == []
    pod = pods.start("job-b", "GPU-1")
    pods.ask()
    pods.listed.remove(pod)
    pods.end(pod)
    pods.ask()
    pods.ask(MOST_ENDED_MS / 1000)
    assert pods.spans() == []


class TestShares:
    @pytest.fixture
    def pods(self, tmp_path: Path) -> Pods:
        made = Pods(tmp_path)
        for number, job in enumerate(("job-a", "job-b"), 1):
            pod = made.start(job, f"GPU-1::{number}")
            made.fake.process(number, pod.namespace, pod.name)
        made.fake.process(9)
        made.ask()
        return made

    def shares(self, pods: Pods, percents: list[tuple[int, float]], busy: float) -> dict[str, float]:
        found = pods.tracker.shares("GPU-1", 1_003_000, 1_006_000, percents, busy)
        assert isinstance(found, Shares)
        return {job: ppm / 10_000 for (job, _), ppm in found.ppm.items()}

    def test_parts_are_of_the_devices_time_as_long_as_processes_say_less(self, pods: Pods) -> None:
        assert self.shares(pods, [(1, 20.0), (2, 40.0)], busy=0.8) == {"job-a": 25, "job-b": 50}

    def test_processes_that_say_more_than_the_device_shrink_alike(self, pods: Pods) -> None:
        assert self.shares(pods, [(1, 100.0), (2, 100.0)], busy=0.5) == {"job-a": 50, "job-b": 50}

    def test_a_process_of_nobody_takes_its_part_and_gives_it_to_nobody(self, pods: Pods) -> None:
        assert self.shares(pods, [(1, 30.0), (9, 30.0), (77, 30.0)], busy=0.3) == {"job-a": 33.3333}

    def test_garbage_is_cut_to_what_can_be(self, pods: Pods) -> None:
        assert self.shares(pods, [(1, 1e9), (2, -5.0)], busy=1.0) == {"job-a": 100, "job-b": 0}

    def test_a_number_that_another_process_has_now_is_another_process(self, pods: Pods) -> None:
        assert self.shares(pods, [(1, 50.0)], 0.5) == {"job-a": 100}
        pods.fake.process(1, "hub-acme", pod_of("job-b"), started=200)
        assert self.shares(pods, [(1, 50.0)], 0.5) == {"job-b": 100}

    def test_a_process_that_has_just_ended_was_who_it_was(self, pods: Pods) -> None:
        assert self.shares(pods, [(1, 50.0)], 0.5) == {"job-a": 100}
        pods.fake.process_ends(1)
        assert self.shares(pods, [(1, 50.0)], 0.5) == {"job-a": 100}

    def test_the_memory_for_processes_is_bounded(self, pods: Pods) -> None:
        for started in range(PROCESSES_KEPT + 10):
            pods.fake.process(9, started=started)
            pods.tracker.shares("GPU-1", 1_003_000, 1_006_000, [(9, 1.0)], 0.5)
        assert len(pods.tracker._processes) <= PROCESSES_KEPT

    def test_a_gpu_that_is_not_shared_is_not_divided(self, pods: Pods) -> None:
        pods.start("job-c", "GPU-2")
        pods.start("job-d", "GPU-3::0")
        pods.ask()
        for gpu in ("GPU-2", "GPU-3", "GPU-4"):
            assert pods.tracker.shares(gpu, 1_003_000, 1_006_000, [(1, 50.0)], 0.5) is None
