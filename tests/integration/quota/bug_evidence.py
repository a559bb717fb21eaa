"""Evidence of one GPU of one attempt, as an agent delivers it."""

from __future__ import annotations

from quota.clock import HOUR_MS
from quota.dispatch import evidence
from quota.schemas.identity import Caller, Role
from quota.schemas.usage import EvidenceBatch, EvidenceReply, EvidenceRow
from tests.builders import Hub

AGENT = Caller(token_id="agent", role=Role.AGENT, organization_id=None, node="n*")


def deliver(hub: Hub, job_id: str, *, seq: int, busy_ms: int, epoch: str = "epoch-01") -> EvidenceReply:
    """Cumulative milliseconds under the first attempt, within the hour of its start."""
    begins = hub.attempt(job_id).first_started_at_ms
    row = EvidenceRow(
        job_id=job_id,
        attempt=1,
        gpu_uuid="GPU-1",
        gpu_class="h100",
        node="n0",
        hour=begins - begins % HOUR_MS,
        agent_epoch=epoch,
        seq=seq,
        busy_ms=busy_ms,
        observed_ms=busy_ms,
    )
    return hub.database.write(lambda tx: evidence.deliver(tx, AGENT, EvidenceBatch(rows=(row,))))
