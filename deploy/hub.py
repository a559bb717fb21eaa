"""The hub on one machine: its programs, and what they must know of each other."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from deploy.child import Program
from deploy.datadir import STARTED, DataDir, DataDirTrouble, choose_ports
from deploy.programs import STOP_ORDER, Wish, programs_of, url
from deploy.progress import Progress
from deploy.session import UsageTrouble
from deploy.supervisor import StartFailed, Supervisor
from quota.client import QuotaClient, ServiceProblem
from quota.schemas.fleet import NewCluster

FIRST_START_S = 120.0
"""Migrating a database of an older version may take a while."""


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
        return url(self._ports, name)

    def programs(self, clock: str) -> dict[str, Program]:
        """How each program is called, with this clock."""
        return programs_of(self.wish, self.tokens, self._ports, clock)

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
        _stay_with_the_cluster(wish)
        data.rotate_logs()
        ports = choose_ports(
            wish.names, data.read("ports.json"), {} if wish.port is None else {"quota": wish.port}
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


def _stay_with_the_cluster(wish: Wish) -> None:
    """Jobs of one cluster can never end on another. Raises DataDirTrouble."""
    data = wish.data
    before = data.read("state.json").get("cluster", "sim") if data.database.exists() else wish.cluster_id
    if before != wish.cluster_id:
        raise DataDirTrouble(
            f"{data.path} was begun with another cluster ({before}); choose another --data-dir"
        )


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
        supervisor.launch(hub.programs("")["quota"])
        supervisor.await_sign("quota", started.exists, FIRST_START_S)
        made = data.read(STARTED)
        clock = made.pop("clock")
        hub.remember_tokens(made)
        kept = {"clock_speed": str(hub.wish.clock_speed), "cluster": hub.wish.cluster_id}
        data.write("state.json", {**data.read("state.json"), **kept})
        started.unlink()
        for name in hub.wish.names[1:]:
            supervisor.launch(hub.programs(clock)[name])
        supervisor.await_healthy("quota")
    _register_cluster(hub)
    for name in hub.wish.names[1:]:
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


def _register_cluster(hub: Hub) -> None:
    with hub.client() as client:
        try:
            client.create_cluster(NewCluster(id=hub.wish.cluster_id, kind=hub.wish.cluster_kind))
        except ServiceProblem as problem:
            if problem.code == "unauthenticated":
                raise UsageTrouble(
                    f"the database does not know the tokens in {hub.data.path / 'secrets.json'}; "
                    "remove that file to have new ones made"
                ) from problem
            if problem.code != "already_exists":
                raise
