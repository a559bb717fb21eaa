"""The outbox: what is on disk after which step, and what the agent does when the disk will not."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.model import Holding, Measured, RowKey
from agents.outbox import KEPT_MS, Outbox, Spool, open_outbox
from agents.outbox_file import OutboxBroken, OutboxUnusable, OutboxUnwritable
from agents.usage import first_state
from tests.unit.agents.agent_world import HOUR_MS, PERIOD_MS, START_MS
from tests.unit.agents.logs import captured

KEY = RowKey("job-1", 1, "GPU-1", START_MS)
GAIN = Measured(4_000_000_000, 10_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.sqlite3"


@pytest.fixture
def outbox(path: Path) -> Iterator[Outbox]:
    opened = open_outbox(path)
    yield opened
    opened.close()


def a_state(uuid: str = "GPU-1", last_seen_ms: int = START_MS):
    return first_state(uuid, "h100", "sim-0", last_seen_ms, PERIOD_MS)


def store(
    outbox: Outbox, gain: Measured = GAIN, key: RowKey = KEY, now_ms: int = START_MS, wall_ms: int = 7
) -> None:
    outbox.store([a_state(key.gpu_uuid, now_ms)], {key: gain}, now_ms, wall_ms)


def make_small(outbox: Outbox) -> None:
    """The disk takes nothing more."""
    outbox._connection.execute("PRAGMA max_page_count = 1")


def make_large(outbox: Outbox) -> None:
    outbox._connection.execute("PRAGMA max_page_count = 1000000")


def many(number: int) -> dict[RowKey, Measured]:
    return {RowKey(f"job-{n:05}", 1, "GPU-1", START_MS): GAIN for n in range(number)}


def test_gains_add_up_and_take_the_cycles_number(outbox: Outbox) -> None:
    store(outbox)
    store(outbox)
    (unsent,) = outbox.to_send(0, 10)
    assert (unsent.row.busy_ms, unsent.row.observed_ms, unsent.row.seq) == (8_000, 20_000, 2)
    assert (unsent.row.agent_epoch, unsent.row.hour, unsent.row.node) == (outbox.epoch, START_MS, "sim-0")


def test_a_reopened_outbox_knows_its_epoch_states_rows_and_number(path: Path) -> None:
    first = open_outbox(path)
    store(first)
    epoch = first.epoch
    first.close()
    second = open_outbox(path)
    assert second.epoch == epoch
    assert second.states() == {"GPU-1": a_state()}
    store(second)
    assert second.to_send(0, 10)[0].row.seq == 2
    second.close()


def test_a_lost_outbox_is_a_new_epoch(path: Path) -> None:
    first = open_outbox(path)
    first.close()
    path.unlink()
    second = open_outbox(path)
    assert second.epoch != first.epoch
    assert second.states() == {}
    second.close()


def test_what_is_delivered_is_not_sent_again(outbox: Outbox) -> None:
    store(outbox)
    outbox.sent(outbox.to_send(0, 10), 9)
    assert outbox.to_send(0, 10) == []
    assert outbox.spool() == Spool(0, None)


def test_a_row_that_grew_under_way_stays_to_be_sent_and_waits_since_then(outbox: Outbox) -> None:
    store(outbox, wall_ms=7)
    under_way = outbox.to_send(0, 10)
    store(outbox, wall_ms=8)
    outbox.sent(under_way, 9)
    assert outbox.spool() == Spool(1, 9)
    assert outbox.to_send(0, 10)[0].row.busy_ms == 8_000


def test_rows_come_in_pages_by_id(outbox: Outbox) -> None:
    outbox.store([a_state()], many(25), START_MS, 7)
    first = outbox.to_send(0, 10)
    second = outbox.to_send(first[-1].id, 100)
    assert [len(first), len(second)] == [10, 15]


def test_a_failed_store_changes_nothing_and_can_be_tried_again(outbox: Outbox) -> None:
    store(outbox)
    before = (outbox.to_send(0, 10_000), outbox.states())
    make_small(outbox)
    with pytest.raises(OutboxUnwritable, match="full"):
        outbox.store([a_state(last_seen_ms=START_MS + 1)], many(5_000), START_MS, 8)
    assert (outbox.to_send(0, 10_000), outbox.states()) == before
    make_large(outbox)
    outbox.store([a_state(last_seen_ms=START_MS + 1)], many(5_000), START_MS, 8)
    assert outbox.spool().records == 5_001


def test_delivered_rows_go_after_48_hours_and_unsent_ones_never(outbox: Outbox) -> None:
    old, unsent = KEY, RowKey("job-2", 1, "GPU-1", START_MS)
    store(outbox, key=old)
    outbox.sent(outbox.to_send(0, 10), 9)
    store(outbox, key=unsent)
    store(outbox, key=KEY._replace(hour_ms=START_MS + KEPT_MS), now_ms=START_MS + KEPT_MS + HOUR_MS)
    left = [row[0] for row in outbox._connection.execute("SELECT job_id FROM evidence ORDER BY id")]
    assert left == ["job-2", "job-1"]


def test_a_delivered_row_stays_while_its_gpu_may_still_add_to_it(outbox: Outbox) -> None:
    """Made anew, it would start from zero with a greater number and take evidence away."""
    store(outbox)
    outbox.sent(outbox.to_send(0, 10), 9)
    later_ms = START_MS + 2 * KEPT_MS
    outbox.store([a_state("GPU-2", later_ms)], {}, later_ms, 10)
    assert outbox._connection.execute("SELECT count(*) FROM evidence").fetchone() == (1,)
    outbox.forget_gpus(later_ms)
    outbox.store([a_state("GPU-2", later_ms)], {}, later_ms, 10)
    assert outbox._connection.execute("SELECT count(*) FROM evidence").fetchone() == (0,)


@pytest.mark.parametrize("damage", [b"this is not a database" * 100, None])
def test_an_unreadable_outbox_is_moved_aside_and_a_new_epoch_begins(path: Path, damage: bytes | None) -> None:
    first = open_outbox(path)
    first.store([a_state()], many(3_000), START_MS, 7)
    first.close()
    # Either another file altogether, or one with its middle torn out.
    content = path.read_bytes()
    path.write_bytes(damage or content[:4_096] + b"\xff" * 60_000 + content[64_096:])
    with captured() as logs:
        second = open_outbox(path)
    assert second.epoch != first.epoch
    assert second.spool().records == 0
    (line,) = logs
    assert line["event"] == "outbox_unreadable"
    assert Path(line["moved_to"]).exists()
    second.close()


def test_a_second_agent_on_the_same_outbox_is_refused_with_one_line(path: Path, outbox: Outbox) -> None:
    with pytest.raises(OutboxUnusable, match=r"in use by another agent \(process \d+\)") as refusal:
        open_outbox(path)
    assert "\n" not in str(refusal.value)
    store(outbox)


def test_the_lock_ends_with_the_agent(path: Path) -> None:
    open_outbox(path).close()
    open_outbox(path).close()


def test_an_outbox_of_a_newer_agent_is_left_alone(path: Path) -> None:
    open_outbox(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(OutboxUnusable, match="newer agent"):
        open_outbox(path)


def test_a_folder_that_cannot_be_made_is_refused_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutboxUnusable, match="choose another --outbox"):
        open_outbox(tmp_path / "file" / "outbox.sqlite3")


def test_a_file_that_breaks_while_open_is_told_from_a_full_disk(outbox: Outbox) -> None:
    class Broken:
        in_transaction = False

        def execute(self, statement: str) -> None:
            raise sqlite3.DatabaseError("database disk image is malformed")

    whole, outbox._connection = outbox._connection, Broken()
    with pytest.raises(OutboxBroken, match="malformed"):
        outbox.spool()
    outbox._connection = whole


HOUR_ROWS = 500


def fill(outbox: Outbox, hours: int) -> None:
    """One cycle an hour, with rows of many jobs on one GPU, which is then in the hour after it."""
    for hour in range(hours):
        gains = {
            RowKey(f"job-{hour}-{n}", 1, "GPU-1", START_MS + hour * HOUR_MS): GAIN for n in range(HOUR_ROWS)
        }
        outbox.store([a_state(last_seen_ms=START_MS + (hour + 1) * HOUR_MS)], gains, START_MS, 7)


def hours_of(outbox: Outbox) -> list[int]:
    rows = outbox._connection.execute("SELECT DISTINCT hour_ms FROM evidence ORDER BY hour_ms").fetchall()
    return [(hour_ms - START_MS) // HOUR_MS for (hour_ms,) in rows]


def test_an_outbox_that_is_never_emptied_stays_bounded_and_says_what_it_let_go(path: Path) -> None:
    outbox = open_outbox(path, most_rows=10 * HOUR_ROWS)
    outbox._connection.execute("PRAGMA synchronous = OFF")
    with captured() as logs:
        fill(outbox, 64)
    assert outbox.spool() == Spool(10 * HOUR_ROWS, 7, 54 * HOUR_ROWS)
    assert hours_of(outbox) == list(range(54, 64))
    assert {line["event"] for line in logs} == {"evidence_dropped"}
    outbox._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    # it was filled to 42 hours before it was counted: pages are used again, never given back
    assert path.stat().st_size / (42 * HOUR_ROWS) < 250
    outbox.close()


def test_delivered_rows_make_room_first_and_open_hours_are_never_let_go(path: Path) -> None:
    outbox = open_outbox(path, most_rows=2 * HOUR_ROWS)
    outbox._connection.execute("PRAGMA synchronous = OFF")
    fill(outbox, 31)
    # the first hour was not delivered, all others were
    waiting = [row for row in outbox.to_send(0, 100_000) if row.row.hour > START_MS]
    outbox.sent(waiting, 8)
    late = START_MS + 40 * HOUR_MS
    outbox.store([a_state(last_seen_ms=late)], {RowKey("job-now", 1, "GPU-1", late): GAIN}, START_MS, 9)
    assert outbox.spool().dropped == 0
    assert {row.row.hour for row in outbox.to_send(0, 100_000)} == {START_MS, late}
    assert hours_of(outbox)[0] == 0
    (rows,) = outbox._connection.execute("SELECT count(*) FROM evidence").fetchone()
    assert rows == 2 * HOUR_ROWS
    outbox.close()


def test_an_outbox_of_the_version_before_goes_on(path: Path) -> None:
    outbox = open_outbox(path)
    store(outbox)
    epoch = outbox.epoch
    outbox.close()
    old = sqlite3.connect(path)
    for column in ("attributed_ns", "sharers", "runs"):
        old.execute(f"ALTER TABLE gpus DROP COLUMN {column}")
    old.execute("DROP TABLE holdings")
    old.execute("UPDATE gpus SET busy_ns = 77, observed_ms = 1")
    old.execute("PRAGMA user_version = 1")
    old.commit()
    old.close()
    outbox = open_outbox(path)
    state = outbox.states()["GPU-1"]
    assert (state.device.busy_ns, state.attributed_ns, state.sharers, state.runs) == (77, 77, (), ())
    assert (outbox.epoch, outbox.spool().records, outbox.holdings()) == (epoch, 1, ())
    held = Holding("GPU-1", "job-1", 1, 0, 5, None, True, "hub-x", "pod", "uid")
    outbox.keep_holdings([held])
    assert outbox.holdings() == (held,)
    outbox.close()
