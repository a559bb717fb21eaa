"""How a ValidatingAdmissionPolicy is written down: requests, callers, what must hold. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scheduler.clusters.kubernetes.api import Json
from scheduler.clusters.kubernetes.isolation import MARK
from scheduler.clusters.kubernetes.isolation_settings import IsolationSettings

_API = "admissionregistration.k8s.io/v1"

_KUBE_USERS = ("system:apiserver", "system:kube-controller-manager", "system:kube-scheduler")
_KUBE_GROUPS = ("system:serviceaccounts:kube-system", "system:nodes")

WRITE = ("CREATE", "UPDATE")
TOUCH = ("CREATE", "UPDATE", "DELETE")


@dataclass(frozen=True, slots=True)
class Rule:
    """Requests that a policy looks at."""

    group: str
    resources: tuple[str, ...]
    operations: tuple[str, ...]

    def manifest(self) -> Json:
        """As a policy has it; every version of the group is meant."""
        return {
            "apiGroups": [self.group],
            "apiVersions": ["*"],
            "resources": list(self.resources),
            "operations": list(self.operations),
        }


def policy(
    name: str,
    requests: Sequence[Rule],
    validations: Iterable[tuple[str, str]],
    *,
    variables: dict[str, str] | None = None,
    namespaces: Json | None = None,
    outsiders: str | None = None,
) -> Json:
    """`validations`: what must hold, and what is said if it does not. `outsiders`: whose requests are looked at."""
    spec: Json = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [rule.manifest() for rule in requests]},
        "variables": [{"name": word, "expression": text} for word, text in (variables or {}).items()],
        "validations": [
            {"expression": text, "message": message, "reason": "Forbidden"} for text, message in validations
        ],
    }
    if namespaces is not None:
        spec["matchConstraints"]["namespaceSelector"] = namespaces
    if outsiders is not None:
        spec["matchConditions"] = [{"name": "outsiders", "expression": outsiders}]
    return {
        "apiVersion": _API,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name, "labels": MARK},
        "spec": spec,
    }


def binding_of(policy: str) -> Json:
    """What puts a policy into effect everywhere."""
    return {
        "apiVersion": _API,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": policy, "labels": MARK},
        "spec": {"policyName": policy, "validationActions": ["Deny"]},
    }


def outside_of_trusted(rules: IsolationSettings) -> Json:
    """Selects all namespaces but those whose writers may have GPUs without the hub."""
    name = "kubernetes.io/metadata.name"  # the API server sets it and lets nobody change it
    return {"matchExpressions": [{"key": name, "operator": "NotIn", "values": trusted(rules)}]}


def trusted(rules: IsolationSettings) -> list[str]:
    """Namespaces whose writers may have GPUs without the hub."""
    return sorted({rules.system_namespace, *rules.trusted_namespaces})


def outsider(rules: IsolationSettings, account: str) -> str:
    """Neither Kubernetes itself, nor the account whose task it is, nor who may help in an emergency."""
    helpers = (*rules.admin_groups, *rules.break_glass_groups)
    return f"!({either(kube(), is_user(account), in_groups(helpers))})"


def kube() -> str:
    """Kubernetes' own programs: the control plane, its controllers, the kubelets."""
    return f"({is_user(*_KUBE_USERS)} || {in_groups(_KUBE_GROUPS)})"


def is_user(*users: str) -> str:
    """Who asks is one of these."""
    return f"request.userInfo.username in {text_list(users)}" if users else "false"


def in_groups(groups: Sequence[str]) -> str:
    """Who asks belongs to one of these."""
    return f"request.userInfo.groups.exists(g, g in {text_list(groups)})" if groups else "false"


def either(*conditions: str) -> str:
    """One of these holds; those that never do are left out."""
    return " || ".join(f"({condition})" for condition in conditions if condition != "false") or "false"


def text_list(texts: Iterable[str]) -> str:
    """A list of strings, whatever is in them: a JSON string is a CEL string too."""
    return json.dumps(list(texts))
