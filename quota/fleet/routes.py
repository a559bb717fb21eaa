"""HTTP door of the fleet room."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from quota.door import READERS, HubRoute, access, answer, caller_of, hub_of
from quota.errors import BadRequest
from quota.fleet import service
from quota.schemas.fleet import (
    Cluster,
    ClusterList,
    GpuClass,
    GpuClassList,
    NewCluster,
    NewGpuClass,
    Node,
    NodeChange,
    NodeList,
)
from quota.schemas.identity import Role, Scope
from quota.schemas.values import ClassId, Id, NodeName

router = APIRouter(tags=["fleet"], route_class=HubRoute)


@router.post(
    "/v1/clusters",
    operation_id="create_cluster",
    status_code=201,
    response_model=Cluster,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def create_cluster(request: Request, body: NewCluster) -> Response:
    """Register a cluster (operators); its nodes come with the scheduler's reports."""
    caller = caller_of(request)
    return answer(hub_of(request).database.write(lambda tx: service.create_cluster(tx, caller, body)), 201)


@router.get(
    "/v1/clusters",
    operation_id="list_clusters",
    response_model=ClusterList,
    openapi_extra=access(*READERS, scope=Scope.FLEET_READ),
)
def list_clusters(request: Request) -> Response:
    """All clusters, and how far each has been observed."""
    with hub_of(request).database.read() as connection:
        return answer(service.list_clusters(connection))


@router.put(
    "/v1/gpu-classes/{class_id}",
    operation_id="put_gpu_class",
    response_model=GpuClass,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def put_gpu_class(request: Request, class_id: ClassId, body: NewGpuClass) -> Response:
    """Add a GPU class, or give it a new rate version (operators). Running attempts keep the rate they pinned."""
    caller = caller_of(request)
    if class_id != body.id:
        raise BadRequest(f"the path says {class_id!r}, the body {body.id!r}", field="id")
    return answer(hub_of(request).database.write(lambda tx: service.put_gpu_class(tx, caller, body)))


@router.get(
    "/v1/gpu-classes",
    operation_id="list_gpu_classes",
    response_model=GpuClassList,
    openapi_extra=access(*READERS, scope=Scope.FLEET_READ),
)
def list_gpu_classes(request: Request) -> Response:
    """All GPU classes with their present rates and prices."""
    with hub_of(request).database.read() as connection:
        return answer(service.list_gpu_classes(connection))


@router.get(
    "/v1/nodes",
    operation_id="list_nodes",
    response_model=NodeList,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.FLEET_READ),
)
def list_nodes(request: Request) -> Response:
    """All nodes: total, foreign and used GPUs per class (operators, auditors)."""
    with hub_of(request).database.read() as connection:
        return answer(service.list_nodes(connection))


@router.patch(
    "/v1/nodes/{cluster}/{node}",
    operation_id="change_node",
    response_model=Node,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def change_node(request: Request, cluster: Id, node: NodeName, body: NodeChange) -> Response:
    """Keep new jobs off a node, or let them on again (operators)."""
    caller = caller_of(request)
    return answer(
        hub_of(request).database.write(lambda tx: service.change_node(tx, caller, cluster, node, body))
    )
