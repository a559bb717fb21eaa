"""A running control plane: started in order, kept alive, stopped in order, and hurt on purpose by tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from deploy.controlplane.api import Api
from deploy.controlplane.binaries import Binaries
from deploy.controlplane.credentials import prepare_credentials
from deploy.controlplane.kubeconfig import kubeconfig
from deploy.controlplane.nodes import Node, ensure_nodes, is_usable, read_nodes, set_kubelet
from deploy.controlplane.programs import API_SERVER, ETCD, PORTS, STOP_ORDER, Layout, PlaneWish, programs
from deploy.datadir import DataDir, DataDirTrouble, choose_ports, write_private
from deploy.supervisor import TICK_S, Supervisor

START_S = 120.0
"""How long each step of the start may take; usually all take a few seconds."""

Say = Callable[[str], None]


class ControlPlane:
    """A running control plane: its addresses, its callers and its programs."""

    def __init__(self, layout: Layout, supervisor: Supervisor) -> None:
        self.layout = layout
        self.supervisor = supervisor
        self.url = layout.url(API_SERVER)
        self.ca_file = layout.credentials.ca
        self.token = layout.credentials.tokens["admin"]
        self.kubeconfig = layout.folder / "kubeconfig"
        self.audit_log = layout.audit_log

    @property
    def api(self) -> Api:
        """The API server, as the administrator."""
        return Api(self.url, self.ca_file, self.token)

    def pid(self, name: str) -> int | None:
        """The present process of a program; None while it is down."""
        return self.supervisor.pids()[name]

    def stop_program(self, name: str) -> None:
        """Kill a program (SIGKILL) and leave it dead until `start_program`."""
        self.supervisor.take_down(name)

    def start_program(self, name: str) -> None:
        """Start a program that was stopped, and wait until it is healthy. Raises StartFailed."""
        self.supervisor.bring_up(name, START_S)

    def restart_program(self, name: str) -> None:
        """Kill a program and have it back at once."""
        self.stop_program(name)
        self.start_program(name)

    def kill_program(self, name: str) -> None:
        """Kill a program and leave it to the supervisor to notice."""
        self._signal(name, signal.SIGKILL)

    def freeze_program(self, name: str) -> None:
        """Let a program stand still: its connections stay open and nothing is answered."""
        self._signal(name, signal.SIGSTOP)

    def thaw_program(self, name: str) -> None:
        """Let a frozen program go on."""
        self._signal(name, signal.SIGCONT)

    def _signal(self, name: str, number: signal.Signals) -> None:
        pid = self.pid(name)
        assert pid is not None, f"{name} is down"
        os.kill(pid, number)

    def add_nodes(self, *specs: str) -> None:
        """Make nodes, or bring them into this shape, and wait until pods can run on them."""
        nodes = read_nodes(specs)
        ensure_nodes(self.api, nodes)
        self.await_nodes({str(node["metadata"]["name"]) for node in nodes})

    def lose_node(self, name: str) -> None:
        """Let nothing more be heard of a node. Ends that its pods had already been given still come."""
        set_kubelet(self.api, name, is_alive=False)

    def return_node(self, name: str) -> None:
        """Let a lost node be heard of again."""
        set_kubelet(self.api, name, is_alive=True)

    def await_nodes(self, names: set[str], timeout_s: float = START_S) -> None:
        """Wait until pods can run on these nodes. Raises TimeoutError."""
        self._await(lambda: names <= self._usable_nodes(), "the nodes are not ready", timeout_s)

    def await_namespace(self, name: str, timeout_s: float = START_S) -> None:
        """Wait until pods can be created in a namespace, which needs its service account. Raises TimeoutError."""
        path = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        self._await(
            lambda: self.api.get(path)[0] == 200, f"namespace {name!r} has no service account", timeout_s
        )

    def _usable_nodes(self) -> set[str]:
        nodes: list[Node] = self.api.get("/api/v1/nodes")[1]["items"]
        return {str(node["metadata"]["name"]) for node in nodes if is_usable(node)}

    def _await(self, holds: Callable[[], bool], otherwise: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{otherwise} after {timeout_s:.0f} s; the logs are in {self.layout.folder}"
                )
            time.sleep(TICK_S)


@contextmanager
def running_plane(
    folder: Path, binaries: Binaries, wish: PlaneWish, say: Say = lambda line: None
) -> Iterator[ControlPlane]:
    """Start a control plane, or what is left of it in `folder`, and stop it in order at the end.

    The same folder has the same objects, tokens and, where they are free, ports. Raises ValueError for wrong
    nodes, DataDirTrouble or StartFailed when it cannot be started.
    """
    nodes = read_nodes(wish.nodes)
    data = DataDir(folder.absolute())
    try:
        data.logs.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise DataDirTrouble(f"{folder}: {error.strerror}; choose another --folder") from error
    with data.locked("gpuhub controlplane run", "--folder"):
        data.rotate_logs()
        supervisor = Supervisor(data.logs, say)
        plane = ControlPlane(_prepare(data, binaries), supervisor)
        try:
            _start(plane, wish, nodes)
            yield plane
        finally:
            supervisor.stop(STOP_ORDER)


def _prepare(data: DataDir, binaries: Binaries) -> Layout:
    credentials = prepare_credentials(data.path / "credentials", datetime.now(UTC))
    ports = choose_ports(PORTS, data.read("ports.json"), {})
    data.write("ports.json", {name: str(port) for name, port in ports.items()})
    kubeconfigs = {
        user: data.path / "kubeconfig" if user == "admin" else credentials.ca.with_name(_file_name(user))
        for user in credentials.tokens
    }
    layout = Layout(data.path, binaries, credentials, kubeconfigs, ports)
    for user, path in kubeconfigs.items():
        content = kubeconfig(
            layout.url(API_SERVER), credentials.ca.read_bytes(), user, credentials.tokens[user]
        )
        write_private(path, content)
    return layout


def _file_name(user: str) -> str:
    return f"{user.rpartition(':')[2]}.kubeconfig"


def _start(plane: ControlPlane, wish: PlaneWish, nodes: list[Node]) -> None:
    supervisor, wanted = plane.supervisor, programs(plane.layout, wish)
    first = (ETCD, API_SERVER)
    for name in first:
        supervisor.launch(wanted[name])
    for name in first:
        supervisor.await_healthy(name, START_S)
    later = [name for name in wanted if name not in first]
    for name in later:
        supervisor.launch(wanted[name])
    ensure_nodes(plane.api, nodes)
    for name in later:
        supervisor.await_healthy(name, START_S)
    plane.await_namespace("default")
    plane.await_nodes({str(node["metadata"]["name"]) for node in nodes})
