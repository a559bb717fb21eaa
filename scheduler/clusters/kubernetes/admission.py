"""Who may have GPUs, and who may touch what the hub made: ValidatingAdmissionPolicies with their bindings. Pure.

A taint does not keep out a pod that names its node, and anybody may write an owner reference, so the policies
say *who*. Each looks at requests only, never at what is there already: what ran before goes on.
"""

from __future__ import annotations

from typing import Final

from scheduler.clusters.kubernetes import names
from scheduler.clusters.kubernetes.accounts import PROVISIONER, SCHEDULER, user_of
from scheduler.clusters.kubernetes.api import Json
from scheduler.clusters.kubernetes.gpu_policy import GPUS, HUB_KEYS, gpu_policy
from scheduler.clusters.kubernetes.isolation import SERVICE_ACCOUNT
from scheduler.clusters.kubernetes.policy import (
    TOUCH,
    Rule,
    binding_of,
    either,
    in_groups,
    is_user,
    kube,
    outside_of_trusted,
    outsider,
    policy,
    text_list,
    trusted,
)
from scheduler.clusters.kubernetes.settings import KubernetesSettings

BINDINGS: Final = "gpuhub-bindings"
JOBS: Final = "gpuhub-jobs"
ISOLATION: Final = "gpuhub-isolation"
NAMESPACES: Final = "gpuhub-namespaces"
ACCOUNTS: Final = "gpuhub-accounts"
POLICIES: Final = (GPUS, BINDINGS, JOBS, ISOLATION, NAMESPACES, ACCOUNTS)

JOB_NAME_PATTERN: Final = "^job-[0-9a-z]{22}-[0-9]+$"
"""What the hub calls the Job and the Service of an attempt."""

_BATCH_LABELS = "batch.kubernetes.io/"

_OF_HUB = {"matchExpressions": [{"key": names.ORGANIZATION, "operator": "Exists"}]}
_IN_HUB = f"namespaceObject.metadata.?labels[?'{names.ORGANIZATION}'].orValue('') != ''"
_BY_HUB = (
    f"(request.operation == 'CREATE' ? dyn(object) : dyn(oldObject)).metadata.?labels[?'{names.JOB_ID}']"
    ".orValue('') != ''"
)


def policy_objects(settings: KubernetesSettings) -> list[Json]:
    """Every policy, and after each its binding."""
    policies = [
        gpu_policy(settings),
        _bindings(settings),
        _jobs(settings),
        _isolation(settings),
        _namespaces(settings),
        _accounts(settings),
    ]
    return [thing for made in policies for thing in (made, binding_of(made["metadata"]["name"]))]


def _bindings(settings: KubernetesSettings) -> Json:
    """Who binds a pod puts it on any node, past every taint."""
    rules = settings.isolation
    return policy(
        BINDINGS,
        [Rule("", ("bindings", "pods/binding"), ("CREATE",))],
        [
            (
                either(kube(), is_user(*rules.binders), in_groups(rules.break_glass_groups)),
                "only kube-scheduler binds pods to nodes",
            )
        ],
        namespaces=outside_of_trusted(rules),
    )


def _jobs(settings: KubernetesSettings) -> Json:
    """In the hub's namespaces: what the hub made is changed, ended and told of by the hub and by Kubernetes alone."""
    rules = settings.isolation
    return policy(
        JOBS,
        [
            Rule("", ("pods", "pods/status", "pods/ephemeralcontainers", "pods/resize"), TOUCH),
            Rule("", ("pods/eviction",), ("CREATE",)),
            Rule("", ("services", "services/status"), TOUCH),
            Rule("batch", ("jobs", "jobs/status"), TOUCH),
        ],
        [
            (
                f"variables.creates || !variables.before.exists(k, k.startsWith('{HUB_KEYS}'))",
                "this belongs to a job of the hub; change or cancel the job there",
            ),
            ("variables.part != 'eviction'", "pods of the hub are not evicted; cancel the job"),
            (
                "variables.deletes || variables.kind != 'services' || "
                f"!variables.labels.exists(k, k.startsWith('{HUB_KEYS}'))",
                f"labels that begin with {HUB_KEYS} are the hub's",
            ),
            (
                "!variables.creates || variables.part != '' || !(variables.kind in ['jobs', 'services']) || "
                f"!object.metadata.name.matches('{JOB_NAME_PATTERN}')",
                "such names belong to jobs of the hub",
            ),
            (
                # or the Job controller takes it for a pod of that Job, and its end for the Job's
                "variables.deletes || variables.kind != 'pods' || "
                f"({_same_labels(_BATCH_LABELS)} && "
                "variables.owners.all(o, o.kind != 'Job' || o in variables.ownersBefore))",
                "only the Job controller makes pods of a Job",
            ),
            (
                "variables.deletes || variables.kind != 'jobs' || !dyn(object).spec.?manualSelector.orValue(false)",
                "a Job here does not choose its pods itself",
            ),
            (
                "variables.deletes || variables.kind != 'services' || "
                "size(dyn(object).spec.?externalIPs.orValue([])) == 0",
                "a Service here takes no external addresses",
            ),
        ],
        variables={
            "kind": "request.resource.resource",
            "part": "request.?subResource.orValue('')",
            "creates": "request.operation == 'CREATE'",
            "deletes": "request.operation == 'DELETE'",
            "labels": "variables.deletes ? {} : dyn(object).metadata.?labels.orValue({})",
            "before": "variables.creates ? {} : dyn(oldObject).metadata.?labels.orValue({})",
            "owners": "variables.deletes ? [] : dyn(object).metadata.?ownerReferences.orValue([])",
            "ownersBefore": "variables.creates ? [] : dyn(oldObject).metadata.?ownerReferences.orValue([])",
        },
        namespaces=_OF_HUB,
        outsiders=outsider(rules, user_of(rules, SCHEDULER)),
    )


def _same_labels(prefix: str) -> str:
    """Labels that begin so are what they were."""

    def within(one: str, other: str) -> str:
        kept = f"(k in {other} && {other}[k] == {one}[k])"
        return f"{one}.all(k, !k.startsWith('{prefix}') || {kept})"

    return f"{within('variables.labels', 'variables.before')} && {within('variables.before', 'variables.labels')}"


def _isolation(settings: KubernetesSettings) -> Json:
    """In the hub's namespaces: limits, network rules and shields against drains are not the firm's to set."""
    return policy(
        ISOLATION,
        [
            Rule("", ("resourcequotas", "resourcequotas/status", "limitranges"), TOUCH),
            Rule("networking.k8s.io", ("networkpolicies",), TOUCH),
            Rule("policy", ("poddisruptionbudgets", "poddisruptionbudgets/status"), TOUCH),
        ],
        [("false", "the hub sets this namespace's limits; ask its operators")],
        namespaces=_OF_HUB,
        outsiders=outsider(settings.isolation, user_of(settings.isolation, PROVISIONER)),
    )


def _namespaces(settings: KubernetesSettings) -> Json:
    """A selector of namespaces would look at the new labels only, and miss the request that takes the label away."""
    rules = settings.isolation
    marked = f".metadata.?labels.orValue({{}}).exists(k, k.startsWith('{HUB_KEYS}'))"
    return policy(
        NAMESPACES,
        [Rule("", ("namespaces", "namespaces/status", "namespaces/finalize"), TOUCH)],
        [
            (
                f"(request.operation == 'DELETE' || !object{marked}) && "
                f"(request.operation == 'CREATE' || !oldObject{marked})",
                "the namespaces of organizations are the hub's: `gpuhub scheduler provision` makes them",
            ),
            (
                # who could make one that is not there yet would have all rights in it
                "!((request.operation == 'DELETE' ? oldObject : object).metadata.name in "
                f"{text_list(trusted(rules))})",
                "this namespace is trusted with GPUs, so only cluster admins touch it",
            ),
        ],
        outsiders=outsider(rules, user_of(rules, PROVISIONER)),
    )


def _accounts(settings: KubernetesSettings) -> Json:
    """What roles cannot say: the hub's own accounts write in the namespaces of organizations only."""
    scheduler, provisioner = (user_of(settings.isolation, one) for one in (SCHEDULER, PROVISIONER))
    same = " && ".join(
        f"dyn(object).{part} == dyn(oldObject).{part}"
        for part in (
            "metadata.?labels",
            "metadata.?annotations",
            "metadata.?finalizers",
            "metadata.?ownerReferences",
            "spec.?unschedulable",
            "spec.?podCIDRs",
            "spec.?providerID",
        )
    )
    taints = "spec.?taints.orValue([])"
    keeps = f"dyn(oldObject).{taints}.all(t, t in dyn(object).{taints})"
    adds = (
        f"dyn(object).{taints}.all(t, t in dyn(oldObject).{taints} || "
        f"(t.key == '{names.MANAGED_TAINT}' && t.effect == 'NoSchedule'))"
    )
    return policy(
        ACCOUNTS,
        [
            Rule("", ("pods", "services", "serviceaccounts", "resourcequotas", "limitranges"), TOUCH),
            Rule("batch", ("jobs",), TOUCH),
            Rule("networking.k8s.io", ("networkpolicies",), TOUCH),
            Rule("", ("namespaces", "nodes"), TOUCH),
        ],
        [
            (
                f"variables.kind in ['namespaces', 'nodes'] || ({_IN_HUB})",
                "this account writes in the namespaces of organizations only",
            ),
            (
                f"!(variables.kind in ['jobs', 'pods', 'services']) || {_BY_HUB}",
                "this account touches what it made itself only",
            ),
            (
                f"variables.kind != 'serviceaccounts' || request.name == '{SERVICE_ACCOUNT}'",
                f"this account changes no service account but `{SERVICE_ACCOUNT}`",
            ),
            (
                "variables.kind != 'services' || request.operation == 'DELETE' || "
                "dyn(object).spec.?clusterIP.orValue('') == 'None'",
                "this account makes headless Services only",
            ),
            (
                "variables.kind != 'namespaces' || (request.operation != 'DELETE' && "
                f"dyn(object).metadata.?labels[?'{names.ORGANIZATION}'].orValue('') != '' && "
                "(request.operation == 'CREATE' || dyn(object).metadata.labels"
                f"['{names.ORGANIZATION}'] == dyn(oldObject).metadata.?labels[?'{names.ORGANIZATION}'].orValue('')))",
                f"this namespace is there without the label {names.ORGANIZATION} of its organization; "
                "a cluster admin gives it",
            ),
            (
                f"variables.kind != 'nodes' || (request.operation == 'UPDATE' && {same} && {keeps} && {adds})",
                f"this account adds the taint {names.MANAGED_TAINT} to nodes and changes nothing else of them",
            ),
        ],
        variables={"kind": "request.resource.resource"},
        outsiders=is_user(scheduler, provisioner),
    )
