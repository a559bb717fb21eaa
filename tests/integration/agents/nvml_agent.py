"""A real agent process on a fake driver: its metrics, its state, its end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.fakenvml.build import FakeDriver
from tests.integration.agents.agent_stubs import ROOT

START_S = 90.0
"""A Python process that starts on a machine where twenty others want to run takes its time."""

Series = dict[str, dict[tuple[str, ...], float]]
"""Values by name, then by the label values in order of label name."""


class NvmlAgent:
    """The process; every question about it waits for nothing."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._log: list[dict[str, object]] = []
        self._keeping = threading.Thread(target=self._keep_log, daemon=True)
        self._keeping.start()

    def _keep_log(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                if line.startswith("{"):
                    self._log.append(json.loads(line))

    def log_is_whole(self) -> None:
        """Wait for the last line of a process that has ended."""
        self._keeping.join(20)

    def logged(self, event: str) -> list[dict[str, object]]:
        """The log's lines of one event."""
        return [line for line in self._log if line["event"] == event]

    def ask(self, path: str) -> str:
        """The body of one of the agent's pages, whatever its status."""
        url = f"http://127.0.0.1:{self.logged('agent_started')[0]['port']}{path}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.read().decode()

    def series(self) -> Series:
        """What /metrics says now."""
        found: Series = {}
        for family in text_string_to_metric_families(self.ask("/metrics")):
            for sample in family.samples:
                values = tuple(value for _, value in sorted(sample.labels.items()))
                found.setdefault(sample.name, {})[values] = sample.value
        return found

    def up(self) -> dict[str, float]:
        """`hub_gpu_up` by GPU."""
        return {uuid: value for (uuid, _), value in self.series().get("hub_gpu_up", {}).items()}

    def state(self) -> str:
        """The collector's state."""
        return next((labels[0] for labels in self.series()["hub_agent_nvml_state"]), "")

    def wait_for(self, condition: Callable[[Series], bool], timeout_s: float = 45) -> Series:
        """The first /metrics that fits, once the process has started."""
        until_s = time.monotonic() + START_S
        while not self.logged("agent_started"):
            assert self.process.poll() is None, self._log
            time.sleep(0.02)
            assert time.monotonic() < until_s, "the agent does not start"
        until_s = time.monotonic() + timeout_s
        while True:
            series = self.series()
            if condition(series):
                return series
            assert self.process.poll() is None, self._log
            assert time.monotonic() < until_s, (self._log, series)
            time.sleep(0.05)

    def end(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@contextmanager
def an_nvml_agent(
    driver: FakeDriver,
    library: Path,
    folder: Path,
    *,
    node: str = "gpu-07",
    quota_url: str = "http://127.0.0.1:9",
    token: str = "token",
    **settings: object,
) -> Iterator[NvmlAgent]:
    """`agents.cli run --reader nvml` with a fast rhythm; by default nothing listens where it delivers."""
    chosen = {
        "nvml_cycle_s": 0.2,
        "nvml_deadline_s": 0.8,
        "nvml_retry_s": 30,
        "sample_interval_s": 0.2,
    } | settings
    environment = driver.environment(library) | {
        "GPUHUB_TOKEN": token,
        "FAKE_NVML_LOG": str(folder / "nvml.log"),
    }
    environment |= {f"GPUHUB_AGENT_{name.upper()}": str(value) for name, value in chosen.items()}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "agents.cli", "run", "--reader", "nvml", "--node", node),
            *("--port", "0", "--outbox", str(folder / "outbox.sqlite3"), "--quota-url", quota_url),
        ],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    agent = NvmlAgent(process)
    try:
        yield agent
    finally:
        process.kill()
        process.wait()
        agent.log_is_whole()
