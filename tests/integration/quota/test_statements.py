"""Statements: sealed ones never change, their hash is kept, and spreadsheets and printers get the same figures."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from sqlalchemy import text

from quota.audit.tables import findings, seals
from quota.clock import HOUR_MS
from quota.db import head
from quota.errors import BadRequest, NotFound
from quota.ledger.posting import post
from quota.ledger.rules import Leg
from quota.ledger.tables import statements as issued
from quota.reports import statements
from quota.reports.statements import StatementChanged, Written
from quota.schemas.identity import Caller, Role
from quota.schemas.ledger import TransferType
from quota.schemas.programs import Grant
from quota.schemas.statements import Statement, StatementFormat, StatementLanguage
from tests.builders import MINUTE_MS, OPERATOR, Hub, a_hub, a_member

JSON, CSV, HTML = StatementFormat
KO, EN = StatementLanguage


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    made.take_lease()
    yield made
    made.close()


def _seal(hub: Hub) -> int:
    """Stand-in for the audit's own seal: a row that names the feed's head. Answers its time."""

    def work(tx: Any) -> None:
        number = tx.connection.execute(text("SELECT COALESCE(MAX(number), 0) + 1 FROM seals")).scalar_one()
        row = {"number": number, "at_ms": hub.now, "through_seq": head(tx.connection), "audit_rows": 0}
        hashes = {"previous_sha256": "0" * 64, "sha256": f"{number:064x}", "transfers": 0}
        tx.connection.execute(seals.insert(), row | hashes)

    hub.database.write(work)
    return hub.now


def _read(
    hub: Hub,
    grant: Grant,
    as_of: int | None = None,
    since: int | None = None,
    *,
    caller: Caller = OPERATOR,
    form: StatementFormat = JSON,
    language: StatementLanguage = EN,
) -> Written:
    return statements.read_statement(
        hub.database, caller, grant.id, as_of_ms=as_of, since_ms=since, form=form, language=language
    )


def _document(written: Written) -> Statement:
    found = Statement.model_validate_json(written.content)
    plain = json.dumps(json.loads(written.content), ensure_ascii=False, separators=(",", ":")) + "\n"
    assert written.content.decode() == plain, "one form, as the documentation has it"
    return found


def _an_hour_of_work(hub: Hub, grant: Grant, firm: str = "alpha") -> None:
    job = hub.submit(firm, walltime_s=2 * 3600)
    hub.run(job, grant)
    hub.clock.advance(HOUR_MS + 7)
    hub.finish(job)
    hub.clock.advance(MINUTE_MS)


def _deposit(hub: Hub, grant: Grant, reason: str) -> None:
    """Five GPU-us with words that nobody should trust."""
    legs = (Leg("program:ax", d_granted=-5), Leg(grant.account_id, d_granted=5))
    hub.database.write(lambda tx: post(tx, "nasty", TransferType.DEPOSIT, 5, legs, actor="op", reason=reason))


def test_a_sealed_statement_has_the_same_bytes_whatever_happens_later(hub: Hub) -> None:
    grant = hub.award()
    _an_hour_of_work(hub, grant)
    sealed_at = _seal(hub)
    hub.clock.advance(MINUTE_MS)
    first = {form: _read(hub, grant, hub.now, form=form) for form in StatementFormat}
    _an_hour_of_work(hub, grant)
    hub.cut(grant, "1.5")
    _seal(hub)
    for form, written in first.items():
        again = _read(hub, grant, sealed_at, form=form)
        assert again == written
        assert written.sha256 == hashlib.sha256(written.content).hexdigest()
        assert hub.row(issued, id=written.issued_id).sha256 == written.sha256
    assert len(hub.rows(issued)) == 3
    assert _document(first[JSON]).as_of == sealed_at
    assert _read(hub, grant, hub.now).content != first[JSON].content


def test_the_statement_stands_at_the_last_seal_at_or_before_the_moment(hub: Hub) -> None:
    grant = hub.award()
    one = _seal(hub)
    hub.clock.advance(MINUTE_MS)
    hub.top_up(grant, "1")
    two = _seal(hub)
    for asked, sealed_at, lines in ((one, one, 1), (two - 1, one, 1), (two, two, 2), (two + 10**9, two, 2)):
        found = _document(_read(hub, grant, asked))
        assert found.seal is not None
        assert (found.as_of, found.seal.at, len(found.lines)) == (sealed_at, sealed_at, lines)
    with pytest.raises(NotFound, match="no audit seal"):
        _read(hub, grant, one - 1)


def test_without_a_moment_it_shows_the_present_and_is_not_issued(hub: Hub) -> None:
    grant = hub.award()
    _an_hour_of_work(hub, grant)
    found = _document(_read(hub, grant))
    assert (found.seal, found.as_of) == (None, hub.now)
    assert found.used_gpu_us == hub.grant(grant.id).used_gpu_us > 0
    assert hub.rows(issued) == []
    assert "Provisional" in _read(hub, grant, form=HTML).content.decode()
    assert "잠정" in _read(hub, grant, form=CSV, language=KO).content.decode()


def test_a_period_opens_with_the_balance_of_its_first_seal_and_closes_with_the_whole_one(hub: Hub) -> None:
    grant = hub.award()
    _an_hour_of_work(hub, grant)
    middle = _seal(hub)
    hub.clock.advance(MINUTE_MS)
    _an_hour_of_work(hub, grant)
    end = _seal(hub)
    whole, before = _document(_read(hub, grant, end)), _document(_read(hub, grant, middle))
    after = _document(_read(hub, grant, end, middle))
    assert before.lines + after.lines == whole.lines
    assert before.total_krw + after.total_krw == whole.total_krw
    assert after.opening.used_gpu_us == before.used_gpu_us > 0
    assert after.opening.granted_gpu_us == before.granted_gpu_us
    assert after.used_gpu_us == whole.used_gpu_us
    assert after.lines[-1].available_gpu_us == whole.available_gpu_us
    assert after.since is not None
    assert after.since.number == 1
    with pytest.raises(BadRequest) as caught:
        _read(hub, grant, middle, end)
    assert caught.value.field == "since"


def test_a_statement_that_comes_out_otherwise_is_refused_and_found(hub: Hub) -> None:
    """Planted: somebody with the database's password changed a price after the statement was issued."""
    grant = hub.award()
    _an_hour_of_work(hub, grant)
    sealed_at = _seal(hub)
    _read(hub, grant, sealed_at)
    hub.database.write(lambda tx: tx.connection.execute(text("UPDATE rates SET price_krw = price_krw + 1")))
    with pytest.raises(StatementChanged):
        _read(hub, grant, sealed_at)
    assert [row.code for row in hub.rows(findings, code="statement_changed")] == ["statement_changed"]
    with pytest.raises(StatementChanged):
        _read(hub, grant, sealed_at)
    assert len(hub.rows(findings, code="statement_changed")) == 1


def test_csv_holds_the_same_figures_and_no_formula(hub: Hub) -> None:
    grant = hub.award()
    _deposit(hub, grant, '=HYPERLINK("x")')
    _an_hour_of_work(hub, grant)
    at = _seal(hub)
    document = _document(_read(hub, grant, at))
    for language, opening in ((EN, "Opening balance"), (KO, "기초 잔액")):
        content = _read(hub, grant, at, form=CSV, language=language).content
        assert content.startswith(b"\xef\xbb\xbf")
        assert content.count(b"\n") == content.count(b"\r\n")
        rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
        table = rows[1 : 1 + len(document.lines) + 2]
        assert table[0][2] == opening
        for cells, line in zip(table[1:-1], document.lines, strict=True):
            assert [int(cells[place]) for place in (17, 18, 19, 20)] == [
                line.granted_gpu_us,
                line.held_gpu_us,
                line.used_gpu_us,
                line.available_gpu_us,
            ]
            assert cells[16] == ("" if line.slice is None else str(line.krw))
        assert int(table[-1][16]) == document.total_krw
        numbers = {cell for cells in rows for cell in cells if cell.lstrip("-").isdecimal()}
        texts = [cell for cells in rows for cell in cells if cell not in numbers]
        assert not [cell for cell in texts if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
        assert '\'=HYPERLINK("x")' in texts


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def test_the_print_view_escapes_texts_loads_nothing_and_names_its_language(hub: Hub) -> None:
    grant = hub.award()
    _deposit(hub, grant, "<script>alert(1)</script>")
    _an_hour_of_work(hub, grant)
    at = _seal(hub)
    document = _document(_read(hub, grant, at))
    for language in StatementLanguage:
        page = _Page()
        page.feed(_read(hub, grant, at, form=HTML, language=language).content.decode())
        assert ("html", {"lang": language.value}) in page.tags
        assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
        assert "<script>alert(1)</script> (op)" in page.words
        assert f"{document.total_krw:,}" in page.words
        assert sum(tag == "tr" for tag, _ in page.tags) == 8 + 1 + 1 + len(document.lines) + 1


def test_another_organizations_statement_is_as_unknown_as_none(hub: Hub) -> None:
    grant = hub.award()
    _seal(hub)
    auditor = Caller(token_id="a", role=Role.AUDITOR, organization_id=None)
    assert _document(_read(hub, grant, caller=auditor)).grant_id == grant.id
    assert _document(_read(hub, grant, caller=a_member("alpha"))).grant_id == grant.id
    for asked in (None, hub.now):
        with pytest.raises(NotFound, match="there is no grant"):
            _read(hub, grant, asked, caller=a_member("beta"))
    with hub.database.read() as connection, pytest.raises(NotFound):
        statements.list_issued(connection, a_member("beta"), grant.id, None, 10)


def test_issued_statements_are_listed_page_by_page(hub: Hub) -> None:
    grant = hub.award()
    for _ in range(3):
        _seal(hub)
        _read(hub, grant, hub.now)
        hub.clock.advance(MINUTE_MS)
    found = []
    after: str | None = None
    while True:
        with hub.database.read() as connection:
            page = statements.list_issued(connection, OPERATOR, grant.id, after, 2)
        found.extend(page.items)
        after = page.next
        if after is None:
            break
    assert [item.seal for item in found] == [1, 2, 3]
    assert all(item.grant_id == grant.id and item.size_bytes > 0 for item in found)


def test_an_empty_grant_has_a_statement_with_its_award_alone(hub: Hub) -> None:
    grant = hub.award("alpha", "12.5")
    found = _document(_read(hub, grant))
    assert [line.type.value for line in found.lines] == ["deposit"]
    assert found.granted_gpu_us == found.available_gpu_us == 12_500 * 3_600_000
    assert (found.total_krw, found.lines[0].krw) == (0, 0)
