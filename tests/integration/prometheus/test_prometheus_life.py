"""A Prometheus ends with its starter, goes on from its folder, and answers what was asked of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deploy.controlplane.binaries import cache_folder
from deploy.prometheus.programs import built_prometheus
from tests.prometheus_server import a_prometheus, labels_of, programs

pytestmark = pytest.mark.prometheus

HISTORY = """\
# TYPE hub_quota_grant_used_gpu_seconds gauge
hub_quota_grant_used_gpu_seconds{grant_id="g1"} 100 1700000000
hub_quota_grant_used_gpu_seconds{grant_id="g1"} 160 1700000060
hub_quota_grant_used_gpu_seconds{grant_id="g1"} 280 1700000120
# EOF
"""


def processes_of(folder: Path) -> list[str]:
    """The command lines that name the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in line:
                found.append(line)
    return found


@contextmanager
def a_target(text: str) -> Iterator[str]:
    """Something to scrape; its address."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_killed_starter_leaves_no_process(tmp_path: Path) -> None:
    folder = tmp_path / "watched"
    command = (sys.executable, "-m", "tests.integration.prometheus.prometheus_starter", str(folder))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        try:
            assert starter.stdout is not None
            assert starter.stdout.readline()
            assert len(processes_of(folder)) == 2
        finally:
            starter.kill()
    deadline = time.monotonic() + 20
    while left := processes_of(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    with a_prometheus(folder, {}) as prometheus:
        assert prometheus.value("vector(1)") == 1
    assert processes_of(folder) == []


def test_what_is_scraped_is_asked_and_kept(tmp_path: Path) -> None:
    served = '# TYPE hub_sched_gpus gauge\nhub_sched_gpus{gpu_class="h100",state="free"} 12\n'
    with a_target(served) as address:
        with a_prometheus(tmp_path, {"scheduler": [address]}, interval_s=0.2) as prometheus:
            prometheus.await_targets()
            found = prometheus.await_query("hub_sched_gpus")
            labels = {"gpu_class": "h100", "state": "free", "job": "scheduler", "instance": address}
            assert found == {labels_of({"__name__": "hub_sched_gpus", **labels}): 12}
            prometheus.await_rules()
            moment_s = time.time()
        with a_prometheus(tmp_path, {}) as again:
            assert again.value("hub_sched_gpus", moment_s) == 12
            assert again.targets() == []


def test_history_is_there_from_the_start(tmp_path: Path) -> None:
    with a_prometheus(tmp_path, {}, history=HISTORY) as prometheus:
        assert prometheus.value("hub_quota_grant_used_gpu_seconds", 1700000060) == 160
        series = prometheus.query_range("hub_quota_grant_used_gpu_seconds", 1700000000, 1700000120, 60)
        assert list(series.values()) == [
            [(1700000000.0, 100.0), (1700000060.0, 160.0), (1700000120.0, 280.0)]
        ]
        assert prometheus.series("hub_quota_grant_used_gpu_seconds")[0]["grant_id"] == "g1"


def test_programs_are_of_the_pinned_version_and_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    built = programs()
    for program in (built.prometheus, built.promtool):
        said = subprocess.run((str(program), "--version"), capture_output=True, text=True, check=True)
        assert "version 3.13.5" in said.stdout + said.stderr
    assert built.prometheus.is_relative_to(cache_folder(os.environ))
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    assert built_prometheus() is None
