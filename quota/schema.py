"""Every table of the hub in one place, for migrations and tests."""

from quota.audit import tables as _audit
from quota.bookings import tables as _bookings
from quota.db import metadata
from quota.dispatch import tables as _dispatch
from quota.fleet import gpu_tables as _gpus
from quota.fleet import tables as _fleet
from quota.identity import tables as _identity
from quota.idle import tables as _idle
from quota.jobs import fault_tables as _faults
from quota.jobs import tables as _jobs
from quota.ledger import tables as _ledger
from quota.programs import tables as _programs
from quota.reports import tables as _reports
from quota.usage import tables as _usage

ROOMS = (
    _audit,
    _bookings,
    _dispatch,
    _faults,
    _fleet,
    _gpus,
    _identity,
    _idle,
    _jobs,
    _ledger,
    _programs,
    _reports,
    _usage,
)

__all__ = ["ROOMS", "metadata"]
