"""`gpuhub token` and `gpuhub organization` against a real service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from deploy.cli import firm_app
from tests.builders import Api, a_problem, an_api
from tests.integration.quota.token_world import a_client


@pytest.fixture
def api(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with an_api(sqlite_url) as made:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        monkeypatch.setenv("GPUHUB_URL", made.base_url)
        use(monkeypatch, made.operator)
        yield made


def use(monkeypatch: pytest.MonkeyPatch, client: Any) -> None:
    monkeypatch.setenv("GPUHUB_TOKEN", client._http.headers["Authorization"].removeprefix("Bearer "))


def gpuhub(*words: str) -> Result:
    return CliRunner().invoke(firm_app(), words)


def answered(*words: str) -> Any:
    done = gpuhub(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_narrowed_token_is_made_rotated_listed_and_revoked(api: Api) -> None:
    create = ("token", "create", "member", "--organization", "alpha", "--label", "Kim")
    made = answered(*create, "--scope", "jobs:read", "--expires-in", "90d")
    assert (made["scopes"], made["expires_at"]) == (["jobs:read"], "2027-02-20T00:00:00.000Z")
    new = answered("token", "rotate", made["id"], "--overlap", "12h", "--reason", "yearly")
    assert (new["replaces"], new["scopes"]) == (made["id"], ["jobs:read"])
    listed = answered("token", "list", "--organization", "alpha", "--active")
    assert {made["id"], new["id"]} <= {item["id"] for item in listed}
    assert "secret" not in listed[0]
    assert answered("token", "revoke", new["id"], "--reason", "lost")["revoked_at"] is not None
    ended = answered("token", "list", "--ended")
    assert [item["id"] for item in ended] == [new["id"]]


def test_a_holder_rotates_its_own_token(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, api.firms["alpha"])
    new = answered("token", "rotate", "--overlap", "0", "--reason", "left on a train")
    with a_problem("unauthenticated", 401):
        api.firms["alpha"].read_caller()
    with a_client(api.base_url, new["secret"]) as holder:
        assert holder.read_caller().organization_id == "alpha"


def test_a_firm_is_shut_out_and_corrected(api: Api) -> None:
    ended = answered("organization", "revoke-tokens", "beta", "--reason", "a leak")
    assert len(ended["items"]) == 1
    changed = answered("organization", "change", "beta", "--kind", "university", "--reason", "it is one")
    assert (changed["name"], changed["kind"]) == ("Beta", "university")
    assert [item["id"] for item in answered("organization", "list", "--kind", "university")] == ["beta"]


def test_refusals_are_told(api: Api) -> None:
    wrong = gpuhub("token", "create", "auditor", "--scope", "jobs:write")
    assert wrong.exit_code == 1
    assert "scopes: role auditor has no scope jobs:write" in wrong.stderr
    unbound = gpuhub("token", "create", "agent")
    assert unbound.exit_code == 1
    assert "node" in unbound.stderr
    assert gpuhub("token", "rotate", "--overlap", "soon", "--reason", "r").exit_code == 2


def test_lists_read_all_pages(api: Api) -> None:
    for number in range(101):
        body = {"id": f"firm-{number:03d}", "name": "Firm"}
        assert api.call(api.operator, "POST", "/v1/organizations", json=body).status_code == 201
    assert len(answered("organization", "list")) == 104
