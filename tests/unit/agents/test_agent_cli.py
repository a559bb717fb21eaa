"""Wrong settings end with one line that says what to do, and status 2."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from typer.testing import CliRunner

from agents.cli import app
from agents.outbox import open_outbox
from agents.settings import AgentSettings


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("GPUHUB_TOKEN", "t")
    monkeypatch.delenv("GPUHUB_CLOCK", raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    # The command writes its log to the stream that the runner has closed by now.
    structlog.reset_defaults()


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["run", *arguments])
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--clock", "soon"], "--clock: clock 'soon' is not BUSINESS_MS,WALL_MS,SPEED"),
        (["--clock", "1,2,0"], "--clock: clock speed 0 is below 1"),
        (["--clock", "1,2,fast"], "give it as BUSINESS_MS,WALL_MS,SPEED"),
        (["--reader", "smi"], "--reader: Input should be 'simulated' or 'nvml'"),
        (["--reader", "nvml", "--node", "a", "--node", "b"], "--node: 2 nodes given"),
        (["--reader", "nvml", "--clock", "1,2,60"], "--clock: speed 60, but real GPUs live at speed 1"),
        (["--reader", "nvml", "--node", "GPU_7"], "--node: 'GPU_7' is no node's name"),
        (["--quota-url", "localhost:8000"], "--quota-url: "),
        (["--sample-interval-s", "0"], "--sample-interval-s: "),
        (["--port", "70000"], "--port: "),
        (["--token-env", "NO_SUCH"], "put the agent's token into the environment variable NO_SUCH"),
    ],
)
def test_wrong_settings_are_one_line(arguments: list[str], hint: str) -> None:
    status, said = run(*arguments)
    assert status == 2
    assert said.startswith("gpuhub agent: ")
    assert hint in said
    assert said.count("\n") == 1


def test_a_taken_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, said = run("--port", str(taken.getsockname()[1]))
    assert status == 2
    assert "choose another --port" in said
    assert said.count("\n") == 1


def test_a_locked_outbox_is_one_line(tmp_path: Path) -> None:
    holder = open_outbox(tmp_path / "outbox.sqlite3")
    status, said = run("--outbox", str(tmp_path / "outbox.sqlite3"))
    holder.close()
    assert status == 2
    assert "in use by another agent" in said
    assert said.count("\n") == 1


def test_settings_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUHUB_AGENT_SEND_INTERVAL_S", "5")
    monkeypatch.setenv("GPUHUB_AGENT_NODE", '["sim-0"]')
    settings = AgentSettings()
    assert (settings.send_interval_s, settings.node) == (5.0, ("sim-0",))
