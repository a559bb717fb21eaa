"""What the agent's two processes load, and what they must not: every module is carried by every node."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from agents import log
from agents.gpus.source import Source
from agents.node import SOURCES
from tests.unit.agents.logs import captured


def loaded(*modules: str) -> set[str]:
    """The top of every module that a process has after these imports."""
    program = f"import sys, {', '.join(modules)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(said.stdout.split())


def test_the_agent_loads_no_command_line_no_event_loop_and_no_second_http_library() -> None:
    unwanted = {"typer", "click", "rich", "structlog", "asyncio", "httpx2", "anyio", "pydantic_settings"}
    assert not loaded("agents.node", SOURCES["nvml"]) & (unwanted | {"pynvml", "fastapi", "sqlalchemy"})


def test_the_collector_loads_little_besides_the_driver_s_library() -> None:
    found = loaded("agents.gpus.nvml.collector")
    assert "pynvml" in found
    assert not found & {
        "pydantic",
        "prometheus_client",
        "dataclasses",
        "inspect",
        "ssl",
        "logging",
        "argparse",
    }


@pytest.mark.parametrize("module", SOURCES.values())
def test_every_reader_has_its_source(module: str) -> None:
    said = subprocess.run(
        [sys.executable, "-c", f"import {module} as made; print(made.open_source.__annotations__['return'])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == Source.__name__


def test_a_line_of_the_log_is_json_with_event_level_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    log.warning("kubelet_does_not_answer", reason="서울", tries=2, socket=pytest)
    line = json.loads(capsys.readouterr().err)
    assert list(line) == ["reason", "tries", "socket", "event", "level", "timestamp"]
    assert (line["event"], line["level"], line["reason"]) == ("kubelet_does_not_answer", "warning", "서울")
    assert line["socket"].startswith("<module 'pytest'")
    assert line["timestamp"].endswith("Z")


def test_an_exception_comes_with_its_way() -> None:
    with captured() as lines:
        try:
            raise ValueError("no")
        except ValueError:
            log.exception("turn_failed", turn=3)
    (line,) = lines
    assert (line["event"], line["level"], line["turn"]) == ("turn_failed", "error", 3)
    assert str(line["exception"]).startswith("Traceback (most recent call last):\n")
    assert str(line["exception"]).endswith("ValueError: no")
