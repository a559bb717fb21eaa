"""HTTP door of the operators' switches; each can be asked with `?dry_run=true` first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from quota.db import Tx
from quota.door import HubRoute, IfMatch, access, answer, caller_of, hub_of, language_of, tagged
from quota.fleet import switches as placement
from quota.jobs import grant_edits, switches
from quota.jobs.telling import Teller
from quota.programs.service import tag_of_grant
from quota.schemas.fleet import Node, NodeChange
from quota.schemas.identity import Role, Scope
from quota.schemas.switches import (
    FreezeChange,
    FreezeReply,
    GrantEdit,
    GrantEditReply,
    NodeReply,
    PlacementChange,
    PlacementList,
    PlacementReply,
    RequeueReply,
    RequeueRequest,
)
from quota.schemas.values import ClassId, Id, NodeName

T = TypeVar("T", bound=BaseModel)

router = APIRouter(tags=["operators' switches"], route_class=HubRoute)

DryRun = Annotated[bool, Query(description="Answer what this would do, and do nothing.")]
# An auditor changes nothing and asks for no change, not even in thought: a dry run takes the locks of the change.


@router.put(
    "/v1/organizations/{organization_id}/freeze",
    operation_id="freeze_organization",
    response_model=FreezeReply,
    openapi_extra=access(Role.OPERATOR, scope=Scope.IDENTITY_WRITE),
)
def freeze_organization(
    request: Request, organization_id: Id, body: FreezeChange, dry_run: DryRun = False
) -> Response:
    """Let an organization start nothing more, or let it go on (operators).

    What it runs goes on unless `stop_running` is given, which cancels it. Once this is answered no start is accepted.
    """
    caller = caller_of(request)
    return _throw(request, dry_run, lambda tx: switches.freeze(tx, caller, organization_id, body))


@router.get(
    "/v1/placement",
    operation_id="list_placement",
    response_model=PlacementList,
    openapi_extra=access(Role.OPERATOR, Role.AUDITOR, scope=Scope.FLEET_READ),
)
def list_placement(request: Request) -> Response:
    """Where placement is paused, since when, by whom and why (operators, auditors)."""
    with hub_of(request).database.read() as connection:
        return answer(placement.list_switches(connection))


@router.put(
    "/v1/placement/hub",
    operation_id="pause_hub",
    response_model=PlacementReply,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def pause_hub(request: Request, body: PlacementChange, dry_run: DryRun = False) -> Response:
    """Let nothing start anywhere, or let it go on (operators). What runs runs on."""
    caller = caller_of(request)
    return _throw(request, dry_run, lambda tx: switches.pause(tx, caller, "hub", placement.HUB, body))


@router.put(
    "/v1/placement/clusters/{cluster}",
    operation_id="pause_cluster",
    response_model=PlacementReply,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def pause_cluster(request: Request, cluster: Id, body: PlacementChange, dry_run: DryRun = False) -> Response:
    """Let nothing start on a cluster, or let it go on (operators). What runs runs on."""
    caller = caller_of(request)
    return _throw(request, dry_run, lambda tx: switches.pause(tx, caller, "cluster", cluster, body))


@router.put(
    "/v1/placement/gpu-classes/{class_id}",
    operation_id="pause_gpu_class",
    response_model=PlacementReply,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def pause_gpu_class(
    request: Request, class_id: ClassId, body: PlacementChange, dry_run: DryRun = False
) -> Response:
    """Let no job of a GPU class start, or let them go on (operators). What runs runs on."""
    caller = caller_of(request)
    return _throw(request, dry_run, lambda tx: switches.pause(tx, caller, "gpu_class", class_id, body))


@router.patch(
    "/v1/nodes/{cluster}/{node}",
    operation_id="change_node",
    response_model=NodeReply,
    openapi_extra=access(Role.OPERATOR, scope=Scope.FLEET_WRITE),
)
def change_node(
    request: Request,
    cluster: Id,
    node: NodeName,
    body: NodeChange,
    dry_run: DryRun = False,
    if_match: IfMatch = None,
) -> Response:
    """Keep new jobs off a node, or let them on again (operators). What runs there runs on.

    With If-Match the node is changed only if it still has that etag, else 412 `precondition_failed`.
    """
    caller = caller_of(request)
    return _throw(request, dry_run, lambda tx: switches.cordon(tx, caller, cluster, node, body, if_match))


@router.post(
    "/v1/jobs/{job_id}/requeue",
    operation_id="requeue_job",
    response_model=RequeueReply,
    openapi_extra=access(Role.OPERATOR, scope=Scope.JOBS_WRITE),
)
def requeue_job(request: Request, job_id: Id, body: RequeueRequest, dry_run: DryRun = False) -> Response:
    """Send a job that starts or runs back into the queue (operators). Asking twice is asking once.

    What it used stays charged. 409 `wrong_state` for a job that waits, stops or ended.
    """
    caller, language = caller_of(request), language_of(request)
    queue = hub_of(request).queue

    def requeue(tx: Tx) -> RequeueReply:
        reply = switches.requeue(tx, caller, job_id, body, queue)
        told = Teller(tx.connection, language, tx.now_ms).job(reply.job)
        return reply.model_copy(update={"job": told})

    answered = _throw(request, dry_run, requeue)
    answered.headers.update({"Content-Language": language.value, "Vary": "Accept-Language"})
    return answered


@router.patch(
    "/v1/grants/{grant_id}",
    operation_id="edit_grant",
    response_model=GrantEditReply,
    openapi_extra=access(Role.OPERATOR, scope=Scope.GRANTS_WRITE),
)
def edit_grant(
    request: Request, grant_id: Id, body: GrantEdit, dry_run: DryRun = False, if_match: IfMatch = None
) -> Response:
    """Move a grant's end, or change how many GPUs it may have in use (operators). What is left out stays.

    What runs goes on as the grant's policy says. With If-Match the grant is changed only if it still has that etag,
    else 412 `precondition_failed`. 409 `grant_not_active` for a later end of a grant whose remainder expired.
    """
    caller = caller_of(request)
    return _throw(request, dry_run, lambda tx: grant_edits.edit_grant(tx, caller, grant_id, body, if_match))


def _throw(request: Request, dry_run: bool, work: Callable[[Tx], T]) -> Response:
    database = hub_of(request).database
    if not dry_run:
        reply = database.write(work)
        tag = _tag(reply)
        return answer(reply) if tag is None else tagged(reply, tag)
    return answer(database.preview(work).model_copy(update={"dry_run": True}))


def _tag(reply: BaseModel) -> str | None:
    if isinstance(reply, Node):
        return reply.etag
    return tag_of_grant(reply.grant) if isinstance(reply, GrantEditReply) else None
