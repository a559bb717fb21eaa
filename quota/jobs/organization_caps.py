"""An organization's caps where they bind: at submission, and when an attempt starts."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, bindparam, func, literal_column, select

from quota.db import Tx
from quota.errors import JobTooLarge, OrganizationCapReached, QueueFull, WalltimeTooLong
from quota.fleet.pool import Pool, open_pool, whole_pool
from quota.identity import caps
from quota.identity.freezing import caps_relied_on
from quota.jobs import program_caps
from quota.jobs.program_caps import Bounds, Tightest, tightest
from quota.jobs.tables import attempts, jobs
from quota.ledger.tables import holds
from quota.prepared import Prepared
from quota.schemas.caps import (
    CapsInEffect,
    HubCaps,
    OrganizationCaps,
    OrganizationCapsDocument,
    OrganizationCapsPut,
)
from quota.schemas.identity import Caller
from quota.schemas.jobs import JobSubmission

NO_PART = 1000
"""The whole pool: no cap."""

_IN_USE = Prepared(
    select(func.coalesce(func.sum(holds.c.gpus), 0).label("gpus"))
    .join(attempts, attempts.c.hold_id == holds.c.id)
    .where(
        attempts.c.organization_id == bindparam("organization"),
        attempts.c.capacity_held.is_(True),
        attempts.c.opportunistic.is_(False),
    )
)
_QUEUED = Prepared(
    select(func.count().label("jobs"))
    .select_from(jobs)
    # the state as a literal: the index of waiting jobs is used for no other
    .where(jobs.c.organization_id == bindparam("organization"), jobs.c.state == literal_column("'queued'"))
)


def show_caps(connection: Connection, organization_id: str, now_ms: int) -> OrganizationCapsDocument:
    """An organization's own caps, those in effect, and how far they are reached. Raises NotFound."""
    hub, own = caps.read_caps(connection).caps, caps.own_caps(connection, organization_id)
    in_effect = CapsInEffect(
        max_gpus=_cap(hub, own, lambda: open_pool(connection)),
        job_gpus=own.job_gpus or hub.job_gpus,
        job_walltime_s=own.job_walltime_s or hub.job_walltime_s,
        queued_jobs=own.queued_jobs or hub.queued_jobs,
    )
    return OrganizationCapsDocument(
        organization_id=organization_id,
        caps=own,
        in_effect=in_effect,
        gpus_in_use=gpus_of(connection, organization_id),
        queued_jobs=queued_of(connection, organization_id),
        programs=program_caps.shown(connection, organization_id, now_ms),
        etag=caps.tag_of_own(organization_id, own),
    )


def put_caps(
    tx: Tx, caller: Caller, organization_id: str, body: OrganizationCapsPut, if_match: str | None
) -> OrganizationCapsDocument:
    """Change an organization's own caps and show them. Raises NotFound, PreconditionFailed."""
    caps.put_own_caps(tx, caller, organization_id, body, if_match)
    return show_caps(tx.connection, organization_id, tx.now_ms)


def gpus_of(connection: Connection, organization_id: str) -> int:
    """GPUs of an organization's attempts that keep their capacity: also those that stop, or were lost from sight.

    Opportunistic ones are nobody's by right, and not counted.
    """
    return int(_IN_USE.one(connection, {"organization": organization_id}).gpus)


def queued_of(connection: Connection, organization_id: str) -> int:
    """How many of its jobs wait."""
    return int(_QUEUED.one(connection, {"organization": organization_id}).jobs)


def check_submission(tx: Tx, organization_id: str, body: JobSubmission, bounds: Bounds) -> None:
    """Refuse a job that the caps never let run, or one more than may wait; `bounds` are those of its programmes.

    An organization's submissions are counted one after the other, so that of two at once both are seen. Raises
    JobTooLarge, WalltimeTooLong, QueueFull with the cap.
    """
    hub, own = caps.hub_caps_of(tx), caps.own_caps_counted(tx, organization_id)
    _check_size(tx.connection, hub, own, bounds, body)
    _check_walltime(organization_id, own.job_walltime_s or hub.job_walltime_s, bounds, body.walltime_s)
    program_caps.check_queues(tx.connection, organization_id, bounds)
    most = own.queued_jobs or hub.queued_jobs
    queued = queued_of(tx.connection, organization_id)
    if queued >= most:
        raise QueueFull(
            "{organization_id} has {queued_jobs} jobs waiting of at most {max_queued_jobs}",
            organization_id=organization_id,
            queued_jobs=queued,
            max_queued_jobs=most,
        )


def longest_walltime(tx: Tx, organization_id: str, grant_id: str) -> Tightest:
    """How many seconds a job of this organization on this grant may run, extensions included."""
    own = caps.own_caps(tx.connection, organization_id)
    of_hub = own.job_walltime_s or caps.hub_caps_of(tx).job_walltime_s
    bounds = program_caps.bounds_on_grant(tx.connection, grant_id)
    return tightest(of_hub, bounds, "job_walltime_s") or Tightest(of_hub)


def gpus_left(connection: Connection, organization_id: str) -> tuple[int, int] | None:
    """(cap, GPUs in use); None: it has no cap."""
    hub, own = caps.read_caps(connection).caps, caps.own_caps(connection, organization_id)
    cap = _cap(hub, own, lambda: open_pool(connection))
    return None if cap is None else (cap, gpus_of(connection, organization_id))


def take_gpus(tx: Tx, organization_id: str, gpus: int) -> None:
    """Count an attempt that starts now towards its organization's cap. Raises OrganizationCapReached with numbers.

    Batches of starts come one by one: each holds the epoch until it is committed. Attempts are written when their
    transaction is published: those that it started before this one are counted beside them.
    """
    hub, own = caps.hub_caps_of(tx), caps_relied_on(tx, organization_id)
    cap = _cap(hub, own, lambda: tx.once(("pool",), lambda: open_pool(tx.connection)))
    if cap is None:
        return
    key = ("gpus of", organization_id)
    in_use = tx.once(key, lambda: gpus_of(tx.connection, organization_id))
    if in_use + gpus > cap:
        raise OrganizationCapReached(
            "organization {organization_id} has {gpus_in_use} GPUs in use of at most {max_gpus}, "
            "{needed_gpus} were asked for",
            organization_id=organization_id,
            gpus_in_use=in_use,
            max_gpus=cap,
            needed_gpus=gpus,
        )
    tx.memo[key] = in_use + gpus


def _cap(hub: HubCaps, own: OrganizationCaps, pool: Callable[[], Pool]) -> int | None:
    """The lower of its own cap and its part of the pool; the hub's part binds pools that are large enough."""
    part = hub.organization_pool_thousandths if own.pool_thousandths is None else own.pool_thousandths
    if part == NO_PART:
        return own.max_gpus
    found = pool()
    smallest = 1 if own.pool_thousandths is not None else max(1, hub.organization_pool_from_gpus)
    if found.gpus < smallest:
        return own.max_gpus
    of_pool = found.part(part)
    return of_pool if own.max_gpus is None else min(own.max_gpus, of_pool)


def _check_walltime(organization_id: str, of_hub_s: int, bounds: Bounds, walltime_s: int) -> None:
    longest = tightest(of_hub_s, bounds, "job_walltime_s") or Tightest(of_hub_s)
    if walltime_s <= longest.cap:
        return
    if longest.program_id is not None:
        raise program_caps.refuse_walltime(longest.program_id, walltime_s, longest.cap)
    raise WalltimeTooLong(
        "the job asks for {walltime_s} s, a job of {organization_id} may run for at most {max_walltime_s} s",
        field="walltime_s",
        walltime_s=walltime_s,
        max_walltime_s=longest.cap,
        organization_id=organization_id,
    )


def _check_size(
    connection: Connection, hub: HubCaps, own: OrganizationCaps, bounds: Bounds, body: JobSubmission
) -> None:
    gpus, field = body.pods * body.gpus_per_pod, "pods" if body.pods > 1 else "gpus_per_pod"
    of_job = tightest(own.job_gpus or hub.job_gpus, bounds, "job_gpus")
    if of_job is not None and gpus > of_job.cap:
        if of_job.program_id is not None:
            raise program_caps.refuse_size(of_job.program_id, gpus, of_job.cap, field)
        raise JobTooLarge(
            "the job takes {needed_gpus} GPUs, one job may take at most {max_gpus}",
            field=field,
            needed_gpus=gpus,
            max_gpus=of_job.cap,
        )
    cap = _cap(hub, own, lambda: whole_pool(connection))
    if cap is not None and gpus > cap:
        raise JobTooLarge(
            "the job takes {needed_gpus} GPUs, its organization may have at most {max_gpus} at once",
            field=field,
            needed_gpus=gpus,
            max_gpus=cap,
        )
