"""The simulated cluster's rules of life, on the pure model."""

from __future__ import annotations

import pytest
from simulator_builders import START_MS, a_model, a_pod, an_object, create, do, pod

from scheduler.simulator import rules
from scheduler.simulator.events import EndReason, PodEnded, PodStarted
from scheduler.simulator.model import Model
from scheduler.simulator.view import nodes_view, object_view, objects_view

T = START_MS + 5_000


def phases(model, name):
    view = object_view(model, model.objects[name])
    return view["phase"], [one["phase"] for one in view["pods"]]


def test_pod_starts_after_its_latency_and_ends_after_its_duration():
    model = a_model()
    name = create(model, an_object(T, start_s="2", duration_s="30"))
    model.advance(T + 1_999)
    assert phases(model, name) == ("pending", ["pending"])
    model.advance(T + 100_000)
    assert (pod(model, name).started_ms, pod(model, name).ended_ms) == (T + 2_000, T + 32_000)
    assert phases(model, name) == ("ended", ["succeeded"])


def test_duration_defaults_to_half_the_walltime():
    model = a_model()
    wanted = an_object(T)
    name = create(
        model, type(wanted)(**{f: getattr(wanted, f) for f in wanted.__slots__} | {"annotations": ()})
    )
    model.advance(T + 10_000_000)
    assert pod(model, name).started_ms == T + 1_000
    assert pod(model, name).ended_ms == T + 1_000 + 1_800_000


def test_node_chooses_its_first_free_gpus():
    model = a_model()
    first = create(model, an_object(T, "job-a", [a_pod(count=3)]))
    second = create(model, an_object(T, "job-b", [a_pod(count=1)]))
    assert pod(model, first).gpu_uuids + pod(model, second).gpu_uuids == tuple(model.nodes["n-0"].gpus)


def test_pods_wait_for_gpus_in_order_of_creation():
    model = a_model()
    running = create(model, an_object(T, "job-a", [a_pod(count=4)], duration_s="50"))
    # The second becomes ready later than the third and still goes first, and nobody overtakes it.
    second = create(model, an_object(T, "job-b", [a_pod(count=3)], start_s="10", duration_s="5"))
    third = create(model, an_object(T, "job-c", [a_pod(count=2)], duration_s="5"))
    model.advance(T + 1_000_000)
    freed_ms = pod(model, running).ended_ms
    assert freed_ms == T + 50_000
    assert pod(model, second).started_ms == freed_ms
    assert pod(model, third).started_ms == pod(model, second).ended_ms


def test_pod_larger_than_its_node_waits_for_ever_and_holds_up_nobody():
    model = a_model()
    huge = create(model, an_object(T, "job-a", [a_pod(count=5)]))
    lost = create(model, an_object(T, "job-b", [a_pod(node="nowhere")]))
    small = create(model, an_object(T, "job-c"))
    model.advance(T + 1_000_000)
    assert [phases(model, name)[0] for name in (huge, lost, small)] == ["pending", "pending", "ended"]


def test_foreign_use_leaves_less_for_pods():
    model = a_model()
    do(model, rules.set_foreign(model, T, "n-0", "h100", 2))
    name = create(model, an_object(T, pods=[a_pod(count=3)]))
    model.advance(T + 10_000)
    assert pod(model, name).pending
    do(model, rules.set_foreign(model, T + 10_000, "n-0", "h100", 1))
    assert pod(model, name).started_ms == T + 10_000


def test_foreign_use_beyond_the_node_is_refused():
    with pytest.raises(rules.Refusal, match="has 4 GPUs"):
        rules.set_foreign(a_model(), T, "n-0", "h100", 5)


def test_gang_pods_start_each_when_their_own_gpus_are_free():
    model = a_model()
    create(model, an_object(T, "job-a", [a_pod(node="n-1", count=4)], duration_s="20"))
    gang = create(model, an_object(T, "job-b", [a_pod(0, "n-0", count=4), a_pod(1, "n-1", count=4)]))
    assert phases(model, gang) == ("pending", ["running", "pending"])
    model.advance(T + 20_000)
    assert phases(model, gang) == ("running", ["running", "running"])
    assert [pod(model, gang, index).started_ms for index in (0, 1)] == [T, T + 20_000]


def test_suspending_ends_pending_pods_at_once_and_as_never_started():
    model = a_model()
    name = create(model, an_object(T, start_s="60"))
    do(model, rules.suspend(model, T + 1_000, name, abandoned=False, grace_ms=30_000))
    model.advance(T + 1_000_000)
    stopped = pod(model, name)
    assert (stopped.started_ms, stopped.ended_ms, stopped.reason) == (None, T + 1_000, EndReason.STOPPED)
    assert phases(model, name) == ("ended", ["failed"])
    assert not [event for event in model.drain() if isinstance(event, (PodStarted, PodEnded))]


@pytest.mark.parametrize(
    ("stop_s", "grace_ms", "left_s", "ended_after_ms", "reason"),
    [
        ("5", 30_000, 100, 5_000, EndReason.STOPPED),
        ("50", 30_000, 100, 30_000, EndReason.STOPPED),
        ("5", 30_000, 3, 3_000, EndReason.COMPLETED),
        ("5", 0, 100, 0, EndReason.STOPPED),
    ],
)
def test_suspended_pod_ends_at_the_earliest_of_its_own_end_its_stop_and_the_grace(
    stop_s, grace_ms, left_s, ended_after_ms, reason
):
    model = a_model()
    name = create(model, an_object(T, duration_s=str(10 + left_s), stop_s=stop_s))
    model.advance(T + 10_000)
    do(model, rules.suspend(model, T + 10_000, name, abandoned=False, grace_ms=grace_ms))
    assert phases(model, name)[0] == ("suspended" if ended_after_ms else "ended")
    model.advance(T + 1_000_000)
    assert (pod(model, name).ended_ms, pod(model, name).reason) == (T + 10_000 + ended_after_ms, reason)


def test_second_stop_changes_nothing_but_may_add_the_label():
    model = a_model()
    name = create(model, an_object(T, stop_s="20"))
    do(model, rules.suspend(model, T, name, abandoned=False, grace_ms=30_000))
    assert rules.suspend(model, T + 1, name, abandoned=False, grace_ms=0) is None
    do(model, rules.suspend(model, T + 1, name, abandoned=True, grace_ms=0))
    assert rules.suspend(model, T + 2, name, abandoned=False, grace_ms=0) is None
    model.advance(T + 100_000)
    assert pod(model, name).ended_ms == T + 20_000
    assert model.objects[name].abandoned


def test_failing_pod_takes_its_gang_along():
    model = a_model()
    pods = [a_pod(0, "n-0", count=4), a_pod(1, "n-1", count=4)]
    name = create(model, an_object(T, pods=pods, stop_s="3"))
    do(model, rules.fail_pod(model, T + 5_000, name, 0, 9))
    model.advance(T + 1_000_000)
    assert (pod(model, name, 0).exit_code, pod(model, name, 0).reason) == (9, EndReason.FAULT)
    assert (pod(model, name, 1).ended_ms, pod(model, name, 1).reason) == (T + 8_000, EndReason.GANG_FAILED)


def test_pending_pods_of_a_failed_gang_never_start():
    model = a_model()
    create(model, an_object(T, "job-a", [a_pod(node="n-1", count=4)]))
    gang = create(model, an_object(T, "job-b", [a_pod(0), a_pod(1, "n-1")], duration_s="5", exit_code="3"))
    model.advance(T + 1_000_000)
    assert pod(model, gang, 0).exit_code == 3
    assert pod(model, gang, 1).started_ms is None
    assert pod(model, gang, 1).reason is EndReason.GANG_FAILED


def test_only_a_running_pod_can_be_made_to_fail():
    model = a_model()
    name = create(model, an_object(T, start_s="60"))
    with pytest.raises(rules.Refusal, match="does not run"):
        rules.fail_pod(model, T, name, 0, 1)


class TestLostNode:
    def lost(self):
        model = a_model()
        name = create(model, an_object(T, pods=[a_pod(0, "n-0", count=4), a_pod(1, "n-1", count=4)]))
        do(model, rules.lose_node(model, T + 10_000, "n-0", 20_000))
        return model, name

    def test_seems_to_run_until_the_silence_is_noticed(self):
        model, name = self.lost()
        model.advance(T + 29_999)
        assert phases(model, name) == ("running", ["running", "running"])
        assert nodes_view(model, T + 29_999)["nodes"][0]["ready"]
        model.advance(T + 30_000)
        assert phases(model, name) == ("unknown", ["unknown", "running"])
        node = nodes_view(model, T + 30_000)["nodes"][0]
        assert (node["ready"], node["last_seen_ms"]) == (False, T + 10_000)

    def test_hides_how_its_pods_ended_until_it_is_back(self):
        model, name = self.lost()
        model.advance(T + 30_000)
        seen = object_view(model, model.objects[name])["pods"][0]
        assert (seen["ended_ms"], seen["reason"], seen["last_seen_ms"]) == (None, None, T + 10_000)
        do(model, rules.return_node(model, T + 40_000, "n-0"))
        seen = object_view(model, model.objects[name])["pods"][0]
        assert (seen["ended_ms"], seen["reason"], seen["exit_code"]) == (T + 10_000, "node_lost", None)
        assert pod(model, name, 1).reason is EndReason.GANG_FAILED
        assert pod(model, name, 1).ended_ms == T + 40_000

    def test_takes_pods_again_when_it_is_back(self):
        model, _ = self.lost()
        late = create(model, an_object(T + 15_000, "job-b"))
        model.advance(T + 60_000)
        assert pod(model, late).pending
        do(model, rules.return_node(model, T + 60_000, "n-0"))
        assert pod(model, late).started_ms == T + 60_000

    def test_is_seen_to_be_lost_at_once_if_it_is_not_silent_first(self):
        model = a_model()
        name = create(model, an_object(T))
        version = model.version
        do(model, rules.lose_node(model, T + 1, "n-0", 0))
        (seen,) = objects_view(model, version, T + 1)["objects"]
        assert (seen["name"], seen["phase"]) == (name, "unknown")

    def test_is_lost_and_returned_once(self):
        model, _ = self.lost()
        assert rules.lose_node(model, T + 11_000, "n-0", 0) is None
        do(model, rules.return_node(model, T + 12_000, "n-0"))
        assert rules.return_node(model, T + 13_000, "n-0") is None
        model.advance(T + 100_000)
        assert nodes_view(model, T + 100_000)["nodes"][0]["ready"]

    def test_keeps_its_objects_from_being_deleted(self):
        model, name = self.lost()
        do(model, rules.suspend(model, T + 30_000, name, abandoned=True, grace_ms=0))
        with pytest.raises(rules.Refusal, match="have not ended"):
            rules.delete(model, T + 30_000, name)


class TestListing:
    def test_brings_only_what_changed(self):
        model = a_model()
        first = create(model, an_object(T, "job-a", duration_s="10"))
        second = create(model, an_object(T, "job-b", duration_s="500"))
        seen = objects_view(model, 0, T)
        assert seen["complete"]
        assert [thing["name"] for thing in seen["objects"]] == [first, second]
        assert objects_view(model, seen["version"], T)["objects"] == []
        model.advance(T + 10_000)
        changed = objects_view(model, seen["version"], T + 10_000)
        assert not changed["complete"]
        assert [thing["name"] for thing in changed["objects"]] == [first]

    def test_names_what_is_gone_unless_it_is_back(self):
        model = a_model()
        first = create(model, an_object(T, "job-a", duration_s="1"))
        second = create(model, an_object(T, "job-b", duration_s="1"))
        model.advance(T + 1_000)
        version = model.version
        do(model, rules.delete(model, T + 1_000, first))
        do(model, rules.delete(model, T + 1_000, second))
        create(model, an_object(T + 1_000, "job-b"))
        assert objects_view(model, version, T + 1_000)["gone"] == [first]
        assert objects_view(model, model.version, T + 1_000)["gone"] == []

    def test_is_complete_for_a_version_of_another_journal(self):
        model = a_model()
        create(model, an_object(T))
        seen = objects_view(model, model.version + 1, T)
        assert seen["complete"]
        assert len(seen["objects"]) == 1


def test_taken_name_is_refused_and_old_plans_do_not_touch_its_next_bearer():
    model = a_model()
    name = create(model, an_object(T, start_s="60"))
    with pytest.raises(rules.NameTaken):
        rules.create(model, an_object(T))
    do(model, rules.suspend(model, T, name, abandoned=False, grace_ms=0))
    do(model, rules.delete(model, T, name))
    create(model, an_object(T, start_s="90"))
    model.advance(T + 89_999)
    assert pod(model, name).pending


def test_pod_in_the_queue_is_forgotten_with_its_object():
    model = a_model()
    create(model, an_object(T, "job-a", [a_pod(count=4)], duration_s="20"))
    name = create(model, an_object(T, "job-b", [a_pod(0), a_pod(1)]))
    do(model, rules.suspend(model, T, name, abandoned=False, grace_ms=0))
    do(model, rules.delete(model, T, name))
    create(model, an_object(T, "job-b", start_s="60"))
    model.advance(T + 30_000)
    assert pod(model, name).pending
    assert model.nodes["n-0"].pools["h100"].used == 0


def test_next_bearer_of_a_name_may_have_fewer_pods():
    model = a_model()
    name = create(model, an_object(T, pods=[a_pod(0), a_pod(1)], start_s="5"))
    do(model, rules.suspend(model, T, name, abandoned=False, grace_ms=0))
    do(model, rules.delete(model, T, name))
    create(model, an_object(T, start_s="5"))
    model.advance(T + 5_000)
    assert pod(model, name).running


def test_start_that_a_torn_journal_lost_happens_when_the_gpus_became_free_and_in_order_of_creation():
    model = a_model()
    create(model, an_object(T, "job-a", [a_pod(count=4)], duration_s="20"))
    create(model, an_object(T, "job-b", [a_pod(count=4)], start_s="9"))
    create(model, an_object(T, "job-c", [a_pod(count=1)], start_s="1"))
    model.advance(T + 20_000)
    *kept, lost = model.drain()
    assert isinstance(kept[-1], PodEnded)
    again = Model(past_kept_ms=6_000_000)
    again.replay(kept)
    again.advance(T + 50_000)
    assert again.drain() == [lost]
    assert (lost.name, lost.t) == ("job-b-1", T + 20_000)


def test_running_object_is_not_deleted():
    model = a_model()
    name = create(model, an_object(T))
    with pytest.raises(rules.Refusal) as refusal:
        rules.delete(model, T, name)
    assert refusal.value.status == 409
