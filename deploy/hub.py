"""The hub on one machine: quota service, simulated cluster, scheduler, agent, and what they must know."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.child import Program, child_environment, gpuhub
from deploy.datadir import HOST, DataDir, choose_ports
from deploy.progress import Progress
from deploy.session import UsageTrouble
from deploy.supervisor import StartFailed, Supervisor
from quota.client import QuotaClient, ServiceProblem
from quota.schemas.fleet import NewCluster
from quota.schemas.identity import NewToken, Role

CLUSTER = "sim"
NAMES = ("quota", "cluster", "scheduler", "agent")
STOP_ORDER = ("agent", "scheduler", "quota", "cluster")
"""The cluster goes last: who watches it goes first, so that nothing it shows is missed without need."""

DEMO_NODES = ("sim-[0-3]:h100=8", "sim-4:a100=8", "sim-5:h100-1g.10gb=28")
_ONE_SHOT_S = 120.0
_TIME = re.compile(rb'"t": ?(\d+)')


@dataclass(frozen=True, slots=True)
class Wish:
    """What to start."""

    data: DataDir
    port: int | None = None
    clock_speed: int = 1
    nodes: tuple[str, ...] = DEMO_NODES
    sample_interval_s: float = 10.0
    """How often agents read each GPU, in business seconds."""
    send_interval_s: float = 10.0
    """How often agents send what they measured, in wall seconds."""


class Hub:
    """A running hub: its addresses, its tokens and its supervisor."""

    def __init__(
        self, wish: Wish, ports: dict[str, int], tokens: dict[str, str], supervisor: Supervisor
    ) -> None:
        self.wish = wish
        self.data = wish.data
        self.tokens = tokens
        self.supervisor = supervisor
        self._ports = ports

    def url(self, name: str) -> str:
        """The address of one of the programs."""
        return f"http://{HOST}:{self._ports[name]}"

    def client(self, token: str = "operator") -> QuotaClient:
        """A client of the quota service with one of the hub's tokens."""
        return QuotaClient(self.url("quota"), self.tokens[token])

    def remember_token(self, name: str, secret: str) -> None:
        """Keep a token for the next start."""
        self.tokens[name] = secret
        self.data.write("secrets.json", self.tokens)


@contextmanager
def running(wish: Wish, progress: Progress) -> Iterator[Hub]:
    """Start the hub, or what is left of it, and stop it in order at the end.

    Raises DataDirTrouble, UsageTrouble or StartFailed when it cannot be started.
    """
    data = wish.data
    data.prepare()
    with data.locked():
        data.rotate_logs()
        ports = choose_ports(
            NAMES, data.read("ports.json"), {} if wish.port is None else {"quota": wish.port}
        )
        data.write("ports.json", {name: str(port) for name, port in ports.items()})
        is_new = not data.database.exists()
        with progress.step("made the database" if is_new else "opened the database"):
            clock = _init(wish)
            known = {} if is_new else data.read("state.json")
            data.write("state.json", {**known, "clock_speed": str(wish.clock_speed)})
            tokens = _tokens(wish, is_new)
        supervisor = Supervisor(data.logs, lambda line: progress.say(line, "yellow"))
        hub = Hub(wish, ports, tokens, supervisor)
        try:
            _start(hub, clock, progress)
            yield hub
        finally:
            with progress.step("stopped"):
                supervisor.stop(STOP_ORDER)


def _start(hub: Hub, clock: str, progress: Progress) -> None:
    # The quota service and the cluster know nothing of each other; the other two need both of them.
    for names in (("quota", "cluster"), ("scheduler", "agent")):
        commands = programs(hub, clock)
        for name in names:
            hub.supervisor.launch(commands[name])
        for name in names:
            with progress.step(f"{name} is up"):
                _await_healthy(hub, name)
        if "quota" in names:
            _introduce(hub)


def _await_healthy(hub: Hub, name: str) -> None:
    try:
        hub.supervisor.await_healthy(name)
    except StartFailed as failed:
        # Exit status 2 is a program's word for a wrong setting; its last line says which.
        if failed.status == 2 and failed.lines:
            raise UsageTrouble(failed.lines[-1]) from failed
        raise


def programs(hub: Hub, clock: str) -> dict[str, Program]:
    """The four programs by name."""
    wish, data = hub.wish, hub.data
    known = {"GPUHUB_CLOCK": clock, "GPUHUB_CLUSTER_TOKEN": hub.tokens["cluster"]}

    def listen(name: str) -> tuple[str, ...]:
        return ("--host", HOST, "--port", hub.url(name).rpartition(":")[2])

    nodes = [part for spec in wish.nodes for part in ("--nodes", spec)]
    commands = {
        "quota": ("quota", "serve", "--database", data.database_url, *listen("quota")),
        "cluster": (
            *("simulate", "--data-dir", str(data.cluster), "--token-env", "GPUHUB_CLUSTER_TOKEN"),
            *nodes,
            *("--sample-period-s", f"{wish.sample_interval_s:g}"),
            *listen("cluster"),
        ),
        "scheduler": (
            *("scheduler", "run", "--quota-url", hub.url("quota"), "--token-env", "GPUHUB_SCHEDULER_TOKEN"),
            *("--cluster", f"{CLUSTER}={hub.url('cluster')}", "--cluster-token-env", "GPUHUB_CLUSTER_TOKEN"),
            *("--holder", "up"),
            *listen("scheduler"),
        ),
        "agent": (
            *("agent", "run", "--quota-url", hub.url("quota"), "--token-env", "GPUHUB_AGENT_TOKEN"),
            *("--reader", "simulated", "--cluster-url", hub.url("cluster"), "--outbox", str(data.outbox)),
            *("--sample-interval-s", f"{wish.sample_interval_s:g}"),
            *("--send-interval-s", f"{wish.send_interval_s:g}"),
            *listen("agent"),
        ),
    }
    own = {
        "scheduler": {"GPUHUB_SCHEDULER_TOKEN": hub.tokens.get("scheduler", "")},
        "agent": {
            "GPUHUB_AGENT_TOKEN": hub.tokens.get("agent", ""),
            "GPUHUB_AGENT_SAMPLE_PERIOD_S": f"{wish.sample_interval_s:g}",
        },
    }
    ready = {"quota": "/-/ready"}
    return {
        name: Program(
            name,
            gpuhub(*commands[name]),
            hub.url(name) + ready.get(name, "/-/healthy"),
            {**known, **own.get(name, {})},
        )
        for name in NAMES
    }


def _introduce(hub: Hub) -> None:
    """Register the cluster, and make the tokens of the programs that speak with the service."""
    with hub.client() as client:
        try:
            client.create_cluster(NewCluster(id=CLUSTER, kind="simulated"))
        except ServiceProblem as problem:
            if problem.code == "unauthenticated":
                raise UsageTrouble(
                    f"the database does not know the tokens in {hub.data.path / 'secrets.json'}; "
                    "remove that file to have new ones made"
                ) from problem
            if problem.code != "already_exists":
                raise
        for role in (Role.SCHEDULER, Role.AGENT):
            if role.value not in hub.tokens:
                made = client.create_token(NewToken(role=role, label="gpuhub up"))
                hub.remember_token(role.value, made.secret)


def _init(wish: Wish) -> str:
    """Migrate the database and anchor its clock; answers the clock's text."""
    reply = _one_shot(
        *("quota", "init", "--database", wish.data.database_url, "--clock-speed", str(wish.clock_speed)),
        *("--clock-at-least", str(latest_ms(wish.data.journal))),
    )
    return str(reply["clock"])


def latest_ms(journal: Path) -> int:
    """The latest business time in the cluster's journal, which a fast clock must not go behind; 0 for none."""
    if not journal.exists():
        return 0
    with journal.open("rb") as lines:
        return max((int(found[1]) for line in lines if (found := _TIME.search(line))), default=0)


def _tokens(wish: Wish, is_new: bool) -> dict[str, str]:
    # Tokens of a database that was removed are worth nothing.
    tokens = {} if is_new else wish.data.read("secrets.json")
    tokens.setdefault("cluster", secrets.token_urlsafe(32))
    if "operator" not in tokens:
        database = ("--database", wish.data.database_url)
        reply = _one_shot("quota", "token", *database, "--role", "operator", "--label", "gpuhub up")
        tokens["operator"] = str(reply["secret"])
    wish.data.write("secrets.json", tokens)
    return tokens


def _one_shot(*arguments: str) -> dict[str, object]:
    """Run one of our programs to its end and read the JSON it prints. Raises UsageTrouble, StartFailed."""
    done = subprocess.run(
        gpuhub(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=child_environment({}),
        process_group=0,
        timeout=_ONE_SHOT_S,
        check=False,
    )
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode == 2:
        raise UsageTrouble(errors[-1] if errors else f"gpuhub {' '.join(arguments[:2])} refused")
    try:
        reply = json.loads(done.stdout) if done.returncode == 0 else None
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        raise StartFailed(f"gpuhub {' '.join(arguments[:2])}", done.returncode, errors[-15:], None)
    return reply
