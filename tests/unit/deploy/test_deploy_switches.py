"""The operators' commands against a real service: what they show dry, and what they then do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from deploy.cli import firm_app
from quota.dispatch.forecasts import put_forecast
from quota.schemas.forecasts import EtaBasis, EtaItem, ForecastDocument, NewcomerItem
from tests import databases
from tests.builders import HOUR_MS, Api, an_api


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with an_api(databases.new_sqlite(tmp_path)) as made:
        header = made.operator._http.headers["Authorization"]
        monkeypatch.setenv("GPUHUB_URL", made.base_url)
        monkeypatch.setenv("GPUHUB_TOKEN", header.removeprefix("Bearer "))
        monkeypatch.setenv("GPUHUB_CONFIG", str(tmp_path / "config"))
        yield made


def gpuhub(*arguments: str) -> Result:
    done = CliRunner().invoke(firm_app(), arguments)
    assert done.exit_code in (0, 1, 2), done.output
    return done


def test_freeze_shows_first_and_then_does_it(api: Api) -> None:
    grant = api.hub.award()
    running, waiting = api.hub.submit(), api.hub.submit()
    api.hub.run(running, grant)
    before = api.hub.contents()
    dry = gpuhub("freeze", "alpha", "--reason", "bill", "--stop-running", "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "dry run, nothing was done: alpha is frozen" in dry.stdout
    assert waiting.id in dry.stdout
    assert f"{running.id}-1" in dry.stdout
    assert api.hub.contents() == before
    done = gpuhub("freeze", "alpha", "--reason", "bill", "--stop-running", "--json")
    assert json.loads(done.stdout)["stopped"]["ids"] == [running.id]
    assert "already; nothing changed" in gpuhub("freeze", "alpha", "--reason", "bill").stdout
    assert "alpha is not frozen" in gpuhub("unfreeze", "alpha", "--reason", "paid").stdout


def test_pause_and_resume_show_in_placement(api: Api) -> None:
    assert "placement on gpu_class h100 is paused" in _ok("pause", "--gpu-class", "h100", "--reason", "heat")
    assert "placement on cluster sim is paused" in _ok("pause", "--cluster", "sim", "--reason", "heat")
    assert "nothing was done" in _ok("pause", "--reason", "heat", "--dry-run")
    shown = {
        item["kind"] + item["id"]: item["paused"] for item in json.loads(_ok("placement", "--json"))["items"]
    }
    assert shown == {"hubhub": False, "clustersim": True, "gpu_classa100": False, "gpu_classh100": True}
    assert "heat" in _ok("placement")
    assert "is open" in _ok("resume", "--cluster", "sim", "--reason", "cool")
    both = gpuhub("pause", "--cluster", "sim", "--gpu-class", "h100", "--reason", "heat")
    assert both.exit_code == 2


def test_requeue_and_cordon_show_what_they_touch(api: Api) -> None:
    grant = api.hub.award()
    job = api.hub.submit()
    api.hub.run(job, grant)
    assert f"{job.id}-1" in _ok("node", "cordon", "n0", "--reason", "fan", "--dry-run")
    assert "ready" in _ok("node", "list")
    assert "dry run" in _ok("requeue", job.id, "--reason", "rack", "--dry-run")
    assert "work lost" in _ok("requeue", job.id, "--reason", "rack")
    waiting = api.hub.submit()
    refused = gpuhub("requeue", waiting.id, "--reason", "rack")
    assert refused.exit_code == 1
    assert "wrong_state" in refused.stderr


def test_grant_change_leaves_what_is_left_out(api: Api) -> None:
    grant = api.hub.award()
    _ok("grant", "change", grant.id, "--max-gpus", "2", "--reason", "call")
    assert "dry run" in _ok("grant", "change", grant.id, "--no-cap", "--reason", "call", "--dry-run")
    _ok("grant", "change", grant.id, "--ends-at", "2027-01-01T00:00:00Z", "--reason", "call")
    stands = api.operator.read_grant(grant.id)
    assert stands.max_gpus == 2
    assert stands.ends_at < grant.ends_at
    _ok("grant", "change", grant.id, "--no-cap", "--reason", "call")
    assert api.operator.read_grant(grant.id).max_gpus is None
    assert gpuhub("grant", "change", grant.id, "--reason", "call").exit_code == 2
    assert gpuhub("grant", "change", grant.id, "--ends-at", "soon", "--reason", "call").exit_code == 2


def test_submit_dry_run_shows_the_quote_and_submits_nothing(api: Api) -> None:
    grant = api.hub.award()
    before = api.hub.contents()
    asked = ("submit", "train", "--organization", "alpha", "--walltime", "1h", "--gpus", "2", "--dry-run")
    shown = _ok(*asked)
    assert "costs at most 2.00 GPU-h" in shown
    assert grant.id in shown
    assert "starts now" in shown
    assert "no forecast of its start: it would start now" in shown
    assert json.loads(_ok(*asked, "--json"))["grant_id"] == grant.id
    assert api.hub.contents() == before


def test_submit_dry_run_shows_when_the_job_is_likely_to_start(api: Api) -> None:
    hub = api.hub
    grant = hub.award()
    for node in ("n0", "n1"):
        hub.run(hub.submit(gpus_per_pod=8), grant, node)
    asked = ("submit", "train", "--organization", "alpha", "--walltime", "1h", "--gpus", "2", "--dry-run")
    assert "no forecast of its start: the scheduler has made none" in _ok(*asked)
    eta = EtaItem(low=hub.now, median=hub.now + HOUR_MS, high=hub.now + 2 * HOUR_MS, basis=EtaBasis.EXACT)
    like = NewcomerItem(organization_id="alpha", gpu_classes=("h100",), eta=eta, jobs=31)
    document = ForecastDocument(epoch=hub.epoch, as_of=hub.now, etas={}, newcomers=(like,))
    hub.database.write(lambda tx: put_forecast(tx, document))
    hub.clock.advance(120_000)
    shown = _ok(*asked)
    assert (
        "likely to start 2026-11-22 09:02:00 to 2026-11-22 11:02:00, about 2026-11-22 10:02:00 (KST)" in shown
    )
    assert "foretold 2m ago from played futures, 31 jobs like it" in shown
    assert json.loads(_ok(*asked, "--json"))["eta"]["jobs"] == 31


def _ok(*arguments: str) -> str:
    done = gpuhub(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


# --- how the hub shares -----------------------------------------------------------------------------


def test_what_is_not_named_stays_as_it_was(api: Api) -> None:
    why = ("--reason", "call 3")
    first = json.loads(_ok("fair-share", "show", "--json"))["fair_share"]
    _ok("fair-share", "set", "preemption.notice_ms=2000", "reservations=4", *why)
    _ok("fair-share", "set", "lane=off", "ranking=fifo", "idle_lag_thousandths=7", *why)
    now = json.loads(_ok("fair-share", "show", "--json"))
    assert now["version"] == 3
    expected = first | {"reservations": 4, "lane": None, "ranking": "fifo", "idle_lag_thousandths": 7}
    expected["preemption"] = first["preemption"] | {"notice_ms": 2000}
    assert now["fair_share"] == expected
    taper = '[{"walltime_ms": 60000, "spare_thousandths": -50}]'
    shown = _ok("fair-share", "set", "lane=on", f"lane.tapers={taper}", *why)
    assert "up to 1m: -5 %" in shown
    assert "2000 (2.0s)" in shown


def test_weights_and_reserved_parts_are_set_by_the_ids_of_whom_they_are_for(api: Api) -> None:
    why, program = ("--reason", "call 3"), api.hub.award().program_id
    _ok(
        "fair-share",
        "set",
        f"programs.{program}.reserved_thousandths=250",
        "organization_weights.alpha=1500",
        *why,
    )
    _ok("fair-share", "set", f"programs.{program}.weight_thousandths=2000", *why)
    now = json.loads(_ok("fair-share", "show", "--json"))["fair_share"]
    assert now["programs"] == {program: {"weight_thousandths": 2000, "reserved_thousandths": 250}}
    assert now["organization_weights"] == {"alpha": 1500}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("programs.poc.colour=1", "is not NAME=VALUE with one of these names"),
        ("programs.weight_thousandths=1", "is not NAME=VALUE with one of these names"),
        ("organization_weights.=1", "is not NAME=VALUE with one of these names"),
        ("programs.poc.reserved_thousandths=1001", "reserved_thousandths"),
        ("luck=1", "is not NAME=VALUE with one of these names"),
        ("preemption.times_per_day=4", "less than or equal to 3"),
        ("ranking=luck", "ranking"),
        ("reservations=many", "reservations"),
    ],
)
def test_a_number_that_cannot_be_is_refused_before_anything_is_sent(api: Api, change: str, said: str) -> None:
    done = gpuhub("fair-share", "set", change, "--reason", "call 3")
    assert done.exit_code == 2
    assert said in done.output
    assert api.operator.read_fair_share().version == 1


def test_a_part_that_is_off_has_no_numbers(api: Api) -> None:
    _ok("fair-share", "set", "preemption=off", "--reason", "call 3")
    assert "off" in _ok("fair-share", "show")
    done = gpuhub("fair-share", "set", "preemption.gangs=1", "--reason", "call 3")
    assert "preemption is off; say preemption=on before" in done.output
