"""I1 to I14 one by one through the services, on both databases, and the checker's own planted corruptions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import insert, text
from sqlalchemy.exc import DBAPIError

from quota.db import Tx
from quota.errors import InsufficientBalance
from quota.fleet import service as fleet
from quota.fleet.rules import Rate
from quota.fleet.tables import node_capacity
from quota.identity.tables import organizations
from quota.jobs.settlement import count_usage
from quota.ledger import holds as holding
from quota.ledger import refunds, settling
from quota.ledger import service as ledger
from quota.ledger.earmarks import earmark
from quota.ledger.rules import Slice
from quota.ledger.tables import accounts, holds, slices, transfers
from quota.schemas.fleet import NewGpuClass
from quota.schemas.ledger import RefundKind
from quota.schemas.scheduling import StopReason
from tests.builders import (
    GPU_HOUR_US,
    HOUR_MS,
    MINUTE_MS,
    OPERATOR,
    START_MS,
    Hub,
    a_hub,
    ended,
    lost,
    started,
)
from tests.property.ledger.ledger_checks import occupied_gpu_us, rebuilt_balances, stored_balances, violations

RATE = Rate("h100@1", "h100", 1000, 4000)


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    with made.database.read() as connection:
        assert violations(connection) == []
    made.close()


@pytest.fixture
def lived_in(hub: Hub) -> Hub:
    """A hub with a finished, a lost and a running attempt, of 2 h 30 min each at most."""
    grant = hub.award(hours="200")
    done, gone, running = (hub.submit(gpus_per_pod=2, walltime_s=9000) for _ in range(3))
    for job in (done, gone, running):
        hub.run(job, grant)
    hub.clock.advance(90 * MINUTE_MS)
    hub.report(ended(done, hub.now))
    hub.report(lost(gone, hub.now - 5 * MINUTE_MS))
    return hub


def test_i01_a_balance_is_the_sum_of_its_transfers(lived_in: Hub) -> None:
    with lived_in.database.read() as connection:
        stored = stored_balances(connection)
        assert stored == rebuilt_balances(connection)
    assert any(used for _, _, used in stored.values())
    assert any(held for _, held, _ in stored.values())


def test_i02_used_and_held_never_pass_granted(hub: Hub) -> None:
    grant = hub.award(hours="10")
    first = hub.submit(gpus_per_pod=8)
    hub.start(first, grant)
    second = hub.submit(gpus_per_pod=8)
    refusal = hub.try_start(second, grant, "n1")
    assert (refusal.outcome, refusal.code) == ("refused", "insufficient_balance")
    assert refusal.numbers["needed_gpu_us"] == 8 * GPU_HOUR_US
    assert refusal.numbers["left_gpu_us"] == 2 * GPU_HOUR_US


def test_i02_the_database_itself_refuses_an_overdraft(hub: Hub) -> None:
    grant = hub.award(hours="10")
    with pytest.raises(DBAPIError):
        _execute(hub, f"UPDATE accounts SET held_gpu_us = granted_gpu_us + 1 WHERE id = '{grant.account_id}'")


def test_i02_an_explicit_overdraft_is_the_only_way_past_granted(hub: Hub) -> None:
    grant = hub.award(hours="10")
    _execute(hub, f"UPDATE accounts SET overdraft_gpu_us = {GPU_HOUR_US} WHERE id = '{grant.account_id}'")
    hub.database.write(lambda tx: _hold(tx, "job-1", (grant.account_id,), 11 * GPU_HOUR_US))
    with pytest.raises(InsufficientBalance):
        hub.database.write(lambda tx: _hold(tx, "job-2", (grant.account_id,), 1))


def test_i03_a_slice_is_charged_once(lived_in: Hub) -> None:
    before = lived_in.contents()
    row = lived_in.rows(slices)[0]
    with pytest.raises(DBAPIError):
        lived_in.database._write_once(lambda tx: _settle_again(tx, row))  # one try: the key stays taken
    assert lived_in.contents() == before


def test_i04_a_hold_resolves_once(lived_in: Hub) -> None:
    resolved = [row for row in lived_in.rows(holds) if row.resolved]
    assert len(resolved) == 2
    before = lived_in.contents()
    for row in resolved:
        lived_in.database.write(
            lambda tx, row=row: settling.release(
                tx, holding.read_hold(tx, row.id), row.settled_gpu_us, actor="hub", reason="again"
            )
        )
    assert lived_in.contents() == before


def test_i05_a_charge_never_passes_its_hold(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(gpus_per_pod=8, walltime_s=3600)
    hub.run(job, grant)
    hub.clock.advance(3 * HOUR_MS + 7)
    hub.finish(job)
    attempt = hub.job(job.id).attempts[0]
    assert attempt.settled_gpu_us == attempt.held_gpu_us == 8 * GPU_HOUR_US
    assert attempt.platform_gpu_us == 8 * (2 * HOUR_MS + 7) * 1000
    assert attempt.released_gpu_us == 0
    assert attempt.hold_resolved


def test_i05_the_ledger_refuses_to_charge_past_a_hold(hub: Hub) -> None:
    grant = hub.award()
    hub.database.write(lambda tx: _hold(tx, "job-1", (grant.account_id,), 1000))
    before = hub.contents()

    def work(tx: Tx) -> None:
        held = holding.read_hold(tx, "job-1:1:hold")
        settling.settle(tx, held, [Slice(START_MS, START_MS + 2, "grant")], actor="hub")

    with pytest.raises(AssertionError):
        hub.database.write(work)
    assert hub.contents() == before


def test_i06_a_charge_is_given_back_once_and_a_fault_is_the_platforms(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(gpus_per_pod=4, walltime_s=7200)
    hub.run(job, grant)
    hub.clock.advance(70 * MINUTE_MS)
    hub.report()
    hub.clock.advance(MINUTE_MS)
    hub.report(lost(job, START_MS + 50 * MINUTE_MS))
    attempt = hub.job(job.id).attempts[0]
    hour, fifty = 4 * GPU_HOUR_US, 4 * 50 * MINUTE_MS * 1000
    assert attempt.settled_gpu_us == hour
    assert attempt.refunded_gpu_us == hour, "10 min were never occupied, 50 min of work were lost"
    assert attempt.platform_gpu_us == fifty
    by_kind = {row.refund_kind: row.amount_gpu_us for row in hub.rows(transfers, type="refund")}
    assert by_kind == {"correction": hour - fifty, "fault": fifty}


def test_i06_the_ledger_refuses_to_give_the_same_time_back_twice(hub: Hub) -> None:
    grant = hub.award()
    part = Slice(START_MS, START_MS + 100, "grant")

    def charge(tx: Tx) -> None:
        _hold(tx, "job-1", (grant.account_id,), 100_000)
        settling.settle(tx, holding.read_hold(tx, "job-1:1:hold"), [part], actor="hub")

    def give_back(tx: Tx, kind: RefundKind, begin: int, end: int) -> int:
        held = holding.read_hold(tx, "job-1:1:hold")
        return refunds.refund(tx, held, part, START_MS + begin, START_MS + end, kind, actor="hub", reason="r")

    hub.database.write(charge)
    assert hub.database.write(lambda tx: give_back(tx, RefundKind.CORRECTION, 40, 100)) == 60_000
    with pytest.raises(AssertionError):
        hub.database.write(lambda tx: give_back(tx, RefundKind.FAULT, 39, 41))

    def both_at_once(tx: Tx) -> None:
        give_back(tx, RefundKind.FAULT, 0, 20)
        give_back(tx, RefundKind.PREEMPTED, 19, 30)

    with pytest.raises(AssertionError):
        hub.database.write(both_at_once)
    assert hub.database.write(lambda tx: give_back(tx, RefundKind.FAULT, 0, 40)) == 40_000


def test_i06_what_a_fault_moved_to_the_platform_is_corrected_there(hub: Hub) -> None:
    """And every refund of a slice may be asked for again, not only its latest one."""
    grant = hub.award()
    part = Slice(START_MS, START_MS + 100, "grant")

    def charge(tx: Tx) -> None:
        _hold(tx, "job-1", (grant.account_id,), 100_000)
        settling.settle(tx, holding.read_hold(tx, "job-1:1:hold"), [part], actor="hub")

    def give_back(tx: Tx, kind: RefundKind, begin: int, end: int) -> int:
        held = holding.read_hold(tx, "job-1:1:hold")
        return refunds.refund(tx, held, part, START_MS + begin, START_MS + end, kind, actor="hub", reason="r")

    hub.database.write(charge)
    steps = [
        (RefundKind.CORRECTION, 90, 100),
        (RefundKind.FAULT, 50, 90),
        (RefundKind.CORRECTION, 70, 90),
        (RefundKind.FAULT, 20, 30),
        (RefundKind.CORRECTION, 60, 70),
    ]
    given = [hub.database.write(lambda tx, step=step: give_back(tx, *step)) for step in steps]
    assert given == [10_000, 40_000, 0, 10_000, 0]
    assert hub.row(accounts, id="platform").used_gpu_us == (40 - 30 + 10) * 1000
    assert hub.grant(grant.id).used_gpu_us == 40_000
    before = hub.contents()
    for step in steps:
        assert hub.database.write(lambda tx, step=step: give_back(tx, *step)) == 0
    assert hub.contents() == before


def test_i07_a_charge_keeps_the_rate_its_hold_pinned(hub: Hub) -> None:
    grant = hub.award()
    first = hub.submit(walltime_s=7200, restartable=True)
    hub.run(first, grant)
    body = NewGpuClass(id="h100", name="H100", rate_thousandths=2000, price_krw=9000)
    hub.database.write(lambda tx: fleet.put_gpu_class(tx, OPERATOR, body))
    hub.clock.advance(30 * MINUTE_MS)
    hub.stop(first, StopReason.PREEMPTED)
    hub.report(ended(first, hub.now, reason="stopped", exit_code=143))
    hub.run(first, grant)
    hub.clock.advance(30 * MINUTE_MS)
    hub.finish(first, attempt=2)
    charged = {row.attempt: (row.rate_id, row.amount_gpu_us) for row in hub.rows(transfers, type="settle")}
    assert charged == {1: ("h100@1", GPU_HOUR_US // 2), 2: ("h100@2", GPU_HOUR_US)}


@pytest.mark.parametrize("table", ["transfers", "transfer_legs", "slices", "audit"])
@pytest.mark.parametrize("verb", ["UPDATE {} SET seq = seq", "DELETE FROM {}"])
def test_i08_what_is_written_once_is_never_changed(lived_in: Hub, table: str, verb: str) -> None:
    before = lived_in.contents()
    with pytest.raises(DBAPIError, match="never changed"):
        _execute(lived_in, verb.format(table))
    assert lived_in.contents() == before


def test_i10_decayed_usage_never_touches_a_budget(lived_in: Hub) -> None:
    before = lived_in.contents(organizations)["accounts"]
    lived_in.clock.advance(365 * 24 * HOUR_MS)
    lived_in.database.write(lambda tx: count_usage(tx, "alpha", 10**15))
    lived_in.database.write(lambda tx: count_usage(tx, "alpha", -(10**17)))
    assert lived_in.contents(organizations)["accounts"] == before
    assert lived_in.row(organizations, id="alpha").decayed_usage_gpu_us == 0.0


def test_i10_usage_halves_in_seven_days(hub: Hub) -> None:
    hub.database.write(lambda tx: count_usage(tx, "alpha", 1 << 40))
    hub.clock.advance(7 * 24 * HOUR_MS)
    hub.database.write(lambda tx: count_usage(tx, "alpha", 5))
    assert hub.row(organizations, id="alpha").decayed_usage_gpu_us == (1 << 39) + 5


def test_i11_replaying_the_last_batches_changes_nothing(lived_in: Hub) -> None:
    before = lived_in.contents()
    lived_in.clock.advance(5)
    lived_in.send_report(lived_in.last_report)
    lived_in.send_decisions(lived_in.last_decisions)
    assert lived_in.contents() == before


def test_i12_settled_less_refunded_with_the_platform_is_the_occupied_time(hub: Hub) -> None:
    """First container at 00:00, the last at 00:07, ended at 02:31:17.003: 3 pods of 2 GPUs."""
    grant = hub.award()
    job = hub.submit(gpus_per_pod=2, pods=3, walltime_s=2 * 3600)
    hub.start(job, grant, "n0")
    hub.report(started(job, START_MS))
    hub.clock.advance(7 * MINUTE_MS)
    hub.report(started(job, START_MS, hub.now))
    hub.clock.advance(2 * HOUR_MS + 24 * MINUTE_MS + 17_003)
    hub.report(ended(job, hub.now))
    occupied = hub.now - START_MS
    attempt = hub.job(job.id).attempts[0]
    assert attempt.settled_gpu_us == 6 * 2 * GPU_HOUR_US, "the held time"
    assert attempt.settled_gpu_us - attempt.refunded_gpu_us + attempt.platform_gpu_us == occupied * 6 * 1000
    with hub.database.read() as connection:
        assert occupied_gpu_us(connection, job.id, 1) == occupied * 6 * 1000


def test_i12_one_hour_on_one_reference_gpu_is_exactly_3_600_000_000(hub: Hub) -> None:
    grant = hub.award()
    job = hub.submit(walltime_s=3600)
    hub.run(job, grant)
    hub.clock.advance(HOUR_MS)
    hub.finish(job)
    assert hub.job(job.id).charged_gpu_us == 3_600_000_000
    assert hub.grant(grant.id).used_gpu_us == 3_600_000_000


def test_i13_no_start_raises_used_above_what_is_there(hub: Hub) -> None:
    grant = hub.award(hours="1000")
    one, two, three = (hub.submit(gpus_per_pod=count) for count in (5, 4, 3))
    hub.start(one, grant)
    refusal = hub.try_start(two, grant)
    told = {"node": "n0", "gpu_class": "h100", "needed": 4, "free": 3}
    assert (refusal.code, refusal.numbers) == ("capacity_taken", told)
    hub.start(three, grant)
    assert hub.row(node_capacity, node="n0").used == 8


@pytest.mark.parametrize("short", [0, 1, 2])
def test_i14_a_hold_covers_every_account_of_its_path_or_none(hub: Hub, short: int) -> None:
    grant = hub.award(hours="10")
    path = _children(hub, grant.account_id, amounts=[5, 5])
    limits = dict(zip(path, (5, 5, 10), strict=True))
    other = path[short]
    taken = limits[other] * GPU_HOUR_US - GPU_HOUR_US + 1
    hub.database.write(lambda tx: _hold(tx, "job-1", (other,), taken))
    before = hub.contents()
    with pytest.raises(InsufficientBalance) as caught:
        hub.database.write(lambda tx: _hold(tx, "job-2", path, GPU_HOUR_US))
    assert caught.value.numbers["account"] == other
    assert hub.contents() == before
    hub.database.write(lambda tx: _hold(tx, "job-3", path, GPU_HOUR_US - 1))
    held = {row.id: row.held_gpu_us for row in hub.rows(accounts) if row.id in path}
    assert held == dict.fromkeys(path, GPU_HOUR_US - 1) | {other: taken + GPU_HOUR_US - 1}


def test_i14_a_start_on_a_path_holds_on_share_tranche_and_grant(hub: Hub) -> None:
    grant = hub.award(hours="10")
    path = _children(hub, grant.account_id, amounts=[5, 4])
    job = hub.submit(gpus_per_pod=4)
    assert hub.try_start(job, grant).code == "not_found", "the grant alone is no open path any more"
    hub.start(job, grant, path=path)
    assert {row.held_gpu_us for row in hub.rows(accounts) if row.id in path} == {4 * GPU_HOUR_US}
    second = hub.submit(gpus_per_pod=1)
    refusal = hub.try_start(second, grant, "n1", path=path)
    assert (refusal.code, refusal.numbers["account"]) == ("insufficient_balance", path[0])


# --- the checker finds what is planted -------------------------------------------------------------

PLANTED = {
    "I01": "UPDATE accounts SET used_gpu_us = used_gpu_us + 1 WHERE kind = 'grant'",
    "I02": "UPDATE accounts SET granted_gpu_us = held_gpu_us + used_gpu_us - 1 WHERE kind = 'grant'",
    "I03": "UPDATE slices SET starts_at_ms = starts_at_ms - 1",
    "I04": "UPDATE holds SET released_gpu_us = 0 WHERE resolved",
    "I05": "UPDATE holds SET settled_gpu_us = amount_gpu_us + 1",
    "I06": "UPDATE transfers SET refund_kind = 'correction' WHERE refund_kind = 'fault'",
    "I07": "UPDATE transfers SET rate_id = 'h100@2' WHERE type = 'settle'",
    "I09": "UPDATE transfer_legs SET d_granted = d_granted + 1 WHERE d_granted > 0",
    "I13": "UPDATE node_capacity SET used = used + 1 WHERE node = 'n0'",
    "I14": "DELETE FROM hold_accounts",
}


@pytest.mark.parametrize("invariant", PLANTED)
def test_the_checker_finds_a_planted(sqlite_url: str, invariant: str) -> None:
    hub = a_hub(sqlite_url)
    grant = hub.award(hours="200")
    for _ in range(2):
        job = hub.submit(gpus_per_pod=2, walltime_s=9000)
        hub.run(job, grant)
        hub.clock.advance(90 * MINUTE_MS)
        hub.report(lost(job, hub.now - 5 * MINUTE_MS))
    with hub.database.read() as connection:
        assert violations(connection) == []
    with hub.database.engine.connect() as connection:
        for table in ("transfers", "transfer_legs", "slices"):
            connection.exec_driver_sql(f"DROP TRIGGER {table}_no_update").close()
        connection.exec_driver_sql("PRAGMA ignore_check_constraints = ON").close()
        assert connection.exec_driver_sql(PLANTED[invariant]).rowcount > 0
        found = {line.partition(":")[0] for line in violations(connection)}
        connection.rollback()
    hub.close()
    assert invariant in found


def test_the_checker_finds_pods_of_another_class_than_the_one_paid(hub: Hub) -> None:
    grant = hub.award()
    hub.start(hub.submit(gpu_classes=("h100", "a100")), grant, "a0", gpu_class="a100")
    with hub.database.engine.connect() as connection:
        connection.execute(text("UPDATE holds SET gpu_class = 'h100', rate_id = 'h100@1'"))
        found = violations(connection)
        connection.rollback()
    assert any("on a100 at the rate of h100" in line for line in found)


@pytest.mark.parametrize(
    "planted",
    [
        "UPDATE holds SET extensions = extensions + 1",
        "UPDATE holds SET amount_gpu_us = amount_gpu_us + 1",
        "UPDATE transfers SET id = id || '0' WHERE type = 'extend'",
        "DELETE FROM transfer_legs WHERE transfer_id LIKE '%:extend:1'",
    ],
)
def test_the_checker_finds_an_extension_that_does_not_add_up(sqlite_url: str, planted: str) -> None:
    hub = a_hub(sqlite_url)
    grant = hub.award()
    job = hub.submit()
    hub.run(job, grant)
    hub.extend(job, 600)
    with hub.database.read() as connection:
        assert violations(connection) == []
    with hub.database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON").close()
        for table in ("transfers", "transfer_legs"):
            for verb in ("update", "delete"):
                connection.exec_driver_sql(f"DROP TRIGGER {table}_no_{verb}").close()
        assert connection.exec_driver_sql(planted).rowcount > 0
        found = {line.partition(":")[0] for line in violations(connection)}
        connection.rollback()
    hub.close()
    assert "I14" in found


def test_the_checker_finds_a_slice_charged_twice_over(sqlite_url: str) -> None:
    hub = a_hub(sqlite_url)
    grant = hub.award()
    job = hub.submit()
    hub.run(job, grant)
    hub.clock.advance(HOUR_MS)
    hub.finish(job)
    row = hub.rows(slices)[0]
    again = row._asdict() | {
        "id": "again",
        "starts_at_ms": row.starts_at_ms + 1,
        "ends_at_ms": row.ends_at_ms + 1,
    }
    with hub.database.engine.connect() as connection:
        connection.execute(insert(slices), again)
        lines = violations(connection)
        connection.rollback()
    hub.close()
    assert any("overlap" in line for line in lines)
    assert any("do not meet" in line for line in lines)


# --- helpers ---------------------------------------------------------------------------------------


def _execute(hub: Hub, statement: str) -> None:
    def work(tx: Tx) -> None:
        tx.connection.execute(text(statement))

    hub.database.write(work)


def _hold(tx: Tx, job: str, path: tuple[str, ...], amount: int) -> str:
    return holding.hold(tx, job, 1, "g", path, amount, 1, RATE, actor="scheduler")


def _settle_again(tx: Tx, row: object) -> None:
    held = holding.read_hold(tx, f"{row.job_id}:{row.attempt}:hold")  # type: ignore[attr-defined]
    open_hold = replace(held, settled_gpu_us=0, amount_gpu_us=held.amount_gpu_us * 10)
    part = Slice(row.starts_at_ms, row.starts_at_ms + 1, "platform")  # type: ignore[attr-defined]
    settling.settle(tx, open_hold, [part], actor="hub")


def _children(hub: Hub, grant_account: str, amounts: list[int]) -> tuple[str, ...]:
    """A tranche under the grant and a share under the tranche, with earmarked hours; the path from the share up."""
    path = [grant_account]
    grant_id = grant_account.partition(":")[2]

    def work(tx: Tx) -> None:
        for kind, hours in zip(("tranche", "share"), amounts, strict=True):
            child = f"{kind}:{grant_id}"
            ledger.open_account(
                tx, child, kind, parent_id=path[0], grant_id=grant_id, organization_id="alpha"
            )
            earmark(tx, f"{child}:earmark", {child: hours * GPU_HOUR_US}, actor="op", reason="r")
            path.insert(0, child)

    hub.database.write(work)
    return tuple(path)
