"""The verifier derives a statement's figures from the ledger's file, and finds where the statement says otherwise."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy import audit_verify
from quota.audit import seals
from quota.schemas.statements import StatementFormat, StatementLanguage
from tests import databases
from tests.builders import MINUTE_MS
from tests.integration.quota.audit_forgery import rules_broken
from tests.integration.quota.audit_world import World, a_busy_hub, all_seals, ledger_of, statement_of

JSON, CSV, HTML = StatementFormat
EN, KO = StatementLanguage.EN, StatementLanguage.KO


@dataclass
class Papers:
    """A ledger's file, and statements that were issued before its last seal."""

    world: World
    ledger: bytes
    json: bytes
    period: bytes
    csv_en: bytes
    csv_ko: bytes
    html: bytes


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    world = a_busy_hub(databases.new_sqlite(tmp_path_factory.mktemp("papers")))
    first, second, last = all_seals(world.hub)
    made = {
        "json": statement_of(world, world.plain),
        "period": statement_of(world, world.plain, as_of=last.at, since=second.at),
        "csv_en": statement_of(world, world.plain, CSV, EN, since=first.at),
        "csv_ko": statement_of(world, world.plain, CSV, KO),
        "html": statement_of(world, world.plain, HTML, KO),
    }
    world.hub.clock.advance(MINUTE_MS)
    assert seals.seal_due(world.hub.database) == 1, "the issuing itself is sealed"
    return Papers(world, ledger_of(world.hub), **made)


def test_every_form_of_every_statement_agrees_with_the_ledger(papers: Papers, tmp_path: Path) -> None:
    statements = [
        (f"{number}.{form.value}", statement_of(papers.world, grant, form, language))
        for number, grant in enumerate((papers.world.consortium, papers.world.staged, papers.world.ended))
        for form, language in ((JSON, EN), (CSV, EN))
    ]
    issued = [("a.json", papers.json), ("b.json", papers.period), ("c.csv", papers.csv_en)]
    issued += [("d.csv", papers.csv_ko), ("e.html", papers.html)]
    assert rules_broken(tmp_path, papers.ledger, *statements, *issued) == []


def test_a_statement_that_was_not_sealed_is_checked_as_far_as_the_file_goes(
    papers: Papers, tmp_path: Path
) -> None:
    found = json.loads(papers.json) | {"seal": None, "as_of": "2026-12-01T00:00:00.000Z"}
    assert rules_broken(tmp_path, papers.ledger, ("now.json", json.dumps(found).encode())) == []
    found["seq"] += 1000
    assert "statement_seal" in rules_broken(
        tmp_path, papers.ledger, ("later.json", json.dumps(found).encode())
    )


def test_a_statement_newer_than_the_file_is_not_taken_for_checked(papers: Papers, tmp_path: Path) -> None:
    earlier = ledger_of(papers.world.hub, through_seal=2)
    assert "statement_seal" in rules_broken(tmp_path, earlier, ("a.json", papers.json))


# --- JSON -----------------------------------------------------------------------------------------------

Document = dict[str, Any]


def _charge(document: Document) -> Document:
    found: Document = next(line for line in document["lines"] if line["type"] == "settle" and line["krw"])
    return found


def _add(fields: Document, name: str, by: int) -> None:
    fields[name] = str(int(fields[name]) + by) if isinstance(fields[name], str) else fields[name] + by


CHANGED: dict[str, tuple[str, Callable[[Document], object]]] = {
    "one won too many": ("statement_sums", lambda d: _add(d, "total_krw", 1)),
    "one won too few": ("statement_sums", lambda d: _add(d, "total_krw", -1)),
    "another opening": ("statement_sums", lambda d: _add(d["opening"], "used_gpu_us", 1)),
    "another closing": ("statement_sums", lambda d: _add(d, "used_gpu_us", 1)),
    "more available": ("statement_sums", lambda d: _add(d, "available_gpu_us", 1)),
    "other hours for people": ("statement_sums", lambda d: d.update(used_gpu_hours="1")),
    "a line of one won more": ("statement_line", lambda d: _add(_charge(d), "krw", 1)),
    "a line of one GPU-us more": ("statement_line", lambda d: _add(_charge(d), "used_gpu_us", 1)),
    "a line of one millisecond more": (
        "statement_line",
        lambda d: _add(_charge(d)["slice"], "milliseconds", 1),
    ),
    "a line at another price": ("statement_line", lambda d: _add(_charge(d)["slice"], "price_krw", 1)),
    "a line at another time": ("statement_line", lambda d: _charge(d).update(at="2026-11-22T00:00:00.000Z")),
    "a line that leaves more": ("statement_line", lambda d: _add(_charge(d), "available_gpu_us", 1)),
    "another reason": ("statement_line", lambda d: _charge(d).update(reason="so")),
    "another evidence": ("statement_line", lambda d: _charge(d).update(evidence=None)),
    "a line without its arithmetic": ("statement_line", lambda d: _charge(d).update(slice=None)),
    "a field too few": ("statement_line", lambda d: _charge(d).pop("actor")),
    "a line is missing": ("statement_line", lambda d: d["lines"].pop(3)),
    "a line stands twice": ("statement_line", lambda d: d["lines"].append(d["lines"][-1])),
    "two lines were swapped": ("statement_line", lambda d: d["lines"].insert(0, d["lines"].pop(1))),
    "another seal's hash": ("statement_seal", lambda d: d["seal"].update(sha256="0" * 64)),
    "a seal that is not there": ("statement_seal", lambda d: d["seal"].update(number=99)),
    "another moment": ("statement_seal", lambda d: d.update(as_of="2026-11-22T00:00:00.000Z")),
    "another last sequence": ("statement_seal", lambda d: _add(d, "seq", -1)),
    "another beginning": ("statement_seal", lambda d: d["since"].update(at="2026-11-22T00:00:00.000Z")),
    "another organization": ("statement_owner", lambda d: d.update(organization_id="gamma")),
    "another programme": ("statement_owner", lambda d: d.update(program_id="bx")),
    "an account that is not there": ("statement_owner", lambda d: d.update(account_id="grant:x")),
    "another format": ("statement_form", lambda d: d.update(format="gpuhub-statement/2")),
    "no lines at all": ("statement_form", lambda d: d.pop("lines")),
    "lines that are none": ("statement_form", lambda d: d.update(lines=[1])),
    "figures as they were, other bytes": ("statement_issued", lambda d: None),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_changed_statement_is_found(case: str, papers: Papers, tmp_path: Path) -> None:
    rule, change = CHANGED[case]
    document = json.loads(papers.period)
    change(document)
    content = json.dumps(document, ensure_ascii=False).encode()
    assert content != papers.period
    assert rule in rules_broken(tmp_path, papers.ledger, ("statement.json", content))


# --- CSV and HTML -----------------------------------------------------------------------------------------

Rows = list[list[str]]


def _cell(rows: Rows, column: int, value: str, row: int = 4) -> None:
    assert rows[row][column] != value
    rows[row][column] = value


CHANGED_CSV: dict[str, tuple[str, Callable[[Rows], object]]] = {
    "another won": ("statement_line", lambda rows: _cell(rows, 16, "1")),
    "another amount": ("statement_line", lambda rows: _cell(rows, 19, "1")),
    "another type": ("statement_line", lambda rows: _cell(rows, 2, "adjust")),
    "a defused formula made live": ("statement_line", lambda rows: _undefuse(rows)),
    "another closing": ("statement_sums", lambda rows: _cell(rows, 19, "1", _closing(rows))),
    "another total": ("statement_sums", lambda rows: _cell(rows, 16, "1", _closing(rows))),
    "another opening": ("statement_sums", lambda rows: _cell(rows, 17, "1", 1)),
    "the last line left out": ("statement_line", lambda rows: rows.pop(_closing(rows) - 1)),
    "a line left out, the others numbered": ("statement_line", lambda rows: _leave_out(rows)),
    "a line left out": ("statement_form", lambda rows: rows.pop(3)),
    "another grant": ("statement_owner", lambda rows: _fact(rows, 0, "grant-x")),
    "another seal": ("statement_seal", lambda rows: _fact(rows, 6, "3 " + "0" * 64)),
    "another moment": ("statement_seal", lambda rows: _fact(rows, 5, "2026-11-22T00:00:00.000Z")),
    "another beginning": (
        "statement_seal",
        lambda rows: _fact(rows, 4, f"2026-11-22T00:00:00.000Z (1 {'0' * 64})"),
    ),
    "a column left out": ("statement_form", lambda rows: [row.pop() for row in rows if len(row) > 2]),
    "no facts": ("statement_form", lambda rows: rows.pop()),
}


@pytest.mark.parametrize("case", CHANGED_CSV)
def test_a_changed_spreadsheet_is_found(case: str, papers: Papers, tmp_path: Path) -> None:
    rule, change = CHANGED_CSV[case]
    rows = list(csv.reader(io.StringIO(papers.csv_en.decode("utf-8-sig"), newline="")))
    change(rows)
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\r\n").writerows(rows)
    content = out.getvalue().encode("utf-8-sig")
    assert content != papers.csv_en
    assert rule in rules_broken(tmp_path, papers.ledger, ("statement.csv", content))


@pytest.mark.parametrize("name", ["csv_ko", "html", "json"])
def test_a_form_whose_bytes_changed_is_not_the_issued_one(name: str, papers: Papers, tmp_path: Path) -> None:
    content = getattr(papers, name)
    suffix = name.split("_")[0]
    assert hashlib.sha256(content).hexdigest() in papers.ledger.decode()
    changed = content[:-2] + b"\n" if suffix == "csv" else content + b"\n"
    broken = rules_broken(tmp_path, papers.ledger, (f"statement.{suffix}", changed))
    assert broken[0] == "statement_issued"


def test_a_file_that_is_no_statement_is_said_to_be_none(papers: Papers, tmp_path: Path) -> None:
    for name, content in (("a.json", b"[]"), ("b.json", b"\xff"), ("c.csv", b""), ("d.csv", b"a,b\r\n")):
        assert rules_broken(tmp_path, papers.ledger, (name, content)) == ["statement_form"], name


def test_every_rule_about_statements_has_a_case() -> None:
    found = {rule for cases in (CHANGED, CHANGED_CSV) for rule, _ in cases.values()}
    assert found == {rule for rule in audit_verify.RULES if rule.startswith("statement_")}


def _closing(rows: Rows) -> int:
    return rows.index([]) - 1


def _undefuse(rows: Rows) -> None:
    row = next(row for row in rows if len(row) > 5 and row[5].startswith("'="))
    row[5] = row[5][1:]


def _leave_out(rows: Rows) -> None:
    rows.pop(3)
    for number, row in enumerate(rows[2 : _closing(rows)], 1):
        row[0] = str(number)


def _fact(rows: Rows, place: int, value: str) -> None:
    rows[rows.index([]) + 1 + place][1] = value
