"""Calls about GPUs: the agents' reports, the inventory, quarantine."""

from __future__ import annotations

from quota.client.transport import Transport
from quota.schemas import gpus


class GpuCalls(Transport):
    """Calls about GPUs."""

    def report_gpus(self, body: gpus.GpuReport) -> gpus.GpuReportReply:
        """Deliver how GPUs are and verdicts on them; delivering them again changes nothing."""
        return self._send("POST", "/v1/gpu-reports", body, gpus.GpuReportReply)

    def list_gpus(
        self,
        after: str | None = None,
        limit: int | None = None,
        node: str | None = None,
        site: str | None = None,
        inventory_state: gpus.InventoryState | None = None,
        quarantined: bool | None = None,
    ) -> gpus.GpuList:
        """GPUs in order of UUID; see `every` for all of them."""
        return self._get(
            "/v1/gpus",
            gpus.GpuList,
            after=after,
            limit=limit,
            node=node,
            site=site,
            inventory_state=inventory_state,
            quarantined=None if quarantined is None else str(quarantined).lower(),
        )

    def register_gpus(self, body: gpus.Inventory) -> gpus.InventoryReply:
        """Say which GPUs should be there."""
        return self._send("PUT", "/v1/gpus", body, gpus.InventoryReply)

    def read_gpu(self, gpu_uuid: str) -> gpus.GpuDetails:
        """One GPU with its latest verdicts."""
        return self._get(f"/v1/gpus/{gpu_uuid}", gpus.GpuDetails)

    def change_gpu(self, gpu_uuid: str, body: gpus.GpuChange, if_match: str | None = None) -> gpus.Gpu:
        """Take a GPU out of use by hand, or let it be used again; with `if_match` only if it still has that etag."""
        return self._send("PATCH", f"/v1/gpus/{gpu_uuid}", body, gpus.Gpu, if_match=if_match)

    def read_gpu_policy(self) -> gpus.GpuPolicyDocument:
        """What verdicts may do by themselves."""
        return self._get("/v1/gpu-policy", gpus.GpuPolicyDocument)

    def put_gpu_policy(self, body: gpus.GpuPolicyPut, if_match: str | None = None) -> gpus.GpuPolicyDocument:
        """Change it, whole; with `if_match` only if it still has that etag."""
        return self._send("PUT", "/v1/gpu-policy", body, gpus.GpuPolicyDocument, if_match=if_match)
