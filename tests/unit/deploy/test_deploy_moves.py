"""The commands that move granted hours, against a real service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import firm_app
from quota.programs.endings import expire_due
from tests import databases
from tests.builders import DAY_MS, GPU_HOUR_US, Api, an_api


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with an_api(databases.new_sqlite(tmp_path)) as made:
        header = made.operator._http.headers["Authorization"]
        monkeypatch.setenv("GPUHUB_URL", made.base_url)
        monkeypatch.setenv("GPUHUB_TOKEN", header.removeprefix("Bearer "))
        monkeypatch.setenv("GPUHUB_CONFIG", str(tmp_path / "config"))
        yield made


def gpuhub(*arguments: str) -> str:
    done = CliRunner().invoke(firm_app(), arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_hours_go_from_grant_to_grant_and_are_listed(api: Api) -> None:
    grant, other = api.hub.award(hours="10"), api.hub.award("beta", hours="1")
    move = ("grant", "transfer", grant.id, "--to", other.id, "--hours", "4", "--reason", "beta is faster")
    assert "dry run, nothing was done" in gpuhub(*move, "--dry-run")
    assert api.hub.grant(grant.id).granted_gpu_us == 10 * GPU_HOUR_US
    moved = json.loads(gpuhub(*move, "--evidence", "decision 7", "--json"))
    assert (moved["source"]["granted_gpu_hours"], moved["target"]["granted_gpu_hours"]) == ("6", "5")
    assert other.id in gpuhub(*move)
    listed = json.loads(gpuhub("transfers", "--grant", grant.id, "--type", "transfer", "--json"))
    assert [item["evidence"] for item in listed] == ["decision 7", None]
    assert "beta is" in gpuhub("transfers", "--limit", "10", "--since", "2026-11-01T00:00:00Z")


def test_corrections_take_a_sign_and_evidence(api: Api) -> None:
    grant = api.hub.award(hours="10")
    why = ("--reason", "typing error", "--evidence", "paper 3", "--json")
    changed = json.loads(gpuhub("grant", "adjust", grant.id, "--hours", "-2.5", *why))
    assert changed["granted_gpu_hours"] == "7.5"
    program = json.loads(gpuhub("program", "adjust", "ax", "--hours", "5", *why))
    assert program["budget_gpu_hours"] == "100005"
    bare = CliRunner().invoke(
        firm_app(), ["grant", "adjust", grant.id, "--hours", "1", "--reason", "no paper"]
    )
    assert bare.exit_code == 2


def test_expired_hours_are_carried_over_under_a_policy(api: Api) -> None:
    rules = ("carry_over_thousandths=500", "when_grant_ends=stop_at_end")
    assert "50 %" in gpuhub("policy", "set", "poc", *rules, "--reason", "the call")
    assert "under policy poc" in gpuhub(
        "program", "change", "ax", "--policy", "poc", "--name", "AX 2", "--reason", "r"
    )
    hub = api.hub
    grant, other = hub.award(hours="10", ends_at=hub.now + DAY_MS), hub.award(hours="1")
    hub.clock.advance(DAY_MS)
    expire_due(hub.database)
    over = ("grant", "carry-over", grant.id, "--to", other.id, "--reason", "goes on", "--json")
    assert json.loads(gpuhub(*over, "--hours", "5"))["target"]["granted_gpu_hours"] == "6"
    refused = CliRunner().invoke(firm_app(), [*over, "--hours", "1"])
    assert refused.exit_code == 1
    assert [item["id"] for item in json.loads(gpuhub("policy", "list", "--json"))] == ["default", "poc"]
    assert "stop_at_end" in gpuhub("policy", "list")
    assert "poc" in gpuhub("program", "list")
