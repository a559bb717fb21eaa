"""A whole year, day by day, through the real services; its books are closed each month by code that shares nothing."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from quota.clock import day_start_ms
from quota.reports import exporting
from quota.schemas.statements import StatementFormat, StatementLanguage
from tests import databases
from tests.builders import DAY_MS, OPERATOR
from tests.property.ledger import year_books as books
from tests.property.ledger.year_desk import Desk, Issued
from tests.property.ledger.year_life import DAYS, FIRST_DAY, STEPS_MS, Size, Year, a_year

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[3]
MONTHS = [f"2027-{month:02d}-01" for month in range(1, 13)] + ["2028-01-01"]
BOUNDS = [day_start_ms(day) for day in MONTHS]
"""Months of Asia/Seoul: each begins at 15:00 UTC."""
SMALL = Size(firms=16, consortia=5, universities=3, jobs_a_day=8, every_days=7)
MEANT = (
    "award firms",
    "award poc",
    "award edu",
    "carry over",
    "top up",
    "cut",
    "transfer",
    "adjust a grant",
    "share",
    "move a share",
    "release",
    "tranche",
    "extend",
    "cancel",
    "requeue",
    "requeued",
    "edit",
    "rate",
    "late truth",
    "start accepted",
    "stop time_limit accepted",
    "ended: lost",
    "ended: node_lost",
    "ended: completed",
    "ended: failed",
    "ended: stopped",
    "ended: never_started",
    "statement json",
    "statement csv",
    "statement html",
    "task grants.expire",
    "task audit.seal",
    "task reconcile",
)

RARE = (
    "refund",
    "adjust a programme",
    "cancel a waiting job",
    "stop cancelled accepted",
    "stop preempted accepted",
    "stop requeued accepted",
    "cut refused: insufficient_balance",
    "submit refused: insufficient_balance",
)


@dataclass
class Lived:
    """A year that is over."""

    year: Year
    desk: Desk
    monthly: dict[str, list[Issued]] = field(default_factory=lambda: defaultdict(list))
    followed: list[str] = field(default_factory=list)


def live(url: str, size: Size, seed: int = 7) -> Lived:
    """Live from the first to the last day; at each month's end the books are checked and statements issued."""
    year = a_year(url, size, seed)
    desk = Desk(year)
    lived = Lived(year, desk)
    desk.open()
    year.run_tasks()
    begins = day_start_ms(FIRST_DAY)
    for day in range(0, DAYS, size.every_days):
        starts = begins + day * DAY_MS
        for place, offset_ms in enumerate(STEPS_MS):
            year.step(starts + offset_ms + year.rng.randrange(0, 60_000))
            for _ in range(size.jobs_a_day // len(STEPS_MS) + (place == 0)):
                year.submit()
            for _ in range(year.rng.randrange(1, 3)):
                desk.act()
        ends = starts + size.every_days * DAY_MS
        for bound in [bound for bound in BOUNDS if starts < bound <= ends]:
            year.step(bound)
            close_month(lived, BOUNDS.index(bound))
        if year.now < ends <= BOUNDS[-1]:
            year.step(ends)
            year.run_tasks()
        desk.renew()
    return lived


def close_month(lived: Lived, month: int) -> None:
    """At midnight in Seoul: tasks run, the seal is made, every account is judged, and statements go out."""
    year, desk = lived.year, lived.desk
    year.run_tasks()
    found = books.load(year.hub.database.url)
    assert books.faults(found, year.diary) == [], f"month {month}"
    ended = sum(row["ends_at_ms"] <= year.now for row in found.tables["grants"])
    assert month < 4 or ended, "grants end within the year"
    known = sorted(row["id"] for row in found.tables["grants"])
    if month == 1:
        lived.followed = known[::3]
    for grant in lived.followed:
        since = None if month == 1 else BOUNDS[month - 1]
        issued = desk.issue(grant, since, BOUNDS[month])
        lived.monthly[grant].append(issued)
        assert books.statement_faults(found, issued.content) == [], grant
    for grant in known[month::40]:
        desk.issue(grant, None, BOUNDS[month], StatementFormat.CSV, StatementLanguage.KO)
        desk.issue(grant, None, BOUNDS[month], StatementFormat.HTML, StatementLanguage.EN)
    desk.change_rates()


def close_year(lived: Lived, folder: Path) -> None:
    """What must hold of the year as a whole."""
    year, desk = lived.year, lived.desk
    url = year.hub.database.url
    found = books.load(url)
    assert books.faults(found, year.diary) == []
    whole = {}
    for grant in sorted(row["id"] for row in found.tables["grants"]):
        whole[grant] = desk.issue(grant, None, BOUNDS[-1])
        assert books.statement_faults(found, whole[grant].content) == [], grant
    for grant, months in lived.monthly.items():
        assert len(months) == 12
        assert books.period_faults([one.content for one in months], whole[grant].content) == []
    periods, total = books.usage_by_period(found, BOUNDS)
    assert sum(periods) == total > 0
    assert all(periods), "every month has its usage"
    assert desk.changed() == []
    stored = Counter(row["sha256"] for row in books.load(url).tables["statements"])
    assert stored == Counter(one.sha256 for one in desk.issued), "each was stored once, as it was answered"
    assert verified(year, folder, [whole[grant] for grant in lived.followed[:5]]) == 0


def verified(year: Year, folder: Path, statements: list[Issued]) -> int:
    """Exit code of the auditors' program over the exported ledger and some statements."""
    seal = exporting.begin_export(year.hub.database, OPERATOR, None, "the year is over")
    ledger = folder / "ledger.jsonl"
    with ledger.open("wb") as file:
        file.writelines(exporting.write_ledger(year.hub.database, seal, packed=False))
    names = []
    for number, one in enumerate(statements):
        names.append(folder / f"{number}.json")
        names[-1].write_bytes(one.content)
    program: list[str | Path] = [sys.executable, "-I", ROOT / "deploy" / "audit_verify.py", ledger, *names]
    ran = subprocess.run(program, capture_output=True, text=True, check=False)
    print(ran.stdout[-2000:], ran.stderr[-2000:])
    return ran.returncode


@pytest.mark.timeout(600)
def test_a_year_of_a_city_adds_up_to_the_last_millisecond_and_won(sqlite_url: str, tmp_path: Path) -> None:
    lived = live(sqlite_url, Size())
    close_year(lived, tmp_path)
    missing = [name for name in (*MEANT, *RARE) if not lived.year.done[name]]
    assert not missing, f"{missing} never happened in {dict(lived.year.done)}"
    lived.year.hub.close()


@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_every_seventh_day_of_it_adds_up_on_postgresql(postgres_url: str, tmp_path: Path) -> None:
    lived = live(postgres_url, SMALL)
    close_year(lived, tmp_path)
    missing = [name for name in MEANT if not lived.year.done[name]]
    assert not missing, f"{missing} never happened in {dict(lived.year.done)}"
    lived.year.hub.close()


@pytest.mark.timeout(600)
def test_the_same_seed_lives_the_same_year(tmp_path: Path) -> None:
    size, done = Size(firms=6, consortia=2, universities=1, jobs_a_day=6, every_days=30), []
    for _ in range(2):
        lived = live(databases.new_sqlite(tmp_path), size)
        accounts = books.load(lived.year.hub.database.url).of_kind("program", "expired", "platform")
        done.append((lived.year.done, list(accounts)))
        lived.year.hub.close()
    assert done[0] == done[1]
