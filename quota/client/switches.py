"""Operators' switches, and quotes; with `dry_run` the answer is what would happen, and nothing does."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel

from quota.client.transport import Transport
from quota.schemas import fair_share, fleet, jobs, quotes, switches

T = TypeVar("T", bound=BaseModel)


class SwitchCalls(Transport):
    """Operators' switches, and quotes."""

    def quote_job(self, body: jobs.JobSubmission, key: str | None = None) -> quotes.Quote:
        """What `submit_job` would do: the cost, the grant that would pay, when it could start."""
        return self._send("POST", "/v1/jobs", body, quotes.Quote, key, dry_run="true")

    def freeze_organization(
        self, organization_id: str, body: switches.FreezeChange, *, dry_run: bool = False
    ) -> switches.FreezeReply:
        """Let an organization start nothing more, or let it go on."""
        path = f"/v1/organizations/{organization_id}/freeze"
        return self._throw("PUT", path, body, switches.FreezeReply, dry_run)

    def list_placement(self) -> switches.PlacementList:
        """Where placement is paused, since when, by whom and why."""
        return self._get("/v1/placement", switches.PlacementList)

    def pause_hub(self, body: switches.PlacementChange, *, dry_run: bool = False) -> switches.PlacementReply:
        """Let nothing start anywhere, or let it go on."""
        return self._throw("PUT", "/v1/placement/hub", body, switches.PlacementReply, dry_run)

    def pause_cluster(
        self, cluster: str, body: switches.PlacementChange, *, dry_run: bool = False
    ) -> switches.PlacementReply:
        """Let nothing start on a cluster, or let it go on."""
        path = f"/v1/placement/clusters/{cluster}"
        return self._throw("PUT", path, body, switches.PlacementReply, dry_run)

    def pause_gpu_class(
        self, gpu_class: str, body: switches.PlacementChange, *, dry_run: bool = False
    ) -> switches.PlacementReply:
        """Let no job of a GPU class start, or let them go on."""
        path = f"/v1/placement/gpu-classes/{gpu_class}"
        return self._throw("PUT", path, body, switches.PlacementReply, dry_run)

    def read_fair_share(self) -> fair_share.FairShareDocument:
        """How the hub shares GPUs that several want."""
        return self._get("/v1/fair-share", fair_share.FairShareDocument)

    def put_fair_share(
        self, body: fair_share.FairSharePut, if_match: str | None = None
    ) -> fair_share.FairShareDocument:
        """Change how the hub shares, whole; with `if_match` only if it still has that etag."""
        reply = fair_share.FairShareDocument
        return self._send("PUT", "/v1/fair-share", body, reply, if_match=if_match)

    def change_node(
        self,
        cluster: str,
        node: str,
        body: fleet.NodeChange,
        if_match: str | None = None,
        *,
        dry_run: bool = False,
    ) -> switches.NodeReply:
        """Cordon a node or let it take jobs again; with `if_match` only if it still has that etag."""
        path = f"/v1/nodes/{cluster}/{node}"
        return self._throw("PATCH", path, body, switches.NodeReply, dry_run, if_match)

    def edit_grant(
        self,
        grant_id: str,
        body: switches.GrantEdit,
        if_match: str | None = None,
        *,
        dry_run: bool = False,
    ) -> switches.GrantEditReply:
        """Move a grant's end, or set or lift its cap; fields that were not set stay as they are."""
        path = f"/v1/grants/{grant_id}"
        return self._throw("PATCH", path, body, switches.GrantEditReply, dry_run, if_match)

    def requeue_job(
        self, job_id: str, body: switches.RequeueRequest, *, dry_run: bool = False
    ) -> switches.RequeueReply:
        """Send a job that starts or runs back into the queue."""
        path = f"/v1/jobs/{job_id}/requeue"
        return self._throw("POST", path, body, switches.RequeueReply, dry_run)

    def _throw(
        self,
        method: str,
        path: str,
        body: BaseModel,
        reply: type[T],
        dry_run: bool,
        if_match: str | None = None,
    ) -> T:
        # a field that was not set is left out: null would ask for a change
        content = body.model_dump_json(exclude_unset=True).encode()
        asked = "true" if dry_run else None
        return self._send(method, path, content, reply, if_match=if_match, dry_run=asked)
