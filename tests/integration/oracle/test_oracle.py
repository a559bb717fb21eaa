"""The oracle says nothing of a consistent world, and names the rule that any planted lie breaks."""

from __future__ import annotations

import ast
import atexit
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Boolean

from quota.schema import metadata
from tests.oracle import oracle
from tests.oracle.builders import HOUR, MINUTE, Files, a_world, at, write

ORACLE = Path(oracle.__file__)
ALPHA, BRAVO, CHARLIE = f"alpha:1:slice:{at(610)}", f"bravo:1:slice:{at(660)}", f"charlie:1:slice:{at(605)}"

Lines = list[dict[str, Any]]
Edit = Callable[[Lines], object]
Lie = str | Edit | tuple[str | Edit, ...]
"""SQL for the database, or a function that changes the journal's lines; or several of both."""


def tell(lie: Lie, files: Files) -> None:
    """Plant a lie in the files."""
    for part in lie if isinstance(lie, tuple) else (lie,):
        if isinstance(part, str):
            files.change(part)
        else:
            lines = files.lines()
            part(lines)
            files.write_lines(lines)


# --- lies in the journal


def find(lines: Lines, event: str, name: str, index: int = 0) -> dict[str, Any]:
    """A pod's or an object's line."""
    return next(
        line
        for line in lines
        if (line["event"], line.get("name")) == (event, name) and line.get("pod_index", index) == index
    )


def of(event: str, name: str, index: int = 0, **fields: Any) -> Edit:
    """Change one line."""
    return lambda lines: find(lines, event, name, index).update(fields)


def without(event: str, name: str) -> Edit:
    """Remove one line."""
    return lambda lines: lines.remove(find(lines, event, name))


def again(event: str, name: str, **fields: Any) -> Edit:
    """Repeat one line right after it, changed."""
    return lambda lines: lines.insert(
        lines.index(find(lines, event, name)) + 1, find(lines, event, name) | fields
    )


def foreign_use_before_bravo(lines: Lines) -> None:
    """Others take five GPUs of the node on which bravo's second pod is about to start."""
    line = {"t": at(654), "event": "foreign_set", "node": "sim-1", "gpu_class": "h100", "count": 5}
    lines.insert(lines.index(find(lines, "pod_started", "bravo-1", 1)), line)


def a_smaller_node(lines: Lines) -> None:
    """The first node has five GPUs, of which six are in use at 620."""
    del lines[0]["gpus"][5:]


def unknown_job(lines: Lines) -> None:
    """A job that only the cluster knows."""
    for event in ("object_created", "pod_started", "pod_ended"):
        lines.append(find(lines, event, "alpha-1") | {"name": "ghost-1", "job_id": "ghost", "t": at(720)})


# --- lies in the database


def copied(table: str, condition: str, **changed: str) -> str:
    """Insert a row once more, with some columns replaced by SQL expressions."""
    names = [column.name for column in metadata.tables[table].columns]
    values = ", ".join(changed.get(name, f'"{name}"') for name in names)
    columns = ", ".join(f'"{name}"' for name in names)
    return f"INSERT INTO {table} ({columns}) SELECT {values} FROM {table} WHERE {condition}"


def copied_transfer(transfer: str) -> tuple[str, str]:
    """A transfer and its legs once more, under another id."""
    return (
        copied("transfers", f"id = '{transfer}'", id="'more'"),
        copied("transfer_legs", f"transfer_id = '{transfer}'", transfer_id="'more'"),
    )


def twice(table: str, key: str) -> tuple[str, ...]:
    """The same row twice, although the table has a primary key."""
    return (
        f"CREATE TABLE unbound AS SELECT * FROM {table} UNION ALL SELECT * FROM {table} WHERE id = '{key}'",
        f"DROP TABLE {table}",
        f"ALTER TABLE unbound RENAME TO {table}",
    )


def without_legs(transfer: str, account: str) -> str:
    """Remove legs of a transfer."""
    return f"DELETE FROM transfer_legs WHERE transfer_id = '{transfer}' AND account_id LIKE '{account}'"


def legs(transfer: str, change: str, account: str = "%") -> str:
    """Change a transfer's legs."""
    return (
        f"UPDATE transfer_legs SET {change} WHERE transfer_id = '{transfer}' AND account_id LIKE '{account}'"
    )


LIES: dict[str, dict[str, Lie]] = {
    "gpu_exclusive": {
        "one GPU in two pods": of("pod_started", "delta-1", gpu_uuids=["GPU-sim-0-3", "GPU-sim-0-4"]),
        "a pod outlives its successor's start": of("pod_ended", "alpha-1", t=at(652) + 1),
        "a pod that never ended": without("pod_ended", "alpha-1"),
    },
    "node_not_overfull": {
        "foreign use leaves no room": foreign_use_before_bravo,
        "a pod has fewer GPUs than asked": of("pod_started", "delta-1", gpu_uuids=["GPU-sim-0-4"]),
        "more runs than the node has": a_smaller_node,
        "capacity taken that nobody holds": "UPDATE node_capacity SET used = 1 WHERE node = 'sim-0'",
        "capacity held that is not taken": "UPDATE attempts SET capacity_held = 1 WHERE job_id = 'alpha'",
        "a total below its use": "UPDATE node_capacity SET total = 7 WHERE node = 'sim-1'",
    },
    "one_run_per_attempt": {
        "an attempt unknown to the database": unknown_job,
        "a pod started twice": again("pod_started", "alpha-1", t=at(611)),
        "an object created twice": again("object_created", "alpha-1"),
        "a tombstone ran": of("object_created", "alpha-1", suspend=True),
        "a pod without an object": without("object_created", "alpha-1"),
        "two attempts at once, none lost": (
            "UPDATE attempts SET lost = 0",
            of("pod_ended", "charlie-1", t=at(665)),
        ),
        "it ran before it was claimed": f"UPDATE attempts SET claimed_at_ms = {at(611)} WHERE job_id = 'alpha'",
        "a success that was none": of("pod_ended", "alpha-1", exit_code=1),
    },
    "placement_as_decided": {
        "another node": "UPDATE placements SET node = 'sim-1' WHERE job_id = 'alpha'",
        "another count": "UPDATE placements SET gpus = 3 WHERE job_id = 'delta'",
        "another class": "UPDATE placements SET gpu_class = 'a100' WHERE job_id = 'bravo'",
        "a class that it does not accept": "UPDATE jobs SET gpu_class = 'a100' WHERE id = 'alpha'",
        "a class whose name only begins like one that it accepts": (
            "UPDATE jobs SET gpu_class = 'h100-1g.10gb' WHERE id = 'alpha'"
        ),
        "the hold of another class": "UPDATE holds SET gpu_class = 'a100' WHERE job_id = 'bravo'",
        "a GPU of another node": of("pod_started", "delta-1", gpu_uuids=["GPU-sim-0-4", "GPU-sim-1-5"]),
    },
    "ledger_equals_journal": {
        "a pod ended a millisecond later": of("pod_ended", "bravo-1", 1, t=at(685) + 1),
        "a pod started a millisecond later": of("pod_started", "alpha-1", t=at(610) + 1),
        "a charge is one unit short": legs(ALPHA, "d_used = d_used - 1", "grant%"),
        "the platform pays nothing": legs(f"delta:1:slice:{at(650)}", "d_used = 0"),
        "the correction is missing": (
            f"DELETE FROM transfers WHERE id = '{CHARLIE}:correction'",
            f"DELETE FROM transfer_legs WHERE transfer_id = '{CHARLIE}:correction'",
        ),
        "the fault is not booked on the platform": without_legs(f"{CHARLIE}:fault", "platform"),
        "a node died at another time": of("pod_ended", "charlie-1", t=at(646)),
        "another end is recorded": "UPDATE attempts SET ended_at_ms = ended_at_ms + 1 WHERE job_id = 'bravo'",
        "settled while it runs": "UPDATE attempts SET settled = 1 WHERE job_id = 'golf'",
    },
    "charge_bounds": {
        "the grant pays before the gang is whole": f"UPDATE slices SET payer = 'grant' WHERE starts_at_ms = {at(652)}",
        "the grant pays for the grace": f"UPDATE slices SET payer = 'grant' WHERE starts_at_ms = {at(650)}",
        "the platform pays for the grant": f"UPDATE slices SET payer = 'platform' WHERE id = '{ALPHA}'",
        "slices overlap": f"UPDATE slices SET starts_at_ms = starts_at_ms - 1 WHERE id = '{BRAVO}'",
        "slices leave a gap": f"UPDATE slices SET starts_at_ms = starts_at_ms + 1 WHERE id = '{BRAVO}'",
        "a slice passes an hour mark": (
            f"DELETE FROM slices WHERE id = '{BRAVO}'",
            f"UPDATE slices SET ends_at_ms = {at(685)} WHERE starts_at_ms = {at(655)}",
        ),
        "a slice at another rate": f"UPDATE slices SET amount_gpu_us = amount_gpu_us * 2 WHERE id = '{ALPHA}'",
        "another price": f"UPDATE slices SET price_krw = 2999 WHERE id = '{ALPHA}'",
        "a slice that was not observed yet": f"UPDATE clusters SET observed_through_ms = {at(699)}",
        "a slice after the end": copied(
            "slices", f"id = '{ALPHA}'", id="'more'", starts_at_ms="ends_at_ms", ends_at_ms="ends_at_ms + 1"
        ),
        "the last slice is missing": f"DELETE FROM slices WHERE id = '{BRAVO}'",
        "more charged than held": "UPDATE holds SET amount_gpu_us = 1 WHERE job_id = 'alpha'",
        "a stop that came earlier": (
            f"UPDATE attempts SET stop_at_ms = {at(630)}, stop_grace_ms = 0 WHERE job_id = 'alpha'"
        ),
    },
    "hold_once": {
        "held twice": copied_transfer("alpha:1:hold"),
        "released twice": copied_transfer("alpha:1:release"),
        "extended twice under one name": copied_transfer("delta:1:extend:2"),
        "an extension that was never made": "UPDATE holds SET extensions = 3 WHERE job_id = 'delta'",
        "an extension that nobody holds for": "DELETE FROM transfer_legs WHERE transfer_id = 'delta:1:extend:1'",
        "extended in the hold alone": "UPDATE attempts SET walltime_ms = walltime_ms - 360000 WHERE job_id = 'delta'",
        "an extension at another rate": legs("delta:1:extend:1", "d_held = d_held - 1"),
        "never held": "DELETE FROM transfers WHERE id = 'alpha:1:hold'",
        "not resolved at the end": "UPDATE holds SET resolved = 0 WHERE job_id = 'alpha'",
        "resolved while it runs": "UPDATE holds SET resolved = 1 WHERE job_id = 'golf'",
        "resolved with something left": (
            "DELETE FROM transfers WHERE id = 'echo:1:release'",
            "UPDATE holds SET released_gpu_us = 0 WHERE job_id = 'echo'",
        ),
        "another sum of charges": "UPDATE holds SET settled_gpu_us = settled_gpu_us - 1 WHERE job_id = 'bravo'",
        "another sum of refunds": "UPDATE holds SET refunded_gpu_us = 0 WHERE job_id = 'charlie'",
        "another sum of the platform": "UPDATE holds SET platform_gpu_us = 0 WHERE job_id = 'delta'",
        "held for another walltime": "UPDATE attempts SET walltime_ms = walltime_ms + 1 WHERE job_id = 'echo'",
        "a rate that never was": ("UPDATE rates SET rate_thousandths = 999 WHERE gpu_class = 'h100'"),
        "the path misses an account": without_legs(ALPHA, "tranche%"),
        "the path is charged unevenly": legs(ALPHA, "d_used = d_used - 1, d_held = d_held + 1", "share%"),
        "an account off the path pays": legs(BRAVO, "account_id = 'share:g1:lab'", "grant%"),
        "an attempt without a hold": "DELETE FROM holds WHERE job_id = 'echo'",
    },
    "balances": {
        "a granted balance of its own": "UPDATE accounts SET granted_gpu_us = granted_gpu_us + 1 WHERE kind = 'grant'",
        "a used balance of its own": "UPDATE accounts SET used_gpu_us = used_gpu_us - 1 WHERE kind = 'share'",
        "something still held": "UPDATE accounts SET held_gpu_us = 1 WHERE kind = 'grant'",
        "overdrawn": (
            "UPDATE accounts SET granted_gpu_us = 1 WHERE kind = 'tranche'",
            legs("tranche", "d_granted = 1"),
        ),
        "GPU time from nowhere": (
            legs("award", "d_granted = d_granted + 5", "grant%"),
            "UPDATE accounts SET granted_gpu_us = granted_gpu_us + 5 WHERE kind = 'grant'",
        ),
        "GPU time that vanished": (
            "DELETE FROM transfer_legs WHERE transfer_id = 'cut' AND account_id = 'program:p1'",
            f"UPDATE accounts SET granted_gpu_us = granted_gpu_us - {HOUR} WHERE kind = 'program'",
        ),
        "a transfer that gives more than it takes": (
            legs("moved", "d_granted = d_granted + 7", "grant:g1"),
            "UPDATE accounts SET granted_gpu_us = granted_gpu_us + 7 WHERE id = 'grant:g1'",
        ),
        "expired hours that came to less": (
            legs("g0:expire:1", "d_granted = d_granted - 7", "expired:%"),
            "UPDATE accounts SET granted_gpu_us = granted_gpu_us - 7 WHERE kind = 'expired'",
        ),
        "hours that expired back into the budget": (
            legs("g0:expire:1", "account_id = 'program:p1'", "expired:%"),
            f"UPDATE accounts SET granted_gpu_us = granted_gpu_us - {38 * HOUR * 1000} WHERE kind = 'expired'",
            f"UPDATE accounts SET granted_gpu_us = granted_gpu_us + {38 * HOUR * 1000} WHERE kind = 'program'",
        ),
        "expired hours taken by an award": "UPDATE transfers SET type = 'deposit' WHERE id = 'g0:carry-over:1'",
        "expired hours that somebody used": (
            legs("g0:expire:1", "d_used = 1", "expired:%"),
            "UPDATE accounts SET used_gpu_us = 1 WHERE kind = 'expired'",
        ),
    },
    "transfers": {
        "an id twice": twice("transfers", "award"),
        "no legs": "DELETE FROM transfer_legs WHERE transfer_id = 'cut'",
        "legs of nothing": "DELETE FROM transfers WHERE id = 'cut'",
        "legs of another transaction": legs("cut", "seq = seq + 1"),
        "a leg of no account": legs("cut", "account_id = 'grant:gone'", "grant%"),
        "a charge without its slice": f"DELETE FROM slices WHERE id = '{ALPHA}'",
        "a slice that nobody settled": f"UPDATE transfers SET slice_id = NULL WHERE id = '{ALPHA}'",
        "a charge of another time": f"UPDATE transfers SET ends_at_ms = ends_at_ms - 1 WHERE id = '{ALPHA}'",
        "a charge of another amount": f"UPDATE transfers SET amount_gpu_us = amount_gpu_us - 1 WHERE id = '{ALPHA}'",
        "charged twice": copied_transfer(ALPHA),
        "more refunded than charged": (
            f"UPDATE transfers SET amount_gpu_us = amount_gpu_us * 9 WHERE id = '{CHARLIE}:fault'"
        ),
        "a refund of nothing": f"UPDATE transfers SET refund_of = 'gone' WHERE id = '{CHARLIE}:fault'",
    },
    "evidence": {
        "busier than observed": "UPDATE evidence SET busy_ms = observed_ms + 1 WHERE agent_epoch = 'epoch-two'",
        "an hour that is none": "UPDATE evidence SET hour_ms = hour_ms + 1 WHERE job_id = 'charlie'",
        "observed longer than it ran": "UPDATE evidence SET observed_ms = observed_ms + 1 WHERE job_id = 'charlie'",
        "epochs that count the same time": (
            f"UPDATE evidence SET observed_ms = observed_ms + {MINUTE} WHERE agent_epoch = 'epoch-two'"
        ),
        "an hour in which it did not run": f"UPDATE evidence SET hour_ms = {at(660)} WHERE job_id = 'charlie'",
        "another's GPU": ("UPDATE evidence SET gpu_uuid = 'GPU-sim-0-7' WHERE agent_epoch = 'epoch-two'"),
        "from another node": "UPDATE evidence SET node = 'sim-1' WHERE job_id = 'charlie'",
    },
    "feed": {
        "a transaction that left no trace": "DELETE FROM audit",
        "a seq beyond the head": "UPDATE audit SET seq = seq + 1",
        "a head that ran ahead": "UPDATE feed_head SET seq = seq + 1",
        "a head that fell back": "UPDATE feed_head SET seq = seq - 1",
    },
    "final": {
        "a job that waits": "UPDATE jobs SET state = 'queued' WHERE id = 'echo'",
        "capacity still held": "UPDATE attempts SET capacity_held = 1 WHERE job_id = 'echo'",
        "an attempt not settled": "UPDATE attempts SET settled = 0 WHERE job_id = 'echo'",
        "a hold not resolved": "UPDATE holds SET resolved = 0 WHERE job_id = 'echo'",
        "a pod still running": without("pod_ended", "bravo-1"),
    },
}
CASES = [pytest.param(rule, name, id=f"{rule}: {name}") for rule, lies in LIES.items() for name in lies]


@cache
def said_of(rule: str, name: str) -> tuple[str, ...]:
    """What the oracle says once this lie is told."""
    with tempfile.TemporaryDirectory() as folder:
        honest = _honest(running=rule != "final")
        files = Files(*(Path(shutil.copy(path, folder)) for path in (honest.database, honest.journal)))
        tell(LIES[rule][name], files)
        return tuple(judge(files, final=rule == "final"))


@cache
def _honest(running: bool) -> Files:
    folder = tempfile.mkdtemp(prefix="hub-oracle-")
    atexit.register(shutil.rmtree, folder, True)
    return write(a_world(still_running=running), Path(folder))


@pytest.fixture
def consistent(tmp_path: Path) -> Files:
    """A world in which all has ended."""
    return write(a_world(), tmp_path)


@pytest.fixture
def running(tmp_path: Path) -> Files:
    """A world in which one job still runs."""
    return write(a_world(still_running=True), tmp_path)


def judge(files: Files, *, final: bool = False, tolerance_ms: int = 0) -> list[str]:
    return oracle.judge(str(files.database), str(files.journal), final, tolerance_ms)


def rules(found: Iterable[str]) -> set[str]:
    return {line.split(":")[0] for line in found}


def test_nothing_is_said_of_a_consistent_world(consistent: Files) -> None:
    assert judge(consistent, final=True) == []


def test_nothing_is_said_of_a_world_that_still_runs(running: Files) -> None:
    assert judge(running) == []
    assert rules(judge(running, final=True)) == {"final"}


@pytest.mark.parametrize(("rule", "name"), CASES)
def test_a_planted_lie_makes_its_rule_speak(rule: str, name: str) -> None:
    assert rule in rules(said_of(rule, name))


def test_every_rule_has_at_least_two_lies_and_every_check_a_liar() -> None:
    spoken = {line for case in CASES for line in said_of(*map(str, case.values))}
    checks = re.findall(r"^(\w+) [^:]+: (.+?)\s+IF", oracle.CHECKS, re.M)
    assert {": ".join(check) for check in checks} == {": ".join(line.split(": ")[:2]) for line in spoken}
    assert {rule for rule, _ in checks} == set(LIES)
    assert min(len(lies) for lies in LIES.values()) >= 2


def test_a_violation_is_one_line_with_its_numbers(consistent: Files) -> None:
    tell(f"UPDATE evidence SET observed_ms = {31 * MINUTE} WHERE gpu_uuid = 'GPU-sim-0-1'", consistent)
    [line] = judge(consistent)
    assert line.startswith("evidence: ")
    assert "alpha" in line
    assert f"'total': {31 * MINUTE}" in line
    assert "\n" not in line


def test_a_sample_period_may_be_tolerated(consistent: Files) -> None:
    tell("UPDATE evidence SET observed_ms = observed_ms + 10000 WHERE job_id = 'charlie'", consistent)
    assert judge(consistent, tolerance_ms=10_000) == []
    assert rules(judge(consistent, tolerance_ms=9_999)) == {"evidence"}


def test_a_lowered_total_is_a_finding_and_not_a_violation(running: Files) -> None:
    tell("UPDATE node_capacity SET total = 7 WHERE node = 'sim-1'", running)
    running.change(
        "INSERT INTO findings (at_ms, code, subject, detail) VALUES (0, 'capacity_lowered', 'sim/sim-1', '')"
    )
    assert judge(running) == []


def test_attempts_may_overlap_when_the_earlier_was_lost(consistent: Files) -> None:
    tell(of("pod_ended", "charlie-1", t=at(665), reason="gang_failed"), consistent)
    assert "one_run_per_attempt" not in rules(judge(consistent))


def test_a_torn_last_line_is_ignored(consistent: Files) -> None:
    with consistent.journal.open("a") as journal:
        journal.write('{"t": 1, "n": 99, "event": "pod_sta')
    assert judge(consistent, final=True) == []


def test_sqlite_may_be_named_by_its_url_and_is_not_written(consistent: Files) -> None:
    consistent.database.chmod(0o444)
    assert oracle.judge(f"sqlite:///{consistent.database}", str(consistent.journal)) == []


def test_a_database_in_use_is_judged_as_last_committed(consistent: Files) -> None:
    writer = sqlite3.connect(consistent.database, isolation_level=None)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("UPDATE accounts SET used_gpu_us = used_gpu_us + 1 WHERE kind = 'share'")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE accounts SET used_gpu_us = used_gpu_us - 1 WHERE kind = 'share'")
    assert rules(judge(consistent)) == {"balances"}
    writer.execute("COMMIT")
    assert judge(consistent) == []
    writer.close()


@pytest.mark.postgres
def test_postgres_is_judged_like_sqlite(running: Files, postgres_url: str) -> None:
    _copy_to_postgres(running, postgres_url)
    assert oracle.judge(postgres_url, str(running.journal)) == []
    with psycopg.connect(postgres_url) as connection:
        connection.execute("UPDATE attempts SET walltime_ms = walltime_ms + 1 WHERE job_id = 'echo'")
    assert rules(oracle.judge(postgres_url, str(running.journal))) == {"hold_once"}


def _copy_to_postgres(files: Files, url: str) -> None:
    source = sqlite3.connect(files.database)
    with psycopg.connect(url) as target:
        target.execute(
            "SET session_replication_role = replica"
        )  # no foreign keys: only what is judged exists
        for name in oracle.TABLES.split():
            columns = metadata.tables[name].columns
            listed = ", ".join(f'"{column.name}"' for column in columns)
            marks = ", ".join(
                "%s::int::boolean" if isinstance(column.type, Boolean) else "%s" for column in columns
            )
            target.execute(f"DELETE FROM {name}")
            with target.cursor() as cursor:
                rows = source.execute(f"SELECT {listed} FROM {name}")
                cursor.executemany(f"INSERT INTO {name} ({listed}) VALUES ({marks})", list(rows))
    source.close()


def test_it_is_short_and_imports_nothing_of_what_it_judges() -> None:
    source = ORACLE.read_text()
    assert len(source.splitlines()) < 205
    tree = ast.parse(source)
    top = [name for node in tree.body for name in _imported(node)]
    everywhere = {name for node in ast.walk(tree) for name in _imported(node)}
    assert set(top) <= sys.stdlib_module_names
    assert everywhere - set(top) == {"psycopg"}


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [str(node.module).split(".")[0]] if isinstance(node, ast.ImportFrom) else []


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The program as a process of its own, far from the repository."""
    command = [sys.executable, "-I", "-W", "error", str(ORACLE), *map(str, arguments)]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)


def test_the_program_says_ok_with_what_it_looked_at(consistent: Files) -> None:
    done = run("--database", consistent.database, "--journal", consistent.journal, "--final")
    lines = consistent.journal.read_text().count("\n")
    assert done.stdout == f"oracle: ok (6 attempts, 6 pods, 33 transfers, {lines} events)\n"
    assert (done.returncode, done.stderr) == (0, "")


def test_the_program_prints_each_violation_and_their_number(running: Files) -> None:
    done = run("--database", running.database, "--journal", running.journal, "--final")
    assert done.stdout.splitlines()[-1] == "oracle: 3 violations"
    assert len(done.stdout.splitlines()) == 4
    assert done.returncode == 1


def test_a_missing_journal_cannot_be_judged(consistent: Files) -> None:
    consistent.journal.unlink()
    assert_cannot_judge(consistent, "journal.jsonl")


def test_a_missing_database_cannot_be_judged_and_is_not_made(consistent: Files) -> None:
    consistent.database.unlink()
    assert_cannot_judge(consistent, "unable to open database file")
    assert not consistent.database.exists()


def test_another_database_cannot_be_judged(consistent: Files) -> None:
    consistent.change("ALTER TABLE transfers RENAME TO elsewhere")
    assert_cannot_judge(consistent, "no such table: transfers")


@pytest.mark.parametrize("text", ['{"t": 1, "n": 3, "eve', "[]", '{"t": 1}', '{"t": 1, "n": 4}', "\ufffd"])
def test_a_broken_line_inside_the_journal_cannot_be_judged(text: str, consistent: Files) -> None:
    lines = consistent.journal.read_text().splitlines()
    lines[2] = text
    consistent.journal.write_text("\n".join(lines) + "\n")
    assert_cannot_judge(consistent, "journal line 3 cannot be read")


def assert_cannot_judge(files: Files, reason: str) -> None:
    done = run("--database", files.database, "--journal", files.journal)
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 1
    assert reason in done.stdout
    assert done.stderr == ""
