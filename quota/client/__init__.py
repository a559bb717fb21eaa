"""Typed client of the quota service: the scheduler's, the agents', the command line's and everybody's SDK.

One method per operation of the API, named like its operationId. Sync, thread-safe, one connection pool.
"""

from __future__ import annotations

from quota.client.audit import AuditCalls
from quota.client.bookings import BookingCalls
from quota.client.caps import CapsCalls
from quota.client.fleet import FleetCalls
from quota.client.gpus import GpuCalls
from quota.client.identity import IdentityCalls
from quota.client.idle import IdleCalls
from quota.client.jobs import JobCalls
from quota.client.limits import LimitCalls
from quota.client.programs import ProgramCalls
from quota.client.reconciliation import ReconciliationCalls
from quota.client.scheduling import SchedulingCalls
from quota.client.snapshots import SnapshotCalls
from quota.client.statements import StatementCalls
from quota.client.switches import SwitchCalls
from quota.refusals import ServiceProblem, ServiceUnavailable

__all__ = ["QuotaClient", "ServiceProblem", "ServiceUnavailable"]


class QuotaClient(
    JobCalls,
    ProgramCalls,
    LimitCalls,
    StatementCalls,
    FleetCalls,
    GpuCalls,
    BookingCalls,
    SwitchCalls,
    CapsCalls,
    IdleCalls,
    IdentityCalls,
    AuditCalls,
    ReconciliationCalls,
    SchedulingCalls,
    SnapshotCalls,
):
    """Calls one quota service with one token."""
