"""A whole hub of real processes that die and come back: quota on SQLite, simulated cluster, schedulers, agent.

Every program is a process with its own environment and log. Who dies is started again after 0.1 s, until the
test says otherwise. At the end `settle` waits until nothing is open and `judge` asks the oracle.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
from crash_door import Door

from quota.client import QuotaClient, ServiceUnavailable
from quota.clock import Clock
from quota.schemas.fleet import NewCluster, NewGpuClass
from quota.schemas.identity import NewOrganization, NewToken, Role
from quota.schemas.programs import Award, NewProgram
from tests.oracle.oracle import judge

HOST = "127.0.0.1"
ROOT = Path(__file__).parents[2]
SPEED = 600
"""An hour, and with it a slice, takes six seconds."""
SAMPLE_PERIOD_S = 60
ORGANIZATIONS = ("alpha", "beta", "gamma")
NODES = ("sim-[0-2]:h100=8", "sim-3:h100-1g.10gb=14")
CLASSES = (("h100", 1000, 4107), ("h100-1g.10gb", 143, 587))
YEAR_MS = 366 * 86_400_000
BUG_SIGNS = ("Traceback", "[error", '"level": "error"', "unexpected ", "AssertionError", "gpuhub ")
"""What a log says only when something is wrong that no crash of another program explains."""
PATIENCE_S = 90.0
"""For everything that has to happen some time; both cores may be busy with other tests."""


def until(holds: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """The first true answer; fails when there is none in time."""
    deadline_s = time.monotonic() + patience_s
    while True:
        answer = holds()
        if answer:
            return answer
        assert time.monotonic() < deadline_s, f"not in {patience_s:.0f} s: {what}"
        time.sleep(0.03)


class Forker:
    """The process that has imported everything (`crash_forker.py`); all children are its forks."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "e2e" / "crash_forker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        )
        assert self._ask() == "ready"
        atexit.register(self._end)

    def fork(self, arguments: tuple[str, ...], environment: dict[str, str], log: Path) -> int:
        """Start `gpuhub ARGUMENTS`; answers its pid."""
        order = {"arguments": arguments, "environment": environment, "log": str(log)}
        with self._turn:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return int(self._ask())

    def _ask(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(20)


@cache
def forker() -> Forker:
    """One for all tests of this process."""
    return Forker()


class Program:
    """One program of the hub and its present process."""

    def __init__(self, arguments: tuple[str, ...], environment: dict[str, str], log: Path) -> None:
        self.arguments = arguments
        self.environment = environment
        self.log = log
        self.crash_at = ""
        """Where it dies, for the processes started from now on."""
        self.comes_back = True
        self.starts = 0
        self.pid = 0
        self._handle: int | None = None
        self._turn = threading.Lock()

    def start(self) -> None:
        """Start a process unless one runs."""
        with self._turn:
            if self._alive():
                return
            crash = {"GPUHUB_CRASH_AT": self.crash_at} if self.crash_at else {}
            self.pid = forker().fork(self.arguments, self.environment | crash, self.log)
            self.starts += 1
            with suppress(ProcessLookupError):  # it may have ended already
                self._handle = os.pidfd_open(self.pid)

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        with self._turn:
            return self._alive()

    def send(self, number: int) -> bool:
        """Send a signal; False if there is no process."""
        with self._turn:
            if not self._alive():
                return False
            assert self._handle is not None
            signal.pidfd_send_signal(self._handle, number)
            return True

    def is_stopped(self) -> bool:
        """Whether SIGSTOP holds its process."""
        with suppress(OSError, IndexError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False

    def _alive(self) -> bool:
        if self._handle is None:
            return False
        if not select.select([self._handle], [], [], 0)[0]:
            return True
        os.close(self._handle)
        self._handle = None
        return False


@dataclass
class Hub:
    """One hub under `folder`. `open` starts it, `close` ends everything."""

    folder: Path
    lease_ttl_s: float = 15.0
    call_timeout_s: float = 3.0
    """How long scheduler and agent wait for the quota service."""
    forecast_interval_s: float = 0.0
    """How often starts are foretold; 0: never."""
    hold_down_s: float = 600.0
    """How long a GPU must be well, in business seconds."""
    door: Door | None = None
    """Stands between the quota service and all others but the operator."""
    programs: dict[str, Program] = field(default_factory=dict)
    kills: int = 0
    sound: bool = False
    """Whether the last test found no fault in it."""
    _over: threading.Event = field(default_factory=threading.Event)
    _helper: threading.Thread | None = None

    # --- start and end ---

    def open(self) -> None:
        """Start everything, and wait until the cluster's nodes are known."""
        self.folder.mkdir(exist_ok=True)
        self.database = self.folder / "quota.db"
        self.journal = self.folder / "cluster" / "journal.jsonl"
        url = f"sqlite:///{self.database}"
        told = self._one_shot("quota", "init", "--database", url, "--clock-speed", str(SPEED))
        self.clock = Clock.from_text(told["clock"])
        operator = self._one_shot("quota", "token", "--role", "operator", "--database", url)["secret"]
        self.ports = free_ports("quota", "cluster", "agent")
        self.ports["door"] = self.ports["quota"] if self.door is None else self.door.open(self.ports["quota"])
        lease = ("--lease-ttl-s", str(self.lease_ttl_s))
        self._add("quota", "quota", "serve", "--database", url, *lease)
        nodes = [word for spec in NODES for word in ("--nodes", spec)]
        period = ("--sample-period-s", str(SAMPLE_PERIOD_S))
        self._add("cluster", "simulate", "--data-dir", str(self.folder / "cluster"), *nodes, *period)
        self._helper = threading.Thread(target=self._bring_back, name="bring-back", daemon=True)
        self._helper.start()
        self.tokens = {"operator": operator}
        with self.client("operator", 10) as client:
            until(lambda: self._answers(client), "quota answers")
            self._found(client)
        self.add_scheduler("scheduler")
        doors = ("--quota-url", self.url("door"), "--cluster-url", self.url("cluster"))
        rhythm = ("--sample-interval-s", str(SAMPLE_PERIOD_S), "--send-interval-s", "0.3")
        outbox = ("--outbox", str(self.folder / "outbox.sqlite3"))
        self._add(
            *("agent", "agent", "run", "--reader", "simulated", *doors, *outbox, *rhythm),
            GPUHUB_TOKEN=self.tokens["agent"],
            GPUHUB_AGENT_SEND_TIMEOUT_S=str(self.call_timeout_s),
            GPUHUB_AGENT_HEALTH_HOLD_DOWN_S=str(self.hold_down_s),
        )
        with self.client("operator", 10) as client:
            until(lambda: len(client.list_nodes().items) >= 4, "quota knows the nodes")

    def add_scheduler(self, name: str) -> None:
        """Start a scheduler; a name of its own is a holder of its own."""
        self.ports |= free_ports(name)
        doors = ("--quota-url", self.url("door"), "--cluster", f"sim={self.url('cluster')}")
        rhythm = ("--cycle-interval-s", "0.05", "--report-interval-s", "0.3", "--ranking-interval-s", "0.5")
        self._add(
            *(name, "scheduler", "run", "--holder", name, *doors, *rhythm, "--idle-interval-s", "0.3"),
            GPUHUB_TOKEN=self.tokens["scheduler"],
            GPUHUB_SCHEDULER_CALL_TIMEOUT_S=str(self.call_timeout_s),
            GPUHUB_SCHEDULER_FORECAST_INTERVAL_S=str(self.forecast_interval_s),
            GPUHUB_SCHEDULER_LEASE_RENEW_S="0.5",
            GPUHUB_SCHEDULER_LEASE_RETRY_S="0.2",
        )

    def close(self) -> None:
        """Kill everything that is left."""
        self._over.set()
        if self._helper is not None:
            self._helper.join()
        for program in self.programs.values():
            program.send(signal.SIGKILL)

    def _add(self, name: str, *words: str, **more: str) -> None:
        listen = ("--host", HOST, "--port", str(self.ports[name]))
        environment = {"PATH": os.environ["PATH"], "GPUHUB_CLOCK": self.clock.text(), **more}
        program = Program((*words, *listen), environment, self.folder / f"{name}.log")
        self.programs[name] = program
        program.start()

    def _found(self, client: QuotaClient) -> None:
        """The programme, three organizations with grants, and everybody's tokens."""
        client.create_cluster(NewCluster(id="sim", kind="simulated"))
        for name, rate, price in CLASSES:
            client.put_gpu_class(NewGpuClass(id=name, name=name, rate_thousandths=rate, price_krw=price))
        client.create_program(NewProgram(id="seoul", name="Seoul", budget_gpu_hours=1_000_000))
        ends_at = self.clock.now_ms() + YEAR_MS
        for name in ORGANIZATIONS:
            client.create_organization(NewOrganization(id=name, name=name))
            award = Award(
                program_id="seoul", organization_id=name, gpu_hours=100_000, ends_at=ends_at, reason="test"
            )
            client.award_grant(award, f"grant-{name}")
            made = client.create_token(NewToken(role=Role.MEMBER, organization_id=name, label="test"))
            self.tokens[name] = made.secret
        for role, nodes in ((Role.SCHEDULER, None), (Role.AGENT, "sim-*")):
            made = client.create_token(NewToken(role=role, node=nodes, label="test"))
            self.tokens[role.value] = made.secret

    def _one_shot(self, *arguments: str) -> dict[str, str]:
        log = self.folder / f"{arguments[1]}.out"
        pid = forker().fork(arguments, {"PATH": os.environ["PATH"]}, log)
        until(lambda: not Path(f"/proc/{pid}").exists(), f"{arguments[:2]} ended")
        answer: dict[str, str] = json.loads(log.read_text())
        return answer

    def _answers(self, client: QuotaClient) -> bool:
        with suppress(ServiceUnavailable):
            client.read_clock()
            return True
        return False

    def _bring_back(self) -> None:
        while not self._over.wait(0.1):
            for program in list(self.programs.values()):
                if program.comes_back and not self._over.is_set():
                    program.start()

    # --- doors ---

    def url(self, name: str) -> str:
        """A program's own address."""
        return f"http://{HOST}:{self.ports[name]}"

    def client(self, token: str, timeout_s: float = 5.0) -> QuotaClient:
        """A client; the operator's speaks with the service itself, the firms' through the door."""
        door = "quota" if token == "operator" else "door"
        return QuotaClient(self.url(door), self.tokens[token], timeout_s)

    def plant(self, **fault: object) -> None:
        """Plant a fault in the cluster."""
        url = f"{self.url('cluster')}/v1/faults"
        until(lambda: _post(url, fault), f"the cluster takes {fault}")

    def planted(self) -> list[dict[str, object]]:
        """The faults that still wait for a request."""
        answer = httpx2.get(f"{self.url('cluster')}/v1/faults", timeout=10, trust_env=False)
        faults: list[dict[str, object]] = answer.json()["faults"]
        return faults

    # --- death ---

    def kill(self, name: str) -> None:
        """kill -9 as soon as there is a process."""
        until(lambda: self.programs[name].send(signal.SIGKILL), f"{name} runs")
        self.kills += 1

    def kill_at_random(self, names: tuple[str, ...], kills: int, rng: random.Random) -> None:
        """Kill so many times, young processes and old ones."""
        for _ in range(kills):
            short = rng.random() < 0.3
            time.sleep(rng.uniform(0.0, 0.3) if short else rng.uniform(0.3, 1.8))
            self.kill(rng.choice(names))

    def crash(self, name: str, crash_at: str, deaths: int) -> None:
        """Let a program die at a named point, again and again, and come back without it."""
        program = self.programs[name]
        program.crash_at = crash_at
        before = program.starts
        program.send(signal.SIGKILL)
        until(lambda: program.starts > before, f"{name} is armed")
        until(lambda: program.starts > before + deaths - 1, f"{name} dies {deaths} times at {crash_at}")
        program.crash_at = ""
        until(lambda: program.starts > before + deaths, f"{name} dies {deaths} times at {crash_at}")
        self.kills += deaths

    def tear_journal(self) -> None:
        """What a cluster leaves that dies in the middle of writing a line; it must be dead."""
        until(lambda: not self.programs["cluster"].alive, "the cluster is dead")
        with self.journal.open("ab") as journal:
            journal.write(b'{"t":17')

    # --- truth ---

    def ask(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Read the database, whoever is dead."""
        connection = sqlite3.connect(f"{self.database.as_uri()}?mode=ro", uri=True, timeout=10)
        try:
            return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    def events(self) -> list[dict[str, Any]]:
        """The cluster's journal; the last line may be under way."""
        text = self.journal.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def log(self, name: str) -> str:
        """What a program has said."""
        return self.programs[name].log.read_text()

    def settle(self, patience_s: float = PATIENCE_S) -> None:
        """Wait until every job has ended, every hold is resolved and every GPU is free."""
        deadline_s = time.monotonic() + patience_s
        while left := self.open_things():
            assert time.monotonic() < deadline_s, f"not settled in {patience_s:.0f} s: {left}"
            time.sleep(0.1)

    def open_things(self) -> list[tuple[Any, ...]]:
        """What has not come to its end."""
        return self.ask(
            "SELECT 'job', id, state, attempt FROM jobs WHERE state <> 'ended' UNION ALL"
            " SELECT 'attempt', job_id || '-' || attempt, state, settled FROM attempts"
            " WHERE state <> 'ended' OR NOT settled OR capacity_held UNION ALL"
            " SELECT 'hold', id, NULL, NULL FROM holds WHERE NOT resolved UNION ALL"
            " SELECT 'capacity', node, gpu_class, used FROM node_capacity WHERE used <> 0"
        )

    def judge(self, *, final: bool = True) -> list[str]:
        """What the oracle has to say."""
        return judge(f"sqlite:///{self.database}", str(self.journal), final)

    def findings(self) -> list[tuple[Any, ...]]:
        """What the hub itself found to be wrong."""
        return self.ask("SELECT code, subject, detail FROM findings ORDER BY 1, 2")

    def troubles(self) -> list[str]:
        """What the logs say that only a bug writes, with the lines around the first of it."""
        found = []
        for log in sorted(self.folder.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()
            at = next((n for n, line in enumerate(lines) if any(sign in line for sign in BUG_SIGNS)), None)
            if at is not None:
                found.append("\n".join([log.name, *lines[max(0, at - 2) : at + 120]]))
        return found


@contextmanager
def a_hub(folder: Path, **settings: Any) -> Iterator[Hub]:
    """A hub that is gone at the end of the block."""
    hub = Hub(folder, **settings)
    try:
        hub.open()
        yield hub
    finally:
        hub.close()


class Shelf:
    """One hub for many tests; a test that finds a fault has used it up, and the next one gets a new one."""

    def __init__(self, folders: Any, **settings: Any) -> None:
        self._folders = folders
        self._settings = settings
        self._hub: Hub | None = None

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        if self._hub is not None:
            self._hub.close()

    @contextmanager
    def lend(self) -> Iterator[Hub]:
        """The hub, with everything settled."""
        is_new = self._hub is None
        hub = self._hub = self._hub or Hub(self._folders.mktemp("hub"), **self._settings)
        hub.sound = False
        try:
            if is_new:
                hub.open()
            yield hub
        finally:
            if not hub.sound:
                hub.close()
                self._hub = None


def free_ports(*names: str) -> dict[str, int]:
    """Ports below the range that outgoing connections take theirs from: they stay free while one is dead."""
    ports: dict[str, int] = {}
    while len(ports) < len(names):
        port = random.SystemRandom().randrange(18_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            ports[names[len(ports)]] = port
    return ports


def _post(url: str, body: dict[str, object]) -> bool:
    with suppress(httpx2.TransportError):
        return httpx2.post(url, json=body, timeout=5, trust_env=False).is_success
    return False
