"""HTTP door of the GPUs: inventory, quarantine, and what verdicts may do by themselves."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from quota.db import Tx
from quota.door import PAGE, HubRoute, IfMatch, Limit, access, answer, caller_of, hub_of, tagged
from quota.fleet import inventory, quarantine
from quota.schemas.gpus import (
    Gpu,
    GpuChange,
    GpuDetails,
    GpuList,
    GpuPolicyDocument,
    GpuPolicyPut,
    Inventory,
    InventoryReply,
    InventoryState,
    Site,
)
from quota.schemas.identity import Role, Scope
from quota.schemas.usage import GpuUuid
from quota.schemas.values import NodeName

router = APIRouter(tags=["fleet"], route_class=HubRoute)


@router.get(
    "/v1/gpus",
    operation_id="list_gpus",
    response_model=GpuList,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.FLEET_READ),
)
def list_gpus(
    request: Request,
    node: NodeName | None = None,
    site: Site | None = None,
    inventory_state: InventoryState | None = None,
    quarantined: bool | None = None,
    after: GpuUuid | None = None,
    limit: Limit = PAGE,
) -> Response:
    """GPUs by UUID: what, where, how healthy, in quarantine or not (operators, auditors)."""
    hub = hub_of(request)
    with hub.database.read() as connection:
        found = inventory.list_gpus(
            connection,
            hub.clock.now_ms(),
            hub.clock.speed,
            after,
            limit,
            node,
            site,
            inventory_state,
            quarantined=quarantined,
        )
    return answer(found)


@router.put(
    "/v1/gpus",
    operation_id="register_gpus",
    response_model=InventoryReply,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def register_gpus(request: Request, body: Inventory) -> Response:
    """Say which GPUs should be there, with serial, asset number and site (operators); others stay as they are."""
    caller = caller_of(request)
    return answer(hub_of(request).database.write(lambda tx: inventory.register(tx, caller, body)))


@router.get(
    "/v1/gpus/{gpu_uuid}",
    operation_id="read_gpu",
    response_model=GpuDetails,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.FLEET_READ),
)
def read_gpu(request: Request, gpu_uuid: GpuUuid) -> Response:
    """One GPU with its latest verdicts (operators, auditors)."""
    hub = hub_of(request)
    with hub.database.read() as connection:
        return answer(inventory.read_gpu(connection, hub.clock.now_ms(), hub.clock.speed, gpu_uuid))


@router.patch(
    "/v1/gpus/{gpu_uuid}",
    operation_id="change_gpu",
    response_model=Gpu,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def change_gpu(request: Request, gpu_uuid: GpuUuid, body: GpuChange, if_match: IfMatch = None) -> Response:
    """Take a GPU out of use by hand, or let it be used again (operators). What runs on it goes on. 412."""
    caller = caller_of(request)
    hub = hub_of(request)

    def change(tx: Tx) -> Gpu:
        quarantine.change_gpu(tx, caller, gpu_uuid, body, if_match)
        return inventory.read_gpu(tx.connection, tx.now_ms, tx.speed, gpu_uuid).gpu

    changed = hub.database.write(change)
    return tagged(changed, changed.etag)


@router.get(
    "/v1/gpu-policy",
    operation_id="read_gpu_policy",
    response_model=GpuPolicyDocument,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.FLEET_READ),
)
def read_gpu_policy(request: Request) -> Response:
    """What agents' verdicts may do by themselves, and how much of it they did (operators, auditors)."""
    hub = hub_of(request)
    with hub.database.read() as connection:
        found = quarantine.policy_document(connection, hub.clock.now_ms(), hub.clock.speed)
    return tagged(found, found.etag)


@router.put(
    "/v1/gpu-policy",
    operation_id="put_gpu_policy",
    response_model=GpuPolicyDocument,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def put_gpu_policy(request: Request, body: GpuPolicyPut, if_match: IfMatch = None) -> Response:
    """Change it, whole (operators); what was withheld before is judged anew. 412 `precondition_failed`."""
    caller = caller_of(request)
    stored = hub_of(request).database.write(lambda tx: quarantine.put_policy(tx, caller, body, if_match))
    return tagged(stored, stored.etag)
