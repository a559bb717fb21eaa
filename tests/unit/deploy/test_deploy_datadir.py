"""The data directory: one holder, private files, remembered ports, rotated logs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.datadir import DataDir, DataDirTrouble, choose_ports


def a_data_dir(path: Path) -> DataDir:
    data = DataDir(path / "data")
    data.prepare()
    return data


def test_the_second_holder_is_told_who_the_first_is(tmp_path: Path) -> None:
    data = a_data_dir(tmp_path)
    code = (
        "import sys; from pathlib import Path; from deploy.datadir import DataDir, DataDirTrouble\n"
        "try:\n    with DataDir(Path(sys.argv[1])).locked(): print('got it')\n"
        "except DataDirTrouble as trouble: print(trouble)"
    )
    command = [sys.executable, "-c", code, str(data.path)]
    with data.locked():
        refused = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f"is held by another `gpuhub up` (pid {os.getpid()})" in refused
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "got it\n"


def test_secrets_are_for_the_owner_only(tmp_path: Path) -> None:
    data = a_data_dir(tmp_path)
    data.write("secrets.json", {"operator": "s"})
    assert (data.path / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert data.path.stat().st_mode & 0o777 == 0o700
    assert data.read("secrets.json") == {"operator": "s"}
    assert data.read("missing.json") == {}


def test_a_broken_file_is_told_with_what_to_do(tmp_path: Path) -> None:
    data = a_data_dir(tmp_path)
    (data.path / "ports.json").write_text("{")
    with pytest.raises(DataDirTrouble, match=r"ports.json cannot be read .* remove it"):
        data.read("ports.json")


def test_logs_of_three_earlier_runs_are_kept(tmp_path: Path) -> None:
    data = a_data_dir(tmp_path)
    for run in range(5):
        data.rotate_logs()
        (data.logs / "quota.log").write_text(str(run))
    kept = {path.name: path.read_text() for path in data.logs.iterdir()}
    assert kept == {"quota.log": "4", "quota.log.1": "3", "quota.log.2": "2", "quota.log.3": "1"}


def test_ports_are_remembered_and_a_taken_one_is_replaced() -> None:
    first = choose_ports(("quota", "cluster"), {}, {})
    remembered = {name: str(port) for name, port in first.items()}
    assert choose_ports(("quota", "cluster"), remembered, {}) == first
    with socket.socket() as other:
        other.bind(("127.0.0.1", first["cluster"]))
        other.listen()
        second = choose_ports(("quota", "cluster"), remembered, {})
    assert second["quota"] == first["quota"]
    assert second["cluster"] != first["cluster"]


def test_a_port_that_was_asked_for_and_is_taken_is_told() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(DataDirTrouble, match=rf"port {port} for quota is taken; choose another --port"):
            choose_ports(("quota",), {}, {"quota": port})
