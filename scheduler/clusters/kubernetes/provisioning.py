"""Brings a cluster into the shape that the hub needs: policies, taints, a namespace per organization.

Everything is applied, never deleted, so doing it again changes nothing and what somebody broke is whole again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from scheduler.clusters.kubernetes import names
from scheduler.clusters.kubernetes.accounts import account_objects
from scheduler.clusters.kubernetes.admission import POLICIES, policy_objects
from scheduler.clusters.kubernetes.api import JSON_PATCH, Answer, Json, KubernetesApi
from scheduler.clusters.kubernetes.gpu_policy import GPU_PREFIXES
from scheduler.clusters.kubernetes.isolation import organization_objects
from scheduler.clusters.kubernetes.settings import KubernetesSettings

FIELD_MANAGER: Final = "gpuhub-provision"
APPLIED: Final = "hub/applied"
"""Annotation: the hash of what was applied, so that what a later version leaves out is taken away."""
TAINT: Final = {"key": names.MANAGED_TAINT, "effect": "NoSchedule"}

_NODES = "/api/v1/nodes"
_PLACES = {
    "Namespace": "/api/v1/namespaces",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "ResourceQuota": "/api/v1/namespaces/{}/resourcequotas",
    "LimitRange": "/api/v1/namespaces/{}/limitranges",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "ValidatingAdmissionPolicy": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": (
        "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"
    ),
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
}
_REFUSALS = (400, 401, 403, 404, 405, 409, 422)
"""What the API server will say again until somebody changes something."""
_TRIES = 3


class Refused(Exception):
    """The API server declines; the text is its own."""


class Outcome(StrEnum):
    """What became of one object."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Step:
    """One object, and what became of it."""

    outcome: Outcome
    what: str
    """Its kind and name, as people write them."""


def setup_objects(settings: KubernetesSettings) -> Json:
    """What a cluster admin applies once: the accounts with their rights, and the policies that bound them."""
    policies = [_signed(policy) for policy in policy_objects(settings)]
    items = [*account_objects(settings.isolation, POLICIES), *policies]
    return {"apiVersion": "v1", "kind": "List", "items": items}


def set_up(api: KubernetesApi, settings: KubernetesSettings) -> Iterator[Step]:
    """Apply what a cluster admin applies once, as the admin whose `api` it is. Raises Refused or ClusterUnavailable."""
    work = Provisioner(api, settings)
    for thing in setup_objects(settings)["items"]:
        yield work.apply(thing)


class Provisioner:
    """Works on one cluster. With `dry_run` the API server checks everything and keeps nothing."""

    def __init__(self, api: KubernetesApi, settings: KubernetesSettings, *, dry_run: bool = False) -> None:
        self._api = api
        self._settings = settings
        self._dry_run = "All" if dry_run else None

    def nodes(self) -> list[Json]:
        """All nodes there are. Raises Refused or ClusterUnavailable."""
        items: list[Json] = _accepted("nodes", self._api.get(_NODES, fine=_REFUSALS)).get("items") or []
        return items

    def cluster(self, nodes: list[Json]) -> Iterator[Step]:
        """The policies, then the taint of the GPU nodes. Raises Refused or ClusterUnavailable."""
        for thing in policy_objects(self._settings):
            yield self.apply(thing)
        for node in nodes:
            if is_of_a_class(node, self._settings):
                yield self._taint(node)

    def organization(self, organization_id: str, totals: Mapping[str, int]) -> Iterator[Step]:
        """An organization's namespace with all that is in it. Raises Refused or ClusterUnavailable."""
        namespace, *contents = organization_objects(organization_id, self._settings, totals)
        self._check_owner(namespace["metadata"]["name"], organization_id)
        made = self.apply(namespace)
        yield made
        # in a trial the namespace is not there, and nothing can be tried in it
        is_missing = self._dry_run is not None and made.outcome is Outcome.CREATED
        for thing in contents:
            yield Step(Outcome.CREATED, _title(thing)) if is_missing else self.apply(thing)

    def totals(self) -> Counter[str]:
        """How much the cluster has of each GPU resource. Raises Refused or ClusterUnavailable."""
        return totals_of(self.nodes(), self._settings)

    def _check_owner(self, namespace: str, organization_id: str) -> None:
        """Somebody else's namespace of that name is left alone: what is in it is not ours."""
        found = self._get(f"{_PLACES['Namespace']}/{namespace}")
        if found is None:
            return
        owner = (found["metadata"].get("labels") or {}).get(names.ORGANIZATION)
        if owner != organization_id:
            whose = f"belongs to {owner}" if owner else "is not the hub's"
            raise Refused(
                f"namespace {namespace} is there and {whose}; "
                f"if it may become {organization_id}'s: "
                f"kubectl label --overwrite namespace {namespace} {names.ORGANIZATION}={organization_id}"
            )

    def apply(self, thing: Json) -> Step:
        """One object as it shall be. Raises Refused or ClusterUnavailable."""
        thing = _signed(thing)
        path = path_of(thing)
        before = self._get(path)
        if before is not None and holds(thing, before):
            return Step(Outcome.UNCHANGED, _title(thing))
        answer = self._api.apply(path, thing, FIELD_MANAGER, fine=_REFUSALS, dryRun=self._dry_run)
        after = _accepted(_title(thing), answer)
        if before is None:
            return Step(Outcome.CREATED, _title(thing))
        is_same = _content(before) == _content(after)
        return Step(Outcome.UNCHANGED if is_same else Outcome.CHANGED, _title(thing))

    def _taint(self, node: Json) -> Step:
        """Not by apply: a node's taints are one list, and others set taints, too."""
        name = node["metadata"]["name"]
        path, title = f"{_NODES}/{name}", f"taint of Node {name}"
        for _ in range(_TRIES):
            taints = node["spec"].get("taints") or []
            if any(TAINT.items() <= taint.items() for taint in taints):
                return Step(Outcome.UNCHANGED, title)
            patch = [
                {
                    "op": "test",
                    "path": "/metadata/resourceVersion",
                    "value": node["metadata"]["resourceVersion"],
                },
                {"op": "add", "path": "/spec/taints", "value": [*taints, TAINT]},
            ]
            answer = self._api.patch(path, patch, content=JSON_PATCH, fine=_REFUSALS, dryRun=self._dry_run)
            if answer.status not in (409, 422):
                _accepted(title, answer)
                return Step(Outcome.CHANGED, title)
            # the node told of itself meanwhile
            node = _accepted(title, self._api.get(path, fine=_REFUSALS))
        raise Refused(f"{title}: it changes all the time; {answer.message}")

    def _get(self, path: str) -> Json | None:
        answer = self._api.get(path, fine=_REFUSALS)
        return None if answer.status == 404 else _accepted(path, answer)


def totals_of(nodes: list[Json], settings: KubernetesSettings) -> Counter[str]:
    """How much the cluster has of each GPU resource."""
    resources = {form.resource for form in settings.classes.values()}
    totals: Counter[str] = Counter()
    for node in nodes:
        capacity = _capacity(node)
        totals.update({name: int(capacity[name]) for name in resources if name in capacity})
    return totals


def is_of_a_class(node: Json, settings: KubernetesSettings) -> bool:
    """Whether it has GPUs for the hub. Its labels say so before its device plugin does."""
    labels = node["metadata"].get("labels") or {}
    return any(form.labels.items() <= labels.items() for form in settings.classes.values())


def strays(nodes: list[Json], settings: KubernetesSettings) -> list[str]:
    """Nodes with GPUs that no class of the cluster's file knows: they get no taint."""
    return [
        node["metadata"]["name"]
        for node in nodes
        if not is_of_a_class(node, settings)
        and any(name.startswith(GPU_PREFIXES) for name in _capacity(node))
    ]


def _capacity(node: Json) -> dict[str, str]:
    return node.get("status", {}).get("capacity") or {}


def path_of(thing: Json) -> str:
    """Where an object is."""
    metadata = thing["metadata"]
    return f"{_PLACES[thing['kind']].format(metadata.get('namespace'))}/{metadata['name']}"


def holds(wanted: object, there: object) -> bool:
    """Whether all that is wanted is there. What the server adds to a map is fine; to a list nothing is added."""
    match wanted:
        case dict():
            return isinstance(there, dict) and all(
                holds(value, there.get(key)) or (value in ({}, []) and key not in there)
                for key, value in wanted.items()
            )
        case list():
            return (
                isinstance(there, list)
                and len(wanted) == len(there)
                and all(holds(one, other) for one, other in zip(wanted, there, strict=True))
            )
        case _:
            return wanted == there


def _signed(thing: Json) -> Json:
    if APPLIED in thing["metadata"].get("annotations", ()):
        return thing
    text = json.dumps(thing, sort_keys=True)
    notes = {APPLIED: hashlib.sha256(text.encode()).hexdigest()[:16]}
    return thing | {"metadata": thing["metadata"] | {"annotations": notes}}


def _content(thing: Json) -> dict[str, Any]:
    """All but what every write changes."""
    metadata = {
        key: value
        for key, value in thing["metadata"].items()
        if key not in ("managedFields", "resourceVersion", "generation")
    }
    return {key: value for key, value in thing.items() if key != "status"} | {"metadata": metadata}


def _accepted(title: str, answer: Answer) -> Json:
    if answer.status in _REFUSALS:
        raise Refused(f"{title}: {answer.message}")
    return answer.body


def _title(thing: Json) -> str:
    metadata = thing["metadata"]
    space = metadata.get("namespace")
    return f"{thing['kind']} {f'{space}/' if space else ''}{metadata['name']}"
