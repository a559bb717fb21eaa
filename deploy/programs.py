"""The programs of a hub on one machine, and how each is called for the cluster that the hub has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.child import Program, gpuhub
from deploy.datadir import HOST, DataDir, token_name
from quota.schemas.identity import Role

DEMO_NODES = ("sim-[0-3]:h100=8", "sim-4:a100=8", "sim-5:h100-1g.10gb=28")

STOP_ORDER = ("agent", "scheduler", "provisioner", "quota", "cluster")
"""The cluster goes last: who watches it goes first, so that nothing it shows is missed without need."""

PROVISION_EVERY_S = 3.0
"""A new organization has its namespace after this; its jobs wait for it."""


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """A Kubernetes cluster instead of the simulated one."""

    file: Path
    """What the scheduler reads: how to reach it, and what the GPU classes are there."""
    provisioner: Path
    """Kubeconfig of the account that makes namespaces."""
    admin: Path | None
    """Kubeconfig of the administrator if kwok plays the nodes: then their GPUs are simulated, too."""


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
    kubernetes: Kubernetes | None = None

    @property
    def cluster_id(self) -> str:
        """The cluster's id in the quota service."""
        return "sim" if self.kubernetes is None else "k8s"

    @property
    def cluster_kind(self) -> str:
        """What the quota service calls such a cluster."""
        return "simulated" if self.kubernetes is None else "kubernetes"

    @property
    def names(self) -> tuple[str, ...]:
        """The programs, in the order in which they are started."""
        if self.kubernetes is None:
            return ("quota", "cluster", "scheduler", "agent")
        if self.kubernetes.admin is not None:
            return ("quota", "cluster", "provisioner", "scheduler", "agent")
        return ("quota", "provisioner", "scheduler")


def programs_of(
    wish: Wish, tokens: Mapping[str, str], ports: Mapping[str, int], clock: str
) -> dict[str, Program]:
    """The programs by name. `tokens` as in `secrets.json`."""
    known = {"GPUHUB_CLOCK": clock, "GPUHUB_CLUSTER_TOKEN": tokens["cluster"]}
    own = {
        "scheduler": {"GPUHUB_SCHEDULER_TOKEN": tokens.get("scheduler", "")},
        "provisioner": {"GPUHUB_PROVISIONER_TOKEN": tokens.get("operator", "")},
        "agent": {
            "GPUHUB_AGENT_TOKEN": tokens.get(token_name(Role.AGENT), ""),
            "GPUHUB_AGENT_SAMPLE_PERIOD_S": f"{wish.sample_interval_s:g}",
        },
    }
    commands = {
        "quota": ("quota", "serve", "--database", wish.data.database_url, *_listen("quota", ports)),
        "cluster": _cluster(wish, ports),
        "provisioner": _provisioner(wish, ports),
        "scheduler": _scheduler(wish, ports),
        "agent": _agent(wish, ports),
    }
    first = {"quota": _first_quota(wish, tokens, ports)}
    health = {"quota": f"{url(ports, 'quota')}/-/ready", "provisioner": ""}
    return {
        name: Program(
            name,
            gpuhub(*commands[name]),
            health.get(name, f"{url(ports, name)}/-/healthy"),
            {**known, **own.get(name, {})},
            first.get(name, ()),
        )
        for name in wish.names
    }


def url(ports: Mapping[str, int], name: str) -> str:
    """The address of one of the programs."""
    return f"http://{HOST}:{ports[name]}"


def _listen(name: str, ports: Mapping[str, int]) -> tuple[str, ...]:
    return ("--host", HOST, "--port", str(ports[name]))


def _cluster(wish: Wish, ports: Mapping[str, int]) -> tuple[str, ...]:
    """The simulated cluster; beside Kubernetes only the GPUs of its nodes."""
    kubernetes = wish.kubernetes
    if kubernetes is None:
        begin: tuple[str, ...] = ("simulate", "--data-dir", str(wish.data.cluster))
    elif kubernetes.admin is not None:
        begin = ("simulate-devices", "--cluster-file", str(kubernetes.file))
        begin += ("--kubeconfig", str(kubernetes.admin))
    else:
        return ()
    nodes = tuple(part for spec in wish.nodes for part in ("--nodes", spec))
    sampling = ("--sample-period-s", f"{wish.sample_interval_s:g}")
    return (*begin, "--token-env", "GPUHUB_CLUSTER_TOKEN", *nodes, *sampling, *_listen("cluster", ports))


def _provisioner(wish: Wish, ports: Mapping[str, int]) -> tuple[str, ...]:
    if wish.kubernetes is None:
        return ()
    return (
        *("scheduler", "provision", "--cluster-file", str(wish.kubernetes.file)),
        *("--kubeconfig", str(wish.kubernetes.provisioner), "--quota-url", url(ports, "quota")),
        *("--token-env", "GPUHUB_PROVISIONER_TOKEN", "--every-s", f"{PROVISION_EVERY_S:g}"),
    )


def _scheduler(wish: Wish, ports: Mapping[str, int]) -> tuple[str, ...]:
    if wish.kubernetes is None:
        address = f"{wish.cluster_id}={url(ports, 'cluster')}"
        cluster: tuple[str, ...] = ("--cluster", address, "--cluster-token-env", "GPUHUB_CLUSTER_TOKEN")
    else:
        cluster = ("--kubernetes", f"{wish.cluster_id}={wish.kubernetes.file}")
    return (
        *("scheduler", "run", "--quota-url", url(ports, "quota"), "--token-env", "GPUHUB_SCHEDULER_TOKEN"),
        *cluster,
        *("--holder", "up"),
        *_listen("scheduler", ports),
    )


def _agent(wish: Wish, ports: Mapping[str, int]) -> tuple[str, ...]:
    if "agent" not in wish.names:
        return ()
    return (
        *("agent", "run", "--quota-url", url(ports, "quota"), "--token-env", "GPUHUB_AGENT_TOKEN"),
        *("--reader", "simulated", "--cluster-url", url(ports, "cluster")),
        *("--outbox", str(wish.data.outbox)),
        *("--sample-interval-s", f"{wish.sample_interval_s:g}"),
        *("--send-interval-s", f"{wish.send_interval_s:g}"),
        *_listen("agent", ports),
    )


def _first_quota(wish: Wish, tokens: Mapping[str, str], ports: Mapping[str, int]) -> tuple[str, ...]:
    """The first start makes the tokens that are not known yet."""
    wanted = (Role.OPERATOR, Role.SCHEDULER, Role.AGENT)
    missing = [role.value for role in wanted if token_name(role) not in tokens]
    return gpuhub(
        *("quota-start", "--data-dir", str(wish.data.path), "--clock-speed", str(wish.clock_speed)),
        *("--port", str(ports["quota"])),
        *(part for role in missing for part in ("--token", role)),
    )
