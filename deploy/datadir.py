"""The directory in which `gpuhub up` keeps everything: the lock, the secrets, the ports, the logs."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quota.schemas.identity import Role

LOGS_KEPT = 3
STARTED = "started.json"
"""Where the quota service's first start leaves the clock and the new tokens for the supervisor."""
AGENT_NODES = "sim-*"
"""One agent reads all nodes of the simulated cluster; on real machines each has its own, bound to its node."""


def token_name(role: Role) -> str:
    """Under which name the token of a role is kept; an agent's with the nodes that it speaks for."""
    return f"{role.value} {AGENT_NODES}" if role is Role.AGENT else role.value


class DataDirTrouble(Exception):
    """The directory, or a port, cannot be used; the text says what to do."""


class DataDir:
    """Paths below one data directory, and the small files in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self.database = path / "quota.db"
        self.cluster = path / "cluster"
        self.agent = path / "agent"
        self.outbox = self.agent / "outbox.sqlite3"

    @property
    def database_url(self) -> str:
        """SQLAlchemy's name for the database."""
        return f"sqlite:///{self.database.absolute()}"

    @property
    def journal(self) -> Path:
        """The journal of the simulated cluster."""
        return self.cluster / "journal.jsonl"

    def prepare(self) -> None:
        """Make the directory and its folders; only their owner may look inside. Raises DataDirTrouble."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            for folder in (self.logs, self.cluster, self.agent):
                folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise DataDirTrouble(f"{self.path}: {error.strerror}; choose another --data-dir") from error

    @contextmanager
    def locked(self, command: str = "gpuhub up", option: str = "--data-dir") -> Iterator[None]:
        """Hold the directory for this process. Raises DataDirTrouble that names the process holding it."""
        # Append mode: another holder's pid must still be there to be read when the lock is refused.
        with (self.path / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                raise DataDirTrouble(
                    f"{self.path} is held by another `{command}` (pid {holder}); "
                    f"stop that one or choose another {option}"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def rotate_logs(self) -> None:
        """Move the logs of earlier runs out of the way: quota.log -> quota.log.1 -> … -> quota.log.3."""
        for log in sorted(self.logs.glob("*.log")):
            for age in range(LOGS_KEPT - 1, 0, -1):
                older = log.with_name(f"{log.name}.{age}")
                if older.exists():
                    older.replace(log.with_name(f"{log.name}.{age + 1}"))
            log.replace(log.with_name(f"{log.name}.1"))

    def read(self, name: str) -> dict[str, str]:
        """A small JSON file of texts; empty if it is missing. Raises DataDirTrouble."""
        path = self.path / name
        try:
            found = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            raise DataDirTrouble(
                f"{path} cannot be read ({error}); remove it to have it made anew"
            ) from error
        if not isinstance(found, dict):
            raise DataDirTrouble(f"{path} is not a JSON object; remove it to have it made anew")
        return {str(key): str(value) for key, value in found.items()}

    def write(self, name: str, content: dict[str, str]) -> None:
        """Replace a small JSON file in one step, readable by its owner only."""
        write_private(self.path / name, content)


def write_private(path: Path, content: object) -> None:
    """Replace a JSON file in one step; only its owner can read it (mode 0600)."""
    write_private_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def write_private_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step; only its owner can read it (mode 0600)."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(path)


HOST = "127.0.0.1"
_PORT_PATIENCE_S = 2.0


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback interface now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def choose_ports(names: tuple[str, ...], remembered: dict[str, str], asked: dict[str, int]) -> dict[str, int]:
    """A port for every program: the one asked for, else the remembered one, else a free one.

    Raises DataDirTrouble when one that was asked for is taken.
    """
    for name, port in asked.items():
        if not is_free(port):
            raise DataDirTrouble(
                f"port {port} for {name} is taken; choose another --port or stop what listens there"
            )
    chosen = dict(asked)
    for name in names:
        if name in chosen:
            continue
        before = remembered.get(name, "")
        if before.isdecimal() and _becomes_free(int(before)) and int(before) not in chosen.values():
            chosen[name] = int(before)
        else:
            chosen[name] = _any_port(set(chosen.values()))
    return chosen


def _becomes_free(port: int) -> bool:
    # The children of a supervisor that was just killed need a moment to die.
    deadline = time.monotonic() + _PORT_PATIENCE_S
    while not is_free(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _any_port(taken: set[int]) -> int:
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
        if port not in taken:
            return port
