"""What a cluster's file says of isolation, and whom the admission policy trusts beside the hub itself."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from quota.schemas.values import Slug

KUBERNETES_NAMESPACES: Final = ("default", "kube-system", "kube-public", "kube-node-lease")
_ORGANIZATION: TypeAdapter[str] = TypeAdapter(Slug)


def _cidr(text: str) -> str:
    return str(ipaddress.ip_network(text))


Cidr = Annotated[str, AfterValidator(_cidr)]
NamespaceName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


class IsolationSettings(BaseModel):
    """The table `[isolation]` of a cluster's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system_namespace: NamespaceName = "gpuhub-system"
    """Where the hub's own programs and accounts are. Never an organization's namespace."""
    trusted_namespaces: tuple[NamespaceName, ...] = ("kube-system", "gpu-operator")
    """Who may write there may have GPUs without the hub: device plugins, exporters, drivers."""
    egress_cidrs: tuple[Cidr, ...] = ()
    """Addresses that every organization's pods may call: object store, registry, a node-local DNS."""
    gpu_caps: dict[str, Annotated[int, Field(ge=0)]] = {}
    """Most GPUs at once by organization, a backstop behind the ledger. It must be no less than what the
    organization's grants allow together: pods past it are not created. Absent: all that the cluster has."""
    schedulers: tuple[str, ...] = ("default-scheduler",)
    """What a pod may name as its scheduler."""
    binders: tuple[str, ...] = ()
    """Users that may bind pods to nodes, beside kube-scheduler. Each can put any pod on a GPU node."""
    admin_groups: tuple[str, ...] = ("system:masters", "kubeadm:cluster-admins")
    """May change, evict and delete the hub's objects in an emergency, but not have GPUs beside it."""
    break_glass_groups: tuple[str, ...] = ()
    """May do all that the policy refuses to others. Empty unless something is being repaired."""

    def clash(self, prefix: str) -> str | None:
        """A namespace of somebody else that an organization with such a prefix could get."""
        taken = (self.system_namespace, *self.trusted_namespaces, *KUBERNETES_NAMESPACES)
        return next((name for name in taken if is_organization_namespace(name, prefix)), None)


def is_organization_namespace(name: str, prefix: str) -> bool:
    """Whether some organization's namespace could have this name."""
    return name.startswith(prefix) and is_organization_id(name.removeprefix(prefix))


def is_organization_id(text: str) -> bool:
    """Whether the quota service takes it as an organization's id."""
    try:
        _ORGANIZATION.validate_python(text)
    except ValidationError:
        return False
    return True
