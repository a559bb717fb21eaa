"""What organizations' namespaces, the hub's accounts and its policies consist of."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.clusters.kubernetes.accounts import account_objects, provisioner_rules, scheduler_rules
from scheduler.clusters.kubernetes.admission import POLICIES, policy_objects
from scheduler.clusters.kubernetes.api import Json
from scheduler.clusters.kubernetes.isolation import gpu_limits, organization_objects
from scheduler.clusters.kubernetes.isolation_settings import IsolationSettings, is_organization_namespace
from scheduler.clusters.kubernetes.provisioning import holds, path_of, setup_objects, strays, totals_of
from scheduler.clusters.kubernetes.settings import (
    BadClusterFile,
    ClassForm,
    KubernetesSettings,
    read_cluster_file,
)

TOTALS = {"nvidia.com/gpu": 32, "nvidia.com/mig-1g.10gb": 7}


def some_settings(*, resource: str = "nvidia.com/gpu", **isolation: object) -> KubernetesSettings:
    form = ClassForm(labels={"gpu": "x"}, resource=resource, cpu_milli=1000, memory_mib=1024)
    return KubernetesSettings(classes={"x": form}, isolation=IsolationSettings.model_validate(isolation))


def by_name(things: list[Json]) -> dict[str, Json]:
    return {f"{thing['kind']} {thing['metadata']['name']}": thing for thing in things}


def test_namespace_comes_first_and_everything_else_is_in_it() -> None:
    namespace, *contents = organization_objects("acme", some_settings(), TOTALS)
    assert (namespace["kind"], namespace["metadata"]["name"]) == ("Namespace", "hub-acme")
    assert {thing["metadata"]["namespace"] for thing in contents} == {"hub-acme"}


def test_quota_counts_no_jobs() -> None:
    quota = by_name(organization_objects("acme", some_settings(), TOTALS))["ResourceQuota hub-limits"]
    assert quota["spec"]["hard"] == {
        "requests.nvidia.com/gpu": "32",
        "services.nodeports": "0",
        "services.loadbalancers": "0",
    }


@pytest.mark.parametrize(
    ("caps", "totals", "limits"),
    [
        ({}, TOTALS, {"nvidia.com/gpu": 32}),
        ({"acme": 8}, TOTALS, {"nvidia.com/gpu": 8}),
        ({"acme": 8}, {}, {"nvidia.com/gpu": 8}),
        ({"other": 8}, TOTALS, {"nvidia.com/gpu": 32}),
        ({}, {}, {}),
        ({}, {"nvidia.com/gpu": 0}, {}),
    ],
)
def test_gpus_are_limited_to_the_cap_or_to_what_there_is(
    caps: dict[str, int], totals: dict[str, int], limits: dict[str, int]
) -> None:
    assert gpu_limits("acme", some_settings(gpu_caps=caps), totals) == limits


def test_everything_that_is_not_allowed_is_denied() -> None:
    things = by_name(organization_objects("acme", some_settings(), TOTALS))
    deny = things["NetworkPolicy hub-deny"]["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert things["NetworkPolicy hub-addresses"]["spec"] == {"podSelector": {}, "policyTypes": ["Egress"]}


@pytest.mark.parametrize(
    ("prefix", "names", "clash"),
    [
        ("hub-", {}, None),
        ("gpuhub-", {}, "gpuhub-system"),
        ("gpuhub-", {"system_namespace": "hub"}, None),
        ("kube-", {}, "kube-system"),
        ("d", {}, "default"),
        ("hub-", {"trusted_namespaces": ["hub-tools"]}, "hub-tools"),
        ("hub-", {"system_namespace": "hub-0system"}, None),
    ],
)
def test_no_organization_can_get_a_trusted_namespace(
    prefix: str, names: dict[str, object], clash: str | None
) -> None:
    assert IsolationSettings.model_validate(names).clash(prefix) == clash


def test_organizations_namespaces_are_known_by_their_names() -> None:
    assert is_organization_namespace("hub-alpha-lab", "hub-")
    assert not is_organization_namespace("hub-0system", "hub-")
    assert not is_organization_namespace("hub-a", "hub-")
    assert not is_organization_namespace("alpha-lab", "hub-")


CLUSTER = '[classes.x]\nlabels = {gpu = "x"}\ncpu_milli = 1\nmemory_mib = 1\n'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('namespace_prefix = "gpuhub-"\n' + CLUSTER, "could be called gpuhub-system"),
        (CLUSTER + '[isolation]\negress_cidrs = ["10.0.0.1/8"]\n', "isolation.egress_cidrs.0"),
        (CLUSTER + "[isolation]\ngpu_caps = {acme = -1}\n", "isolation.gpu_caps.acme"),
        (CLUSTER + '[isolation]\nbreak_glass = ["x"]\n', "isolation.break_glass"),
    ],
)
def test_wrong_file_says_where_and_why(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "main.toml"
    path.write_text(text)
    with pytest.raises(BadClusterFile, match=why):
        read_cluster_file(path)


def test_no_account_may_read_secrets_or_give_rights() -> None:
    rules = [*scheduler_rules(), *provisioner_rules(POLICIES)]
    resources = {resource for rule in rules for resource in rule["resources"]}
    verbs = {verb for rule in rules for verb in rule["verbs"]}
    groups = {group for rule in rules for group in rule["apiGroups"]}
    assert "*" not in resources | verbs | groups
    assert resources.isdisjoint({"secrets", "pods/exec", "pods/binding", "pods/eviction"})
    assert verbs.isdisjoint({"escalate", "bind", "impersonate", "deletecollection", "update"})
    assert "rbac.authorization.k8s.io" not in groups


def test_accounts_are_bound_in_the_hubs_own_namespace() -> None:
    things = by_name(account_objects(IsolationSettings(system_namespace="hub0"), POLICIES))
    binding = things["ClusterRoleBinding gpuhub-scheduler"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "scheduler", "namespace": "hub0"}]
    assert things["ServiceAccount provisioner"]["metadata"]["namespace"] == "hub0"


def test_every_policy_is_bound_and_fails_closed() -> None:
    things = by_name(policy_objects(some_settings()))
    for name in POLICIES:
        policy = things[f"ValidatingAdmissionPolicy {name}"]["spec"]
        assert policy["failurePolicy"] == "Fail"
        assert {one["reason"] for one in policy["validations"]} == {"Forbidden"}
        binding = things[f"ValidatingAdmissionPolicyBinding {name}"]["spec"]
        assert binding == {"policyName": name, "validationActions": ["Deny"]}
    assert len(things) == 2 * len(POLICIES)


def test_resources_of_the_classes_are_guarded() -> None:
    (policy, *_) = policy_objects(some_settings(resource="amd.com/gpu"))
    asked = policy["spec"]["validations"][0]["expression"]
    assert '["amd.com/", "deviceclass.resource.kubernetes.io/", "nvidia.com/"]' in asked


def test_names_in_the_file_cannot_change_an_expression() -> None:
    (policy, *_) = policy_objects(some_settings(break_glass_groups=['x"] || true || g in ["y']))
    assert '["x\\"] || true || g in [\\"y"]' in str(policy["spec"]["variables"]).replace("\\\\", "\\")


def test_what_an_admin_applies_is_what_the_provisioner_applies() -> None:
    settings = some_settings()
    names = [thing["metadata"]["name"] for thing in setup_objects(settings)["items"]]
    assert names[-2 * len(POLICIES) :] == [thing["metadata"]["name"] for thing in policy_objects(settings)]


def test_path_of_an_object() -> None:
    quota = by_name(organization_objects("acme", some_settings(), TOTALS))["ResourceQuota hub-limits"]
    assert path_of(quota) == "/api/v1/namespaces/hub-acme/resourcequotas/hub-limits"


@pytest.mark.parametrize(
    ("wanted", "there", "held"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {}, False),
        ({"a": {"b": 1}}, {"a": {"b": 1, "c": 1}}, True),
        ({"a": [1]}, {"a": [1, 2]}, False),
        ({"a": [{"b": 1}]}, {"a": [{"b": 1, "c": 2}]}, True),
        ({"a": []}, {}, True),
        ({"a": []}, {"a": [1]}, False),
        ({"a": {}}, {}, True),
        ({"a": False}, {}, False),
    ],
)
def test_what_is_wanted_is_held(wanted: object, there: object, held: bool) -> None:
    assert holds(wanted, there) is held


def a_node(name: str, labels: dict[str, str], **capacity: str) -> Json:
    return {"metadata": {"name": name, "labels": labels}, "status": {"capacity": capacity}}


def test_gpus_of_all_nodes_are_counted() -> None:
    gpus = {"nvidia.com/gpu": "8", "cpu": "64"}
    nodes = [a_node("a", {"gpu": "x"}, **gpus), a_node("b", {}, **gpus), a_node("c", {}, cpu="4")]
    assert totals_of(nodes, some_settings()) == {"nvidia.com/gpu": 16}


def test_node_with_gpus_of_no_class_is_a_stray() -> None:
    gpus = {"nvidia.com/gpu": "8"}
    nodes = [a_node("a", {"gpu": "x"}, **gpus), a_node("b", {"gpu": "y"}, **gpus), a_node("c", {}, cpu="4")]
    assert strays(nodes, some_settings()) == ["b"]
