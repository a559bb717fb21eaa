"""The scheduler as a pod of the cluster that it schedules: the credentials that a pod is given, and that change."""

from __future__ import annotations

import os
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from kubernetes.config import incluster_config

from scheduler.clusters.kubernetes.cluster import KubernetesCluster
from scheduler.clusters.kubernetes.settings import BadClusterFile
from scheduler.clusters.port import ClusterUnavailable
from tests.integration.kubernetes.isolated_world import SYSTEM, World

pytestmark = pytest.mark.kubernetes


@pytest.fixture
def pod(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a kubelet puts into every pod; the file with the token."""
    address = urlsplit(world.plane.url)
    monkeypatch.setitem(os.environ, "KUBERNETES_SERVICE_HOST", str(address.hostname))
    monkeypatch.setitem(os.environ, "KUBERNETES_SERVICE_PORT", str(address.port))
    token, certificate = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text(world.caller(SYSTEM, "scheduler").token)
    certificate.write_bytes(world.plane.ca_file.read_bytes())
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(certificate))
    return token


def test_without_a_kubeconfig_it_is_the_pod_s_service_account(world: World, pod: Path) -> None:
    settings = world.settings.model_copy(update={"kubeconfig": None})
    with KubernetesCluster("main", settings) as cluster:
        assert cluster.observe(wait_s=5).complete


def test_token_that_the_kubelet_has_changed_is_read_anew(
    world: World, pod: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = world.settings.model_copy(update={"kubeconfig": None, "call_timeout_s": 3.0})
    good = pod.read_text()
    pod.write_text("not-a-token")
    with KubernetesCluster("main", settings) as cluster:
        with pytest.raises(ClusterUnavailable, match="401"):
            cluster.observe(wait_s=0)
        pod.write_text(good)
        _let_a_minute_pass(monkeypatch)
        until_s = time.monotonic() + 60
        while True:
            try:
                assert cluster.observe(wait_s=1).complete
            except ClusterUnavailable:
                assert time.monotonic() < until_s
                continue
            break


def _let_a_minute_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library reads the file again when what it knows is a minute old."""

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(minutes=2)

    monkeypatch.setattr(incluster_config, "datetime", SimpleNamespace(datetime=Later, timedelta=timedelta))


def test_outside_of_a_pod_it_is_told_what_is_missing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(os.environ, "KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(BadClusterFile, match="service account"):
        KubernetesCluster("main", world.settings.model_copy(update={"kubeconfig": None}))
