"""A year of a hub written with plain SQL: jobs, attempts, holds, slices, transfers and legs that add up."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from sqlalchemy import Connection, text

from quota.clock import HOUR_MS
from quota.identity import service as identity
from quota.programs.awards import award
from quota.schemas.identity import NewOrganization
from quota.schemas.programs import Award, Grant
from tests.bench.world import DAY_MS, World

FIRMS = 130
SLICES = 10
"""Hours that each job runs, on one GPU."""
HOUR_GPU_US = 3_600_000_000
YEAR_HOURS = 8760
SEALED_MS = 1
"""How long after the year's last hour its audit seal was made."""


@dataclass(frozen=True, slots=True)
class Year:
    """What the measurements ask about."""

    grant_ids: tuple[str, ...]
    jobs: int
    sealed_at_ms: int


def fill(world: World, jobs: int) -> Year:
    """Write a year that ends now: `jobs` jobs of ten hours each, spread over the firms in turn."""
    grants = [_grant(world, number) for number in range(FIRMS)]
    now = world.database.clock.now_ms() // HOUR_MS * HOUR_MS
    begins = now - (YEAR_HOURS + SLICES) * HOUR_MS
    with world.database.engine.execution_options(hub_writes=True).begin() as connection:
        if world.database.dialect == "postgresql":
            # no check of references row by row: the statements below keep them by construction
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        world_of_firms(connection, grants)
        _numbers(connection, jobs)
        values = {"begins": begins, "jobs": jobs, "rate": _rate_id(connection)}
        for name, statement in _statements(connection.dialect.name).items():
            print(f"  {name} …", file=sys.stderr, flush=True)
            connection.execute(text(statement), values)
        connection.execute(text(_BALANCES))
        connection.execute(text("UPDATE feed_head SET seq = 1000000 + 3 * :jobs + 3"), values)
        connection.execute(text("UPDATE feed_head SET oldest = seq"))
        connection.execute(text(_SEAL), {"at": now + SEALED_MS})
        connection.execute(text("DROP TABLE bench_numbers"))
        connection.execute(text("DROP TABLE bench_firms"))
    if world.database.dialect == "postgresql":
        with world.database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
    return Year(tuple(grant.id for grant in grants), jobs, now + SEALED_MS)


def _grant(world: World, number: int) -> Grant:
    firm = NewOrganization(id=f"firm-{number:03d}", name=f"Firm {number}")
    world.database.write(lambda tx: identity.create_organization(tx, world.caller, firm))
    body = Award(
        program_id="ax",
        organization_id=firm.id,
        gpu_hours=150_000,
        ends_at=world.database.clock.now_ms() + 90 * DAY_MS,
        reason="a year",
    )
    return world.database.write(lambda tx: award(tx, world.caller, body))


def world_of_firms(connection: Connection, grants: list[Grant]) -> None:
    """Which firm and grant each number modulo FIRMS is."""
    connection.execute(
        text("CREATE TABLE bench_firms (place INTEGER, organization TEXT, grant_id TEXT, account TEXT)")
    )
    connection.execute(
        text("INSERT INTO bench_firms VALUES (:place, :organization, :grant, :account)"),
        [
            {
                "place": place,
                "organization": grant.organization_id,
                "grant": grant.id,
                "account": grant.account_id,
            }
            for place, grant in enumerate(grants)
        ],
    )


def _numbers(connection: Connection, jobs: int) -> None:
    connection.execute(text("CREATE TABLE bench_numbers (n INTEGER, hour INTEGER)"))
    connection.execute(
        text(
            "INSERT INTO bench_numbers WITH RECURSIVE r(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM r "
            f"WHERE n + 1 < {jobs}) SELECT n, CAST(n * {YEAR_HOURS}.0 / {jobs} AS INTEGER) FROM r"
        )
    )
    connection.execute(text("CREATE TABLE bench_hours AS SELECT n AS h FROM bench_numbers WHERE n < 10"))


def _rate_id(connection: Connection) -> str:
    return str(connection.execute(text("SELECT rate_id FROM gpu_classes WHERE id = 'h100'")).scalar_one())


_BALANCES = """
UPDATE accounts SET used_gpu_us = (SELECT CAST(COALESCE(SUM(d_used), 0) AS BIGINT) FROM transfer_legs
  WHERE account_id = accounts.id) WHERE kind = 'grant'"""
_SEAL = """
INSERT INTO seals (number, at_ms, through_seq, audit_rows, transfers, previous_sha256, sha256)
SELECT 1, :at, seq, 0, 0, 'none', 'bench' FROM feed_head"""


def _statements(dialect: str) -> dict[str, str]:
    """The year's rows, table by table; `{job}` is a job's id."""
    job = "printf('job-%08d', n)" if dialect == "sqlite" else "'job-' || lpad(CAST(n AS text), 8, '0')"
    wide = "CAST(n AS BIGINT)"
    at = f"(:begins + CAST(hour AS BIGINT) * {HOUR_MS})"
    slice_at = f"(:begins + CAST(hour + h AS BIGINT) * {HOUR_MS})"
    source = f"FROM bench_numbers JOIN bench_firms ON place = n % {FIRMS}"
    by_job = " ORDER BY n"
    amount = SLICES * HOUR_GPU_US
    seq = f"1000000 + 3 * {wide}"
    transfer = (
        "INSERT INTO transfers (id, seq, position, type, at_ms, actor, reason, amount_gpu_us, job_id, attempt,"
        " hold_id, slice_id, starts_at_ms, ends_at_ms, gpus, rate_id) SELECT "
    )
    leg = "INSERT INTO transfer_legs (transfer_id, account_id, seq, d_granted, d_held, d_used) SELECT "
    slice_id = f"{job} || ':1:slice:' || {slice_at}"
    return {
        "jobs": f"INSERT INTO jobs (id, name, organization_id, grant_id, gpu_class, gpus_per_pod, pods, walltime_ms,"
        " grace_ms, restartable, spec, submitted_by, submitted_at_ms, state, end_reason, ended_at_ms, attempt,"
        f" abandonments) SELECT {job}, 'bench', organization, NULL, 'h100', 1, 1, {SLICES * HOUR_MS}, 0, false,"
        f" '{{}}', 'bench', {at}, 'ended', 'succeeded', {at} + {SLICES * HOUR_MS}, 1, 0 {source}{by_job}",
        "holds": "INSERT INTO holds (id, job_id, attempt, grant_id, amount_gpu_us, settled_gpu_us, released_gpu_us,"
        " refunded_gpu_us, platform_gpu_us, resolved, gpu_class, gpus, rate_id, rate_thousandths, price_krw)"
        f" SELECT {job} || ':1:hold', {job}, 1, grant_id, {amount}, {amount}, 0, 0, 0, true, 'h100', 1, :rate, 1000,"
        f" 4000 {source}{by_job}",
        "paths": f"INSERT INTO hold_accounts SELECT {job} || ':1:hold', account {source}{by_job}",
        "attempts": "INSERT INTO attempts (job_id, attempt, organization_id, state, cluster, grant_id, hold_id,"
        " walltime_ms, grace_ms, claimed_at_ms, first_started_at_ms, last_started_at_ms, ended_at_ms, exit_code,"
        f" end_reason, lost, capacity_held, settled) SELECT {job}, 1, organization, 'ended', 'sim', grant_id,"
        f" {job} || ':1:hold', {SLICES * HOUR_MS}, 0, {at}, {at}, {at}, {at} + {SLICES * HOUR_MS}, 0, 'succeeded',"
        f" false, false, true {source}{by_job}",
        "hold transfers": f"{transfer}{job} || ':1:hold', {seq}, 0, 'hold', {at}, 'scheduler', 'attempt started',"
        f" {amount}, {job}, 1, {job} || ':1:hold', NULL, NULL, NULL, 1, :rate {source}{by_job}",
        "hold legs": f"{leg}{job} || ':1:hold', account, {seq}, 0, {amount}, 0 {source}{by_job}",
        "settle transfers": f"{transfer}{slice_id}, {seq} + 1, h, 'settle', {at} + {SLICES * HOUR_MS}, 'scheduler',"
        f" 'occupied time', {HOUR_GPU_US}, {job}, 1, {job} || ':1:hold', {slice_id}, {slice_at},"
        f" {slice_at} + {HOUR_MS}, 1, :rate {source} CROSS JOIN bench_hours ORDER BY n, h",
        "settle legs": f"{leg}{slice_id}, account, {seq} + 1, 0, -{HOUR_GPU_US}, {HOUR_GPU_US} {source}"
        " CROSS JOIN bench_hours ORDER BY n, h",
        "slices": "INSERT INTO slices (id, seq, job_id, attempt, starts_at_ms, ends_at_ms, payer, gpus, gpu_class,"
        f" rate_id, rate_thousandths, price_krw, amount_gpu_us) SELECT {slice_id}, {seq} + 1, {job}, 1, {slice_at},"
        f" {slice_at} + {HOUR_MS}, 'grant', 1, 'h100', :rate, 1000, 4000, {HOUR_GPU_US} {source}"
        " CROSS JOIN bench_hours ORDER BY n, h",
        "audit": "INSERT INTO audit (seq, at_ms, actor, action, subject, reason, detail)"
        f" SELECT {seq}, {at}, 'bench', 'job.submit', {job}, '', '{{}}' {source}{by_job}",
        "no hours": "DROP TABLE bench_hours",
    }
