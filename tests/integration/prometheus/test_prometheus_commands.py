"""`gpuhub prometheus` and `gpuhub up --prometheus` as a person calls them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from typer.testing import CliRunner

from deploy.child import gpuhub
from deploy.prometheus.cli import app
from tests.kubernetes_plane import until

pytestmark = [pytest.mark.prometheus, pytest.mark.e2e, pytest.mark.timeout(180)]


def asked(url: str, query: str) -> list[dict[str, object]]:
    with urlopen(f"{url}/api/v1/query?{urlencode({'query': query})}", timeout=10) as answer:
        found: list[dict[str, object]] = json.load(answer)["data"]["result"]
        return found


def scraped(url: str) -> list[str]:
    with urlopen(f"{url}/api/v1/targets", timeout=10) as answer:
        return [one["scrapeUrl"] for one in json.load(answer)["data"]["activeTargets"]]


@contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A command of ours; one that a failed test leaves running is ended."""
    command = gpuhub(*arguments)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def url_told(process: subprocess.Popen[str], pattern: str) -> str:
    """The address in the first line that fits."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if found := re.search(pattern, line):
            return found[1]
    raise AssertionError("".join(said))


def test_run_scrapes_what_it_is_told_and_ends_cleanly(tmp_path: Path) -> None:
    words = ("prometheus", "run", "--folder", str(tmp_path / "p"), "--target", "quota=127.0.0.1:1")
    with running(*words) as process:
        url = url_told(process, r"Prometheus answers at (http://127\.0\.0\.1:\d+)")
        targets = until(lambda: scraped(url), bool)
        assert targets == ["http://127.0.0.1:1/metrics"]
        assert asked(url, "vector(1)")
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert "stopped" in process.stdout.read()
        assert process.wait(30) == 0


def test_build_says_where_the_programs_are() -> None:
    done = CliRunner().invoke(app, ["build"])
    assert done.exit_code == 0, done.output
    assert "prometheus and promtool are in" in done.output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--target", "database=127.0.0.1:1"), "say JOB=HOST:PORT"),
        (("--target", "quota"), "say JOB=HOST:PORT"),
        (("--target", "quota=h:1", "--token-file", "/nowhere"), "/nowhere: No such file"),
    ],
)
def test_wrong_words_are_told(tmp_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    done = CliRunner().invoke(app, ["run", "--folder", str(tmp_path), *arguments])
    assert done.exit_code == 2
    assert complaint in done.output


def test_up_brings_a_prometheus_that_reads_every_program(tmp_path: Path) -> None:
    with running("up", "--data-dir", str(tmp_path / "data"), "--prometheus") as process:
        url = url_told(process, r"prometheus (http://127\.0\.0\.1:\d+)")
        url_told(process, "(Ctrl-C stops it)")
        until(lambda: len(asked(url, "up == 1")), lambda count: count == 3)
        assert asked(url, "hub_quota_grant_limit_gpu_seconds")
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        process.stdout.read()
        assert process.wait(60) == 0


def test_up_watches_only_a_hub_that_stays_up() -> None:
    done = subprocess.run(
        gpuhub("up", "--check", "--prometheus"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--prometheus watches a hub that stays up" in done.stderr
