"""A whole hub on a real control plane, in one folder: to be used, hurt and judged by tests."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path

from deploy.commands.follow import is_settled
from deploy.controlplane.binaries import built_binaries
from deploy.controlplane.gpus import gpu_classes
from deploy.controlplane.plane import ControlPlane, running_plane
from deploy.controlplane.programs import AUDIT_RULES, PlaneWish
from deploy.datadir import DataDir
from deploy.demo import seed, wait_for_nodes
from deploy.hub import Hub, running
from deploy.kubernetes import CLUSTER_FILE, FOLDER, cluster_text, given_cluster
from deploy.programs import DEMO_NODES, Wish
from deploy.progress import Progress
from quota.client import QuotaClient
from quota.schemas.jobs import JobDetail, JobSubmission
from quota.schemas.scheduling import JobState
from scheduler.simulator.fleet import read_fleet
from tests.oracle import kubernetes_oracle

FIRM = "alpha-lab"
"""An organization of the demo that has a grant; the others are beta-robotics and gamma-university."""
POLL_S = 0.1
LOG_PATIENCE_S = 10.0
"""How long the API server may take to write down what it has already answered."""


@dataclass(frozen=True, slots=True)
class KubernetesHub:
    """A running hub and the control plane under it. Either's programs may be killed, frozen or restarted."""

    hub: Hub
    plane: ControlPlane

    @property
    def folder(self) -> Path:
        """The hub's data folder."""
        return self.hub.data.path

    @property
    def database(self) -> Path:
        """The quota service's SQLite file."""
        return self.hub.data.database

    @property
    def audit_log(self) -> Path:
        """What was asked of the API server."""
        return self.plane.audit_log

    def client(self) -> QuotaClient:
        """The quota service, as the operator."""
        return self.hub.client()

    def pid(self, program: str) -> int | None:
        """The present process of a program of the hub (`quota`, `scheduler`, …); None while it is down."""
        return self.hub.supervisor.pids()[program]

    def stop_program(self, program: str) -> None:
        """Kill a program of the hub and leave it dead; those of the control plane are `plane`'s."""
        self.hub.supervisor.take_down(program)

    def start_program(self, program: str) -> None:
        """Start a program of the hub that was stopped, and wait until it is healthy."""
        self.hub.supervisor.bring_up(program)

    def submit(
        self,
        name: str,
        *,
        gpus: int = 1,
        pods: int = 1,
        gpu_class: str = "h100",
        runs_s: float = 3,
        walltime_s: int = 600,
        grace_s: int = 5,
        restartable: bool = False,
        firm: str = FIRM,
        played: Mapping[str, str] | None = None,
    ) -> str:
        """Submit a job and answer its id. `played`: further words for kwok, without their prefix."""
        words = {"duration_s": str(runs_s), **(played or {})}
        body = JobSubmission(
            name=name,
            gpu_class=gpu_class,
            gpus_per_pod=gpus,
            pods=pods,
            walltime_s=walltime_s,
            grace_s=grace_s,
            restartable=restartable,
            command=("python", f"{name}.py"),
            annotations={f"simulate.gpuhub/{word}": text for word, text in words.items()},
            organization_id=firm,
        )
        with self.client() as client:
            return client.submit_job(body).id

    def cancel(self, job: str) -> None:
        """Ask a job to end."""
        with self.client() as client:
            client.cancel_job(job)

    def read(self, job: str) -> JobDetail:
        """A job as the hub tells of it."""
        with self.client() as client:
            return client.read_job(job)

    def await_state(self, state: JobState, *jobs: str, patience_s: float = 60.0) -> list[JobDetail]:
        """Wait until all of the jobs are in this state."""
        return self.await_jobs(lambda job: job.state is state, jobs, patience_s)

    def await_settled(self, *jobs: str, patience_s: float = 90.0) -> list[JobDetail]:
        """Wait until each of the jobs has ended and is charged."""
        return self.await_jobs(is_settled, jobs, patience_s)

    def await_jobs(
        self, holds: Callable[[JobDetail], bool], jobs: Iterable[str], patience_s: float = 60.0
    ) -> list[JobDetail]:
        """Wait until it holds of each of the jobs, and answer them."""
        deadline = time.monotonic() + patience_s
        with self.client() as client:
            while True:
                found = [client.read_job(job) for job in jobs]
                late = [job for job in found if not holds(job)]
                if not late:
                    return found
                assert time.monotonic() < deadline, f"did not come true in time of {late}"
                time.sleep(POLL_S)

    def judge(self, *, final: bool = False) -> list[str]:
        """What the oracle finds wrong; nothing is as it should be. `final`: all has ended.

        The hub may go on meanwhile: a copy of the database is judged, and the log once it has all that came before.
        """
        with tempfile.TemporaryDirectory() as folder:
            copy, horizon_ms = Path(folder) / "quota.db", time.time_ns() // 1_000_000
            with closing(sqlite3.connect(self.database)) as source, closing(sqlite3.connect(copy)) as target:
                source.backup(target)
            self._await_log()
            return kubernetes_oracle.judge(str(copy), self.audit_log, final=final, horizon_ms=horizon_ms)

    def _await_log(self) -> None:
        """Wait until the API server has written down what it has answered so far; one that is down writes nothing."""
        sign = f"judged={time.monotonic_ns()}"
        try:
            self.plane.api.get(f"/api/v1/namespaces/default?{sign}")
        except (OSError, HTTPException):
            return
        deadline = time.monotonic() + LOG_PATIENCE_S
        while sign.encode() not in _end_of(self.audit_log):
            assert time.monotonic() < deadline, f"the API server writes nothing into {self.audit_log}"
            time.sleep(POLL_S)


@contextmanager
def a_kubernetes_hub(
    folder: Path,
    *nodes: str,
    arguments: Mapping[str, Sequence[str]] | None = None,
    stages: tuple[Path, ...] = (),
    node_lease_s: int = 40,
    sample_interval_s: float = 2.0,
    lost_after_s: float = 15.0,
) -> Iterator[KubernetesHub]:
    """A hub on a control plane of its own, as long as the block, with the demo's organizations and no jobs.

    Without `nodes` it has the demo's. `arguments`, `stages` and `node_lease_s` are the control plane's.
    """
    binaries = built_binaries()
    assert binaries is not None, "the control plane is not built yet: run `make controlplane`"
    progress, data, chosen = Progress(), DataDir(folder / "hub"), nodes or DEMO_NODES
    data.prepare()
    inside = (data.path / FOLDER).absolute()
    inside.mkdir(exist_ok=True, mode=0o700)
    # as `gpuhub up --kubernetes` would write it: the pods do what their annotations say
    text = cluster_text(gpu_classes(), is_played=True)
    (inside / CLUSTER_FILE).write_text(f"lost_after_s = {lost_after_s:g}\n{text}")
    wish = PlaneWish(
        nodes=chosen,
        stages=stages,
        audit_rules=AUDIT_RULES,
        fsync=False,
        node_lease_s=node_lease_s,
        arguments=arguments or {},
    )
    with running_plane(inside, binaries, wish, print) as plane:
        given = given_cluster(data, plane.kubeconfig, progress)
        cluster = replace(given, admin=plane.kubeconfig)
        wanted = Wish(
            data,
            nodes=chosen,
            sample_interval_s=sample_interval_s,
            send_interval_s=1.0,
            kubernetes=cluster,
        )
        with running(wanted, progress) as hub:
            seed(hub, with_jobs=False)
            with hub.client() as client:
                wait_for_nodes(client, _classes_of(chosen))
            yield KubernetesHub(hub, plane)


def _end_of(log: Path, size: int = 4 << 20) -> bytes:
    with log.open("rb") as lines:
        lines.seek(max(0, log.stat().st_size - size))
        return lines.read()


def _classes_of(nodes: Sequence[str]) -> set[str]:
    return {gpu.gpu_class for gpus in read_fleet(nodes).values() for gpu in gpus}
