"""What agents say of their GPUs, at the door: rows and verdicts of their own nodes, and whose work may have died.

Two steps, each a transaction of its own, because the first locks nodes and the second jobs. What is left when the
process dies, or a reply is lost, late or doubled:

- before the first commits: nothing; the agent sends the same again.
- after it, before the second: the verdicts are stored and the faults are open; `gpus.watch` settles them within a
  minute, and so does the same delivery sent again.
- within the second, between two attempts: those that are settled are settled once, the others are open.
- after both, reply lost: the same delivery again finds every verdict known and every fault settled.
- an old delivery after a newer one: its rows are older than what is known, its verdicts are known or history.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select

from quota.audit import service as audit
from quota.clock import HOUR_MS
from quota.db import Database, Tx
from quota.errors import Forbidden
from quota.fleet import inventory
from quota.fleet.verdicts import take_verdict
from quota.identity.rules import speaks_for
from quota.jobs import faults
from quota.jobs.tables import placements
from quota.schemas.gpus import GpuReport, GpuReportReply, GpuVerdict
from quota.schemas.identity import Caller
from quota.usage.tables import evidence


def deliver(database: Database, caller: Caller, report: GpuReport) -> GpuReportReply:
    """Store rows and verdicts, then settle the faults of attempts that have ended. Raises Forbidden."""
    reply = database.write(lambda tx: store(tx, caller, report))
    if any(verdict.fault for verdict in report.verdicts):
        faults.settle_due(database, {verdict.id for verdict in report.verdicts})
    return reply


def store(tx: Tx, caller: Caller, report: GpuReport) -> GpuReportReply:
    """The first step: what is newer is stored, bad GPUs leave use, faults are noted."""
    named = sorted({row.node for row in report.gpus} | {verdict.node for verdict in report.verdicts})
    strangers = [node for node in named if not speaks_for(caller.node, node)]
    if strangers:
        raise Forbidden(
            "this token speaks for node {node}, not {stranger}",
            node=caller.node or "(none: make a new one)",
            stranger=strangers[0],
        )
    taken = inventory.store_rows(tx, report.gpus)
    conflicts, new = taken.conflicts, 0
    for verdict in sorted(report.verdicts, key=lambda verdict: (verdict.at, verdict.id)):
        reception = take_verdict(tx, verdict)
        conflicts += reception == "conflict"
        new += reception == "new"
        if reception == "new" and verdict.fault:
            faults.note(tx, verdict, _holders(tx, verdict))
    return GpuReportReply(gpus=taken.newer, verdicts=new, conflicts=conflicts)


def _holders(tx: Tx, verdict: GpuVerdict) -> set[tuple[str, int]]:
    """Attempts that were on the GPU: those that the agent names now, and those that its evidence names.

    Only what was placed on that node counts; anything else is a finding.
    """
    named = {(holder.job_id, holder.attempt) for holder in verdict.holders}
    measured = select(evidence.c.job_id, evidence.c.attempt).where(
        evidence.c.gpu_uuid == verdict.gpu_uuid,
        evidence.c.node == verdict.node,
        evidence.c.hour_ms > max(verdict.since, verdict.at - faults.MOST_SPAN_MS) - 2 * HOUR_MS,
        evidence.c.hour_ms <= verdict.at,
    )
    found = {(row.job_id, row.attempt) for row in tx.connection.execute(measured.distinct())}
    placed = _placed(tx, named | found, verdict.node)
    for job_id, attempt in sorted(named - placed):
        detail = f"from {verdict.node}, where it was never placed, by verdict {verdict.id}"
        audit.find(tx, "verdict_of_unknown_attempt", f"{job_id}-{attempt}", detail)
    return placed


def _placed(tx: Tx, wanted: Iterable[tuple[str, int]], node: str) -> set[tuple[str, int]]:
    keys = set(wanted)
    if not keys:
        return set()
    rows = tx.connection.execute(
        select(placements.c.job_id, placements.c.attempt).where(
            placements.c.job_id.in_(sorted({job_id for job_id, _ in keys})), placements.c.node == node
        )
    )
    return {(row.job_id, row.attempt) for row in rows} & keys
