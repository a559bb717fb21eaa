"""How one Kubernetes cluster is reached, and what the hub's GPU classes are there. Read from a TOML file.

A class has its form per cluster, not per hub, because clusters name the same GPU differently: by the version
of their feature discovery, by their MIG strategy, by the machines around the GPUs.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from scheduler.clusters.kubernetes.isolation_settings import IsolationSettings


class BadClusterFile(ValueError):
    """The file that describes a cluster cannot be used; the text says where and why."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassForm(_Strict):
    """One GPU class on this cluster: which nodes have it, under which resource, with how much beside each GPU."""

    labels: Annotated[dict[str, str], Field(min_length=1)]
    """Labels that a node of this class has, all of them."""
    resource: str = "nvidia.com/gpu"
    """A MIG profile has its own, such as `nvidia.com/mig-1g.10gb`."""
    cpu_milli: Annotated[int, Field(ge=1)]
    """Thousandths of a core that a pod gets per GPU."""
    memory_mib: Annotated[int, Field(ge=1)]
    """Memory that a pod gets per GPU."""


class KubernetesSettings(_Strict):
    """One cluster."""

    kubeconfig: Path | None = None
    """None: the service account of the pod in which the scheduler runs."""
    context: str | None = None
    classes: Annotated[dict[str, ClassForm], Field(min_length=1)]
    """Form of each GPU class by its id in the quota service."""
    namespace_prefix: Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]{0,19})?$")] = "hub-"
    """An organization's namespace is this and its id."""
    rack_label: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9./_-]{0,316}$")] = (
        "topology.kubernetes.io/rack"
    )
    """The node label whose value names a node's rack; a node without it is in none."""
    default_image: str = ""
    """For jobs that name none; without it they are refused."""
    image_pull_secret: str = "hub-pull"
    """Name of each namespace's secret for its registry. It need not exist."""
    annotation_prefixes: tuple[str, ...] = ()
    """A pod gets only those of a job's annotations that begin with one of these: a runtime may obey any."""
    user_id: Annotated[int, Field(ge=1)] = 1000
    """Jobs run as this user: restricted pods are never root."""
    qps: Annotated[float, Field(gt=0)] = 100.0
    """Calls per second over time; the API server is shared with everybody else."""
    burst: Annotated[int, Field(ge=1)] = 200
    call_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    watch_s: Annotated[int, Field(ge=3, le=300)] = 4
    """How long one watch lasts. The server tells how far it is two seconds before the end: shorter settles
    sooner, longer asks less often."""
    report_lag_s: Annotated[float, Field(ge=0)] = 10.0
    """How late a node may tell that a container ended. What comes later still is refunded."""
    lost_after_s: Annotated[float, Field(ge=0)] = 60.0
    """How long a node may be silent before its pods are given up. An API server that was away makes all nodes seem
    silent for a moment; what is lost is charged to the last sign of life, whenever it is given up."""
    relist_s: Annotated[float, Field(gt=0)] = 600.0
    """Everything is listed anew this often, whatever the watches say."""
    isolation: Annotated[IsolationSettings, Field(validate_default=True)] = IsolationSettings()
    """What organizations' namespaces get, and whom the admission policy trusts."""

    @field_validator("isolation")
    @classmethod
    def _no_clash(cls, isolation: IsolationSettings, others: ValidationInfo) -> IsolationSettings:
        clash = isolation.clash(others.data.get("namespace_prefix", "hub-"))
        if clash is not None:
            raise ValueError(
                f"an organization's namespace could be called {clash}: choose another prefix or name"
            )
        return isolation


def read_cluster_file(path: Path) -> KubernetesSettings:
    """The cluster that a file describes. Raises BadClusterFile."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadClusterFile(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadClusterFile(f"{path}: not TOML: {error}") from error
    try:
        settings = KubernetesSettings.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadClusterFile(f"{path}: {where}: {first['msg']}") from error
    if settings.kubeconfig is not None and not settings.kubeconfig.is_absolute():
        return settings.model_copy(update={"kubeconfig": path.parent / settings.kubeconfig})
    return settings
