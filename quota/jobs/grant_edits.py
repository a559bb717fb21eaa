"""A grant's end and its cap on GPUs in use, changed by an operator who is shown first whom that touches."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, and_, func, or_

from quota.db import Tx
from quota.door import check_match
from quota.jobs.reach import attempts_affected, jobs_affected
from quota.jobs.tables import attempts, jobs
from quota.programs import endings, limits
from quota.programs.service import read_grant, tag_of_grant
from quota.schemas.identity import Caller
from quota.schemas.programs import Grant
from quota.schemas.scheduling import JobState
from quota.schemas.switches import Affected, GrantEdit, GrantEditReply


def edit_grant(
    tx: Tx, caller: Caller, grant_id: str, body: GrantEdit, if_match: str | None = None
) -> GrantEditReply:
    """Move the end, set or lift the cap; what the body leaves out stays. Nothing that runs is stopped by this.

    Raises NotFound, PreconditionFailed, BadRequest, GrantNotActive.
    """
    tree = limits.lock_tree(tx, grant_id)
    before = read_grant(tx.connection, grant_id, tx.now_ms)
    check_match(if_match, tag_of_grant(before))
    parties = [share.organization_id or "" for share in tree.shares] or [tree.organization_id or ""]
    if body.ends_at is not None:
        endings.change_end(tx, caller, grant_id, body.ends_at, body.reason)
    if "max_gpus" in body.model_fields_set:
        limits.change_cap(tx, caller, grant_id, body.max_gpus, body.reason)
    after = read_grant(tx.connection, grant_id, tx.now_ms)
    # of an end that lies at now the remainder has expired already
    expires = 0 if body.ends_at is None else max(0, before.available_gpu_us)
    return GrantEditReply(
        dry_run=False,
        changed=(before.ends_at, before.max_gpus) != (after.ends_at, after.max_gpus),
        grant=after,
        past_the_end=_past_the_end(tx.connection, after),
        no_longer_fit=_no_longer_fit(tx.connection, before, after, parties, tx.now_ms),
        expires_gpu_us=expires,
        expires_gpu_hours=expires,
    )


def _past_the_end(connection: Connection, grant: Grant) -> Affected:
    limit_ends = (
        func.coalesce(attempts.c.last_started_at_ms, attempts.c.claimed_at_ms) + attempts.c.walltime_ms
    )
    return attempts_affected(
        connection,
        attempts.c.grant_id == grant.id,
        attempts.c.state != JobState.ENDED.value,
        limit_ends > grant.ends_at,
    )


def _no_longer_fit(
    connection: Connection, before: Grant, after: Grant, parties: list[str], now_ms: int
) -> Affected:
    return jobs_affected(
        connection,
        jobs.c.state == JobState.QUEUED.value,
        jobs.c.organization_id.in_(parties),
        or_(jobs.c.grant_id.is_(None), jobs.c.grant_id == after.id),
        _fits(before, now_ms),
        ~_fits(after, now_ms),
    )


def _fits(grant: Grant, now_ms: int) -> ColumnElement[bool]:
    """In time and under the cap; how much the grant has left comes and goes."""
    in_time = jobs.c.walltime_ms <= grant.ends_at - max(now_ms, grant.starts_at)
    if grant.max_gpus is None:
        return in_time
    return and_(in_time, jobs.c.pods * jobs.c.gpus_per_pod <= grant.max_gpus)
