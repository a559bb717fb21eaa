"""The hub on one machine: quota service, simulated cluster, scheduler, agent, and what they must know."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from deploy.child import Program, gpuhub
from deploy.datadir import HOST, STARTED, DataDir, choose_ports, token_name
from deploy.progress import Progress
from deploy.session import UsageTrouble
from deploy.supervisor import StartFailed, Supervisor
from quota.client import QuotaClient, ServiceProblem
from quota.schemas.fleet import NewCluster
from quota.schemas.identity import Role

CLUSTER = "sim"
NAMES = ("quota", "cluster", "scheduler", "agent")
STOP_ORDER = ("agent", "scheduler", "quota", "cluster")
"""The cluster goes last: who watches it goes first, so that nothing it shows is missed without need."""

DEMO_NODES = ("sim-[0-3]:h100=8", "sim-4:a100=8", "sim-5:h100-1g.10gb=28")
FIRST_START_S = 120.0
"""Migrating a database of an older version may take a while."""


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

    def remember_tokens(self, made: Mapping[str, str]) -> None:
        """Keep tokens for the next start."""
        self.tokens.update(made)
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
        supervisor = Supervisor(data.logs, lambda line: progress.say(line, "yellow"))
        hub = Hub(wish, ports, _known_tokens(data), supervisor)
        try:
            _start(hub, progress)
            yield hub
        finally:
            with progress.step("stopping", "stopped"):
                supervisor.stop(STOP_ORDER)


def _known_tokens(data: DataDir) -> dict[str, str]:
    if not data.database.exists():
        # What belonged to a database that was removed is worth nothing.
        for name in ("secrets.json", "state.json"):
            (data.path / name).unlink(missing_ok=True)
    tokens = data.read("secrets.json")
    tokens.setdefault("cluster", secrets.token_urlsafe(32))
    return tokens


def _start(hub: Hub, progress: Progress) -> None:
    data, supervisor = hub.data, hub.supervisor
    started = data.path / STARTED
    started.unlink(missing_ok=True)
    with progress.step("starting quota", "quota is up"), _told():
        supervisor.launch(programs(hub, "")["quota"])
        supervisor.await_sign("quota", started.exists, FIRST_START_S)
        made = data.read(STARTED)
        clock = made.pop("clock")
        hub.remember_tokens(made)
        data.write("state.json", {**data.read("state.json"), "clock_speed": str(hub.wish.clock_speed)})
        started.unlink()
        for name in NAMES[1:]:
            supervisor.launch(programs(hub, clock)[name])
        supervisor.await_healthy("quota")
    _register_cluster(hub)
    for name in NAMES[1:]:
        with progress.step(f"starting {name}", f"{name} is up"), _told():
            supervisor.await_healthy(name)


@contextmanager
def _told() -> Iterator[None]:
    """Exit status 2 is a program's word for a wrong setting; its last line says which."""
    try:
        yield
    except StartFailed as failed:
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
            "GPUHUB_AGENT_TOKEN": hub.tokens.get(token_name(Role.AGENT), ""),
            "GPUHUB_AGENT_SAMPLE_PERIOD_S": f"{wish.sample_interval_s:g}",
        },
    }
    wanted = (Role.OPERATOR, Role.SCHEDULER, Role.AGENT)
    missing = [role.value for role in wanted if token_name(role) not in hub.tokens]
    first = {
        "quota": gpuhub(
            *("quota-start", "--data-dir", str(data.path), "--clock-speed", str(wish.clock_speed)),
            *listen("quota")[2:],
            *(part for role in missing for part in ("--token", role)),
        )
    }
    ready = {"quota": "/-/ready"}
    return {
        name: Program(
            name,
            gpuhub(*commands[name]),
            hub.url(name) + ready.get(name, "/-/healthy"),
            {**known, **own.get(name, {})},
            first.get(name, ()),
        )
        for name in NAMES
    }


def _register_cluster(hub: Hub) -> None:
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
