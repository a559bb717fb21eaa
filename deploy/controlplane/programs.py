"""How each program of the control plane is called. Their order here is the order in which they need each other."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.child import Program, held
from deploy.controlplane.binaries import Binaries
from deploy.controlplane.credentials import SERVICE_NETWORK, Credentials
from deploy.controlplane.nodes import ALIVE, KUBELET
from deploy.datadir import HOST, write_private, write_private_bytes

ETCD = "etcd"
API_SERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"
SCHEDULER = "kube-scheduler"
KWOK = "kwok"
STOP_ORDER = (KWOK, SCHEDULER, CONTROLLER_MANAGER, API_SERVER, ETCD)

PORTS = (API_SERVER, ETCD, "etcd-peer", "etcd-health", CONTROLLER_MANAGER, SCHEDULER, KWOK)

AUDIT_RULES: tuple[dict[str, object], ...] = (
    {
        "level": "RequestResponse",
        "resources": [
            {"group": "batch", "resources": ["jobs", "jobs/status"]},
            {"group": "", "resources": ["pods", "pods/status"]},
        ],
    },
    {"level": "Metadata"},
)
"""The life of Jobs and pods word by word, of all else only that it happened."""


PLAYED = ("started", *(f"step {step}" for step in range(1, 10)))
"""What every played pod writes."""


@dataclass(frozen=True, slots=True)
class PlaneWish:
    """How to run the control plane."""

    nodes: tuple[str, ...] = ()
    """Which nodes to have, e.g. `sim-[0-3]:h100=8`."""
    stages: tuple[Path, ...] = ()
    """Further kwok stages, beside the ones that come with the hub."""
    audit_rules: Sequence[Mapping[str, object]] = ()
    """The rules of the audit policy; without any there is no audit log."""
    fsync: bool = True
    """Whether etcd makes sure of every write. Without it a power cut may lose the plane's data."""
    node_lease_s: int = 40
    """How long a node's lease lasts; kwok renews it four times in that time."""
    arguments: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Further arguments by program; a repeated flag wins over ours."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts of a plane are."""

    folder: Path
    binaries: Binaries
    credentials: Credentials
    kubeconfigs: Mapping[str, Path]
    """By user."""
    ports: Mapping[str, int]

    @property
    def audit_log(self) -> Path:
        """What was asked of the API server, one JSON object a line."""
        return self.folder / "audit.jsonl"

    @property
    def played_log(self) -> Path:
        """What every played pod has written, a line `TIME stdout F TEXT` each."""
        return self.folder / "played.log"

    def url(self, name: str) -> str:
        """The address of one of PORTS."""
        return f"https://{HOST}:{self.ports[name]}"


def programs(layout: Layout, wish: PlaneWish) -> dict[str, Program]:
    """The five programs by name."""
    made = (
        _etcd(layout, wish),
        _api_server(layout, wish),
        _controller_manager(layout, wish),
        _scheduler(layout, wish),
        _kwok(layout, wish),
    )
    return {program.name: program for program in made}


def _etcd(layout: Layout, wish: PlaneWish) -> Program:
    known = layout.credentials
    client, peer = layout.url(ETCD), layout.url("etcd-peer")
    health = f"http://{HOST}:{layout.ports['etcd-health']}"
    return Program(
        ETCD,
        held(
            str(layout.binaries.etcd),
            "--name=plane",
            f"--data-dir={layout.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=plane={peer}",
            f"--listen-metrics-urls={health}",
            # Everything that the API server hides is in here, so nobody else may call.
            *_tls_flags(known, "cert-file", "key-file"),
            "--client-cert-auth",
            f"--trusted-ca-file={known.ca}",
            *_tls_flags(known, "peer-cert-file", "peer-key-file"),
            "--peer-client-cert-auth",
            f"--peer-trusted-ca-file={known.ca}",
            "--log-level=warn",
            *(() if wish.fsync else ("--unsafe-no-fsync",)),
            *wish.arguments.get(ETCD, ()),
        ),
        f"{health}/health",
    )


def _api_server(layout: Layout, wish: PlaneWish) -> Program:
    known = layout.credentials
    return Program(
        API_SERVER,
        held(
            str(layout.binaries.kube_apiserver),
            f"--bind-address={HOST}",
            f"--advertise-address={HOST}",
            f"--secure-port={layout.ports[API_SERVER]}",
            *_tls_flags(known, "tls-cert-file", "tls-private-key-file"),
            f"--etcd-servers={layout.url(ETCD)}",
            f"--etcd-cafile={known.ca}",
            f"--etcd-certfile={known.client_certificate}",
            f"--etcd-keyfile={known.client_key}",
            f"--token-auth-file={known.token_file}",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={known.service_account_key}",
            f"--service-account-signing-key-file={known.service_account_key}",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            "--endpoint-reconciler-type=none",
            # A node's name leads nowhere; its address is kwok's.
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged",
            "--profiling=false",
            *_audit_flags(layout, wish),
            *wish.arguments.get(API_SERVER, ()),
        ),
        f"{layout.url(API_SERVER)}/readyz",
        health_ca=known.ca,
    )


def _audit_flags(layout: Layout, wish: PlaneWish) -> tuple[str, ...]:
    if not wish.audit_rules:
        return ()
    policy = layout.folder / "audit-policy.json"
    write_private(
        policy,
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": list(wish.audit_rules),
        },
    )
    return (
        f"--audit-policy-file={policy}",
        f"--audit-log-path={layout.audit_log}",
        # In megabytes: one file, so that a reader finds everything in it.
        "--audit-log-maxsize=4096",
    )


def _controller_manager(layout: Layout, wish: PlaneWish) -> Program:
    known = layout.credentials
    return Program(
        CONTROLLER_MANAGER,
        held(
            str(layout.binaries.kube_controller_manager),
            *_called_flags(layout, CONTROLLER_MANAGER, "system:kube-controller-manager"),
            f"--kubeconfig={layout.kubeconfigs['system:kube-controller-manager']}",
            "--leader-elect=false",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={known.service_account_key}",
            f"--root-ca-file={known.ca}",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            "--concurrent-job-syncs=20",
            *wish.arguments.get(CONTROLLER_MANAGER, ()),
        ),
        f"{layout.url(CONTROLLER_MANAGER)}/healthz",
        health_ca=known.ca,
    )


def _scheduler(layout: Layout, wish: PlaneWish) -> Program:
    config = layout.folder / "scheduler.json"
    write_private(
        config,
        {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {
                "kubeconfig": str(layout.kubeconfigs["system:kube-scheduler"]),
                "qps": 1000,
                "burst": 2000,
            },
            "leaderElection": {"leaderElect": False},
        },
    )
    return Program(
        SCHEDULER,
        held(
            str(layout.binaries.kube_scheduler),
            *_called_flags(layout, SCHEDULER, "system:kube-scheduler"),
            f"--config={config}",
            *wish.arguments.get(SCHEDULER, ()),
        ),
        f"{layout.url(SCHEDULER)}/healthz",
        health_ca=layout.credentials.ca,
    )


def _kwok(layout: Layout, wish: PlaneWish) -> Program:
    port = layout.ports[KWOK]
    address = f"{HOST}:{port}"
    kubeconfig = str(layout.kubeconfigs["kwok"])
    stages = (Path(__file__).with_name("stages.yaml"), *wish.stages)
    return Program(
        KWOK,
        (
            *(sys.executable, "-m", "deploy.controlplane.takeover", kubeconfig, "--"),
            str(layout.binaries.kwok),
            f"--kubeconfig={kubeconfig}",
            f"--manage-nodes-with-label-selector={KUBELET}={ALIVE}",
            *(f"--config={path}" for path in (*stages, _played_logs(layout))),
            # It is every node's kubelet, too, as far as logs go.
            f"--node-ip={HOST}",
            f"--node-port={port}",
            f"--node-lease-duration-seconds={wish.node_lease_s}",
            f"--server-address={address}",
            *wish.arguments.get(KWOK, ()),
        ),
        f"http://{address}/healthz",
    )


def _played_logs(layout: Layout) -> Path:
    """kwok's word on what pods write: all the same, the lines of a file that may grow meanwhile."""
    if not layout.played_log.exists():
        lines = (
            f"2026-01-01T00:00:{step:02}.000000000Z stdout F {text}\n" for step, text in enumerate(PLAYED)
        )
        write_private_bytes(layout.played_log, "".join(lines).encode())
    config = layout.folder / "logs.json"
    write_private(
        config,
        {
            "apiVersion": "kwok.x-k8s.io/v1alpha1",
            "kind": "ClusterLogs",
            "metadata": {"name": "played"},
            "spec": {"logs": [{"logsFile": str(layout.played_log)}]},
        },
    )
    return config


def _called_flags(layout: Layout, name: str, user: str) -> tuple[str, ...]:
    """Where a program listens, and how it finds out who calls."""
    return (
        f"--bind-address={HOST}",
        f"--secure-port={layout.ports[name]}",
        *_tls_flags(layout.credentials, "tls-cert-file", "tls-private-key-file"),
        f"--authentication-kubeconfig={layout.kubeconfigs[user]}",
        f"--authorization-kubeconfig={layout.kubeconfigs[user]}",
    )


def _tls_flags(known: Credentials, certificate: str, key: str) -> tuple[str, str]:
    return f"--{certificate}={known.server_certificate}", f"--{key}={known.server_key}"
