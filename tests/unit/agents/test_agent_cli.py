"""Wrong settings end with one line that says what to do, and status 2."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agents import node
from agents.cli import app
from agents.environment import SettingsFromEnvironment
from agents.outbox import open_outbox
from agents.settings import HANDED_OVER


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GPUHUB_TOKEN", "t")
    monkeypatch.setenv(HANDED_OVER, "")
    monkeypatch.delenv("GPUHUB_CLOCK", raising=False)
    monkeypatch.chdir(tmp_path)


class Became(Exception):
    """Instead of becoming another program."""


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    """The command and then the agent that it becomes, both in this process: (status, what was said)."""

    def become(program: str, words: list[str]) -> None:
        assert words[1:] == ["-m", "agents.node"]
        raise Became

    monkeypatch.setattr(os, "execv", become)
    result = CliRunner().invoke(app, ["run", *arguments])
    if not isinstance(result.exception, Became):
        return result.exit_code, result.stderr
    assert result.stderr == ""
    return node.main(), capsys.readouterr().err


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
        (["--quota-url", "http://localhost:99999"], "--quota-url: Port out of range 0-65535"),
        (["--sample-interval-s", "0"], "--sample-interval-s: "),
        (["--port", "70000"], "--port: "),
        (["--token-env", "NO_SUCH"], "put the agent's token into the environment variable NO_SUCH"),
    ],
)
def test_wrong_settings_are_one_line(
    arguments: list[str], hint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = run(monkeypatch, capsys, *arguments)
    assert status == 2
    assert said.startswith("gpuhub agent: ")
    assert hint in said
    assert said.count("\n") == 1


def test_a_taken_port_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, said = run(monkeypatch, capsys, "--port", str(taken.getsockname()[1]))
    assert status == 2
    assert "choose another --port" in said
    assert said.count("\n") == 1


def test_a_locked_outbox_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    holder = open_outbox(tmp_path / "outbox.sqlite3")
    status, said = run(monkeypatch, capsys, "--outbox", str(tmp_path / "outbox.sqlite3"))
    holder.close()
    assert status == 2
    assert "in use by another agent" in said
    assert said.count("\n") == 1


def test_settings_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUHUB_AGENT_SEND_INTERVAL_S", "5")
    monkeypatch.setenv("GPUHUB_AGENT_NODE", '["sim-0"]')
    settings = SettingsFromEnvironment()
    assert (settings.send_interval_s, settings.node) == (5.0, ("sim-0",))


def test_the_agent_gets_every_setting_and_no_secret_in_its_arguments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GPUHUB_AGENT_GPU_CLASSES", '{"NVIDIA H100": "h100-sxm"}')
    became: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(os, "execv", lambda *words: became.append(words))
    CliRunner().invoke(app, ["run", "--node", "a", "--node", "b", "--outbox", "here.sqlite3"])
    ((_, words),) = became
    assert words[1:] == ["-m", "agents.node"]
    handed = json.loads(os.environ[HANDED_OVER])
    assert handed["node"] == ["a", "b"]
    assert handed["gpu_classes"] == {"NVIDIA H100": "h100-sxm"}
    assert handed["outbox"] == "here.sqlite3"
    assert handed.keys() == SettingsFromEnvironment.model_fields.keys()
    assert "token" not in handed


def test_the_agent_alone_says_how_it_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    assert node.main() == 2
    assert capsys.readouterr().err == "gpuhub agent: start it with `gpuhub agent run`\n"
