"""The real programs as processes of their own: quota on SQLite, a simulated cluster, schedulers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import Request, urlopen

from quota.client import QuotaClient, ServiceUnavailable
from quota.clock import Clock
from quota.schemas.fleet import NewCluster, NewGpuClass
from quota.schemas.identity import NewOrganization
from quota.schemas.jobs import JobDetail, JobSubmission
from quota.schemas.programs import Award, NewProgram
from quota.schemas.scheduling import JobState

QUOTA = ("-c", "from quota.cli import app; app()")
MAKE = """
import sys
from quota.cli import app

database, speed = sys.argv[1:]
app(["init", "--database", database, "--clock-speed", speed], standalone_mode=False)
for role in ("operator", "scheduler"):
    app(["token", "--role", role, "--database", database], standalone_mode=False)
"""
SIMULATE = ("-m", "scheduler.simulator")
SCHEDULER = ("-c", "from scheduler.cli import app; app()", "run")
YEAR_MS = 366 * 86_400_000


@dataclass
class Hub:
    """One hub under `folder`. Everything it starts is ended by `close`."""

    folder: Path
    speed: int = 1
    lease_ttl_s: float = 15.0
    environment: dict[str, str] = field(default_factory=dict)
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    lines: list[QuotaClient] = field(default_factory=list)

    def open(self) -> None:
        """Start quota and the simulated cluster, and award one firm a grant."""
        self.database = f"sqlite:///{self.folder / 'quota.db'}"
        told = self._output("-c", MAKE, self.database, str(self.speed))
        clock, operator, scheduler = (json.loads(line) for line in told.splitlines())
        self.clock = Clock.from_text(clock["clock"])
        self.tokens = {"operator": operator["secret"], "scheduler": scheduler["secret"]}
        self.quota_port, self.cluster_port = free_port(), free_port()
        self.start_quota()
        self.start_cluster()
        self.operator = QuotaClient(self.quota_url, self.tokens["operator"], timeout_s=10)
        self.lines.append(self.operator)
        until(self.quota_answers, "quota answers")
        self.operator.create_cluster(NewCluster(id="sim", kind="simulated"))
        self.operator.put_gpu_class(
            NewGpuClass(id="h100", name="H100", rate_thousandths=1000, price_krw=4000)
        )
        self.operator.create_organization(NewOrganization(id="alpha", name="Alpha"))
        self.operator.create_program(NewProgram(id="seoul", name="Seoul", budget_gpu_hours=1_000_000))
        self.grant = self.operator.award_grant(
            Award(
                program_id="seoul",
                organization_id="alpha",
                gpu_hours=100_000,
                ends_at=self.clock.now_ms() + YEAR_MS,
                reason="test",
            )
        )

    @property
    def quota_url(self) -> str:
        """Where quota listens."""
        return f"http://127.0.0.1:{self.quota_port}"

    def start_quota(self) -> subprocess.Popen[bytes]:
        """Start the quota service."""
        return self._child(
            "quota",
            *QUOTA,
            *("serve", "--database", self.database, "--port", str(self.quota_port)),
            *("--lease-ttl-s", str(self.lease_ttl_s)),
        )

    def start_cluster(self) -> subprocess.Popen[bytes]:
        """Start the simulated cluster."""
        return self._child(
            "cluster",
            *SIMULATE,
            *("--data-dir", str(self.folder / "cluster"), "--port", str(self.cluster_port)),
            *("--nodes", "sim-[0-1]:h100=8", "--clock", self.clock.text(), "--speedy"),
        )

    def start_scheduler(
        self, holder: str = "one", crash_at: str = "", port: int = 0
    ) -> subprocess.Popen[bytes]:
        """Start a scheduler."""
        return self._child(
            f"scheduler-{holder}",
            *SCHEDULER,
            *("--quota-url", self.quota_url, "--cluster", f"sim=http://127.0.0.1:{self.cluster_port}"),
            *("--port", str(port), "--holder", holder, "--cycle-interval-s", "0.05"),
            *("--report-interval-s", "0.2", "--ranking-interval-s", "0.2", "--idle-interval-s", "0.2"),
            more={"GPUHUB_CRASH_AT": crash_at} if crash_at else {},
        )

    def plant(self, **fault: object) -> None:
        """Let something go wrong on the cluster."""
        url = f"http://127.0.0.1:{self.cluster_port}/v1/faults"
        body = json.dumps(fault).encode()
        with urlopen(Request(url, body, {"Content-Type": "application/json"}, method="POST")) as answer:
            assert answer.status in (200, 201, 204)

    def end_schedulers(self) -> None:
        """Kill every scheduler: quota and the cluster go on."""
        for child in self.children[2:]:
            child.kill()
            child.wait()

    def submit(self, **changes: object) -> str:
        """Submit a job of one GPU once quota knows the nodes; answers its id."""
        until(lambda: bool(self.operator.list_nodes().items), "quota knows the nodes")
        words: dict[str, object] = {
            "name": "train",
            "gpu_class": "h100",
            "walltime_s": 3600,
            "organization_id": "alpha",
            "annotations": {"simulate.gpuhub/duration_s": "2"},
        }
        return self.operator.submit_job(JobSubmission.model_validate(words | changes)).id

    def wait_for(self, job_id: str, *states: JobState, timeout_s: float = 40.0) -> JobDetail:
        """The job, as soon as it is in one of these states."""
        until(lambda: self.operator.read_job(job_id).state in states, f"{job_id} {states}", timeout_s)
        return self.operator.read_job(job_id)

    def journal(self) -> list[dict[str, object]]:
        """Everything the cluster did."""
        lines = (self.folder / "cluster" / "journal.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def log(self, name: str) -> str:
        """What a child wrote to standard error."""
        return (self.folder / f"{name}.log").read_text()

    def close(self) -> None:
        """End every child and wait for it."""
        for child in self.children:
            child.kill()
        for child in self.children:
            child.wait()
        for line in self.lines:
            line.close()

    def quota_answers(self) -> bool:
        """Whether quota is up."""
        try:
            self.operator.read_clock()
        except ServiceUnavailable:
            return False
        return True

    def _output(self, *words: str) -> bytes:
        return subprocess.run(
            [sys.executable, *words], check=True, stdout=subprocess.PIPE, env=self._environment({})
        ).stdout

    def _child(self, name: str, *words: str, more: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as out:
            child = subprocess.Popen(
                [sys.executable, *words], stdout=out, stderr=out, env=self._environment(more or {})
            )
        self.children.append(child)
        return child

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[3])}
        if hasattr(self, "tokens"):
            environment |= {"GPUHUB_TOKEN": self.tokens["scheduler"], "GPUHUB_CLOCK": self.clock.text()}
        return environment | self.environment | more


@contextmanager
def open_hub(folder: Path, speed: int = 1, lease_ttl_s: float = 15.0) -> Iterator[Hub]:
    """A hub that is ended at the end of the block."""
    hub = Hub(folder, speed, lease_ttl_s)
    try:
        hub.open()
        yield hub
    finally:
        hub.close()


def check_against_journal(hub: Hub, job: JobDetail) -> None:
    """One run per attempt, and the charge is what the journal says, to the millisecond."""
    for attempt in job.attempts:
        started = pods(hub, "pod_started", f"{job.id}-{attempt.attempt}")
        ended = pods(hub, "pod_ended", f"{job.id}-{attempt.attempt}")
        assert len(started) == len(ended) <= job.pods
        if not started:
            assert attempt.settled_gpu_us == 0
            continue
        assert attempt.first_started_at == min(int(str(line["t"])) for line in started)
        assert attempt.ended_at == max(int(str(line["t"])) for line in ended)
        assert attempt.last_started_at is not None
        occupied_ms = attempt.ended_at - attempt.first_started_at
        whole = occupied_ms * job.pods * job.gpus_per_pod * 1000
        assert attempt.settled_gpu_us - attempt.refunded_gpu_us + attempt.platform_gpu_us == whole
        assert attempt.hold_resolved


def pods(hub: Hub, event: str, name: str) -> list[dict[str, object]]:
    """What the cluster's journal says of one object's pods."""
    return [line for line in hub.journal() if line["event"] == event and line.get("name") == name]


def until(true: Callable[[], bool], what: str, timeout_s: float = 40.0) -> None:
    """Ask until it is so; fails with `what` after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline_s, f"after {timeout_s} s still not: {what}"
        time.sleep(0.05)


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
