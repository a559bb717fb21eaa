"""`gpuhub scheduler provision` makes a cluster ready, and whole again; what others own it leaves alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from quota.client import QuotaClient, ServiceUnavailable
from quota.schemas.identity import NewOrganization
from scheduler.cli import app
from tests.integration.kubernetes.isolated_world import FIRM, SYSTEM, World, a_namespace, done
from tests.integration.scheduler.scheduler_processes import MAKE, QUOTA, free_port
from tests.kubernetes_plane import until

pytestmark = pytest.mark.kubernetes

SPACE = f"/api/v1/namespaces/{FIRM}"
NETWORK = f"/apis/networking.k8s.io/v1/namespaces/{FIRM}/networkpolicies"
ACME = ("--organization", "acme")


def is_there(world: World, namespace: str) -> bool:
    return world.admin.get(f"/api/v1/namespaces/{namespace}")[0] == 200


@contextmanager
def changed_file(world: World, before: str, after: str) -> Iterator[None]:
    """The cluster's file says something else meanwhile; the cluster is brought back at the end."""
    text = world.cluster_file.read_text()
    assert before in text
    world.cluster_file.write_text(text.replace(before, after))
    try:
        yield
    finally:
        world.cluster_file.write_text(text)
        assert world.provision(*ACME).exit_code == 0


def test_doing_it_again_changes_nothing(world: World) -> None:
    again = world.provision(*ACME, "--organization", "other")
    assert again.exit_code == 0, again.output
    assert again.output.splitlines() == ["0 created, 0 changed, 34 unchanged"]


def test_namespace_has_what_it_should(world: World) -> None:
    labels = done(world.admin.get(SPACE))["metadata"]["labels"]
    assert labels["hub/organization"] == "acme"
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert labels["pod-security.kubernetes.io/enforce-version"] == "latest"
    quota = done(world.admin.get(f"{SPACE}/resourcequotas/hub-limits"))
    assert quota["spec"]["hard"]["requests.nvidia.com/gpu"] == "32"
    assert done(world.admin.get(f"{SPACE}/serviceaccounts/default"))["automountServiceAccountToken"] is False
    policies = {one["metadata"]["name"]: one["spec"] for one in done(world.admin.get(NETWORK))["items"]}
    assert sorted(policies) == ["hub-addresses", "hub-deny", "hub-dns", "hub-own-namespace"]
    assert policies["hub-addresses"]["egress"] == [{"to": [{"ipBlock": {"cidr": "10.9.8.0/24"}}]}]
    assert "egress" not in policies["hub-deny"]
    assert sorted(policies["hub-deny"]["policyTypes"]) == ["Egress", "Ingress"]


def test_what_was_broken_is_whole_again(world: World) -> None:
    node = "/api/v1/nodes/sim-3"
    before = done(world.admin.get(node))["spec"]["taints"]
    done(world.admin.patch(node, {"spec": {"taints": [{"key": "own", "effect": "NoSchedule"}]}}))
    done(world.admin.delete(f"{NETWORK}/hub-deny"))
    done(
        world.admin.patch(SPACE, {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}})
    )
    trial = world.provision(*ACME, "--dry-run")
    assert trial.exit_code == 0
    assert trial.output.splitlines() == [
        "would be changed: taint of Node sim-3",
        f"would be changed: Namespace {FIRM}",
        f"would be created: NetworkPolicy {FIRM}/hub-deny",
        "1 created, 2 changed, 22 unchanged (nothing was kept: dry run)",
    ]
    assert world.admin.get(f"{NETWORK}/hub-deny")[0] == 404
    repaired = world.provision(*ACME)
    assert repaired.output.splitlines()[-1] == "1 created, 2 changed, 22 unchanged"
    taints = done(world.admin.get(node))["spec"]["taints"]
    assert {(taint["key"], taint["effect"]) for taint in taints} == {
        ("own", "NoSchedule"),
        ("hub/managed", "NoSchedule"),
    }
    done(world.admin.patch(node, {"spec": {"taints": before}}))


def test_trial_makes_no_namespace(world: World) -> None:
    trial = world.provision("--organization", "tried", "--dry-run")
    assert trial.exit_code == 0, trial.output
    assert "would be created: Namespace hub-tried" in trial.output
    assert not is_there(world, "hub-tried")


def test_namespace_of_somebody_else_is_left_alone(world: World) -> None:
    done(world.admin.post("/api/v1/namespaces", a_namespace("hub-taken", {"own": "x"})))
    result = world.provision("--organization", "taken", "--organization", "honest")
    assert result.exit_code == 1
    assert "kubectl label --overwrite namespace hub-taken hub/organization=taken" in result.stderr
    assert is_there(world, "hub-honest")
    assert world.admin.get("/api/v1/namespaces/hub-taken/resourcequotas/hub-limits")[0] == 404
    # the command's advice helps
    done(
        world.admin.patch(
            "/api/v1/namespaces/hub-taken", {"metadata": {"labels": {"hub/organization": "taken"}}}
        )
    )
    assert world.provision("--organization", "taken").exit_code == 0
    for name in ("hub-taken", "hub-honest"):
        done(world.admin.delete(f"/api/v1/namespaces/{name}"))


def test_cap_of_an_organization_becomes_its_quota(world: World) -> None:
    with changed_file(world, "[isolation]\n", "[isolation]\ngpu_caps = { acme = 12 }\n"):
        assert world.provision(*ACME).exit_code == 0
        quota = done(world.admin.get(f"{SPACE}/resourcequotas/hub-limits"))
        assert quota["spec"]["hard"]["requests.nvidia.com/gpu"] == "12"


def test_address_that_was_taken_out_is_closed(world: World) -> None:
    with changed_file(world, '["10.9.8.0/24"]', "[]"):
        result = world.provision(*ACME)
        assert f"changed: NetworkPolicy {FIRM}/hub-addresses" in result.output
        assert "egress" not in done(world.admin.get(f"{NETWORK}/hub-addresses"))["spec"]


def test_policy_follows_the_file(world: World) -> None:
    with changed_file(world, '"repairers"', '"menders"'):
        result = world.provision()
        assert "changed: ValidatingAdmissionPolicy gpuhub-gpus" in result.output


def test_gpu_node_of_no_class_is_told(world: World) -> None:
    world.plane.add_nodes("strange:a100=4")
    try:
        assert "node strange has GPUs, but no class of the cluster file" in world.provision().stderr
    finally:
        done(world.admin.delete("/api/v1/nodes/strange"))
        assert world.provision(*ACME, "--organization", "other").exit_code == 0


def test_kubectl_takes_the_manifests(world: World) -> None:
    printed = CliRunner().invoke(app, ["manifests", "--cluster-file", str(world.cluster_file)])
    kubectl = (str(world.plane.layout.binaries.kubectl), f"--kubeconfig={world.plane.kubeconfig}")
    options = ("--server-side", "--force-conflicts", "--field-manager=gpuhub-provision")
    done_by = subprocess.run(
        [*kubectl, "apply", *options, "-f", "-"],
        input=printed.stdout,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done_by.returncode == 0, done_by.stderr
    assert len(done_by.stdout.splitlines()) == len(json.loads(printed.stdout)["items"])
    assert world.provision().output.splitlines()[-1] == "0 created, 0 changed, 16 unchanged"


def test_scheduler_may_not_provision(world: World) -> None:
    account = world.kubeconfig(SYSTEM, "scheduler")
    given = ["provision", "--cluster-file", str(world.cluster_file), "--kubeconfig", str(account), *ACME]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 1
    assert "forbidden" in result.stderr


def test_cluster_that_does_not_answer_is_unavailable(world: World, tmp_path: Path) -> None:
    config: dict[str, Any] = json.loads(world.plane.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{free_port()}"
    away = tmp_path / "kubeconfig"
    away.write_text(json.dumps(config))
    given = ["provision", "--cluster-file", str(world.cluster_file), "--kubeconfig", str(away)]
    assert CliRunner().invoke(app, given).exit_code == 3


@dataclass(frozen=True, slots=True)
class Quota:
    """The real service on SQLite, and a call as its operator."""

    url: str
    secret: str
    client: QuotaClient

    def answers(self) -> bool:
        try:
            self.client.read_clock()
        except ServiceUnavailable:
            return False
        return True


@contextmanager
def a_quota_service(folder: Path) -> Iterator[Quota]:
    database, port = f"sqlite:///{folder / 'quota.db'}", free_port()
    told = subprocess.run(
        [sys.executable, "-c", MAKE, database, "1"], capture_output=True, text=True, check=True, timeout=60
    )
    secret = json.loads(told.stdout.splitlines()[1])["secret"]
    command = [sys.executable, *QUOTA, "serve", "--database", database, "--port", str(port)]
    with (folder / "quota.log").open("wb") as log, ended(subprocess.Popen(command, stdout=log, stderr=log)):
        url = f"http://127.0.0.1:{port}"
        with QuotaClient(url, secret, timeout_s=10) as client:
            quota = Quota(url, secret, client)
            until(quota.answers, bool)
            yield quota


@contextmanager
def ended(child: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A program that ends with the block."""
    try:
        yield child
    finally:
        child.terminate()
        child.wait()


def test_every_organization_of_the_quota_service_gets_its_namespace(world: World, tmp_path: Path) -> None:
    with a_quota_service(tmp_path) as quota:
        quota.client.create_organization(NewOrganization(id="first-firm", name="First"))
        command = [
            *(sys.executable, "-c", "from scheduler.cli import app; app()", "provision"),
            *("--cluster-file", str(world.cluster_file)),
            *("--kubeconfig", str(world.kubeconfig(SYSTEM, "provisioner"))),
            *("--quota-url", quota.url, "--token-env", "OPERATOR", "--every-s", "1"),
        ]
        environment = os.environ | {"OPERATOR": quota.secret}
        with (tmp_path / "told.txt").open("wb") as told:
            child = subprocess.Popen(command, stdout=told, stderr=told, env=environment)
            with ended(child):
                until(lambda: is_there(world, "hub-first-firm"), bool)
                quota.client.create_organization(NewOrganization(id="second-firm", name="Second"))
                until(lambda: is_there(world, "hub-second-firm"), bool)
                child.send_signal(signal.SIGTERM)
                assert child.wait(timeout=30) == 0
    lines = (tmp_path / "told.txt").read_text().splitlines()
    assert "created: Namespace hub-first-firm" in lines
    assert "created: Namespace hub-second-firm" in lines
    for name in ("hub-first-firm", "hub-second-firm"):
        done(world.admin.delete(f"/api/v1/namespaces/{name}"))


def test_quota_service_that_does_not_answer_is_unavailable(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUHUB_TOKEN", "x")
    assert world.provision("--quota-url", f"http://127.0.0.1:{free_port()}").exit_code == 3
