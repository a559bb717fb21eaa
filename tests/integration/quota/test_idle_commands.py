"""Idle rules over HTTP, on the command line and in the metrics, against a served hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner, Result

from deploy.cli import firm_app
from quota.schemas.idle import IdlePolicy, IdlePolicyPut, IdleRules
from tests.builders import Api, a_problem, an_api
from tests.integration.quota.idle_world import Agent, a_running_job, live


@pytest.fixture
def api(sqlite_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Api]:
    with an_api(sqlite_url) as served:
        monkeypatch.setenv("GPUHUB_CONFIG", str(tmp_path / "config"))
        monkeypatch.setenv("GPUHUB_URL", served.base_url)
        secret = served.operator._http.headers["Authorization"].removeprefix("Bearer ")
        monkeypatch.setenv("GPUHUB_TOKEN", secret)
        monkeypatch.setenv("GPUHUB_LANGUAGE", "en")
        yield served


@pytest.fixture
def agent(api: Api) -> Agent:
    return a_running_job(api.hub, gpus=2)


def test_a_warned_job_is_shown_to_its_people_and_to_operators(api: Api, agent: Agent) -> None:
    live(agent, 60)
    seen = api.firms["alpha"].read_job(agent.job.id)
    assert seen.idle is not None
    assert (seen.idle.state, seen.idle.idle_gpus) == ("warned", 2)
    assert seen.idle_text is not None
    assert "is stopped at 11:00 KST" in seen.idle_text
    assert [warning.step for warning in seen.idle_warnings] == [1]
    [listed] = api.firms["alpha"].list_jobs().items
    assert (listed.idle, listed.idle_text) == (seen.idle, seen.idle_text)
    [item] = api.operator.list_idle_jobs().items
    assert (item.job_id, item.organization_id, item.state) == (agent.job.id, "alpha", "warned")
    told = _done("job", agent.job.id)
    assert "first warning; its GPUs have done no work since 09:00 KST" in told
    assert "warned     2026-11-22 10:00:00: no work since 2026-11-22 09:00:00" in told
    assert "(warned): first warning" in _done("jobs")
    assert "2 of 2" in _done("idle", "list")


def test_an_active_job_is_in_no_list(api: Api, agent: Agent) -> None:
    live(agent, 60, 0.7)
    assert api.operator.list_idle_jobs().items == ()
    assert "every running job" in _done("idle", "list")
    assert api.firms["alpha"].read_job(agent.job.id).idle_text is None


def test_the_rules_are_changed_by_name_and_by_programme(api: Api) -> None:
    _done("idle", "set", "mode=warn", "batch.sliding.stop_s=20000", "--reason", "a pilot")
    rules = api.operator.read_idle_policy().policy
    assert (rules.mode, rules.batch.sliding.stop_s, rules.interactive) == (
        "warn",
        20000,
        IdleRules().interactive,
    )
    _done("idle", "set", "mode=off", "--program", "ax", "--reason", "courses")
    policy = api.operator.read_idle_policy().policy
    assert (policy.mode, policy.programs["ax"].mode, policy.programs["ax"].batch) == (
        "warn",
        "off",
        rules.batch,
    )
    assert "ax: its own" in _done("idle", "policy", "--program", "ax")
    assert "rules of their own: ax" in _done("idle", "policy")
    _done("idle", "set", "--program", "ax", "--hubs", "--reason", "over")
    assert api.operator.read_idle_policy().policy.programs == {}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("idle", "set", "nonsense=1", "--reason", "why"), "NAME=VALUE"),
        (("idle", "set", "batch.sliding.stop_s=100", "--reason", "why"), "first warning comes before"),
        (("idle", "set", "mode=off", "--program", "nobody", "--reason", "why"), "no programme nobody"),
        (
            ("idle", "exempt", "job", "nobody", "--until", "2027-01-01 10:00", "--reason", "why"),
            "no job nobody",
        ),
    ],
)
def test_what_is_wrong_is_told(api: Api, words: tuple[str, ...], told: str) -> None:
    before = api.operator.read_idle_policy()
    result = _run(*words)
    assert result.exit_code in (1, 2)
    assert told in result.output + result.stderr
    assert api.operator.read_idle_policy() == before


def test_rules_are_not_changed_behind_somebodys_back(api: Api) -> None:
    read = api.operator.read_idle_policy()
    body = IdlePolicyPut(policy=IdlePolicy(mode="warn"), reason="a test")
    changed = api.operator.put_idle_policy(body, read.etag)
    assert (changed.version, api.operator.put_idle_policy(body, changed.etag)) == (read.version + 1, changed)
    with a_problem("precondition_failed", 412):
        api.operator.put_idle_policy(IdlePolicyPut(policy=IdlePolicy(), reason="a test"), read.etag)


def test_exemptions_are_made_listed_and_ended(api: Api, agent: Agent) -> None:
    until = ("--until", "2026-11-23 09:00", "--reason", "a demo")
    assert "is exempt until 2026-11-23 09:00:00" in _done("idle", "exempt", "organization", "alpha", *until)
    live(agent, 120)
    seen = api.firms["alpha"].read_job(agent.job.id)
    assert seen.idle is not None
    assert seen.idle.state == "idle"
    assert seen.idle_text is not None
    assert "an exemption keeps it running until 09:00 KST on 23 Nov" in seen.idle_text
    [made] = json.loads(_done("idle", "exemptions", "--json"))
    assert "a demo" in _done("idle", "exemptions")
    assert "ended 2026-11-22" in _done("idle", "end-exemption", made["id"], "--reason", "over")
    assert api.operator.list_idle_exemptions().items[0].ended_at == api.hub.now


def test_metrics_count_idle_gpus_warnings_and_stops(api: Api, agent: Agent) -> None:
    live(agent, 105)
    assert _metrics(api) == {"idle": 0, "warned twice": 2, "warnings 1": 1, "warnings 2": 1, "stops": 0}
    live(agent, 15)
    found = _metrics(api)
    assert (found["stops"], found["warned twice"]) == (1, 0)


def _metrics(api: Api) -> dict[str, float]:
    text = api.call(api.operator, "GET", "/metrics").text
    families = {family.name: family.samples for family in text_string_to_metric_families(text)}
    gpus = {sample.labels["state"]: sample.value for sample in families["hub_quota_idle_gpus"]}
    steps = {sample.labels["step"]: sample.value for sample in families["hub_quota_idle_warnings"]}
    return {
        "idle": gpus["idle"],
        "warned twice": gpus["warned_twice"],
        "warnings 1": steps["1"],
        "warnings 2": steps["2"],
        "stops": families["hub_quota_idle_stops"][0].value,
    }


def _run(*words: str) -> Result:
    return CliRunner().invoke(firm_app(), list(words))


def _done(*words: str) -> str:
    result = _run(*words)
    assert result.exit_code == 0, result.output + result.stderr
    return result.output
