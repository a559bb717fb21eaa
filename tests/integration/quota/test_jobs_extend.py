"""EXTEND: more time for a running attempt, held first; what fits, what is refused, what is told; both databases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import update

from quota.audit.tables import audit
from quota.db import Tx
from quota.errors import (
    BadRequest,
    GrantNotActive,
    HubError,
    InsufficientBalance,
    NotFound,
    NotSchedulable,
    WrongState,
)
from quota.fleet import service as fleet
from quota.identity.tables import organizations
from quota.jobs import extending
from quota.jobs.tables import jobs
from quota.ledger import service as ledger
from quota.ledger.earmarks import earmark
from quota.ledger.tables import accounts, holds, transfer_legs, transfers
from quota.schemas.fleet import NewGpuClass
from quota.schemas.job_changes import JobExtension
from quota.schemas.jobs import BIGGEST_WALLTIME_S, Job
from quota.schemas.programs import Grant
from quota.schemas.scheduling import StopReason
from tests.builders import (
    GPU_HOUR_US,
    HOUR_MS,
    MINUTE_MS,
    OPERATOR,
    START_MS,
    Hub,
    a_hub,
    a_member,
    ended,
    lost,
    started,
)
from tests.property.ledger.ledger_checks import violations


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    with made.database.read() as connection:
        assert violations(connection) == []
    made.close()


@pytest.fixture
def grant(hub: Hub) -> Grant:
    return hub.award(hours="10")


@pytest.fixture
def job(hub: Hub, grant: Grant) -> Job:
    """2 GPUs for an hour, running since START_MS: 8 of the grant's 10 hours are free."""
    made = hub.submit(gpus_per_pod=2)
    hub.run(made, grant)
    return made


def test_an_extension_grows_hold_attempt_and_job_and_shows_in_the_feed(
    hub: Hub, grant: Grant, job: Job
) -> None:
    cursor, _ = hub.snapshot()
    extended = hub.extend(job, 1800, a_member())
    transfer = f"{job.id}:1:extend:1"
    assert extended.extension.transfer_id == transfer
    assert (extended.walltime_s, extended.held_gpu_us) == (5400, 3 * GPU_HOUR_US)
    assert extended.ends_at == START_MS + 90 * MINUTE_MS
    assert extended.fitting_walltime_s == 7 * 1800, "7 hours on 2 GPUs are left"
    assert hub.attempt(job.id).walltime_ms == 90 * MINUTE_MS
    assert hub.row(jobs, id=job.id).walltime_ms == 90 * MINUTE_MS
    assert hub.row(holds).amount_gpu_us == hub.grant(grant.id).held_gpu_us == 3 * GPU_HOUR_US
    row = hub.row(transfers, id=transfer)
    assert (row.type, row.amount_gpu_us, row.reason) == ("extend", GPU_HOUR_US, "a test")
    legs = [(leg.account_id, leg.d_held, leg.d_used) for leg in hub.rows(transfer_legs, transfer_id=transfer)]
    assert legs == [(grant.account_id, GPU_HOUR_US, 0)]
    head, shown = hub.snapshot()
    assert head == cursor + 1
    attempt = shown[("attempt", f"{job.id}-1")].attempt
    assert attempt is not None
    assert (attempt.walltime_ms, attempt.cost_gpu_us) == (90 * MINUTE_MS, 3 * GPU_HOUR_US)


def test_a_job_shows_its_extensions_and_the_audit_tells_who(hub: Hub, job: Job) -> None:
    hub.extend(job, 600, a_member())
    hub.clock.advance(MINUTE_MS)
    hub.extend(job, 900)
    attempt = hub.job(job.id).attempts[0]
    told = [(entry.number, entry.walltime_s, entry.actor, entry.at) for entry in attempt.extensions]
    assert told == [(1, 600, "member-alpha", START_MS), (2, 900, "operator", START_MS + MINUTE_MS)]
    assert attempt.walltime_s == 3600 + 1500
    assert attempt.held_gpu_us == 2 * (3600 + 1500) * 1_000_000
    rows = [row for row in hub.rows(audit) if row.action == "job.extend"]
    assert [(row.actor, row.reason) for row in rows] == [("member-alpha", "a test"), ("operator", "a test")]
    assert '"walltime_s": 4200' in rows[1].before
    assert '"walltime_s": 5100' in rows[1].after


def test_the_extended_time_is_charged_like_the_rest_and_what_is_left_comes_back(
    hub: Hub, grant: Grant, job: Job
) -> None:
    hub.extend(job, 3600)
    hub.clock.advance(90 * MINUTE_MS)
    hub.finish(job)
    attempt = hub.job(job.id).attempts[0]
    assert attempt.settled_gpu_us == 3 * GPU_HOUR_US
    assert attempt.released_gpu_us == GPU_HOUR_US
    assert (attempt.platform_gpu_us, attempt.hold_resolved) == (0, True)
    assert hub.grant(grant.id).held_gpu_us == 0


def test_an_extension_costs_the_rate_that_its_hold_pinned(hub: Hub, job: Job) -> None:
    body = NewGpuClass(id="h100", name="H100", rate_thousandths=2000, price_krw=9000)
    hub.database.write(lambda tx: fleet.put_gpu_class(tx, OPERATOR, body))
    assert hub.extend(job, 3600).extension.held_gpu_us == 2 * GPU_HOUR_US


def test_a_later_attempt_starts_with_the_extended_time(hub: Hub, grant: Grant) -> None:
    job = hub.submit(restartable=True)
    hub.run(job, grant)
    hub.extend(job, 1800)
    hub.clock.advance(MINUTE_MS)
    hub.report(lost(job, hub.now))
    assert hub.start(job, grant, "n1") == 2
    assert hub.attempt(job.id, 2).walltime_ms == 90 * MINUTE_MS
    assert hub.row(holds, attempt=2).amount_gpu_us == 3 * GPU_HOUR_US // 2


def test_what_starts_may_be_extended_too(hub: Hub, grant: Grant) -> None:
    job = hub.submit()
    hub.start(job, grant)
    assert hub.extend(job, 60).ends_at is None
    hub.report(started(job, hub.now, hub.now))
    hub.clock.advance(3660_000)
    hub.finish(job)
    assert hub.job(job.id).attempts[0].settled_gpu_us == 3660 * 1_000_000


def test_an_extension_is_refused_when_the_balance_is_short_naming_what_fits(hub: Hub, job: Job) -> None:
    before = hub.contents()
    with pytest.raises(InsufficientBalance) as caught:
        hub.extend(job, 4 * 3600 + 1)
    assert caught.value.numbers["fitting_walltime_s"] == 4 * 3600
    assert caught.value.numbers["left_gpu_us"] == 8 * GPU_HOUR_US
    assert caught.value.numbers["needed_gpu_us"] == 2 * (4 * 3600 + 1) * 1_000_000
    assert hub.contents() == before
    assert hub.extend(job, 4 * 3600).fitting_walltime_s == 0


def test_only_whole_seconds_fit(hub: Hub) -> None:
    """Ten GPU-microseconds short of a second more are no second more."""
    grant = hub.award(hours="1.000277775")
    job = hub.submit()
    hub.run(job, grant)
    with pytest.raises(InsufficientBalance) as caught:
        hub.extend(job, 1)
    assert caught.value.numbers["fitting_walltime_s"] == 0
    assert caught.value.numbers["left_gpu_us"] == 999_990


def test_an_overdraft_counts_as_room(hub: Hub, grant: Grant, job: Job) -> None:
    def allow(amount_gpu_us: int) -> None:
        limit = update(accounts).where(accounts.c.id == grant.account_id)
        hub.database.write(
            lambda tx: tx.connection.execute(limit.values(overdraft_gpu_us=amount_gpu_us)) and None
        )

    allow(2 * GPU_HOUR_US)
    with pytest.raises(InsufficientBalance) as caught:
        hub.extend(job, 5 * 3600 + 1)
    assert caught.value.numbers["fitting_walltime_s"] == 5 * 3600
    hub.extend(job, 5 * 3600)
    assert hub.grant(grant.id).held_gpu_us == 12 * GPU_HOUR_US


def test_an_extension_stays_within_the_grants_end(hub: Hub) -> None:
    grant = hub.award(hours="100", ends_at=START_MS + 3 * HOUR_MS)
    job = hub.submit()
    hub.run(job, grant)
    hub.clock.advance(30 * MINUTE_MS)
    with pytest.raises(GrantNotActive) as caught:
        hub.extend(job, 2 * 3600 + 1)
    assert caught.value.numbers["fitting_walltime_s"] == 2 * 3600, "from the start, not from now"
    assert hub.extend(job, 2 * 3600).ends_at == grant.ends_at


def test_what_does_not_run_yet_is_counted_from_now(hub: Hub) -> None:
    grant = hub.award(hours="100", ends_at=START_MS + 3 * HOUR_MS)
    job = hub.submit()
    hub.start(job, grant)
    hub.clock.advance(5 * MINUTE_MS)
    with pytest.raises(GrantNotActive) as caught:
        hub.extend(job, 2 * 3600)
    assert caught.value.numbers["fitting_walltime_s"] == 115 * 60


def test_a_short_balance_shortens_what_fits_before_the_grants_end(hub: Hub) -> None:
    grant = hub.award(hours="2", ends_at=START_MS + 4 * HOUR_MS)
    job = hub.submit()
    hub.run(job, grant)
    with pytest.raises(GrantNotActive) as caught:
        hub.extend(job, 4 * 3600)
    assert caught.value.numbers["fitting_walltime_s"] == 3600


def test_no_job_is_extended_past_the_longest_walltime(hub: Hub) -> None:
    grant = hub.award(hours="1000", ends_at=START_MS + 60 * 24 * HOUR_MS)
    job = hub.submit()
    hub.run(job, grant)
    with pytest.raises(BadRequest) as caught:
        hub.extend(job, BIGGEST_WALLTIME_S - 3599)
    fits = caught.value.numbers["fitting_walltime_s"]
    assert fits == BIGGEST_WALLTIME_S - 3600
    assert hub.extend(job, fits).walltime_s == BIGGEST_WALLTIME_S


def _stopped(hub: Hub, job: Job) -> None:
    hub.stop(job, StopReason.CANCELLED)


def _ended(hub: Hub, job: Job) -> None:
    hub.report(ended(job, hub.now))


def _cancelled(hub: Hub, job: Job) -> None:
    hub.cancel(job.id)


def _sent_back(hub: Hub, job: Job) -> None:
    assert hub.ask_stop(job, StopReason.REQUEUED)


def _over(hub: Hub, _job: Job) -> None:
    hub.clock.advance(HOUR_MS)


@pytest.mark.parametrize("happening", [_stopped, _ended, _cancelled, _sent_back, _over])
def test_no_extension_once_the_end_is_decided(hub: Hub, job: Job, happening: object) -> None:
    happening(hub, job)  # type: ignore[operator]
    before = hub.contents()
    with pytest.raises(WrongState):
        hub.extend(job, 1)
    assert hub.contents() == before


def test_a_waiting_job_has_nothing_to_extend(hub: Hub, grant: Grant) -> None:
    with pytest.raises(WrongState):
        hub.extend(hub.submit(), 60)


def test_time_that_the_platform_was_given_is_not_sold_again(hub: Hub, job: Job) -> None:
    """The watermark passed the limit, though a slower clock still says that there is time."""
    hub.clock.advance(61 * MINUTE_MS)
    hub.report()
    hub.clock.set(START_MS + 59 * MINUTE_MS)
    with pytest.raises(WrongState):
        hub.extend(job, 600)


def test_a_frozen_organization_is_given_no_more_time(hub: Hub, job: Job) -> None:
    frozen = update(organizations).where(organizations.c.id == "alpha").values(frozen=True)
    hub.database.write(lambda tx: tx.connection.execute(frozen) and None)
    with pytest.raises(NotSchedulable):
        hub.extend(job, 60)


@pytest.mark.parametrize("stranger", ["beta", None])
def test_anothers_job_is_as_unknown_as_none(hub: Hub, job: Job, stranger: str | None) -> None:
    body = JobExtension(walltime_s=60, reason="mine now")
    job_id, caller = (job.id, a_member("beta")) if stranger else ("job-none", a_member())
    with pytest.raises(NotFound) as caught:
        hub.database.write(lambda tx: extending.extend(tx, caller, job_id, body))
    assert caught.value.detail == f"there is no job {job_id}"


def test_a_preview_says_what_an_extension_would_do_and_does_nothing(hub: Hub, job: Job) -> None:
    body = JobExtension(walltime_s=1800, reason="a test")
    before = hub.contents()
    told = hub.database.preview(lambda tx: extending.extend(tx, OPERATOR, job.id, body))
    assert hub.contents() == before
    assert told == hub.extend(job, 1800)


def test_a_time_limit_decided_before_an_extension_was_seen_stops_nothing(hub: Hub, job: Job) -> None:
    """The scheduler learns of the extension with the refusal's feed and stops at the new limit."""
    hub.extend(job, 600)
    hub.clock.advance(HOUR_MS)
    refused = hub.stop(job, StopReason.TIME_LIMIT)
    assert (refused.outcome, refused.code) == ("refused", "wrong_state")
    assert refused.numbers["ends_at_ms"] == START_MS + HOUR_MS + 600_000
    assert hub.job(job.id).state == "running"
    hub.clock.advance(600_000)
    assert hub.stop(job, StopReason.TIME_LIMIT).outcome == "accepted"


def test_an_extension_needs_room_on_every_account_of_its_path(hub: Hub, grant: Grant, job: Job) -> None:
    """A grant with a released tranche: the smallest room of both decides, and both hold or none."""
    second = hub.award(hours="10")
    tranche = f"tranche:{second.id}"

    def open_tranche(tx: Tx) -> None:
        parent = second.account_id
        ledger.open_account(tx, tranche, "tranche", parent_id=parent, grant_id=second.id)
        earmark(tx, f"{tranche}:earmark", {tranche: 2 * GPU_HOUR_US}, actor="op", reason="r")

    hub.database.write(open_tranche)
    other = hub.submit()
    hub.start(other, second, "n1", path=(tranche, second.account_id))
    with pytest.raises(HubError) as caught:
        hub.extend(other, 3601)
    assert caught.value.numbers["fitting_walltime_s"] == 3600
    hub.extend(other, 3600)
    held = {name: hub.row(accounts, id=name).held_gpu_us for name in (tranche, second.account_id)}
    assert set(held.values()) == {2 * GPU_HOUR_US}
