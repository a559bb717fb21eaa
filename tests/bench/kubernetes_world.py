"""A real control plane, and a hub of real programs beside it, for the benchmarks on Kubernetes.

`GPUHUB_BENCH_PROFILE=FOLDER` runs the scheduler under a profiler that leaves what each thread did in FOLDER.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from deploy.child import Program, gpuhub
from deploy.controlplane.gpus import gpu_class
from deploy.controlplane.kubeconfig import kubeconfig
from deploy.controlplane.plane import ControlPlane
from deploy.datadir import HOST, choose_ports
from deploy.supervisor import Supervisor
from quota import cli as quota
from quota.client import QuotaClient
from quota.clock import Clock
from quota.schemas.caps import CapsPut, HubCaps
from quota.schemas.fleet import NewCluster, NewGpuClass
from quota.schemas.identity import NewOrganization, NewToken, Role
from quota.schemas.programs import Award, NewProgram
from scheduler.clusters.kubernetes.accounts import PROVISIONER, SCHEDULER, user_of
from scheduler.clusters.kubernetes.api import KubernetesApi
from scheduler.clusters.kubernetes.provisioning import Provisioner, Refused, set_up
from scheduler.clusters.kubernetes.settings import KubernetesSettings, read_cluster_file

CLUSTER = "k8s"
PROGRAM = "bench"
YEAR_MS = 365 * 86_400_000
TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Ground:
    """A cluster as the hub's programs find it."""

    plane: ControlPlane
    cluster_file: Path
    token: str
    """The scheduler's own."""
    user: str
    """What the API server calls the scheduler."""

    @property
    def settings(self) -> KubernetesSettings:
        """The cluster's file as the scheduler reads it."""
        return read_cluster_file(self.cluster_file)


def provisioned(
    plane: ControlPlane, folder: Path, classes: tuple[str, ...], organizations: tuple[str, ...]
) -> Ground:
    """A cluster set up as an administrator does it: accounts, admission policies, a namespace per organization."""
    file = folder / "cluster.toml"
    file.write_text(cluster_text(classes, folder / f"{SCHEDULER}.kubeconfig"))
    settings = read_cluster_file(file)
    tokens: dict[str, str] = {}
    with closing(KubernetesApi("bench", _as(settings, plane.kubeconfig))) as api:
        for _ in set_up(api, settings):
            pass
        for account in (SCHEDULER, PROVISIONER):
            space = settings.isolation.system_namespace
            path = f"/api/v1/namespaces/{space}/serviceaccounts/{account}/token"
            token = api.post(path, {"spec": {"expirationSeconds": 24 * 3600}}).body["status"]["token"]
            content = kubeconfig(plane.url, plane.ca_file.read_bytes(), account, token)
            (folder / f"{account}.kubeconfig").write_text(json.dumps(content))
            tokens[account] = token
    with closing(KubernetesApi("bench", _as(settings, folder / f"{PROVISIONER}.kubeconfig"))) as api:
        work = Provisioner(api, settings)
        totals = patiently(work.totals, (Refused,))
        for one in organizations:
            patiently(lambda one=one: list(work.organization(one, totals)), (Refused,))  # type: ignore[misc]
    return Ground(plane, file, tokens[SCHEDULER], user_of(settings.isolation, SCHEDULER))


def bare(
    plane: ControlPlane,
    folder: Path,
    classes: tuple[str, ...],
    organizations: tuple[str, ...],
    limits: Mapping[str, int],
) -> Ground:
    """A cluster with nothing but the organizations' namespaces; the scheduler is its administrator."""
    file = folder / "cluster.toml"
    file.write_text(cluster_text(classes, plane.kubeconfig, limits))
    prefix = read_cluster_file(file).namespace_prefix
    for one in organizations:
        status, reply = plane.api.post("/api/v1/namespaces", {"metadata": {"name": f"{prefix}{one}"}})
        assert status in (201, 409), reply
    return Ground(plane, file, plane.token, "admin")


def cluster_text(
    classes: tuple[str, ...], kubeconfig_file: Path, limits: Mapping[str, int] | None = None
) -> str:
    """A cluster's file whose pods obey the annotations of the simulation."""
    lines = [
        f'kubeconfig = "{kubeconfig_file}"',
        'annotation_prefixes = ["simulate.gpuhub/"]',
        'default_image = "none.invalid/simulated:1"',
        "report_lag_s = 0",
        *(f"{name} = {value}" for name, value in (limits or {}).items()),
    ]
    for name in classes:
        known = gpu_class(name)
        labels = ", ".join(f'"{key}" = "{text}"' for key, text in known.node_labels.items())
        lines += [
            f'[classes."{name}"]',
            f"labels = {{ {labels} }}",
            f'resource = "{known.resource}"',
            f"cpu_milli = {known.cpu_milli}",
            f"memory_mib = {known.memory_mib}",
        ]
    return "\n".join(lines) + "\n"


class BenchHub:
    """The quota service on SQLite, and the scheduler once it is asked for."""

    def __init__(
        self, folder: Path, ground: Ground, organizations: tuple[str, ...], classes: tuple[str, ...]
    ) -> None:
        self._folder = folder
        self._ground = ground
        self._organizations = organizations
        self._classes = classes
        self.database = folder / "hub.db"
        url = f"sqlite:///{self.database}"
        self._clock = quota.prepare(url, 1)
        self.tokens = {
            role: quota.make_token(url, NewToken(role=role, label="bench")).secret
            for role in (Role.OPERATOR, Role.SCHEDULER)
        }
        self.ports = choose_ports(("quota", "scheduler"), {}, {})
        self.supervisor = Supervisor(folder, say)

    @property
    def url(self) -> str:
        """The quota service."""
        return f"http://{HOST}:{self.ports['quota']}"

    def client(self) -> QuotaClient:
        """The quota service as an operator."""
        return QuotaClient(self.url, self.tokens[Role.OPERATOR])

    def start_quota(self) -> None:
        """Serve, and make organizations that may use everything."""
        listen = ("--host", HOST, "--port", str(self.ports["quota"]))
        command = gpuhub("quota", "serve", "--database", f"sqlite:///{self.database}", *listen)
        self.supervisor.start(Program("quota", command, f"{self.url}/-/ready"))
        with self.client() as client:
            client.create_cluster(NewCluster(id=CLUSTER, kind="kubernetes"))
            lifted = HubCaps(organization_pool_thousandths=1000, queued_jobs=1_000_000)
            client.put_caps(CapsPut(caps=lifted, reason="as many as the others of the contest let start"))
            for name in self._classes:
                client.put_gpu_class(
                    NewGpuClass(id=name, name=name.upper(), rate_thousandths=1000, price_krw=4000)
                )
            client.create_program(NewProgram(id=PROGRAM, name="Bench", budget_gpu_hours=24_000_000))
            for one in self._organizations:
                client.create_organization(NewOrganization(id=one, name=one))
                client.award_grant(
                    Award(
                        program_id=PROGRAM,
                        organization_id=one,
                        gpu_hours=500_000,
                        ends_at=Clock.from_text(self._clock.text()).now_ms() + YEAR_MS,
                        reason="benchmark",
                    )
                )

    def start_scheduler(self) -> None:
        """Lead the cluster; returns when it does."""
        url = f"http://{HOST}:{self.ports['scheduler']}"
        arguments = (
            *("scheduler", "run", "--quota-url", self.url, "--token-env", "GPUHUB_SCHEDULER_TOKEN"),
            *("--kubernetes", f"{CLUSTER}={self._ground.cluster_file}", "--clock", self._clock.text()),
            *("--holder", "bench", "--host", HOST, "--port", str(self.ports["scheduler"])),
        )
        environment = {"GPUHUB_SCHEDULER_TOKEN": self.tokens[Role.SCHEDULER]}
        self.supervisor.start(
            Program("scheduler", _profiled(arguments), f"{url}/-/ready", environment, stop_s=60.0)
        )

    def stop(self) -> None:
        """End both."""
        self.supervisor.stop(("scheduler", "quota"))

    def uses(self) -> dict[str, Use]:
        """What each program has used so far."""
        return uses(self.supervisor)


@contextmanager
def a_hub(
    folder: Path, ground: Ground, organizations: tuple[str, ...], classes: tuple[str, ...]
) -> Iterator[BenchHub]:
    """A hub that serves and does not schedule yet; it ends with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    hub = BenchHub(folder, ground, organizations, classes)
    try:
        hub.start_quota()
        yield hub
    finally:
        hub.stop()


@dataclass(frozen=True, slots=True)
class Use:
    """What a process has used since its start."""

    cpu_s: float
    peak_mib: float


def uses(supervisor: Supervisor) -> dict[str, Use]:
    """By the programs' names; those that are down are left out."""
    return {name: use_of(pid) for name, pid in supervisor.pids().items() if pid is not None}


def use_of(pid: int) -> Use:
    """CPU seconds and the highest resident memory of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text()
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return Use((int(fields[11]) + int(fields[12])) / TICKS, peak_kib / 1024)


def spent(before: Mapping[str, Use], after: Mapping[str, Use]) -> dict[str, float]:
    """CPU seconds by program between two looks."""
    return {
        name: round(use.cpu_s - (before[name].cpu_s if name in before else 0.0), 1)
        for name, use in after.items()
    }


T = TypeVar("T")


def patiently(ask: Callable[[], T], passing: tuple[type[Exception], ...]) -> T:
    """The answer, once what passes by itself has passed."""
    until_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except passing:
            if time.monotonic() > until_s:
                raise
            time.sleep(0.2)


def await_true(holds: Callable[[], bool], what: str, patience_s: float, pause_s: float = 0.2) -> None:
    """Wait. Raises TimeoutError."""
    until_s = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > until_s:
            raise TimeoutError(f"not in {patience_s:.0f} s: {what}")
        time.sleep(pause_s)


def load_text() -> str:
    """How busy the machine is by its own account."""
    return "load " + " ".join(f"{one:.1f}" for one in os.getloadavg())


def say(line: str) -> None:
    """Progress; the table is what goes to standard output."""
    print(f"  {line}", file=sys.stderr, flush=True)


def _profiled(arguments: tuple[str, ...]) -> tuple[str, ...]:
    folder = os.environ.get("GPUHUB_BENCH_PROFILE", "")
    if not folder:
        return gpuhub(*arguments)
    return (sys.executable, "-m", "tests.bench.kubernetes_profile", folder, *arguments)


def _as(settings: KubernetesSettings, file: Path) -> KubernetesSettings:
    return settings.model_copy(update={"kubeconfig": file})
