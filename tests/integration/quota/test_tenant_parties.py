"""What a party of a consortium reads depends on its own doings only: others come, use and go, its answers stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from quota.clock import HOUR_MS
from quota.schemas.limits import ShareChange
from tests.integration.quota.limits_builders import give, path
from tests.integration.quota.tenant_world import World, a_world, rank

PARTY = "gamma"
ABOUT_ALL = {
    "waiting",
    "waiting_text",
    "ranked_at",
    "ranking_age_s",
    "position",
    "position_at_worst",
    "room_at_the_latest",
    "history",
}
"""What a quote says of the whole queue and the whole fleet, in counts and times that name nobody."""


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with a_world(database_url) as made:
        yield made


def _read(world: World, caller: str = PARTY) -> dict[str, Any]:
    """All that it may read of the grant and of its own job in it."""
    grant, job = world.grants["consortium"].id, world.jobs[PARTY].id
    urls = {
        "grant": f"/v1/grants/{grant}",
        "limits": f"/v1/grants/{grant}/limits",
        "share": f"/v1/grants/{grant}/shares/{caller}",
        "statements": f"/v1/grants/{grant}/statements",
        "transfers": "/v1/transfers",
        "grants": "/v1/grants",
        "job": f"/v1/jobs/{job}",
        "organizations": "/v1/organizations",
        "paper": f"/v1/grants/{grant}/statement?format=csv",
    }
    answers = {name: world.ask(caller, "GET", url) for name, url in urls.items()}
    assert {answer.status_code for answer in answers.values()} == {200}
    return {name: answer.text for name, answer in answers.items()}


def _waiting(world: World, reason: dict[str, Any], caller: str = PARTY, cycle: int = 1) -> dict[str, Any]:
    """Why its job waits, as it reads that in the list and on the job: the same."""
    job = world.jobs[f"{PARTY}/waiting"].id
    rank(world, {job: reason}, cycle)
    listed = world.ask(caller, "GET", "/v1/jobs").json()["items"]
    one = world.ask(caller, "GET", f"/v1/jobs/{job}").json()["waiting"]
    assert one in [item["waiting"] for item in listed if item["id"] == job]
    assert one["code"] == reason["code"]
    numbers: dict[str, Any] = one["numbers"]
    return numbers


def _others_are_busy(world: World) -> None:
    """delta runs more and ends something, alpha gives delta hours of its own, beta comes and goes."""
    hub, consortium = world.hub, world.grants["consortium"]
    job = hub.submit("delta", gpus_per_pod=4, walltime_s=3600)
    hub.start(job, consortium, "n0", path=path(consortium, "delta", 1))
    hub.finish(world.jobs["delta"])
    give(hub, consortium, "alpha", 45)
    give(hub, consortium, "delta", 35)
    hub.cancel(world.jobs["beta/waiting"].id)


def test_what_others_do_changes_nothing_that_a_party_reads(world: World) -> None:
    before, leads = _read(world), _whole(world)
    _others_are_busy(world)
    assert _read(world) == before
    assert _whole(world) != leads, "the grant's own organization reads it all"


def _whole(world: World) -> list[str]:
    grant = world.grants["consortium"].id
    return [
        world.ask("alpha", "GET", f"/v1/grants/{grant}{what}").text for what in ("", "/limits", "/statement")
    ]


def test_a_party_is_told_of_a_cap_but_not_how_much_others_use(world: World) -> None:
    grant = world.grants["consortium"].id
    reason = {"code": "grant_cap", "numbers": {"grant": grant, "cap": 16, "in_use": 12, "needed": 8}}
    assert _waiting(world, reason) == {"grant": grant, "cap": 16, "needed": 8}
    assert _waiting(world, reason, "operator", 2)["in_use"] == 12


@pytest.mark.parametrize("account", ["", "tranche", "grant"])
def test_a_party_is_not_told_what_is_left_of_all(world: World, account: str) -> None:
    consortium = world.grants["consortium"]
    short = {"tranche": path(consortium, None, 1)[0], "grant": consortium.account_id}.get(account, "")
    told = _waiting(world, _exhausted(world, short))
    assert told == {"grant": consortium.id, "needed_gpu_us": "2000"}


def test_a_party_is_told_what_is_left_of_its_own_share(world: World) -> None:
    own = path(world.grants["consortium"], PARTY)[0]
    assert _waiting(world, _exhausted(world, own))["left_gpu_us"] == "1000"


def test_the_grants_own_organization_is_told_its_numbers(world: World) -> None:
    job, consortium = world.jobs["alpha/waiting"].id, world.grants["consortium"]
    capped = {"grant": consortium.id, "cap": 16, "in_use": 12, "needed": 8}
    rank(world, {job: {"code": "grant_cap", "numbers": capped}}, 1)
    assert world.ask("alpha", "GET", f"/v1/jobs/{job}").json()["waiting"]["numbers"] == capped
    rank(world, {job: _exhausted(world, consortium.account_id)}, 2)
    told = world.ask("alpha", "GET", f"/v1/jobs/{job}").json()["waiting"]["numbers"]
    assert told["left_gpu_us"] == "1000"


def _exhausted(world: World, account: str) -> dict[str, Any]:
    numbers = {"grant": world.grants["consortium"].id, "account": account}
    return {"code": "grant_exhausted", "numbers": numbers | {"needed_gpu_us": "2000", "left_gpu_us": "1000"}}


@pytest.mark.parametrize("code", ["behind_in_order", "room_reserved"])
def test_names_of_others_in_a_reason_are_not_told(world: World, code: str) -> None:
    numbers = {"job": world.jobs["beta"].id, "organization": "beta"}
    assert _waiting(world, {"code": code, "numbers": numbers}) == {}
    assert _waiting(world, {"code": code, "numbers": numbers}, "auditor", 2) == numbers


def test_a_firm_is_told_from_when_on_room_is_kept_for_its_job(world: World) -> None:
    numbers = {"starts_at_ms": 1_800_000_000_000, "gpu_class": "h100", "needed": 64, "free": 3}
    assert _waiting(world, {"code": "reserved", "numbers": numbers}) == numbers


# --- quotes and extensions ------------------------------------------------------------------------------


def _quote(world: World, caller: str, **fields: Any) -> dict[str, Any]:
    body = {"name": "q", "gpu_class": "h100", "walltime_s": 3600} | fields
    answer = world.ask(caller, "POST", "/v1/jobs", params={"dry_run": "true"}, body=body)
    assert answer.status_code == 200, answer.text
    quoted: dict[str, Any] = answer.json()
    return quoted


def test_a_quote_tells_a_party_of_its_share_only(world: World) -> None:
    before = _quote(world, PARTY)
    _others_are_busy(world)
    after = _quote(world, PARTY)
    for quoted in (before, after):
        for name in ABOUT_ALL:
            del quoted["estimate"][name]
    assert after == before
    assert (after["grants"][0]["gpus_left"], after["grants"][0]["left_gpu_hours"]) == (None, "19")
    leads = {one["grant_id"]: one for one in _quote(world, "alpha")["grants"]}
    assert leads[world.grants["consortium"].id]["gpus_left"] == 16 - 2 - 1 - 4


def test_a_quote_that_the_cap_or_a_tranche_forbids_gives_no_sums(world: World) -> None:
    hub, consortium = world.hub, world.grants["consortium"]
    give(hub, consortium, "alpha", 40)
    give(hub, consortium, PARTY, 30)
    capped = _quote(world, PARTY, gpus_per_pod=8, pods=2, walltime_s=60)
    assert capped["grants"][0]["verdict"] == "capped"
    assert capped["estimate"]["waiting"]["numbers"] == {"grant": consortium.id, "cap": 16, "needed": 16}
    job = hub.submit("delta", gpus_per_pod=4, walltime_s=6 * 3600)
    hub.start(job, consortium, "n0", path=path(consortium, "delta", 1))
    short = _quote(world, PARTY, walltime_s=20 * 3600)
    assert short["grants"][0]["verdict"] == "short"
    assert short["grants"][0]["left_gpu_hours"] == "29"
    assert set(short["estimate"]["waiting"]["numbers"]) == {"grant", "needed_gpu_us"}
    share = _quote(world, PARTY, walltime_s=int(29.5 * 3600))
    assert "left_gpu_us" not in share["estimate"]["waiting"]["numbers"], (
        "the tranche is short before the share"
    )


def test_an_extension_that_others_left_no_hours_for_gives_no_sums(world: World) -> None:
    hub, consortium, job = world.hub, world.grants["consortium"], world.jobs[PARTY]
    busy = hub.submit("delta", gpus_per_pod=4, walltime_s=6 * 3600)
    hub.start(busy, consortium, "n0", path=path(consortium, "delta", 1))
    body = {"walltime_s": 15 * 3600, "reason": "r"}
    refused = world.ask(PARTY, "POST", f"/v1/jobs/{job.id}/extensions", body=body).json()
    assert refused["code"] == "insufficient_balance"
    assert set(refused["numbers"]) == {"needed_gpu_us", "walltime_s", "grant_id"}
    dry = {"params": {"dry_run": "true"}, "body": {"walltime_s": 60, "reason": "r"}}
    fits = [world.ask(PARTY, "POST", f"/v1/jobs/{job.id}/extensions", **dry).json()["fitting_walltime_s"]]
    hub.finish(busy)
    fits.append(world.ask(PARTY, "POST", f"/v1/jobs/{job.id}/extensions", **dry).json()["fitting_walltime_s"])
    assert fits == [19 * 3600 - 60] * 2, "as far as its share goes"
    beyond = {"walltime_s": 19 * 3600 + 1, "reason": "r"}
    told = world.ask(PARTY, "POST", f"/v1/jobs/{job.id}/extensions", body=beyond).json()["numbers"]
    assert told["left_gpu_us"] == str(19 * 3600 * 1_000_000)


# --- the lead, and whoever would be one -------------------------------------------------------------------


def test_a_party_divides_nothing_and_learns_of_nobody(world: World) -> None:
    grant = world.grants["consortium"].id
    body = ShareChange(gpu_hours=1, reason="mine").model_dump(mode="json")
    before = world.contents()
    for target in (PARTY, "delta", "beta", "omega"):
        answer = world.ask(PARTY, "PUT", f"/v1/grants/{grant}/shares/{target}", body=body)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), target
        assert target not in answer.text.replace(grant, "")
    assert world.contents() == before
    world.hub.clock.advance(HOUR_MS)
    for target in ("delta", "beta", "omega"):
        told = world.ask(PARTY, "GET", f"/v1/grants/{grant}/shares/{target}")
        assert (told.status_code, told.json()["detail"]) == (404, f"{target} has no share of grant {grant}")
