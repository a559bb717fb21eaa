"""What an organization's namespace consists of. Pure; `provisioning.py` applies it.

The quota is a backstop: what may run is decided by the ledger, and a quota tighter than the ledger would keep
the pods of a paid attempt from being created.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from scheduler.clusters.kubernetes import names
from scheduler.clusters.kubernetes.api import Json
from scheduler.clusters.kubernetes.settings import KubernetesSettings

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGER: Final = "gpuhub"
MARK: Final = {MANAGED_BY: MANAGER}

QUOTA: Final = "hub-limits"
CRITICAL: Final = "hub-critical"
QUOTAS: Final = (QUOTA, CRITICAL)
DEFAULTS: Final = "hub-defaults"
DENY: Final = "hub-deny"
DNS: Final = "hub-dns"
OWN: Final = "hub-own-namespace"
ADDRESSES: Final = "hub-addresses"
NETWORK_POLICIES: Final = (DENY, DNS, OWN, ADDRESSES)
SERVICE_ACCOUNT: Final = "default"

_POD_SECURITY = {
    f"pod-security.kubernetes.io/{mode}{suffix}": value
    for mode in ("enforce", "audit", "warn")
    for suffix, value in (("", "restricted"), ("-version", "latest"))
}


def organization_objects(
    organization_id: str, settings: KubernetesSettings, totals: Mapping[str, int]
) -> list[Json]:
    """The namespace first, then what is in it. `totals`: how much the cluster has of each GPU resource."""
    namespace = names.namespace_of(settings.namespace_prefix, organization_id)
    return [
        _namespace(namespace, organization_id),
        _service_account(namespace),
        _quota(namespace, gpu_limits(organization_id, settings, totals)),
        _no_critical_pods(namespace),
        _defaults(namespace),
        _network_policy(namespace, DENY, ingress=[], egress=[]),
        _network_policy(namespace, DNS, egress=[_dns()]),
        _network_policy(
            namespace, OWN, ingress=[{"from": [{"podSelector": {}}]}], egress=[{"to": [{"podSelector": {}}]}]
        ),
        # without addresses it allows nothing: taking the last one out needs no right to delete
        _network_policy(namespace, ADDRESSES, egress=_addresses(settings.isolation.egress_cidrs)),
    ]


def gpu_limits(
    organization_id: str, settings: KubernetesSettings, totals: Mapping[str, int]
) -> dict[str, int]:
    """Most of each GPU resource at once. One that the cluster does not have yet gets no limit: it may come."""
    cap = settings.isolation.gpu_caps.get(organization_id)
    resources = {form.resource for form in settings.classes.values()}
    return {
        resource: totals[resource] if cap is None else cap
        for resource in sorted(resources)
        if cap is not None or totals.get(resource)
    }


def _namespace(namespace: str, organization_id: str) -> Json:
    labels = MARK | _POD_SECURITY | {names.ORGANIZATION: organization_id}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}


def _service_account(namespace: str) -> Json:
    return _object("v1", "ServiceAccount", namespace, SERVICE_ACCOUNT) | {
        "automountServiceAccountToken": False
    }


def _quota(namespace: str, gpus: Mapping[str, int]) -> Json:
    # no count of Jobs: ended ones and tombstones count, and a full quota would refuse the next attempt
    hard = {f"requests.{resource}": str(most) for resource, most in gpus.items()}
    return _object("v1", "ResourceQuota", namespace, QUOTA) | {
        "spec": {"hard": hard | {"services.nodeports": "0", "services.loadbalancers": "0"}}
    }


def _no_critical_pods(namespace: str) -> Json:
    """The priorities of the cluster's own programs would push others' pods off their nodes."""
    critical = {
        "scopeName": "PriorityClass",
        "operator": "In",
        "values": ["system-cluster-critical", "system-node-critical"],
    }
    spec = {"hard": {"pods": "0"}, "scopeSelector": {"matchExpressions": [critical]}}
    return _object("v1", "ResourceQuota", namespace, CRITICAL) | {"spec": spec}


def _defaults(namespace: str) -> Json:
    """For containers that say nothing of themselves; the hub's always do."""
    limit = {
        "type": "Container",
        "defaultRequest": {"cpu": "100m", "memory": "128Mi"},
        "default": {"cpu": "1", "memory": "1Gi"},
    }
    return _object("v1", "LimitRange", namespace, DEFAULTS) | {"spec": {"limits": [limit]}}


def _network_policy(
    namespace: str, name: str, *, ingress: list[Json] | None = None, egress: list[Json] | None = None
) -> Json:
    spec: Json = {"podSelector": {}, "policyTypes": []}
    for direction, rules in (("ingress", ingress), ("egress", egress)):
        if rules is None:
            continue
        spec["policyTypes"].append(direction.capitalize())
        if rules:
            spec[direction] = rules
    return _object("networking.k8s.io/v1", "NetworkPolicy", namespace, name) | {"spec": spec}


def _dns() -> Json:
    kube_system = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    ports = [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
    return {"to": [kube_system], "ports": ports}


def _addresses(cidrs: tuple[str, ...]) -> list[Json]:
    return [{"to": [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]}] if cidrs else []


def _object(version: str, kind: str, namespace: str, name: str) -> Json:
    metadata = {"name": name, "namespace": namespace, "labels": MARK}
    return {"apiVersion": version, "kind": kind, "metadata": metadata}
