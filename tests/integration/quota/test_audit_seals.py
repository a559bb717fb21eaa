"""Seals: every audit row and transfer is under exactly one, in order, whoever commits late or seals at once."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from quota.audit import seals
from quota.audit import service as audit
from quota.audit.tables import audit as audit_rows
from quota.audit.tables import seals as seal_rows
from quota.db import Database, Tx, head, metadata
from quota.ledger.tables import transfers
from quota.schema import metadata as whole_schema
from quota.schemas.audit import Seal
from tests.builders import MINUTE_MS, Hub, a_hub, a_problem, an_api
from tests.integration.quota.audit_world import all_seals


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    yield made
    made.close()


def _seal(hub: Hub) -> Seal | None:
    return seals.seal(hub.database)


def _say(hub: Hub, subject: str, database: Database | None = None) -> None:
    where = hub.database if database is None else database
    where.write(lambda tx: audit.record(tx, "test", "test.say", subject))


def _hashed(hub: Hub, after_seq: int, through_seq: int) -> tuple[Any, int, int]:
    """SHA-256 of the rows, written down from docs/audit.md and not from the program; and how many there are."""
    legs: dict[str, list[dict[str, str]]] = {}
    rows: list[tuple[tuple[int, str, int], dict[str, Any]]] = []
    with hub.database.read() as connection:
        rates = {row.id: row for row in connection.execute(text("SELECT * FROM rates"))}
        for leg in connection.execute(text("SELECT * FROM transfer_legs")):
            parts = {name: str(getattr(leg, name)) for name in ("d_granted", "d_held", "d_used")}
            legs.setdefault(leg.transfer_id, []).append({"account_id": leg.account_id} | parts)
        for row in connection.execute(text("SELECT * FROM transfers")):
            fields = dict(row._mapping) | {"kind": "transfer", "amount_gpu_us": str(row.amount_gpu_us)}
            rate = rates.get(fields.pop("rate_id"))
            names = ("id", "gpu_class", "rate_thousandths", "price_krw")
            fields["rate"] = None if rate is None else {name: getattr(rate, name) for name in names}
            fields["legs"] = sorted(legs[row.id], key=lambda leg: leg["account_id"])
            rows.append(((row.seq, "transfer", row.position), fields))
        rows += [
            ((row.seq, "audit", row.id), dict(row._mapping) | {"kind": "audit"})
            for row in connection.execute(text("SELECT * FROM audit"))
        ]
    covered = [
        (place, row)
        for place, row in sorted(rows, key=lambda pair: pair[0])
        if after_seq < place[0] <= through_seq
    ]
    digest = hashlib.sha256()
    for _, fields in covered:
        digest.update(_bytes(fields))
    kinds = [place[1] for place, _ in covered]
    return digest, kinds.count("audit"), kinds.count("transfer")


def _bytes(row: dict[str, Any]) -> bytes:
    return json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _check_chain(hub: Hub) -> None:
    """Every seal's hash, its place in the chain, and that all rows are under one."""
    previous, after_seq = "0" * 64, 0
    for number, seal in enumerate(all_seals(hub), 1):
        digest, audit_count, transfer_count = _hashed(hub, after_seq, seal.through_seq)
        assert (seal.number, seal.previous_sha256) == (number, previous)
        assert (seal.audit_rows, seal.transfers) == (audit_count, transfer_count)
        stamp = {"kind": "seal", "number": number, "at_ms": seal.at, "through_seq": seal.through_seq}
        counts = {"audit_rows": audit_count, "transfers": transfer_count, "previous_sha256": previous}
        digest.update(_bytes(stamp | counts))
        assert seal.sha256 == digest.hexdigest()
        previous, after_seq = seal.sha256, seal.through_seq
    for table in (audit_rows, transfers):
        assert all(row.seq <= after_seq for row in hub.rows(table)), "every row is under a seal"


def test_seals_cover_all_rows_in_feed_order_and_form_a_chain(hub: Hub) -> None:
    for _ in range(3):
        grant = hub.award()
        job = hub.submit(walltime_s=7200, name='학습 \u2028 "작업"')
        hub.run(job, grant)
        hub.clock.advance(97 * MINUTE_MS)
        hub.finish(job)
        assert seals.seal_due(hub.database) == 1
    assert len(all_seals(hub)) == 3
    _check_chain(hub)


def test_a_minute_without_rows_gets_no_seal(hub: Hub) -> None:
    assert seals.seal_due(hub.database) == 1
    assert (seals.seal_due(hub.database), _seal(hub)) == (0, None)
    hub.report()  # moves the feed, says nothing that is audited
    assert seals.seal_due(hub.database) == 0


def test_the_columns_that_are_hashed_are_those_of_the_tables() -> None:
    """Named apart from the tables so that a new column changes no hash; a column gone would be an error."""
    assert set(seals._TRANSFER) == set(transfers.c.keys())
    assert set(seals._AUDIT) == set(audit_rows.c.keys())
    assert set(seals._legs.c.keys()) | {"seq"} == set(whole_schema.tables["transfer_legs"].c.keys())
    assert set(seals._RATE) < set(metadata.tables["rates"].c.keys())


def test_a_long_history_is_sealed_in_steps_that_end_with_whole_transactions(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(7):
        grant = hub.award()
        hub.top_up(grant, "1")
    monkeypatch.setattr(seals, "ROWS_PER_SEAL", 5)
    monkeypatch.setattr(seals, "PAGE", 2)
    made = seals.seal_due(hub.database)
    assert made > 3
    assert [seal.number for seal in all_seals(hub)] == list(range(1, made + 1))
    _check_chain(hub)
    assert seals.seal_due(hub.database) == 0


def test_pages_change_no_hash(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        hub.award()
    with hub.database.read() as connection:
        whole = list(seals.lines(connection, 0, head(connection)))
        monkeypatch.setattr(seals, "PAGE", 3)
        assert list(seals.lines(connection, 0, head(connection))) == whole
        middle = whole[len(whole) // 2].seq
        parts = [*seals.lines(connection, 0, middle), *seals.lines(connection, middle, head(connection))]
        assert parts == whole


@pytest.mark.postgres
@pytest.mark.parametrize("published", [False, True])
def test_what_commits_late_stands_above_the_seals_made_meanwhile(postgres_url: str, published: bool) -> None:
    """A transaction is slow before, or after, it takes its sequence; a seal is made; then it commits."""
    hub = a_hub(postgres_url)
    waits, goes_on = threading.Event(), threading.Event()

    def slow(tx: Tx) -> None:
        audit.record(tx, "test", "test.slow", "late")
        if published:
            tx.publish()
        waits.set()
        assert goes_on.wait(30)

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(hub.database.write, slow)
        assert waits.wait(30)
        if not published:
            _say(hub, "meanwhile")
        first = _seal(hub)
        goes_on.set()
        running.result(30)
    assert first is not None
    late = hub.row(audit_rows, subject="late")
    assert late.seq > first.through_seq
    second = _seal(hub)
    assert second is not None
    assert (second.audit_rows, second.through_seq) == (1, late.seq)
    _check_chain(hub)
    hub.close()


def test_replicas_that_seal_at_once_make_one_chain(hub: Hub) -> None:
    replicas = [hub.database]
    if hub.database.dialect == "postgresql":  # SQLite has one process
        replicas += [Database(hub.database.url, hub.clock) for _ in range(3)]
    barrier = threading.Barrier(8)

    def work(number: int) -> int:
        database, made = replicas[number % len(replicas)], 0
        barrier.wait(30)
        for turn in range(12):
            _say(hub, f"{number}.{turn}", database)
            made += seals.seal_due(database)
        return made

    with ThreadPoolExecutor(8) as threads:
        made = sum(threads.map(work, range(8)))
    made += seals.seal_due(hub.database)
    assert len(all_seals(hub)) == made
    _check_chain(hub)
    for replica in replicas[1:]:
        replica.close()


def test_who_dies_before_the_seal_is_written_leaves_none_and_the_next_makes_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(Exception):
        pass

    def die(_tx: Tx, _made: Seal) -> Seal | None:
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(seals, "_keep", die)
        with pytest.raises(Died):
            seals.seal_due(hub.database)
    assert all_seals(hub) == ()
    assert seals.seal_due(hub.database) == 1
    _check_chain(hub)


def test_the_seal_at_a_moment_is_the_last_one_made_by_then(hub: Hub) -> None:
    made = []
    for _ in range(3):
        hub.clock.advance(MINUTE_MS)
        hub.award()
        seal = _seal(hub)
        assert seal is not None
        made.append(seal)
    with hub.database.read() as connection:
        assert seals.last_seal_at_or_before(connection, made[0].at - 1) is None
        for seal in made:
            for later_ms in (0, MINUTE_MS - 1):
                assert seals.last_seal_at_or_before(connection, seal.at + later_ms) == seal
            assert seals.read_seal(connection, seal.number) == seal
        assert seals.last_seal(connection) == made[-1]
        assert seals.read_seal(connection, 4) is None


def test_times_of_seals_never_run_backwards(hub: Hub) -> None:
    hub.award()
    first = _seal(hub)
    hub.clock.advance(-10 * MINUTE_MS)
    hub.award()
    second = _seal(hub)
    assert first is not None
    assert second is not None
    assert second.at == first.at
    _check_chain(hub)


@pytest.mark.parametrize(
    "change", ["UPDATE seals SET sha256 = 'x'", "DELETE FROM seals", "TRUNCATE seals", "TRUNCATE audit"]
)
def test_a_seal_is_written_once(change: str, hub: Hub) -> None:
    if change.startswith("TRUNCATE") and hub.database.dialect == "sqlite":
        change = "DELETE FROM " + change.split()[1]
    seals.seal_due(hub.database)
    with pytest.raises(DBAPIError, match="never changed"):
        hub.database.write(lambda tx: tx.connection.execute(text(change)))
    assert len(hub.rows(seal_rows)) == 1


def test_operators_and_auditors_read_the_chain_page_by_page(database_url: str) -> None:
    with an_api(database_url) as api:
        for _ in range(3):
            api.hub.award()
            seals.seal_due(api.hub.database)
        page = api.auditor.list_seals(0, 2)
        assert ([seal.number for seal in page.items], page.next) == ([1, 2], 2)
        rest = api.operator.list_seals(page.next or 0, 2)
        assert (rest.items, rest.next) == (all_seals(api.hub)[2:], None)
        for client in (api.firms["alpha"], api.scheduler, api.agent):
            with a_problem("forbidden", 403):
                client.list_seals()


def test_the_trail_shows_before_after_and_address(hub: Hub) -> None:
    before, after = {"a": 1, "b": [2]}, {"a": 1, "b": [3], "c": None}
    hub.database.write(lambda tx: audit.record(tx, "test", "test.change", "x", before=before, after=after))
    with hub.database.read() as connection:
        row = audit.list_audit(connection, 0, 1000).items[-1]
    assert (row.before, row.after, row.address, row.detail) == (before, after, None, {})
