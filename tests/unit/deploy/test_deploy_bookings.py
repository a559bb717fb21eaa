"""`gpuhub bookings` against a real service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import firm_app
from tests import databases
from tests.builders import Api, an_api, node_reports

WEEKLY = (
    *("--days", "mon,wed", "--times", "10:00-13:00"),
    *("--first-day", "2026-11-30", "--last-day", "2026-12-09", "--without", "2026-12-07"),
)
WHAT = ("alpha", "--name", "deep learning", "--class", "h100", "--pods", "4", "--reason", "spring term")


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with an_api(databases.new_sqlite(tmp_path)) as made:
        header = made.operator._http.headers["Authorization"]
        monkeypatch.setenv("GPUHUB_URL", made.base_url)
        monkeypatch.setenv("GPUHUB_TOKEN", header.removeprefix("Bearer "))
        monkeypatch.setenv("GPUHUB_CONFIG", str(tmp_path / "config"))
        made.hub.report(nodes=node_reports({"n0": {"h100": 8}}))
        yield made


def gpuhub(*arguments: str) -> Result:
    done = CliRunner().invoke(firm_app(), ("bookings", *arguments))
    assert done.exit_code in (0, 1, 2), done.output
    return done


def ok(*arguments: str) -> str:
    done = gpuhub(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_weekly_booking_is_made_listed_shown_and_cancelled_in_part(api: Api) -> None:
    made = json.loads(ok("create", *WHAT, *WEEKLY, "--json"))
    assert len(made["occurrences"]) == 3
    assert made["occurrences"][0]["starts_at"] == "2026-11-30T01:00:00.000Z"
    listed = ok("list", "--organization", "alpha")
    assert made["id"] in listed
    assert "4 x 1 h100" in listed
    assert "2026-11-30 10:00:00" in listed
    shown = ok("show", made["id"])
    assert "2026-12-09 13:00:00" in shown
    first = made["occurrences"][0]["id"]
    done = ok("cancel", made["id"], "--occurrence", first, "--reason", "holiday")
    assert done.count("cancelled") == 1
    assert ok("cancel", made["id"], "--reason", "called off").count("cancelled") == 3
    assert "cancelled" in ok("list")


def test_a_single_booking_that_does_not_fit_is_refused_with_what_is_free(api: Api) -> None:
    once = ("--from", "2026-12-01 10:00", "--until", "2026-12-01 13:00")
    ok("create", *WHAT, *once, "--hold")
    refused = gpuhub("create", *WHAT, *once, "--gpus", "2")
    assert refused.exit_code == 1
    assert "2 pods of 2 h100 are free to book in one cluster, 4 were asked for" in refused.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--days", "mon"), "a weekly booking needs --times, --first-day, --last-day as well"),
        (("--without", "2026-12-01"), "needs --days"),
        ((*WEEKLY, "--days", "mon,fry"), "--days are some of mon,tue"),
        ((*WEEKLY, "--times", "10:00"), "--times look like 10:00-13:00"),
        ((*WEEKLY, "--first-day", "tomorrow"), "--first-day 'tomorrow' is not a day"),
        ((), "either starts_at and ends_at, or a timetable"),
        (("--from", "2026-12-01 10:00"), "either starts_at and ends_at, or a timetable"),
    ],
)
def test_what_cannot_be_is_told_before_it_is_sent(api: Api, options: tuple[str, ...], message: str) -> None:
    refused = gpuhub("create", *WHAT, *options)
    assert refused.exit_code == 2
    assert message in " ".join(refused.output.split())
