"""Clusters, nodes and GPU classes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from quota.schemas.values import NO_NUL, ClassId, Flag, Instant, Reason, Reply, Request, Slug, Thousandths

PriceKrw = Annotated[int, Field(strict=True, ge=0, le=10_000_000)]


class NewCluster(Request):
    """Register a cluster."""

    id: Slug
    kind: Annotated[str, Field(pattern=r"^(simulated|kubernetes)$")]


class Cluster(Reply):
    """A cluster and how far its scheduler has reported."""

    id: str
    kind: str
    paused: bool
    observed_through: Instant | None


class ClusterList(Reply):
    """Clusters in order of id; pass `next` as `after` for the following page."""

    items: tuple[Cluster, ...]
    next: str | None = None


class NewGpuClass(Request):
    """A GPU class or MIG profile with its rate and price; sent again for a known id it sets a new rate version."""

    id: ClassId
    name: Annotated[str, Field(min_length=1, max_length=100, pattern=NO_NUL)]
    rate_thousandths: Thousandths
    """1000 = one hour costs one hour of the reference GPU (H100)."""
    price_krw: PriceKrw
    """Won for one hour on one GPU of this class."""


class GpuClass(Reply):
    """A GPU class with its present rate."""

    id: str
    name: str
    rate_id: str
    rate_thousandths: int
    price_krw: int
    valid_from: Instant
    etag: str = ""
    """Its version, for If-Match: changes with name, rate and price."""


class GpuClassList(Reply):
    """GPU classes in order of id; pass `next` as `after` for the following page."""

    items: tuple[GpuClass, ...]
    next: str | None = None


class NodeCapacity(Reply):
    """GPUs of one class on a node."""

    gpu_class: str
    total: int
    foreign: int
    used: int


class Node(Reply):
    """A node: what its cluster reports and what the hub has given away on it."""

    cluster: str
    node: str
    schedulable: bool
    cordoned: bool
    rack: str | None = None
    held_back: bool = False
    """Whether it takes no jobs because a GPU of it is in quarantine and it might still give it to somebody."""
    capacities: tuple[NodeCapacity, ...]
    etag: str = ""
    """Its version, for If-Match: changes with `cordoned` only."""


class NodeList(Reply):
    """Nodes in order of cluster and name; pass `next` as `after` for the following page."""

    items: tuple[Node, ...]
    next: str | None = None


class NodeChange(Request):
    """Keep new jobs off a node, or let them on again."""

    cordoned: Flag
    reason: Reason
