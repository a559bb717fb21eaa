"""Verdicts of agents, each taken once by its id: recorded always, acted upon as far as the policy lets it."""

from __future__ import annotations

import json
from typing import Any, Literal

from sqlalchemy import Row, insert, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.fleet import quarantine
from quota.fleet.gpu_tables import gpu_verdicts, gpus
from quota.fleet.inventory import find_claim, is_elsewhere
from quota.schemas.gpus import BAD, GpuHealth, GpuVerdict, Outcome

Reception = Literal["new", "known", "conflict"]


def take_verdict(tx: Tx, verdict: GpuVerdict) -> Reception:
    """Record one verdict and act upon it, unless it was taken before.

    Of a GPU that was never reported, or that another node has, nobody is believed: that is a conflict and a finding.
    """
    known = select(gpu_verdicts.c.id).where(gpu_verdicts.c.id == verdict.id)
    if tx.connection.execute(known).first() is not None:
        return "known"
    row = tx.connection.execute(select(gpus).where(gpus.c.gpu_uuid == verdict.gpu_uuid)).one_or_none()
    after_ms = quarantine.seen_after_ms(tx.connection, tx.now_ms, tx.speed)
    if row is None or row.node == "":
        audit.find(tx, "verdict_on_unknown_gpu", verdict.gpu_uuid, f"verdict {verdict.id} of {verdict.node}")
        return "conflict"
    if is_elsewhere(row, verdict.node, after_ms):
        find_claim(tx, row, verdict.node)
        return "conflict"
    at_ms = min(verdict.at, tx.now_ms)
    _insert(tx, verdict, at_ms)
    outcome = _act(tx, verdict, row, at_ms)
    if outcome != "recorded":
        tx.connection.execute(
            update(gpu_verdicts).where(gpu_verdicts.c.id == verdict.id).values(outcome=outcome)
        )
    return "new"


def _insert(tx: Tx, verdict: GpuVerdict, at_ms: int) -> None:
    tx.connection.execute(
        insert(gpu_verdicts),
        {
            "id": verdict.id,
            "gpu_uuid": verdict.gpu_uuid,
            "node": verdict.node,
            "health": verdict.health.value,
            "rule": verdict.rule,
            "xid": verdict.xid,
            "fault": verdict.fault,
            "since_ms": min(verdict.since, at_ms),
            "at_ms": at_ms,
            "detail": verdict.detail,
            "holders": json.dumps([[holder.job_id, holder.attempt] for holder in verdict.holders]),
            "received_at_ms": tx.now_ms,
            "outcome": "recorded",
        },
    )


def _act(tx: Tx, verdict: GpuVerdict, row: Row[Any], at_ms: int) -> Outcome:
    why = verdict.rule if not verdict.detail else f"{verdict.rule}: {verdict.detail}"
    detail: dict[str, object] = {
        "verdict": verdict.id,
        "health": verdict.health.value,
        "rule": verdict.rule,
        "xid": verdict.xid,
        "node": verdict.node,
    }
    audit.record(tx, "agent", "gpu.verdict", verdict.gpu_uuid, reason=why[:500], detail=detail)
    # a verdict that comes late, after the agent found the GPU well again, is history
    if row.health not in BAD and (row.last_seen_ms or 0) > at_ms:
        return "recorded"
    named = update(gpus).where(gpus.c.gpu_uuid == verdict.gpu_uuid)
    tx.connection.execute(named.values(rule="" if verdict.health is GpuHealth.HEALTHY else verdict.rule))
    if verdict.health not in BAD:
        return "recorded"
    return quarantine.take_by_verdict(tx, verdict.gpu_uuid, verdict.id, why)
