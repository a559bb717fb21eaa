"""What every implementation of the `Cluster` port promises."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from scheduler.clusters.logs import LogRequest, NoLogs, NoLogsReason
from scheduler.clusters.port import ClusterUnavailable, PodPhase, StartOutcome, StartRefused

PENDING, RUNNING = PodPhase.PENDING, PodPhase.RUNNING
SUCCEEDED, FAILED, UNKNOWN = PodPhase.SUCCEEDED, PodPhase.FAILED, PodPhase.UNKNOWN


class TestStarting:
    def test_started_object_runs_on_its_placement(self, subject):
        spec = subject.spec((0, subject.nodes[0], 3))
        assert subject.cluster.start(spec) is StartOutcome.CREATED
        thing = subject.until_phases(spec, RUNNING)
        assert (thing.name, thing.job_id, thing.attempt) == (spec.name, spec.job_id, 1)
        assert thing.spec_hash == spec.spec_hash()
        assert not thing.suspended
        assert not thing.abandoned
        (pod,) = thing.pods
        assert pod.node == subject.nodes[0]
        assert len(set(pod.gpu_uuids)) == (3 if subject.tempo.tells_gpus else 0)
        assert thing.created_ms <= pod.started_ms
        assert pod.ended_ms is None

    def test_starting_twice_is_starting_once(self, subject):
        spec = subject.spec()
        subject.cluster.start(spec)
        first = subject.until_phases(spec, RUNNING)
        assert subject.cluster.start(spec) is StartOutcome.ADOPTED
        assert subject.cluster.get(spec.name) == first

    def test_extended_walltime_is_still_the_same_object(self, subject):
        spec = subject.spec()
        subject.cluster.start(spec)
        assert subject.cluster.start(replace(spec, walltime_ms=7_200_000)) is StartOutcome.ADOPTED

    def test_other_spec_under_the_same_name_is_a_conflict(self, subject):
        spec = subject.spec()
        subject.cluster.start(spec)
        elsewhere = replace(spec.pods[0], node=subject.nodes[1])
        assert subject.cluster.start(replace(spec, pods=(elsewhere,))) is StartOutcome.CONFLICT
        assert subject.cluster.get(spec.name).pods[0].node == subject.nodes[0]

    def test_refused_start_leaves_nothing_and_may_be_tried_again(self, subject):
        spec = subject.spec()
        subject.mischief.refuse_next_start()
        with pytest.raises(StartRefused):
            subject.cluster.start(spec)
        assert subject.cluster.get(spec.name) is None
        assert subject.cluster.start(spec) is StartOutcome.CREATED

    def test_pod_waits_until_its_gpus_are_free(self, subject):
        first = subject.spec((0, subject.nodes[0], 8), duration_s=400)
        second = subject.spec((0, subject.nodes[0], 1))
        subject.cluster.start(first)
        subject.until_phases(first, RUNNING)
        subject.cluster.start(second)
        assert (
            subject.until_phases(second, RUNNING).pods[0].started_ms
            >= subject.seen[first.name].pods[0].ended_ms
        )

    def test_gpus_used_by_others_are_not_given_to_pods(self, subject):
        node = subject.nodes[0]
        subject.mischief.occupy(node, 6)
        spec = subject.spec((0, node, 3))
        fitting = subject.spec((0, subject.nodes[1], 3))
        subject.cluster.start(spec)
        subject.cluster.start(fitting)
        subject.until_phases(fitting, RUNNING)
        subject.until_phases(spec, PENDING)
        subject.mischief.occupy(node, 0)
        subject.until_phases(spec, RUNNING)


class TestEnding:
    @pytest.mark.parametrize(("exit_code", "phase"), [(0, SUCCEEDED), (7, FAILED)])
    def test_exit_code_tells_success_from_failure(self, subject, exit_code, phase):
        spec = subject.spec(duration_s=60, exit_code=str(exit_code))
        subject.cluster.start(spec)
        (pod,) = subject.until_phases(spec, phase).pods
        assert pod.exit_code == exit_code
        assert subject.tempo.is_about(pod.ended_ms - pod.started_ms, 60)

    def test_walltime_that_the_object_was_created_with_ends_nothing(self, subject):
        spec = replace(subject.spec(duration_s=60), walltime_ms=1_000)
        subject.cluster.start(spec)
        (pod,) = subject.until_phases(spec, SUCCEEDED).pods
        assert subject.tempo.is_about(pod.ended_ms - pod.started_ms, 60)

    def test_failing_pod_ends_its_gang(self, subject):
        spec = subject.spec((0, subject.nodes[0], 8), (1, subject.nodes[1], 8))
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING, RUNNING)
        subject.mischief.fail_pod(spec.name, 1, 5)
        thing = subject.until_phases(spec, FAILED, FAILED)
        assert thing.pods[1].exit_code == 5
        assert thing.pods[0].reason == "gang_failed"
        latest_ms = thing.pods[1].ended_ms + spec.grace_ms + subject.tempo.slack_ms
        assert thing.pods[1].ended_ms <= thing.pods[0].ended_ms <= latest_ms


class TestStopping:
    def test_running_pod_ends_within_the_grace(self, subject):
        spec = subject.spec(stop_s="3600")
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING)
        before_ms = subject.cluster.observe(wait_s=0).through_ms
        subject.cluster.stop(spec, abandoned=False)
        after = subject.cluster.observe(wait_s=0)
        subject.note(after)
        assert subject.cluster.get(spec.name).suspended
        (pod,) = subject.until_phases(spec, FAILED).pods
        latest_ms = after.through_ms + spec.grace_ms + subject.tempo.slack_ms
        assert before_ms + spec.grace_ms <= pod.ended_ms <= latest_ms
        assert pod.reason == "stopped"

    def test_pod_that_never_started_has_no_start(self, subject):
        spec = subject.spec(start_s=str(10**6))
        subject.cluster.start(spec)
        subject.cluster.stop(spec, abandoned=True)
        # where pods are made a moment later than their object, there may be none
        thing = subject.until(
            spec,
            lambda thing: thing.suspended and thing.settled and {pod.phase for pod in thing.pods} <= {FAILED},
        )
        assert (thing.suspended, thing.abandoned) == (True, True)
        assert {pod.started_ms for pod in thing.pods} <= {None}

    def test_stopping_twice_is_stopping_once(self, subject):
        spec = subject.spec(stop_s="10")
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING)
        subject.cluster.stop(spec, abandoned=False)
        subject.cluster.stop(spec, abandoned=False)
        ended = subject.until_phases(spec, FAILED)
        subject.cluster.stop(spec, abandoned=False)
        assert subject.cluster.get(spec.name) == ended

    def test_stopping_an_unknown_name_leaves_a_tombstone_that_refuses_a_late_start(self, subject):
        spec = subject.spec()
        subject.cluster.stop(spec, abandoned=False)
        tombstone = subject.cluster.get(spec.name)
        assert (tombstone.suspended, tombstone.abandoned, tombstone.pods) == (True, True, ())
        assert subject.cluster.start(spec) is StartOutcome.ABANDONED
        assert subject.cluster.get(spec.name) == tombstone
        subject.until(spec, lambda thing: thing == tombstone)

    def test_abandoned_object_refuses_a_late_start(self, subject):
        spec = subject.spec()
        subject.cluster.start(spec)
        subject.cluster.stop(spec, abandoned=True)
        assert subject.cluster.start(spec) is StartOutcome.ABANDONED

    def test_refusal_of_starts_does_not_refuse_a_tombstone(self, subject):
        spec = subject.spec()
        subject.mischief.refuse_next_start()
        subject.cluster.stop(spec, abandoned=True)
        assert subject.cluster.get(spec.name).abandoned


class TestDeleting:
    def test_running_object_stays(self, subject):
        spec = subject.spec()
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING)
        assert not subject.cluster.delete(spec.name)
        assert subject.cluster.get(spec.name) is not None

    def test_ended_object_goes_and_is_observed_as_gone(self, subject):
        spec = subject.spec(duration_s=1)
        subject.cluster.start(spec)
        subject.until_phases(spec, SUCCEEDED)
        assert subject.cluster.delete(spec.name)
        assert subject.cluster.get(spec.name) is None
        subject.until_observed(lambda observation: spec.name in observation.gone)
        assert subject.cluster.delete(spec.name)

    def test_tombstone_goes_and_frees_its_name(self, subject):
        spec = subject.spec()
        subject.cluster.stop(spec, abandoned=True)
        assert subject.cluster.delete(spec.name)
        assert subject.cluster.start(spec) is StartOutcome.CREATED


class TestObserving:
    def test_first_observation_is_complete_and_brings_the_nodes(self, subject):
        spec = subject.spec()
        subject.cluster.start(spec)
        observation = subject.cluster.observe(wait_s=0)
        assert observation.complete
        subject.note(observation)
        if spec.name not in subject.seen:
            subject.until_observed(lambda later: spec.name in subject.seen)
        nodes = {node.node: node for node in observation.nodes}
        assert nodes[subject.nodes[0]].ready
        assert nodes[subject.nodes[0]].classes == (("h100", 8),)

    def test_later_observations_bring_only_what_changed(self, subject):
        subject.cluster.observe(wait_s=0)
        spec = subject.spec()
        subject.cluster.start(spec)
        observation = subject.until_observed(
            lambda observation: spec.name in {thing.name for thing in observation.objects}
        )
        assert not observation.complete
        assert observation.nodes is None

    def test_forgetting_makes_the_next_observation_complete(self, subject):
        spec = subject.spec()
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING)
        subject.cluster.forget_observations()
        observation = subject.cluster.observe(wait_s=0)
        assert observation.complete
        assert observation.nodes is not None
        assert subject.seen[spec.name] in observation.objects

    def test_change_of_foreign_use_brings_the_nodes(self, subject):
        subject.cluster.observe(wait_s=0)
        subject.mischief.occupy(subject.nodes[0], 5)
        observation = subject.until_observed(lambda observation: observation.nodes is not None)
        foreign = {node.node: node.foreign for node in observation.nodes}
        assert foreign[subject.nodes[0]] == (("h100", 5),)

    def test_watermark_only_grows_and_nothing_up_to_it_comes_later(self, subject):
        waiting = [subject.spec(duration_s=duration_s) for duration_s in (0, 1, 2, 5, 40, 41, 90)]
        names = {spec.name for spec in waiting}
        through_ms = 0
        known: dict[str, tuple[int | None, ...]] = {}
        while (
            waiting or set(known) != names or None in [one for moments in known.values() for one in moments]
        ):
            if waiting:
                subject.cluster.start(waiting.pop())
            observation = subject.cluster.observe(wait_s=1.0)
            for thing in observation.objects:
                if thing.name in names:
                    pod = thing.pods[0] if thing.pods else None
                    moments = (thing.created_ms, *((pod.started_ms, pod.ended_ms) if pod else (None, None)))
                    before = known.get(thing.name, (None, None, None))
                    news = [moment for moment, old in zip(moments, before, strict=True) if moment != old]
                    assert all(through_ms < moment for moment in news if moment is not None)
                    known[thing.name] = moments
            assert observation.through_ms >= through_ms
            through_ms = observation.through_ms
        assert set(known) == names


class TestLosingNodes:
    def test_lost_node_makes_its_pods_unknown_and_a_return_tells_their_end(self, subject):
        spec = subject.spec((0, subject.nodes[0], 8), (1, subject.nodes[1], 8))
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING, RUNNING)
        subject.mischief.lose_node(subject.nodes[0])
        lost = subject.until_phases(spec, UNKNOWN, RUNNING).pods[0]
        assert lost.last_seen_ms >= lost.started_ms
        assert lost.ended_ms is None
        subject.mischief.return_node(subject.nodes[0])
        thing = subject.until(spec, lambda thing: UNKNOWN not in {pod.phase for pod in thing.pods})
        if thing.pods[0].phase is RUNNING:
            return  # the machine was only unreachable, and its pod never knew
        thing = subject.until_phases(spec, FAILED, FAILED)
        assert (thing.pods[0].ended_ms, thing.pods[0].reason) == (lost.last_seen_ms, "node_lost")
        assert thing.pods[1].reason == "gang_failed"

    def test_lost_node_is_not_ready_until_it_returns(self, subject):
        def ready() -> bool:
            subject.cluster.forget_observations()
            nodes = {node.node: node.ready for node in subject.cluster.observe(wait_s=0).nodes}
            return nodes[subject.nodes[0]]

        spec = subject.spec()
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING)
        subject.mischief.lose_node(subject.nodes[0])
        subject.until_phases(spec, UNKNOWN)
        assert not ready()
        subject.mischief.return_node(subject.nodes[0])
        subject.until_observed(lambda _: ready())


class TestUnansweredCalls:
    def test_start_whose_reply_was_lost_is_adopted(self, subject):
        spec = subject.spec()
        subject.mischief.lose_next_reply("create")
        with pytest.raises(ClusterUnavailable):
            subject.cluster.start(spec)
        assert subject.cluster.start(spec) is StartOutcome.ADOPTED

    def test_stop_whose_reply_was_lost_may_be_repeated(self, subject):
        spec = subject.spec()
        subject.cluster.start(spec)
        subject.mischief.lose_next_reply("suspend")
        with pytest.raises(ClusterUnavailable):
            subject.cluster.stop(spec, abandoned=False)
        subject.cluster.stop(spec, abandoned=False)
        assert subject.cluster.get(spec.name).suspended

    def test_tombstone_whose_reply_was_lost_stands(self, subject):
        spec = subject.spec()
        subject.mischief.lose_next_reply("create")
        with pytest.raises(ClusterUnavailable):
            subject.cluster.stop(spec, abandoned=True)
        subject.cluster.stop(spec, abandoned=True)
        assert subject.cluster.start(spec) is StartOutcome.ABANDONED

    def test_observation_whose_reply_was_lost_is_brought_again(self, subject):
        subject.cluster.observe(wait_s=0)
        spec = subject.spec()
        subject.cluster.start(spec)
        subject.mischief.lose_next_reply("list")
        subject.until_unanswered()
        subject.until_phases(spec, RUNNING)

    def test_nodes_whose_reply_was_lost_do_not_lose_the_objects(self, subject):
        spec = subject.spec()
        subject.cluster.start(spec)
        subject.mischief.lose_next_reply("nodes")
        subject.until_unanswered()
        subject.cluster.forget_observations()
        observation = subject.cluster.observe(wait_s=0)
        assert observation.complete
        assert observation.nodes is not None
        subject.note(observation)
        subject.until_phases(spec, RUNNING)

    def test_late_answer_is_unavailable_and_a_retry_adopts(self, subject):
        spec = subject.spec()
        impatient = subject.connect(0.25)
        subject.mischief.delay_next_reply("create", 60.0)
        with pytest.raises(ClusterUnavailable):
            impatient.start(spec)
        assert subject.cluster.start(spec) is StartOutcome.ADOPTED


class TestLogs:
    def test_parts_of_an_ended_pods_log_are_parts_of_the_whole(self, subject):
        spec = subject.spec(duration_s=60)
        subject.cluster.start(spec)
        subject.until_phases(spec, SUCCEEDED)
        whole = read_log(subject, spec)
        assert len(whole) > 3
        assert read_log(subject, spec, tail_lines=2) == whole[-2:]
        assert read_log(subject, spec, tail_lines=0) == []
        timed = read_log(subject, spec, tail_lines=2, timestamps=True)
        assert [line.split(b" ", 1)[1] for line in timed] == whole[-2:]
        assert all(line[:4].isdigit() and b"Z " in line for line in timed)
        assert read_log(subject, spec, tail_lines=2, follow=True) == whole[-2:], "nothing more will come"

    def test_running_pod_shows_what_it_wrote_so_far(self, subject):
        spec = subject.spec()
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING)
        assert b"started" in read_log(subject, spec)[0]

    def test_every_pod_of_a_gang_has_its_own(self, subject):
        spec = subject.spec((0, subject.nodes[0], 8), (1, subject.nodes[1], 8))
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING, RUNNING)
        for index in (0, 1):
            assert read_log(subject, spec, index)

    def test_followed_log_that_is_interrupted_from_elsewhere_ends_at_once(self, subject):
        spec = subject.spec()
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING)
        with subject.straight().logs(spec.name, 0, LogRequest(1, follow=True)) as log:
            coming = iter(log)
            assert next(coming)
            threading.Timer(0.2, log.interrupt).start()
            for _ in coming:
                pass
            log.interrupt()

    def test_log_that_nobody_reads_to_its_end_is_given_back(self, subject):
        spec = subject.spec()
        subject.cluster.start(spec)
        subject.until_phases(spec, RUNNING)
        straight = subject.straight()
        for _ in range(3):
            with straight.logs(spec.name, 0, LogRequest(1, follow=True)):
                pass
        with straight.logs(spec.name, 0, LogRequest(1, follow=True)) as log:
            log.interrupt()
            assert list(log) == []

    def test_pod_that_has_not_started_has_none_yet(self, subject):
        spec = subject.spec(start_s=str(10**6))
        subject.cluster.start(spec)
        subject.until_phases(spec, PENDING)
        with pytest.raises(NoLogs) as caught:
            subject.cluster.logs(spec.name, 0, LogRequest(1))
        assert caught.value.reason is NoLogsReason.NOT_STARTED

    def test_what_is_not_there_has_none_any_more(self, subject):
        never, deleted = subject.spec(), subject.spec(duration_s=1)
        subject.cluster.start(deleted)
        subject.until_phases(deleted, SUCCEEDED)
        subject.cluster.acknowledge(deleted.name)
        assert subject.cluster.delete(deleted.name)
        subject.until_observed(lambda _: deleted.name not in subject.seen)
        tombstone = subject.spec()
        subject.cluster.stop(tombstone, abandoned=True)
        for spec in (never, deleted, tombstone):
            with pytest.raises(NoLogs) as caught:
                subject.cluster.logs(spec.name, 0, LogRequest(1))
            assert caught.value.reason is NoLogsReason.GONE, spec.name


def read_log(subject, spec, index=0, *, tail_lines=1000, **asked):
    with subject.cluster.logs(spec.name, index, LogRequest(tail_lines, **asked)) as log:
        return b"".join(log).splitlines()
