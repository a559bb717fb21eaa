"""HTTP door of the fleet room."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from quota.door import (
    PAGE,
    READERS,
    After,
    HubRoute,
    IdempotencyKey,
    IfMatch,
    Limit,
    access,
    answer,
    caller_of,
    hub_of,
    tagged,
)
from quota.errors import BadRequest
from quota.fleet import service, views
from quota.identity.idempotency import once
from quota.schemas.fleet import (
    Cluster,
    ClusterList,
    GpuClass,
    GpuClassList,
    NewCluster,
    NewGpuClass,
    NodeList,
)
from quota.schemas.identity import Role, Scope
from quota.schemas.values import ClassId, Id, NodeToken

router = APIRouter(tags=["fleet"], route_class=HubRoute)


@router.post(
    "/v1/clusters",
    operation_id="create_cluster",
    status_code=201,
    response_model=Cluster,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def create_cluster(request: Request, body: NewCluster, key: IdempotencyKey = None) -> Response:
    """Register a cluster (operators); its nodes come with the scheduler's reports. 409 `already_exists`."""
    caller = caller_of(request)
    made = hub_of(request).database.write(
        lambda tx: once(
            tx, caller, key, "create_cluster", body, Cluster, lambda: service.create_cluster(tx, caller, body)
        )
    )
    return answer(made, 201)


@router.get(
    "/v1/clusters",
    operation_id="list_clusters",
    response_model=ClusterList,
    openapi_extra=access(*READERS, scope=Scope.FLEET_READ),
)
def list_clusters(request: Request, after: After = None, limit: Limit = PAGE) -> Response:
    """Clusters in order of id, and how far each has been observed."""
    with hub_of(request).database.read() as connection:
        return answer(views.list_clusters(connection, after, limit))


@router.put(
    "/v1/gpu-classes/{class_id}",
    operation_id="put_gpu_class",
    response_model=GpuClass,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def put_gpu_class(
    request: Request, class_id: ClassId, body: NewGpuClass, if_match: IfMatch = None
) -> Response:
    """Add a GPU class, or give it a new rate version (operators). Running attempts keep the rate they pinned.

    The answer's ETag is the class's version; with If-Match the class is changed only if it still has that one,
    else 412 `precondition_failed`.
    """
    caller = caller_of(request)
    if class_id != body.id:
        raise BadRequest(
            "the path says {in_path}, the body {in_body}", field="id", in_path=class_id, in_body=body.id
        )
    put = hub_of(request).database.write(lambda tx: service.put_gpu_class(tx, caller, body, if_match))
    return tagged(put, put.etag)


@router.get(
    "/v1/gpu-classes",
    operation_id="list_gpu_classes",
    response_model=GpuClassList,
    openapi_extra=access(*READERS, scope=Scope.FLEET_READ),
)
def list_gpu_classes(request: Request, after: After = None, limit: Limit = PAGE) -> Response:
    """GPU classes with their present rates and prices, in order of id."""
    with hub_of(request).database.read() as connection:
        return answer(views.list_gpu_classes(connection, after, limit))


@router.get(
    "/v1/nodes",
    operation_id="list_nodes",
    response_model=NodeList,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.FLEET_READ),
)
def list_nodes(
    request: Request, cluster: Id | None = None, after: NodeToken | None = None, limit: Limit = PAGE
) -> Response:
    """Nodes: total, foreign and used GPUs per class (operators, auditors)."""
    with hub_of(request).database.read() as connection:
        return answer(views.list_nodes(connection, after, limit, cluster))
