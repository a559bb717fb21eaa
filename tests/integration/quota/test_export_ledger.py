"""The export: one file that the verifier accepts on both databases, at any seal, whatever goes on meanwhile."""

from __future__ import annotations

import gzip
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import firm_app
from quota.audit import seals
from quota.audit.tables import audit as audit_rows
from quota.errors import NotFound
from quota.reports import exporting
from quota.schemas.statements import StatementFormat
from tests.builders import MINUTE_MS, OPERATOR, Api, a_hub, a_problem, an_api
from tests.integration.quota.audit_forgery import Forgery, rules_broken
from tests.integration.quota.audit_world import a_busy_hub, all_seals, ledger_of, statement_of

PATH = "/v1/exports/ledger"


@pytest.fixture
def api(database_url: str) -> Iterator[Api]:
    with an_api(database_url) as made:
        made.hub.award()
        seals.seal_due(made.hub.database)
        yield made


def test_the_file_holds_everything_and_breaks_no_rule(database_url: str, tmp_path: Path) -> None:
    world = a_busy_hub(database_url)
    ledger = ledger_of(world.hub)
    papers = [
        (f"s.{form.value}", statement_of(world, world.plain, form))
        for form in StatementFormat
        if form != "html"
    ]
    assert rules_broken(tmp_path, ledger, *papers) == []
    forgery = Forgery(ledger)
    with world.hub.database.read() as connection:
        for kind, table in (
            *(("rate", "rates"), ("program", "programs"), ("grant", "grants"), ("account", "accounts")),
            *(("hold", "holds"), ("transfer", "transfers"), ("slice", "slices"), ("seal", "seals")),
        ):
            count = connection.exec_driver_sql(f"SELECT COUNT(*) FROM {table}").scalar_one()
            assert len(forgery.all(kind)) == count, kind
    world.hub.close()


def test_an_earlier_seal_gives_the_file_as_it_was_then(database_url: str, tmp_path: Path) -> None:
    """Balances and holds go on changing after a seal; a file through it holds them as they stood."""
    world = a_busy_hub(database_url)
    hub = world.hub
    for seal in all_seals(hub):
        ledger = ledger_of(hub, seal.number)
        assert rules_broken(tmp_path, ledger, head=seal.sha256) == [], seal.number
        rows = Forgery(ledger).rows
        assert rows[0]["sha256"] == seal.sha256
        assert max(row.get("seq", 0) for row in rows) == seal.through_seq
    hub.close()


def test_pages_and_chunks_change_nothing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = a_busy_hub(database_url)
    seal = all_seals(world.hub)[-1]
    whole = list(exporting.write_ledger(world.hub.database, seal, packed=False))
    monkeypatch.setattr(exporting, "PAGE", 3)
    monkeypatch.setattr(seals, "PAGE", 2)
    monkeypatch.setattr(exporting, "CHUNK_BYTES", 2000)
    parts = list(exporting.write_ledger(world.hub.database, seal, packed=False))
    assert len(whole) == 1
    assert len(parts) > 40
    assert max(len(part) for part in parts) < 2000 + 1500, "no more than a chunk and a line at once"
    assert b"".join(parts) == whole[0]
    packed = b"".join(exporting.write_ledger(world.hub.database, seal, packed=True))
    assert gzip.decompress(packed) == whole[0]
    world.hub.close()


def test_the_file_shows_one_moment_while_others_write(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = a_hub(database_url)
    grant = hub.award()
    seals.seal_due(hub.database)
    monkeypatch.setattr(exporting, "CHUNK_BYTES", 1)
    seal = all_seals(hub)[-1]
    parts: list[bytes] = []
    for number, part in enumerate(exporting.write_ledger(hub.database, seal, packed=False)):
        parts.append(part)
        if number % 3 == 1:
            hub.top_up(grant, "1")
    assert rules_broken(tmp_path, b"".join(parts)) == []
    assert hub.grant(grant.id).granted_gpu_us > int(
        Forgery(b"".join(parts)).find("account", account_kind="grant")["granted_gpu_us"]
    )
    hub.close()


def test_before_the_first_seal_there_is_nothing_to_export(database_url: str) -> None:
    hub = a_hub(database_url)
    with pytest.raises(NotFound, match="no audit seal yet"):
        exporting.begin_export(hub.database, OPERATOR, None, "a test")
    with pytest.raises(NotFound, match="no audit seal 7"):
        exporting.begin_export(hub.database, OPERATOR, 7, "a test")
    hub.close()


# --- over HTTP --------------------------------------------------------------------------------------------


def test_over_http_it_is_the_same_file_and_the_read_is_in_the_trail(api: Api, tmp_path: Path) -> None:
    target = io.BytesIO()
    size = api.auditor.export_ledger(target, "yearly audit")
    content = target.getvalue()
    assert size == len(content)
    assert rules_broken(tmp_path, content) == []
    (read,) = api.hub.rows(audit_rows, action="personal.read", subject="export.ledger")
    assert read.reason == "yearly audit"
    assert json.loads(read.detail)["query"] == {"through_seal": 1, "sha256": all_seals(api.hub)[0].sha256}
    assert json.loads(read.detail)["count"] == len(Forgery(content).all("audit"))
    assert read.address


def test_it_travels_packed_only_to_who_can_unpack_it(api: Api) -> None:
    for accepted, packed in (
        ("gzip", True),
        ("identity", False),
        ("br, gzip;q=0.5", True),
        ("gzip;q=0", False),
    ):
        answer = api.call(
            api.operator, "GET", PATH, params={"reason": "x"}, headers={"Accept-Encoding": accepted}
        )
        assert answer.status_code == 200
        assert (answer.headers.get("Content-Encoding") == "gzip") is packed, accepted
        assert answer.headers["Content-Type"] == "application/jsonl"
        assert answer.text.endswith('"}\n')


def test_it_needs_a_role_and_a_reason_and_a_seal_that_is_there(api: Api) -> None:
    for client in (api.firms["alpha"], api.scheduler, api.agent):
        with a_problem("forbidden", 403):
            client.export_ledger(io.BytesIO(), "curious")
    for reason in (None, ""):
        query = {} if reason is None else {"reason": reason}
        assert api.refused(api.operator, "GET", PATH, params=query)["http_status"] == 422
    with a_problem("not_found", 404):
        api.auditor.export_ledger(io.BytesIO(), "x", 99)
    assert not api.hub.rows(audit_rows, subject="export.ledger"), "nothing was read"


def test_who_leaves_in_the_middle_keeps_no_snapshot_open(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = threading.Event()
    original = exporting._all_lines

    def endless(*arguments: object) -> Iterator[tuple[str, bytes]]:
        try:
            yield from original(*arguments)  # type: ignore[arg-type]
            while True:
                yield "audit", b"x" * 10_000
        finally:
            closed.set()

    monkeypatch.setattr(exporting, "_all_lines", endless)
    with api.operator._http.stream("GET", PATH, params={"reason": "x"}) as answer:
        assert next(answer.iter_bytes())
    assert closed.wait(30)


# --- the command ------------------------------------------------------------------------------------------


def _gpuhub(api: Api, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    secret = api.auditor._http.headers["Authorization"].removeprefix("Bearer ")
    monkeypatch.setenv("GPUHUB_URL", api.base_url)
    monkeypatch.setenv("GPUHUB_TOKEN", secret)
    result = CliRunner().invoke(firm_app(), ("audit", *arguments))
    return result.exit_code, result.output


def test_the_command_writes_a_file_that_the_command_verifies(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = all_seals(api.hub)[0].sha256
    for name in ("ledger.jsonl", "ledger.jsonl.gz"):
        file = str(tmp_path / name)
        assert _gpuhub(api, monkeypatch, "export", file, "--reason", "audit")[0] == 0
        code, output = _gpuhub(api, monkeypatch, "verify", file, "--head", head)
        assert (code, output.startswith("ok: ")) == (0, True), output
        code, output = _gpuhub(api, monkeypatch, "verify", file, "--head", "f" * 64)
        assert (code, output.startswith("seal_head ")) == (1, True)
    code, output = _gpuhub(api, monkeypatch, "seals", "--json")
    assert [item["sha256"] for item in json.loads(output)["items"]] == [head]
    assert head in _gpuhub(api, monkeypatch, "seals")[1].replace("\n", "")


def test_an_export_that_breaks_off_leaves_no_file(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> Iterator[tuple[str, bytes]]:
        yield "header", b"{}\n"
        raise OSError("the disk under the database broke")

    monkeypatch.setattr(exporting, "_all_lines", cut)
    file = tmp_path / "ledger.jsonl"
    assert _gpuhub(api, monkeypatch, "export", str(file), "--reason", "audit")[0] == 3
    assert list(tmp_path.glob("ledger*")) == []


def test_the_trail_shows_what_changed(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    grant = api.hub.award()
    api.hub.clock.advance(MINUTE_MS)
    api.hub.cut(grant, "1")
    code, output = _gpuhub(api, monkeypatch, "--action", "grant.cut", "--json")
    row = json.loads(output)["items"][0]
    assert (code, row["before"] != row["after"]) == (0, True)
    code, output = _gpuhub(api, monkeypatch, "--action", "grant.cut")
    assert code == 0
    assert "->" in output
