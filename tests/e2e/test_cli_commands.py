"""Firms' and operators' commands against a running hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
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


def test_a_job_may_fall_back_on_another_class(up: Up) -> None:
    choices = ("--gpu-class", "a100", "--fallback", "h100", "--gpus", "8")
    quoted = up.run("submit", "choosy", *choices, "--dry-run", *QUICK)
    assert "GPU classes in order of preference" in quoted.stdout
    assert re.search(r"a100 .*\n.*h100 ", quoted.stdout)
    job_id = up.ask("submit", "choosy", *choices, *QUICK)["id"]
    shown = up.run("job", job_id).stdout
    assert "1 x 8 a100 or h100" in shown
    wrong = up.run("submit", "wrong", "--gpu-class", "a100", "--fallback", "a100", *QUICK)
    assert (wrong.returncode, "twice" in wrong.stderr) == (2, True)


def test_a_gang_may_have_to_be_on_one_node(up: Up) -> None:
    gang = ("--gpu-class", "a100", "--gpus", "2", "--pods", "3", "--topology", "same_node")
    job_id = up.ask("submit", "near", *gang, *QUICK)["id"]
    assert "3 x 2 a100 (same node)" in up.run("job", job_id).stdout
    ended = until(lambda: (found := up.ask("job", job_id))["ended_at"] and found, "it has run")
    assert len({pod["node"] for pod in ended["attempts"][0]["pods"]}) == 1
    never = up.run("submit", "never", "--gpus", "8", "--pods", "2", "--topology", "same_rack", *QUICK)
    assert (never.returncode, "never_fits" in never.stderr) == (1, True)


def test_a_job_that_waits_says_why_and_can_be_cancelled(up: Up) -> None:
    wide = up.ask("submit", "wide", "--gpus", "8", "--pods", "4", *QUICK)

    def with_reason() -> Any:
        found = up.ask("job", wide["id"])
        return found["waiting"] and found["waiting"]["code"] != "new" and found

    found = until(with_reason, "a scheduling cycle says why it waits")
    assert found["waiting"]["numbers"]
    shown = up.run("job", wide["id"])
    shown_in_one_line = " ".join(shown.stdout.split())
    assert re.search(
        r" waits \w.* \(\d+\w\w of \d+ in the hub, \d+\w\w of \d+ of its organization\)", shown_in_one_line
    )
    assert up.run("cancel", wide["id"]).returncode == 0
    assert up.ask("job", wide["id"])["end_reason"] == "cancelled"


def test_a_job_is_read_while_it_runs_and_after(up: Up) -> None:
    talks = ("--annotation", "simulate.gpuhub/duration_s=3", "--walltime", "10m")
    job_id = up.ask("submit", "talks", "--gpu-class", "a100", *talks)["id"]
    until(lambda: up.run("logs", job_id).returncode == 0, "its pod has started")
    followed = up.run("logs", job_id, "--follow")
    assert followed.returncode == 0, followed.stderr
    assert followed.stdout.startswith(f"{job_id}-1 pod 0 started on ")
    assert followed.stdout.endswith("ended with exit code 0 (completed)\n")
    assert up.run("logs", job_id, "--tail", "1").stdout == "ended with exit code 0 (completed)\n"
    wrong = up.run("logs", job_id, "--pod", "1")
    assert (wrong.returncode, "pod: the job has 1 pods" in wrong.stderr) == (1, True)


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


def run_until_running(up: Up, *options: str) -> str:
    job = up.ask("submit", "long", "--gpu-class", "a100", "--walltime", "1h", *options)
    until(lambda: up.ask("job", job["id"])["state"] == "running", "it runs")
    return str(job["id"])


def award(up: Up, organization: str, *options: str, program: str = "ax-demo") -> str:
    asked = ("grant", "award", organization, "--program", program, "--reason", "agreement")
    return str(up.ask(*asked, *options, who="operator")["id"])


def test_a_quote_an_extension_and_a_requeue(up: Up) -> None:
    quote = up.run("submit", "plan", "--gpu-class", "a100", "--walltime", "1h", "--dry-run")
    assert re.search(r"costs at most 0\.4 GPU-h .* paid by grant-", quote.stdout)
    running = run_until_running(up, "--annotation", "simulate.gpuhub/duration_s=900", "--restartable")
    more = ("extend", running, "30m", "--reason", "two more epochs")
    assert "would be held" in up.run(*more, "--dry-run").stdout
    assert "1h 30m in all" in up.run(*more).stdout
    refused = up.run("extend", running, "720h", "--reason", "all of it")
    assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)
    back = ("requeue", running, "--reason", "the node is wanted")
    assert "dry run, nothing was done" in up.run(*back, "--dry-run", who="operator").stdout
    assert "goes back into the queue" in up.run(*back, who="operator").stdout
    assert up.run("cancel", running).returncode == 0


def test_a_consortium_in_tranches_under_a_policy_of_its_own(up: Up) -> None:
    shown = up.run("policy", "set", "poc", "overdraft_thousandths=100", "--reason", "call 3", who="operator")
    assert "10 %" in shown.stdout
    program = ("program", "create", "ax-two", "--name", "AX 2", "--hours", "1000", "--policy", "poc")
    assert up.run(*program, who="operator").returncode == 0
    parts = ("--hours", "100", "--part", "40:start", "--part", "60:review", "--max-gpus", "8")
    grant = award(up, "alpha-lab", *parts, program="ax-two")
    assert "10.00 GPU-h more than granted" in up.run("grant", "show", grant).stdout
    for party, hours in (("alpha-lab", "70"), ("beta-robotics", "30")):
        share = ("share", "set", grant, party, "--hours", hours, "--reason", "contract")
        assert up.run(*share, who="operator").returncode == 0
    too_much = up.run(
        "share", "set", grant, "beta-robotics", "--hours", "31", "--reason", "more", who="operator"
    )
    assert too_much.returncode == 1
    assert "at most 30.00 GPU-h" in too_much.stderr or "at most 0 GPU-h" in too_much.stderr
    release = ("tranche", "release", grant, "2", "--reason", "passed", "--evidence", "report 17")
    assert "released" in up.run(*release, who="operator").stdout
    assert "at most 8 GPUs at once" in up.run("limits", grant).stdout
    assert "70.00" not in up.run("limits", grant, who="beta-robotics").stdout


def test_hours_are_moved_corrected_and_carried_over(up: Up) -> None:
    grant, other = award(up, "alpha-lab", "--hours", "20"), award(up, "beta-robotics", "--hours", "1")
    move = ("grant", "transfer", grant, "--to", other, "--hours", "5", "--reason", "faster there")
    assert "dry run, nothing was done" in up.run(*move, "--dry-run", who="operator").stdout
    assert up.ask(*move, who="operator")["target"]["granted_gpu_hours"] == "6"
    fix = ("grant", "adjust", grant, "--hours", "-5", "--reason", "typing error", "--evidence", "paper 3")
    assert up.ask(*fix, who="operator")["granted_gpu_hours"] == "10"
    now = (
        "grant",
        "change",
        grant,
        "--ends-at",
        up.ask("grant", "show", grant)["starts_at"],
        "--reason",
        "x",
    )
    assert up.run(*now, who="operator").returncode == 1
    short = award(up, "alpha-lab", "--hours", "8", "--term", "2s")
    until(lambda: up.ask("grant", "show", short)["state"] == "ended", "its term is over")
    until(lambda: up.ask("grant", "show", short)["granted_gpu_hours"] == "0", "it expires", 90)
    over = ("grant", "carry-over", short, "--to", grant, "--hours", "8", "--reason", "goes on")
    assert up.ask(*over, who="operator")["target"]["granted_gpu_hours"] == "18"
    types = {item["type"] for item in up.ask("transfers", "--grant", grant, who="operator")}
    assert types == {"deposit", "transfer", "adjust"}


def test_switches_shut_and_open(up: Up) -> None:
    why = ("--reason", "maintenance")
    assert "is paused" in up.run("pause", "--gpu-class", "h100", *why, who="operator").stdout
    try:
        assert "let no job on" in up.run("submit", "later", "--dry-run").stdout
        assert "maintenance" in up.run("placement", who="operator").stdout
    finally:
        assert "is open" in up.run("resume", "--gpu-class", "h100", *why, who="operator").stdout
    assert "is frozen" in up.run("freeze", "gamma-university", *why, "--dry-run", who="operator").stdout
    assert up.run("unfreeze", "gamma-university", *why, who="operator").stdout.endswith("\n")


def test_an_auditor_takes_the_ledger_home_and_checks_it(up: Up, tmp_path: Path) -> None:
    secret = up.ask("token", "create", "auditor", "--label", "audit 2027", who="operator")["secret"]
    auditor = clean_environment(GPUHUB_URL=up.url, GPUHUB_TOKEN=secret)
    grant = up.ask("balance")[0]["id"]
    seals = until(lambda: up.ask("audit", "seals", who="operator")["items"], "a seal is made", 90)
    sealed = tmp_path / "statement.csv"
    asked = ("statement", grant, "--as-of", seals[-1]["at"], "--output", str(sealed))
    first = gpuhub(*asked, environment=auditor)
    assert first.returncode == 0, first.stderr
    assert first.stdout == gpuhub(*asked, environment=auditor).stdout, "the same bytes"
    assert gpuhub("statements", grant, environment=auditor).stdout.count("csv") == 1
    file = tmp_path / "ledger.jsonl.gz"
    export = gpuhub("audit", "export", str(file), "--reason", "yearly audit", environment=auditor)
    assert export.returncode == 0, export.stderr
    head = ("--head", seals[-1]["sha256"])
    alone = gpuhub("audit", "verify", str(file), str(sealed), *head, environment=clean_environment())
    assert alone.returncode == 0, alone.stdout
    spoilt = sealed.with_name("spoilt.csv")
    spoilt.write_bytes(sealed.read_bytes()[:-1] + b"!")
    assert gpuhub("audit", "verify", str(file), str(spoilt), environment=auditor).returncode == 1
    trail = gpuhub("audit", "--action", "personal.read", environment=auditor)
    assert "yearly audit" in trail.stdout
    refused = gpuhub("submit", "mine", environment=auditor)
    assert "gpuhub whoami" in refused.stderr, "what to do about it"


def test_a_firm_rotates_its_own_token_and_a_narrowed_one_may_less(up: Up) -> None:
    made = up.ask(
        *("token", "create", "member", "--organization", "beta-robotics", "--scope", "jobs:read"),
        who="operator",
    )
    narrow = clean_environment(GPUHUB_URL=up.url, GPUHUB_TOKEN=made["secret"])
    assert "narrowed to jobs:read" in gpuhub("whoami", environment=narrow).stdout
    assert gpuhub("submit", "no", environment=narrow).returncode == 1
    rotated = gpuhub("token", "rotate", "--reason", "quarter", "--overlap", "0s", environment=narrow)
    assert rotated.returncode == 0, rotated.stderr
    assert gpuhub("jobs", environment=narrow).returncode == 1, "the old secret has ended"
    successor = clean_environment(GPUHUB_URL=up.url, GPUHUB_TOKEN=rotated.stdout.splitlines()[-1])
    assert gpuhub("jobs", environment=successor).returncode == 0
    korean = gpuhub("job", "job-unknown", environment=successor | {"GPUHUB_LANGUAGE": "ko"})
    assert "작업 job-unknown" in korean.stderr


def test_tasks_and_days_are_shown(up: Up) -> None:
    assert "audit.seal" in up.run("tasks", who="operator").stdout
    assert "no day is over yet" in up.run("reconcile", who="operator").stdout
    assert up.run("reconcile", "2099-01-01", who="operator").returncode == 1
