"""What the simulated cluster's logs do while their pods live; kwok's kubelet only shows a file, whoever lives."""

from __future__ import annotations

import pytest

from scheduler.clusters.logs import ClusterUnavailable, LogRequest, NoLogs
from scheduler.clusters.port import PodPhase


@pytest.fixture(params=["simulated"])
def subject(subject):
    """Only there."""
    return subject


def test_followed_log_ends_with_its_pod_and_is_then_the_whole_log(subject):
    spec = subject.spec(duration_s=120, exit_code="3")
    subject.cluster.start(spec)
    subject.until_phases(spec, PodPhase.RUNNING)
    with subject.cluster.logs(spec.name, 0, LogRequest(1000, follow=True)) as log:
        followed = b"".join(log)
    assert followed.splitlines()[-1] == b"ended with exit code 3 (failed)"
    with subject.cluster.logs(spec.name, 0, LogRequest(1000)) as log:
        assert b"".join(log) == followed


def test_followed_log_ends_when_its_node_is_lost(subject):
    spec = subject.spec()
    subject.cluster.start(spec)
    subject.until_phases(spec, PodPhase.RUNNING)
    with subject.cluster.logs(spec.name, 0, LogRequest(1000, follow=True)) as log:
        coming = iter(log)
        assert next(coming)
        subject.mischief.lose_node(subject.nodes[0])
        for _ in coming:
            pass
    with pytest.raises(ClusterUnavailable, match="node_lost"):
        subject.cluster.logs(spec.name, 0, LogRequest(1))


def test_pod_that_the_object_does_not_have_has_none(subject):
    spec = subject.spec()
    subject.cluster.start(spec)
    with pytest.raises(NoLogs, match="has no pod 7"):
        subject.cluster.logs(spec.name, 7, LogRequest(1))
