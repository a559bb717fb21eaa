"""What the commands say and with which status they end, without and against a fake service."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import quota
from deploy.advice import ADVICE
from deploy.cli import PROGRAMS, firm_app
from deploy.moments import moment_ms
from deploy.session import UsageTrouble, login_file, save_login
from deploy.session import language as chosen_language
from quota.clock import instant_text

CALLER = {"token_id": "tok-1", "role": "member", "organization_id": "alpha-lab"}


class FakeService(http.server.BaseHTTPRequestHandler):
    """Answers a status and a body by path."""

    answers: dict[str, tuple[int, object]]

    asked_in = ""

    def do_GET(self) -> None:
        FakeService.asked_in = self.headers["Accept-Language"]
        status, body = self.answers.get(self.path.partition("?")[0], (404, {}))
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, format: str, *parts: object) -> None:
        pass


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, tuple[int, object]]]:
    given: dict[str, tuple[int, object]] = {}
    handler = type("Handler", (FakeService,), {"answers": given})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GPUHUB_CONFIG", str(tmp_path / "config"))
        monkeypatch.setenv("GPUHUB_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("GPUHUB_TOKEN", "secret")
        yield given
        server.shutdown()


def gpuhub(*arguments: str) -> Result:
    return CliRunner().invoke(firm_app(), arguments)


def test_without_a_login_the_way_to_one_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GPUHUB_URL", raising=False)
    monkeypatch.delenv("GPUHUB_TOKEN", raising=False)
    monkeypatch.setenv("GPUHUB_CONFIG", str(tmp_path))
    done = gpuhub("jobs")
    assert done.exit_code == 2
    assert "gpuhub login --url URL --token TOKEN" in done.stderr


def test_an_unreachable_service_is_status_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUHUB_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GPUHUB_TOKEN", "secret")
    done = gpuhub("whoami")
    assert done.exit_code == 3
    assert "not reachable" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://x", "http://[::1"])
def test_an_address_that_is_none_is_status_2(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUHUB_URL", url)
    monkeypatch.setenv("GPUHUB_TOKEN", "secret")
    done = gpuhub("whoami")
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_login_checks_the_token_and_saves_it_privately(answers: dict[str, tuple[int, object]]) -> None:
    answers["/v1/caller"] = (200, CALLER)
    done = gpuhub("login", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["organization_id"] == "alpha-lab"
    assert login_file().stat().st_mode & 0o777 == 0o600
    assert json.loads(login_file().read_text())["token"] == "secret"


def test_a_refused_login_is_not_saved(answers: dict[str, tuple[int, object]]) -> None:
    problem = {
        "type": "about:blank",
        "title": "No",
        "status": 401,
        "code": "unauthenticated",
        "detail": "No token.",
    }
    answers["/v1/caller"] = (401, problem)
    done = gpuhub("login")
    assert done.exit_code == 1
    assert "refused (unauthenticated): No token." in done.stderr
    assert not login_file().exists()


def test_a_refusal_names_code_and_numbers(answers: dict[str, tuple[int, object]]) -> None:
    answers["/v1/jobs"] = (
        409,
        {
            "type": "about:blank",
            "title": "Short",
            "status": 409,
            "code": "insufficient_balance",
            "detail": "The grant has less left.",
            "numbers": {"account": "grant:g-1", "needed_gpu_us": "7200000000", "left_gpu_us": "3600000000"},
        },
    )
    done = gpuhub("submit", "train", "--walltime", "2h", "--", "python", "train.py")
    assert done.exit_code == 1
    assert "refused (insufficient_balance): The grant has less left." in done.stderr
    assert "account = grant:g-1, needed = 2.00 GPU-h, left = 1.00 GPU-h" in done.stderr
    assert "gpuhub balance" in done.stderr, "what to do about it"


def test_a_refusal_says_nothing_twice_and_amounts_in_hours(answers: dict[str, tuple[int, object]]) -> None:
    detail = "at most 0 GPU-us of grant g-1 are possible here, 5400000000000 were asked for"
    answers["/v1/grants/g-1/limits"] = (
        409,
        {
            "type": "about:blank",
            "title": "Short",
            "status": 409,
            "code": "insufficient_balance",
            "detail": detail,
            "numbers": {"grant_id": "g-1", "left_gpu_us": "0", "needed_gpu_us": "5400000000000"},
            "errors": [{"field": "gpu_hours", "message": detail}],
        },
    )
    told = gpuhub("limits", "g-1").stderr.splitlines()
    assert told[0].endswith(
        "gpu_hours: at most 0 GPU-h of grant g-1 are possible here, 1,500.00 GPU-h were asked for"
    )
    assert len(told) == 2


@pytest.mark.parametrize("code", sorted(ADVICE))
def test_advice_is_about_a_code_that_the_service_has(code: str) -> None:
    sources = (path.read_text() for path in Path(quota.__path__[0]).rglob("*.py"))
    known = {found for text in sources for found in re.findall(r'code(?:, status)? = "([a-z_]+)"', text)}
    assert code in known


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "ko_KR.UTF-8"}, "ko"),
        ({"LANG": "ko_KR.UTF-8", "LC_ALL": "C"}, "en"),
        ({"LANG": "ko_KR.UTF-8", "GPUHUB_LANGUAGE": "en"}, "en"),
        ({"LANG": "C.UTF-8", "GPUHUB_LANGUAGE": "ko"}, "ko"),
    ],
)
def test_refusals_are_told_in_the_terminals_language(
    environment: dict[str, str], language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GPUHUB_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert chosen_language() == language


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("policy", "set", "poc", "notice", "--reason", "r"), "rule 'notice' is not NAME=VALUE"),
        (("policy", "set", "poc", "bogus=1", "--reason", "r"), "overdraft_thousandths, when_grant_ends"),
        (("grant", "transfer", "g", "--to", "h", "--hours", "x", "--reason", "r"), "gpu_hours 'x'"),
        (
            ("grant", "cut", "g", "--hours", "1", "--reason", "r", "--child", "share:g:b"),
            "--child 'share:g:b' is not ACCOUNT=HOURS",
        ),
        (("transfers", "--since", "yesterday"), "--since 'yesterday' is not a time in Seoul"),
        (("statement", "g", "--as-of", "2026-13-01"), "--as-of '2026-13-01' is not a time in Seoul"),
    ],
)
def test_what_cannot_be_sent_is_one_line_and_status_2(arguments: tuple[str, ...], told: str) -> None:
    done = gpuhub(*arguments)
    assert done.exit_code == 2, done.output
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_file_that_cannot_be_written_is_told(answers: dict[str, tuple[int, object]]) -> None:
    answers["/v1/grants/g-1/statement"] = (200, {})
    done = gpuhub("statement", "g-1", "--output", "/nowhere/s.csv")
    assert done.exit_code == 2
    assert "--output /nowhere/s.csv" in done.stderr


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-22", "2026-11-21T15:00:00.000Z"),
        ("2026-11-22 18:00", "2026-11-22T09:00:00.000Z"),
        ("2026-11-22T18:00:00.250", "2026-11-22T09:00:00.250Z"),
        ("2026-11-22T18:00:00+01:00", "2026-11-22T17:00:00.000Z"),
        ("2026-11-22T18:00:00Z", "2026-11-22T18:00:00.000Z"),
    ],
)
def test_a_moment_without_a_zone_is_seouls(text: str, moment: str) -> None:
    assert instant_text(moment_ms("--since", text)) == moment


@pytest.mark.parametrize("text", ["", "soon", "2026-11-22T18:00:00.1234"])
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(UsageTrouble, match="--since"):
        moment_ms("--since", text)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--walltime", "soon"), "--walltime: 'soon' is not a duration"),
        (("--env", "KEY"), "--env 'KEY' is not KEY=VALUE"),
        (("--gpus", "0"), "gpus_per_pod '0'"),
        (("--walltime", "31d"), "walltime_s"),
    ],
)
def test_a_wrong_value_is_told_before_anything_is_sent(
    arguments: tuple[str, ...], told: str, answers: dict[str, tuple[int, object]]
) -> None:
    done = gpuhub("submit", "train", *arguments)
    assert done.exit_code == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_the_environment_goes_before_the_saved_login(
    answers: dict[str, tuple[int, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers["/v1/caller"] = (200, CALLER)
    url = os.environ["GPUHUB_URL"]
    save_login("http://127.0.0.1:9", "saved")
    assert gpuhub("whoami").exit_code == 0
    monkeypatch.delenv("GPUHUB_URL")
    assert gpuhub("whoami").exit_code == 3
    save_login(url, "saved")
    assert gpuhub("whoami").exit_code == 0


WAITING = {
    **dict.fromkeys(("end_reason", "grant_id", "ended_at", "cancel_requested_at")),
    "id": "job-1",
    "name": "train",
    "organization_id": "alpha-lab",
    "state": "queued",
    "gpu_class": "h100",
    "gpus_per_pod": 8,
    "pods": 1,
    "walltime_s": 3600,
    "grace_s": 30,
    "restartable": False,
    "submitted_at": "2026-11-30T03:00:00.000Z",
    **dict.fromkeys(
        ("cost_limit_gpu_us", "cost_limit_gpu_hours", "charged_gpu_us", "charged_gpu_hours"), "0"
    ),
    "attempt": 0,
    "waiting": {"code": "no_free_gpu", "numbers": {"needed": 8, "free": 3}},
    "position": 4,
}
SENTENCES = {
    "en": {"waiting_text": "needs 8 H100, 3 free now", "place_text": "4th of 41 in the hub"},
    "ko": {"waiting_text": "H100이 8개 필요합니다", "place_text": "허브 전체 41개 중 4번째"},
}


@pytest.mark.parametrize("lang", ["ko", "en"])
@pytest.mark.parametrize("arguments", [("job", "job-1"), ("jobs",)])
def test_why_a_job_waits_is_printed_as_the_service_says_it(
    arguments: tuple[str, ...], lang: str, answers: dict[str, tuple[int, object]]
) -> None:
    said = SENTENCES[lang]
    answers["/v1/jobs/job-1"] = (200, WAITING | said | {"attempts": [], "measured": []})
    answers["/v1/jobs"] = (200, {"items": [WAITING | said], "next": None})
    done = gpuhub(*arguments, "--lang", lang)
    assert done.exit_code == 0, done.output
    assert f"{said['waiting_text']} ({said['place_text']})" in done.stdout
    assert FakeService.asked_in == lang


def test_the_codes_of_a_service_without_sentences_are_printed(answers: dict[str, tuple[int, object]]) -> None:
    answers["/v1/jobs/job-1"] = (200, WAITING | {"attempts": [], "measured": []})
    assert "no_free_gpu (needed 8, free 3) (place 4 in the queue)" in gpuhub("job", "job-1").stdout


def test_a_language_that_the_service_does_not_speak_is_refused(
    answers: dict[str, tuple[int, object]],
) -> None:
    done = gpuhub("jobs", "--lang", "fr")
    assert done.exit_code == 2
    assert "'ko'" in done.stderr
    assert "'en'" in done.stderr


def test_firm_commands_load_neither_servers_nor_databases() -> None:
    code = (
        "import sys; sys.argv = ['gpuhub', 'jobs', '--help']\n"
        "from deploy.cli import main\n"
        "try:\n    main()\nexcept SystemExit: pass\n"
        "print('LOADED', sorted({'sqlalchemy', 'fastapi', 'numpy', 'uvicorn', 'alembic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("LOADED []\n")


def test_the_help_lists_programs_and_exit_codes() -> None:
    done = gpuhub("--help")
    assert all(name in done.output for name, (_, text) in PROGRAMS.items() if text)
    assert "quota-start" not in done.output
    assert "Exit codes" in done.output


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("up", "--check", "--trace", "synthetic"), "--check takes neither --trace nor --data-dir"),
        (("up", "--trace", "/nowhere.csv"), "--trace /nowhere.csv: no such file"),
    ],
)
def test_up_refuses_before_it_starts_anything(command: tuple[str, ...], told: str, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "deploy.cli", *command]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_malformed_trace_is_one_line(tmp_path: Path) -> None:
    trace = tmp_path / "day.csv"
    trace.write_text("organisation,submit_s,gpus,run_s\nalpha-lab,0,1,60\nalpha-lab,5,none,60\n")
    line = [
        sys.executable,
        "-m",
        "deploy.cli",
        "up",
        "--trace",
        str(trace),
        "--data-dir",
        str(tmp_path / "data"),
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"gpuhub up: {trace}:3: gpus: 'none' is no number of GPUs; give a whole number from 1 to 1000000\n"
    )
    assert not (tmp_path / "data").exists()
