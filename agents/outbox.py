"""The agent's memory on disk: cumulative evidence rows, how far each GPU was measured, what is still to send.

One SQLite file, one agent (a file lock says so). What happens if the process dies, or a reply is lost:

- after reading, before `store` commits: old rows and old `last_seen` are there together; the same samples are
  read again and come to the same totals.
- after `store` committed: the rows are marked to be sent; the next start goes on behind them.
- `store` failed (disk full): the old state is on disk and the loop keeps the gains in memory; they go in with
  a later cycle, or their samples are read again after a death.
- after `to_send`, before the request: nothing has changed; the next delivery sends them.
- after the request, reply lost, late or doubled: the rows are still to be sent; the same `seq` again changes
  nothing at the service.
- after the reply, before `sent` commits: the same.
- an old request arrives after a newer one: its `seq` is smaller, so the service ignores it.
- a row grew while it was under way: its `seq` moved on, so `sent` leaves it to be sent.
- the file is lost, or unreadable and moved aside: a new epoch begins at the reader's now; the service adds
  the epochs up.

`seq` is the number of the storing cycle. It never goes back, and a row that changes takes the present one.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from agents import log
from agents.model import NS_PER_MS, GpuState, Holding, Measured, RowKey
from agents.outbox_file import OutboxUnusable, named_errors, open_database, take_lock
from quota.clock import HOUR_MS
from quota.schemas.usage import EvidenceRow

KEPT_MS = 48 * HOUR_MS
"""How long delivered rows stay, in business time: answers questions, and keeps the file small."""

MOST_ROWS = 200_000
"""So many rows are kept at most, 50 MB: months of one node, or ten days of 10,000 jobs a day without the service."""

COUNTED_EVERY = 32
"""Rows are counted with every so manieth cycle."""


_GAIN = """INSERT INTO evidence
    (job_id, attempt, gpu_uuid, hour_ms, gpu_class, node, busy_ns, observed_ms, seq, unsent_since_ms)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (job_id, attempt, gpu_uuid, hour_ms) DO UPDATE SET
    busy_ns = busy_ns + excluded.busy_ns, observed_ms = observed_ms + excluded.observed_ms,
    seq = excluded.seq, unsent_since_ms = coalesce(unsent_since_ms, excluded.unsent_since_ms)"""

# A row goes only when its hour is closed for its GPU: made anew it would start from zero with a greater seq.
_PRUNE = """DELETE FROM evidence WHERE unsent_since_ms IS NULL AND hour_ms < ? AND NOT EXISTS (
    SELECT 1 FROM gpus WHERE gpus.gpu_uuid = evidence.gpu_uuid
    AND gpus.last_seen_ms < evidence.hour_ms + 3600000)"""

# Delivered rows first, then the oldest. As above, only of hours that are closed: a row made anew would say less.
_LET_GO = """DELETE FROM evidence WHERE id IN (SELECT id FROM evidence WHERE NOT EXISTS (
    SELECT 1 FROM gpus WHERE gpus.gpu_uuid = evidence.gpu_uuid AND gpus.last_seen_ms < evidence.hour_ms + 3600000)
    ORDER BY unsent_since_ms IS NOT NULL, hour_ms LIMIT ?) RETURNING unsent_since_ms"""

_SENT = """UPDATE evidence SET unsent_since_ms = CASE WHEN seq = ? THEN NULL ELSE ? END WHERE id = ?"""


@dataclass(frozen=True, slots=True)
class UnsentRow:
    """A row to send, and the number by which `sent` finds it."""

    id: int
    row: EvidenceRow


@dataclass(frozen=True, slots=True)
class Spool:
    """How many rows are to be sent, since when (wall milliseconds) the oldest waits, and how many were let go."""

    records: int
    oldest_wall_ms: int | None
    dropped: int = 0


class Outbox:
    """Safe to use from several threads; every method is one short transaction."""

    def __init__(
        self, connection: sqlite3.Connection, lock_file: int, epoch: str, seq: int, most_rows: int = MOST_ROWS
    ) -> None:
        self.epoch = epoch
        """The name of this outbox's life: random, new whenever the file was new."""
        self._seq, self._most_rows = seq, most_rows
        self._dropped = 0
        self._connection = connection
        self._lock_file = lock_file
        self._turn = threading.Lock()

    def close(self) -> None:
        """Close the file and let another agent have it."""
        with self._turn:
            self._connection.close()
            os.close(self._lock_file)

    def states(self) -> dict[str, GpuState]:
        """How far each known GPU has been measured, by UUID."""
        with self._reading() as database:
            rows = database.execute("SELECT * FROM gpus").fetchall()
        return {row[0]: _state(row) for row in rows}

    def newest_ms(self) -> int | None:
        """The newest time that anything in it speaks of; None if it is empty."""
        with self._reading() as database:
            (newest_ms,) = database.execute(
                "SELECT max(at_ms) FROM (SELECT max(last_seen_ms) AS at_ms FROM gpus"
                " UNION ALL SELECT max(hour_ms) FROM evidence)"
            ).fetchone()
        return None if newest_ms is None else int(newest_ms)

    def store(
        self, states: Iterable[GpuState], gains: Mapping[RowKey, Measured], now_ms: int, moment_wall_ms: int
    ) -> None:
        """Add the gains to their rows and remember how far the GPUs are: both or neither.

        `states` contains the GPU of every gain. Raises OutboxUnwritable.
        """
        by_uuid = {state.gpu_uuid: state for state in states}
        seq = self._seq + 1
        with self._writing() as database:
            database.executemany(_GAIN, _gain_rows(by_uuid, gains, seq, moment_wall_ms))
            database.executemany(
                "INSERT OR REPLACE INTO gpus VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [_state_row(state) for state in by_uuid.values()],
            )
            database.execute(_PRUNE, (now_ms - KEPT_MS,))
            dropped = self._make_room(database) if seq % COUNTED_EVERY == 0 else 0
            database.execute("UPDATE agent SET seq = ?", (seq,))
        self._seq = seq
        if dropped:
            self._dropped += dropped
            log.error("evidence_dropped", rows=dropped, most_rows=self._most_rows)

    def _make_room(self, database: sqlite3.Connection) -> int:
        (rows,) = database.execute("SELECT count(*) FROM evidence").fetchone()
        if rows <= self._most_rows:
            return 0
        gone = database.execute(_LET_GO, (rows - self._most_rows,)).fetchall()
        return sum(unsent_since_ms is not None for (unsent_since_ms,) in gone)

    def holdings(self) -> tuple[Holding, ...]:
        """What `keep_holdings` kept last."""
        with self._reading() as database:
            rows = database.execute("SELECT * FROM holdings").fetchall()
        return tuple(_holding(*row) for row in rows)

    def keep_holdings(self, holdings: Iterable[Holding]) -> None:
        """Keep these instead of the ones before. Raises OutboxUnwritable."""
        with self._writing() as database:
            database.execute("DELETE FROM holdings")
            database.executemany(
                "INSERT INTO holdings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [astuple(holding) for holding in holdings],
            )

    def forget_gpus(self, seen_before_ms: int) -> None:
        """Drop GPUs whose newest sample is older; if one comes back it is measured from then on."""
        with self._writing() as database:
            database.execute("DELETE FROM gpus WHERE last_seen_ms < ?", (seen_before_ms,))

    def to_send(self, after_id: int, limit: int) -> list[UnsentRow]:
        """Rows that changed since they were delivered, in order of id from behind `after_id`."""
        with self._reading() as database:
            rows = database.execute(
                "SELECT id, job_id, attempt, gpu_uuid, gpu_class, node, hour_ms, seq, busy_ns, observed_ms"
                " FROM evidence WHERE unsent_since_ms IS NOT NULL AND id > ? ORDER BY id LIMIT ?",
                (after_id, limit),
            ).fetchall()
        return [_unsent(self.epoch, row) for row in rows]

    def sent(self, rows: Sequence[UnsentRow], began_wall_ms: int) -> None:
        """Mark as delivered what has not changed since it was read; the rest waits since `began_wall_ms`."""
        with self._writing() as database:
            database.executemany(_SENT, [(row.row.seq, began_wall_ms, row.id) for row in rows])

    def spool(self) -> Spool:
        """How much is still to be sent."""
        with self._reading() as database:
            records, oldest_ms = database.execute(
                "SELECT count(*), min(unsent_since_ms) FROM evidence WHERE unsent_since_ms IS NOT NULL"
            ).fetchone()
        return Spool(records, oldest_ms, self._dropped)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._turn, named_errors():
            yield self._connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._turn, named_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                # After a full disk SQLite may have rolled back by itself.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")


def open_outbox(path: Path, most_rows: int = MOST_ROWS) -> Outbox:
    """Open or make the outbox at `path`; an unreadable file is moved aside. Raises OutboxUnusable.

    It keeps at most `most_rows` rows. When there are more, delivered ones go first, then the oldest.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock_file = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OutboxUnusable(
            f"cannot write to {path.parent}: {error.strerror}; choose another --outbox"
        ) from error
    try:
        take_lock(lock_file, path)
        connection = open_database(path)
        epoch, seq = connection.execute("SELECT epoch, seq FROM agent").fetchone()
        return Outbox(connection, lock_file, epoch, seq, most_rows)
    except BaseException:
        os.close(lock_file)
        raise


def _gain_rows(
    states: Mapping[str, GpuState], gains: Mapping[RowKey, Measured], seq: int, moment_wall_ms: int
) -> Iterator[tuple[object, ...]]:
    for key, gain in gains.items():
        state = states[key.gpu_uuid]
        yield (*key, state.gpu_class, state.node, *gain, seq, moment_wall_ms)


def _state_row(state: GpuState) -> tuple[object, ...]:
    gaps = ",".join(map(str, state.gaps_ms))
    place = (state.gpu_uuid, state.gpu_class, state.node, state.last_seen_ms, gaps)
    sharers = json.dumps([[job_id, attempt, *measured] for job_id, attempt, measured in state.sharers])
    held = (state.job_id, state.attempt, *state.workload)
    return (*place, *state.device, *held, state.attributed_ns, sharers, json.dumps(state.runs))


def _state(row: tuple[Any, ...]) -> GpuState:
    gpu_uuid, gpu_class, node, last_seen_ms, gaps, busy_ns, observed_ms, job_id, attempt, *more = row
    workload_busy_ns, workload_observed_ms, attributed_ns, sharers, runs = more
    return GpuState(
        gpu_uuid,
        gpu_class,
        node,
        last_seen_ms,
        tuple(int(gap) for gap in gaps.split(",")),
        Measured(busy_ns, observed_ms),
        job_id,
        attempt,
        Measured(workload_busy_ns, workload_observed_ms),
        tuple((job, number, Measured(*measured)) for job, number, *measured in json.loads(sharers)),
        attributed_ns,
        tuple((since_ms, until_ms) for since_ms, until_ms in json.loads(runs)),
    )


def _holding(
    gpu_uuid: str, job_id: str, attempt: int, pod_index: int, since_ms: int, until_ms: int | None, *more: Any
) -> Holding:
    replica, namespace, pod, uid = more
    held = (gpu_uuid, job_id, attempt, pod_index, since_ms, until_ms)
    return Holding(*held, bool(replica), namespace, pod, uid)


def _unsent(epoch: str, row: tuple[int, str, int, str, str, str, int, int, int, int]) -> UnsentRow:
    row_id, job_id, attempt, gpu_uuid, gpu_class, node, hour_ms, seq, busy_ns, observed_ms = row
    return UnsentRow(
        row_id,
        EvidenceRow(
            job_id=job_id,
            attempt=attempt,
            gpu_uuid=gpu_uuid,
            gpu_class=gpu_class,
            node=node,
            hour=hour_ms,
            agent_epoch=epoch,
            seq=seq,
            busy_ms=busy_ns // NS_PER_MS,
            observed_ms=observed_ms,
        ),
    )
