"""`gpuhub limits`, `share` and `tranche` against a served hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import firm_app
from tests.builders import GPU_HOUR_US, Api, an_api


@pytest.fixture
def api(sqlite_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Api]:
    with an_api(sqlite_url) as served:
        monkeypatch.setenv("GPUHUB_CONFIG", str(tmp_path / "config"))
        monkeypatch.setenv("GPUHUB_URL", served.base_url)
        secret = served.operator._http.headers["Authorization"].removeprefix("Bearer ")
        monkeypatch.setenv("GPUHUB_TOKEN", secret)
        yield served


def test_a_grant_is_awarded_divided_and_released_from_the_command_line(api: Api) -> None:
    asked = ("--program", "ax", "--hours", "100", "--reason", "a PoC", "--max-gpus", "8")
    grant = json.loads(
        _done("grant", "award", "alpha", *asked, "--part", "40:start", "--part", "60:report", "--json")
    )["id"]
    _done("share", "set", grant, "alpha", "--hours", "70", "--reason", "the agreement")
    _done("share", "set", grant, "beta", "--hours", "30", "--reason", "the agreement")
    move = ("--from", "alpha", "--to", "beta", "--hours", "0.5", "--reason", "they need it")
    told = _done("share", "move", grant, *move)
    assert "69.50" in told
    assert "30.50" in told
    _done("tranche", "set", grant, "1", "--hours", "30", "--reason", "divided anew")
    _done("tranche", "set", grant, "2", "--hours", "70", "--reason", "divided anew")
    letter = ("--reason", "milestone reached", "--evidence", "report 7")
    assert _done("tranche", "release", grant, "2", *letter).count("released") == 2
    found = json.loads(_done("limits", grant, "--json"))
    assert [part["balance"]["granted_gpu_us"] for part in found["tranches"]] == ["0", str(100 * GPU_HOUR_US)]
    shown = _done("limits", grant)
    for text in ("at most 8 GPUs at once, 0 in use", "beta", "30.50", "report"):
        assert text in shown


def test_tranches_are_opened_later(api: Api) -> None:
    grant = api.hub.award("alpha", "100").id
    assert "no shares, no tranches, no cap" in _done("limits", grant)
    parts = ("--part", "40:start", "--part", "60:mid-term: report")
    told = _done("tranche", "open", grant, *parts, "--first-locked", "--reason", "by milestones")
    assert told.count("locked") == 2
    assert "mid-term: report" in told


def test_a_wrong_part_and_a_refusal_are_told_in_a_line(api: Api) -> None:
    grant = api.hub.award("alpha", "100").id
    wrong = _run("tranche", "open", grant, "--part", "forty", "--reason", "why")
    assert (wrong.exit_code, "HOURS:LABEL" in wrong.stderr) == (2, True)
    hours = _run("share", "set", grant, "beta", "--hours", "many", "--reason", "why")
    assert (hours.exit_code, "decimal string" in hours.stderr) == (2, True)
    refused = _run("share", "set", grant, "beta", "--hours", "101", "--reason", "why")
    assert (refused.exit_code, "insufficient_balance" in refused.stderr) == (1, True)


def _done(*arguments: str) -> str:
    result = _run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(firm_app(), arguments)
