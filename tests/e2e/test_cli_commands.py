"""Firms' and operators' commands against a running hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from test_up_world import Up, clean_environment, gpuhub, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

QUICK = ("--annotation", "simulate.gpuhub/duration_s=1", "--walltime", "10m")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    made = Up(tmp_path_factory.mktemp("hub"))
    made.start()
    yield made
    made.close()


def test_login_saves_who_the_next_commands_speak_for(
    up: Up, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = str(tmp_path_factory.mktemp("config"))
    token = up.login("alpha-lab")["GPUHUB_TOKEN"]
    environment = clean_environment(GPUHUB_CONFIG=config)
    done = gpuhub("login", "--url", up.url, "--token", token, environment=environment)
    assert done.returncode == 0, done.stderr
    assert "member of alpha-lab" in done.stdout
    assert gpuhub("whoami", environment=environment).stdout.startswith("member of alpha-lab")
    refused = gpuhub("login", "--url", up.url, "--token", "wrong", environment=environment)
    assert refused.returncode == 1
    assert "unauthenticated" in refused.stderr


def test_submit_and_wait_ends_like_the_job(up: Up) -> None:
    good = up.run("submit", "good", "--gpu-class", "a100", *QUICK, "--wait", "--", "python", "train.py")
    assert good.returncode == 0, good.stderr
    assert "ended: succeeded" in good.stdout
    assert re.search(r"held .* - released .* = settled ", good.stdout)
    bad = up.run(
        *(
            "submit",
            "bad",
            "--gpu-class",
            "a100",
            *QUICK,
            "--annotation",
            "simulate.gpuhub/exit_code=3",
            "--wait",
        )
    )
    assert bad.returncode == 1
    assert "exit code 3" in bad.stdout


def test_the_same_key_is_the_same_job(up: Up) -> None:
    first = up.ask("submit", "once", "--key", "k-1", "--gpu-class", "a100", *QUICK)
    assert up.ask("submit", "once", "--key", "k-1", "--gpu-class", "a100", *QUICK)["id"] == first["id"]
    other = up.run("submit", "twice", "--key", "k-1", "--gpu-class", "a100", *QUICK)
    assert other.returncode == 1
    assert "idempotency_key_reused" in other.stderr


def test_a_job_that_waits_says_why_and_can_be_cancelled(up: Up) -> None:
    wide = up.ask("submit", "wide", "--gpus", "8", "--pods", "4", *QUICK)

    def with_reason() -> Any:
        found = up.ask("job", wide["id"])
        return found["waiting"] and found["waiting"]["code"] != "new" and found

    found = until(with_reason, "a scheduling cycle says why it waits")
    assert found["waiting"]["numbers"]
    shown = up.run("job", wide["id"])
    assert re.search(
        r"waits +" + found["waiting"]["code"] + r": .*\(.*\d.*\); place \d+ in the queue", shown.stdout
    )
    assert up.run("cancel", wide["id"]).returncode == 0
    assert up.ask("job", wide["id"])["end_reason"] == "cancelled"


def test_refusals_name_the_code(up: Up) -> None:
    missing = up.run("job", "job-unknown")
    assert (missing.returncode, "not_found" in missing.stderr) == (1, True)
    never = up.run("submit", "never", "--gpus", "64", *QUICK)
    assert (never.returncode, "never_fits" in never.stderr) == (1, True)
    unknown = up.run("submit", "unknown", "--gpu-class", "b300", *QUICK)
    assert (unknown.returncode, "unknown_gpu_class" in unknown.stderr) == (1, True)
    forbidden = up.run("organization", "create", "delta", "--name", "Delta")
    assert (forbidden.returncode, "forbidden" in forbidden.stderr) == (1, True)
    for done in (missing, never, unknown, forbidden):
        assert len(done.stderr.splitlines()) <= 3
        assert "Traceback" not in done.stderr


def test_an_operator_brings_a_firm_in(up: Up) -> None:
    organization = up.ask(
        "organization", "create", "delta-ai", "--name", "Delta [AI]", "--kind", "sme", who="operator"
    )
    assert organization["kind"] == "sme"
    award = (
        "grant",
        "award",
        "delta-ai",
        "--hours",
        "100",
        "--program",
        "ax-demo",
        "--reason",
        "agreement 7",
    )
    grant = up.ask(*award, "--term", "30d", "--key", "award-7", who="operator")
    assert up.ask(*award, "--term", "30d", "--key", "other", who="operator")["id"] != grant["id"]
    topped = up.ask("grant", "top-up", grant["id"], "--hours", "0.5", "--reason", "more", who="operator")
    assert topped["granted_gpu_hours"] == "100.5"
    cut = up.ask("grant", "cut", grant["id"], "--hours", "50.5", "--reason", "unused", who="operator")
    assert cut["available_gpu_hours"] == "50"
    token = up.ask(
        "token", "create", "member", "--organization", "delta-ai", "--expires-in", "1d", who="operator"
    )
    environment = clean_environment(GPUHUB_URL=up.url, GPUHUB_TOKEN=token["secret"])
    assert gpuhub("whoami", environment=environment).stdout.startswith("member of delta-ai")
    balance = gpuhub("balance", environment=environment)
    assert grant["id"] in balance.stdout
    assert up.run("token", "revoke", token["id"], who="operator").returncode == 0
    assert gpuhub("whoami", environment=environment).returncode == 1


def test_lists_are_tables_and_json(up: Up) -> None:
    for command in (
        ("organization", "list"),
        ("program", "list"),
        ("grant", "list"),
        ("token", "list"),
        ("node", "list"),
        ("class", "list"),
        ("jobs",),
        ("findings",),
        ("audit",),
        ("balance",),
    ):
        shown = up.run(*command, who="operator")
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.strip()
        json.dumps(up.ask(*command, who="operator"))


def test_a_statement_adds_up(up: Up) -> None:
    up.run("submit", "paid", "--gpu-class", "a100", *QUICK, "--wait")
    grant = up.ask("balance")[0]["id"]
    statement = up.ask("statement", grant)
    lines = statement["lines"]
    assert sum(int(line["used_gpu_us"]) for line in lines) == int(statement["used_gpu_us"]) > 0
    assert sum(int(line["held_gpu_us"]) for line in lines) == int(statement["held_gpu_us"])
    shown = up.run("statement", grant)
    assert re.search(r"[\d,]+ ms x 1 a100 x 0.4 = [\d,]+ GPU-us", shown.stdout)


def test_nodes_are_cordoned_by_their_short_name(up: Up) -> None:
    assert up.ask("node", "cordon", "sim-4", "--reason", "fan", who="operator")["cordoned"] is True
    try:
        assert "cordoned" in up.run("node", "list", who="operator").stdout
    finally:
        assert up.ask("node", "uncordon", "sim/sim-4", who="operator")["cordoned"] is False
    nowhere = up.run("node", "cordon", "sim-99", "--reason", "fan", who="operator")
    assert nowhere.returncode == 2
    assert "no cluster has it" in nowhere.stderr


def test_a_class_gets_a_new_rate(up: Up) -> None:
    made = up.ask("class", "set", "l40s", "--rate", "250", "--price", "900", who="operator")
    assert (made["rate_thousandths"], made["price_krw"]) == (250, 900)
    again = up.ask("class", "set", "l40s", "--rate", "300", "--price", "900", who="operator")
    assert again["rate_id"] != made["rate_id"]
