"""The hub's accounts on a cluster, each with the least rights. Pure; a cluster admin applies them once.

Neither account may touch roles or their bindings, so neither can give itself more.
"""

from __future__ import annotations

from typing import Final

from scheduler.clusters.kubernetes import isolation
from scheduler.clusters.kubernetes.api import Json
from scheduler.clusters.kubernetes.isolation import MARK
from scheduler.clusters.kubernetes.isolation_settings import IsolationSettings

SCHEDULER: Final = "scheduler"
PROVISIONER: Final = "provisioner"


def user_of(settings: IsolationSettings, account: str) -> str:
    """How the API server calls an account of the hub."""
    return f"system:serviceaccount:{settings.system_namespace}:{account}"


def account_objects(settings: IsolationSettings, policies: tuple[str, ...]) -> list[Json]:
    """The hub's namespace with its accounts, their roles and the bindings. `policies`: names of its policies."""
    space = settings.system_namespace
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space, "labels": MARK}},
        *(
            {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": account, "namespace": space, "labels": MARK},
            }
            for account in (SCHEDULER, PROVISIONER)
        ),
        _role(SCHEDULER, scheduler_rules()),
        _role(PROVISIONER, provisioner_rules(policies)),
        _binding(SCHEDULER, space),
        _binding(PROVISIONER, space),
    ]


def scheduler_rules() -> list[Json]:
    """What `cluster.py` does, and nothing else. The admission policy keeps its writes to the hub's namespaces."""
    return [
        _rule("batch", ["jobs"], ["get", "list", "watch", "create", "patch", "delete"]),
        _rule("", ["pods"], ["list", "watch", "patch"]),
        _rule("", ["pods/log"], ["get"]),
        _rule("", ["services"], ["get", "create", "delete"]),
        _rule("", ["nodes"], ["list", "watch"]),
    ]


def provisioner_rules(policies: tuple[str, ...]) -> list[Json]:
    """What `provisioning.py` does. Names narrow it where they are known: it applies, and an apply names its object."""
    write = ["get", "create", "patch"]
    network, admission = "networking.k8s.io", "admissionregistration.k8s.io"
    return [
        _rule("", ["namespaces"], ["get", "list", "create", "patch"]),
        _rule("", ["nodes"], ["get", "list", "patch"]),
        _rule("", ["serviceaccounts"], write, [isolation.SERVICE_ACCOUNT]),
        _rule("", ["resourcequotas"], write, list(isolation.QUOTAS)),
        _rule("", ["limitranges"], write, [isolation.DEFAULTS]),
        _rule(network, ["networkpolicies"], write, list(isolation.NETWORK_POLICIES)),
        _rule(
            admission,
            ["validatingadmissionpolicies", "validatingadmissionpolicybindings"],
            write,
            list(policies),
        ),
    ]


def _rule(group: str, resources: list[str], verbs: list[str], only: list[str] | None = None) -> Json:
    rule: Json = {"apiGroups": [group], "resources": resources, "verbs": verbs}
    return rule | ({} if only is None else {"resourceNames": only})


def _role(account: str, rules: list[Json]) -> Json:
    return _rbac("ClusterRole", account) | {"rules": rules}


def _binding(account: str, space: str) -> Json:
    return _rbac("ClusterRoleBinding", account) | {
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": _role_name(account),
        },
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": space}],
    }


def _rbac(kind: str, account: str) -> Json:
    metadata = {"name": _role_name(account), "labels": MARK}
    return {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata}


def _role_name(account: str) -> str:
    return f"gpuhub-{account}"
