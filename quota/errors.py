"""Everything a caller can cause, each with a stable code and an HTTP status.

HubError
├── BadRequest 422      a field is wrong in a way only the service can know
├── Unauthenticated 401
├── Forbidden 403
├── NotFound 404        also another organization's object
├── Conflict 409        the state does not allow it
│   ├── InsufficientBalance
│   ├── CapacityTaken
│   ├── BookingExceedsCapacity
│   ├── SecretAlreadyShown
│   ├── TokenEnded, AlreadyRotated
│   ├── LogsNotStarted
│   └── StaleEpoch, StaleSequence, LeaseHeld
├── CursorExpired, LogsGone 410
├── PreconditionFailed 412   If-Match names another version
├── BodyTooLarge 413
├── IdempotencyMismatch, QuestionTooLong 422
├── RateLimited, LockedOut, TooManyLogs, TooManyQuestions 429   with `retry_after_s`, also sent as Retry-After
└── NoLeader, QuestionFailed, ClusterUnreachable 503          the same
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from quota.clock import instant_text

_FIELD = re.compile(r"\{([a-z][a-z0-9_]*)\}")


class HubError(Exception):
    """The hub refused."""

    code = "refused"
    status = 400

    def __init__(self, template: str = "", *, field: str = "", **numbers: int | str) -> None:
        self.template = template or self.title()
        """English, with named fields that `numbers` fill; also the key of its Korean text."""
        self.detail = filled(self.template, numbers)
        self.field = field
        self.numbers = numbers
        super().__init__(self.detail)

    @classmethod
    def title(cls) -> str:
        """The first line of the class's docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0]


def filled(template: str, numbers: Mapping[str, object]) -> str:
    """A template with its named fields filled in; what names no known value stays as it stands."""
    return _FIELD.sub(lambda found: _said(found[1], numbers.get(found[1], found[0])), template)


def _said(name: str, value: object) -> str:
    """A value as people read it: moments as RFC 3339."""
    return instant_text(value) if name.endswith("_at_ms") and isinstance(value, int) else str(value)


class BadRequest(HubError):
    """The request is not valid."""

    code, status = "invalid_request", 422


class UnknownGpuClass(BadRequest):
    """The hub has no such GPU class."""

    code = "unknown_gpu_class"


class NeverFits(BadRequest):
    """The hub could never run this, even when it is empty."""

    code = "never_fits"


class JobTooLarge(BadRequest):
    """The job takes more GPUs than a job, or its organization, may have at once."""

    code = "job_too_large"


class WalltimeTooLong(BadRequest):
    """The job asks for more time than a job may have."""

    code = "walltime_too_long"


class IdempotencyMismatch(HubError):
    """This Idempotency-Key was used with another request."""

    code, status = "idempotency_key_reused", 422


class Unauthenticated(HubError):
    """A valid token is needed: `Authorization: Bearer …`."""

    code, status = "unauthenticated", 401


class Forbidden(HubError):
    """This token may not do that."""

    code, status = "forbidden", 403


class NotFound(HubError):
    """There is no such object."""

    code, status = "not_found", 404


class Conflict(HubError):
    """The present state does not allow that."""

    code, status = "conflict", 409


class AlreadyExists(Conflict):
    """An object with this id exists already."""

    code = "already_exists"


class SecretAlreadyShown(Conflict):
    """This was done already, and its secret is shown only once; make a new one."""

    code = "secret_already_shown"


class TokenEnded(Conflict):
    """This token was revoked or has expired; make a new one."""

    code = "token_ended"


class AlreadyRotated(Conflict):
    """This token has a successor already."""

    code = "already_rotated"


class InsufficientBalance(Conflict):
    """The account has less GPU time left than was asked for."""

    code = "insufficient_balance"


class NothingToRefund(Conflict):
    """Nothing of that time was charged that is not given back already."""

    code = "nothing_to_refund"


class RefundCapReached(Conflict):
    """The grant's policy gives back no more of this job's time after faults."""

    code = "refund_cap_reached"


class NoGrant(Conflict):
    """The organization has no grant that could pay for this."""

    code = "no_grant"


class TransferMismatch(Conflict):
    """A transfer with this id but other content exists already."""

    code = "transfer_mismatch"


class WrongState(Conflict):
    """The job or attempt is not in a state that allows this."""

    code = "wrong_state"


class NotRestartable(Conflict):
    """The job would not come again: it is not stopped for another."""

    code = "not_restartable"


class PreemptedTooOften(Conflict):
    """The job was stopped for others as often as it may be within 24 hours."""

    code = "preempted_too_often"


class CapacityTaken(Conflict):
    """The node has fewer free GPUs of this class than the placement takes."""

    code = "capacity_taken"


class BookingExceedsCapacity(Conflict):
    """Beside the other bookings the hub has too few GPUs for this one."""

    code = "booking_exceeds_capacity"


class NotSchedulable(Conflict):
    """The cluster or node takes no new jobs now."""

    code = "not_schedulable"


class GrantNotActive(Conflict):
    """The grant does not cover the time this job may take."""

    code = "grant_not_active"


class GrantCapReached(Conflict):
    """The grant already has as many GPUs in use as it may have at once."""

    code = "grant_cap"


class OrganizationCapReached(Conflict):
    """The organization already has as many GPUs in use as it may have at once."""

    code = "organization_cap"


class OpportunisticOff(Conflict):
    """The programme pays for no opportunistic jobs now."""

    code = "opportunistic_off"


class QueueFull(Conflict):
    """As many jobs of the organization wait as may wait at once."""

    code = "queue_full"


class PreconditionFailed(HubError):
    """The object was changed since it was read; read it again."""

    code, status = "precondition_failed", 412


class BodyTooLarge(HubError):
    """The body is larger than the hub reads."""

    code, status = "body_too_large", 413


class RateLimited(HubError):
    """This token sends requests faster than it may."""

    code, status = "rate_limited", 429


class LockedOut(HubError):
    """Too many wrong tokens came from there."""

    code, status = "locked_out", 429


class StaleEpoch(Conflict):
    """A newer scheduler has taken over."""

    code = "stale_epoch"


class StaleSequence(Conflict):
    """The batch is not the stream's next one."""

    code = "stale_sequence"


class LeaseHeld(Conflict):
    """Another scheduler holds the lease."""

    code = "lease_held"


class RankingBaseUnknown(Conflict):
    """The ranking that these changes start from is not the one stored; send it whole."""

    code = "ranking_base_unknown"


class CursorExpired(HubError):
    """The feed no longer reaches back to this cursor; take a new snapshot."""

    code, status = "cursor_expired", 410


class LogsNotStarted(Conflict):
    """This has not started yet, so it has written nothing."""

    code = "logs_not_started"


class LogsGone(HubError):
    """The log is no more: it goes with its pod."""

    code, status = "logs_gone", 410


class TooManyLogs(HubError):
    """As many logs are being read as may be at once."""

    code, status = "too_many_logs", 429


class TooManyQuestions(HubError):
    """As many what-if questions are being played as may be at once."""

    code, status = "too_many_questions", 429


class QuestionTooLong(HubError):
    """The what-if question was not played within its time."""

    code, status = "question_too_long", 422


class NoLeader(HubError):
    """No scheduler leads at this moment, and only the one that leads can answer this."""

    code, status = "no_leader", 503


class QuestionFailed(HubError):
    """The scheduler could not play the what-if question."""

    code, status = "question_failed", 503


class ClusterUnreachable(HubError):
    """The cluster that runs this does not answer."""

    code, status = "cluster_unreachable", 503
