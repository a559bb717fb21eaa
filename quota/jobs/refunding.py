"""Refunds by operators: charged time of one attempt given back, with the evidence that it rests on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, select

from quota.audit import service as audit
from quota.db import Tx
from quota.errors import NotFound, NothingToRefund, RefundCapReached
from quota.jobs import settlement
from quota.jobs.service import lock_job
from quota.jobs.tables import attempts
from quota.ledger import holds, refunds
from quota.ledger.rules import Hold, Slice, amount_gpu_us
from quota.programs import endings
from quota.schemas.identity import Caller
from quota.schemas.job_changes import JobRefund, RefundedJob, RefundTransfer
from quota.schemas.ledger import RefundKind

_ATTEMPT = (
    select(attempts)
    .where(attempts.c.job_id == bindparam("job"), attempts.c.attempt == bindparam("number"))
    .with_for_update()
)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of one slice that somebody still pays."""

    part: Slice
    starts_at_ms: int
    ends_at_ms: int


def refund(tx: Tx, caller: Caller, job_id: str, body: JobRefund) -> RefundedJob:
    """Give back what [starts, ends) of an attempt was charged and not given back yet, one transfer per slice or less.

    Time that is not settled yet is not charged yet, and not given back. Raises NotFound, NothingToRefund, and
    RefundCapReached when a fault would pass what the grant's policy gives back per job.
    """
    job = lock_job(tx, job_id)
    if job is None:
        raise NotFound("there is no job {job_id}", job_id=job_id)
    # the attempt's row is what settling locks: no slice closes and no other refund is made meanwhile
    row = tx.connection.execute(_ATTEMPT, {"job": job_id, "number": body.attempt}).one_or_none()
    if row is None:
        raise NotFound(
            "there is no attempt {attempt} of job {job_id}",
            field="attempt",
            attempt=body.attempt,
            job_id=job_id,
        )
    held = holds.read_hold(tx, row.hold_id)
    pieces = _pieces(tx, held, body)
    if not pieces:
        raise NothingToRefund(
            "attempt {attempt} was charged nothing between {starts_at_ms} and {ends_at_ms} that is not given back",
            attempt=body.attempt,
            starts_at_ms=body.starts_at,
            ends_at_ms=body.ends_at,
        )
    if body.kind is RefundKind.FAULT:
        _check_cap(tx, row, sum(piece.ends_at_ms - piece.starts_at_ms for piece in pieces))
    made = tuple(_give_back(tx, caller, held, piece, body) for piece in pieces)
    returned = sum(transfer.amount_gpu_us for transfer in made if transfer.payer == "grant")
    if returned:
        settlement.count_usage(tx, row.organization_id, -returned, opportunistic=row.opportunistic)
        endings.sweep(tx, [row.grant_id])
    tx.touch("grant", row.grant_id)
    detail = {
        "attempt": body.attempt,
        "kind": body.kind.value,
        "evidence": body.evidence,
        "amount_gpu_us": str(returned),
        "transfers": [transfer.transfer_id for transfer in made],
    }
    audit.record(tx, caller, "job.refund", job_id, reason=body.reason, detail=detail)
    return RefundedJob(
        job_id=job_id,
        attempt=body.attempt,
        kind=body.kind,
        transfers=made,
        refunded_gpu_us=returned,
        refunded_gpu_hours=returned,
        fault_time_left_ms=settlement.fault_time_left_ms(tx, job_id, row.grant_id),
    )


def _pieces(tx: Tx, held: Hold, body: JobRefund) -> list[_Piece]:
    return [
        _Piece(part, begin, end)
        for part in settlement.slices_of(tx, held.job_id, held.attempt)
        for begin, end in refunds.refundable(tx, held, part, body.starts_at, body.ends_at, body.kind)
    ]


def _check_cap(tx: Tx, row: Row[Any], asked_ms: int) -> None:
    left_ms = settlement.fault_time_left_ms(tx, row.job_id, row.grant_id)
    if asked_ms > left_ms:
        raise RefundCapReached(
            "at most {left_ms} ms of job {job_id} can still be given back after faults, {asked_ms} ms were asked for",
            job_id=row.job_id,
            asked_ms=asked_ms,
            left_ms=left_ms,
            cap_ms=settlement.fault_cap_ms(tx, row.grant_id),
        )


def _give_back(tx: Tx, caller: Caller, held: Hold, piece: _Piece, body: JobRefund) -> RefundTransfer:
    refunds.refund(
        tx,
        held,
        piece.part,
        piece.starts_at_ms,
        piece.ends_at_ms,
        body.kind,
        actor=caller.token_id,
        reason=body.reason,
        evidence=body.evidence,
    )
    entry = refunds.given_back(tx, held, piece.part)[-1]
    milliseconds = piece.ends_at_ms - piece.starts_at_ms
    if body.kind is RefundKind.FAULT:
        settlement.count_faults(tx, held.job_id, milliseconds)
    return RefundTransfer(
        transfer_id=entry.transfer_id,
        slice_id=entry.slice_id,
        starts_at=piece.starts_at_ms,
        ends_at=piece.ends_at_ms,
        amount_gpu_us=amount_gpu_us(milliseconds, held.gpus, held.rate.rate_thousandths),
        payer=entry.payer,
    )
