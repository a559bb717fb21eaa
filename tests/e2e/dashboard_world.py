"""A hub of real programs under a load that is known, and a real Prometheus that reads it. (It holds no test itself.)

What the load is stands in JOBS and `_play`; the hub's clock runs at four times the wall's speed, so that a dashboard
that takes the one for the other is wrong by a factor of four.
"""

from __future__ import annotations

import io
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from dashboard_trouble import IDLE_RULES, Broken, break_some, register_most
from rich.console import Console

from agents.model import GpuState, Measured, RowKey
from agents.outbox import open_outbox
from deploy.commands.follow import is_settled
from deploy.datadir import DataDir, token_name
from deploy.demo import wait_for_nodes
from deploy.hub import Hub, running
from deploy.programs import Wish
from deploy.progress import Progress
from quota.client import QuotaClient
from quota.clock import HOUR_MS, Clock
from quota.schemas.bookings import NewBooking
from quota.schemas.fleet import NewGpuClass, NodeChange
from quota.schemas.identity import NewOrganization, Role
from quota.schemas.idle import IdlePolicyPut, IdleState
from quota.schemas.jobs import JobDetail, JobSubmission
from quota.schemas.programs import Award, Grant, NewProgram
from quota.schemas.scheduling import JobState, WaitReason
from quota.schemas.switches import PlacementChange
from quota.schemas.usage import EvidenceBatch, EvidenceRow
from tests.fakekubelet.kubelet import FakeKubelet
from tests.fakekubelet.messages import FakePod
from tests.fakenvml.build import FakeDriver, an_h100, build
from tests.integration.agents.nvml_agent import NvmlAgent, an_nvml_agent
from tests.prometheus_server import Prometheus, a_prometheus

SPEED = 4
SAMPLE_S = 2.0
"""Business seconds between two samples of a simulated GPU."""
NODES = ("sim-[0-1]:h100=8", "sim-2:a100=4")
CLASSES = (("h100", 1000, 4107), ("a100", 400, 1643))
PROGRAMS = ("ai-seoul", "campus")
GRANTS = {
    ("alpha", "ai-seoul"): (10, 48),
    ("alpha", "campus"): (3, 96),
    ("beta", "ai-seoul"): (50, 24 * 90),
    ("gamma", "campus"): (40, 24 * 30),
    ("delta", "campus"): (5, 24),
}
"""GPU hours and the term's hours."""
NODES_OF_CLUSTER = ("sim-0", "sim-1", "sim-2")
LAB = "gpu-07"
MODEL = "NVIDIA H100 80GB HBM3"
LAB_CLASS = "h100-lab"
LAB_GPUS = tuple(str(an_h100(number)["uuid"]) for number in range(3))
"""Of a fake driver: half busy; busy, hot, slowed down and with a memory error; off the bus."""
PODS_S = 0.2
"""How often the lab's agent asks its kubelet."""
SAMPLES_KEPT, PATIENT_S = 3000, 5.0
"""The lab's buffer of samples and its agent's deadlines bear a machine that is busy with other things."""
SPOOL_ROWS = 1000
"""As few measurements as an agent may be told to keep; the lab's agent begins with so many."""
SILENT_S = 1.0
"""How long the lab's kubelet is away at least."""
JOULES, THROTTLED_S, REPLAYS = 250, 3.0, 40
XID_LOST, XID_OF_JOB = 79, 13
STEADY_S = 15.0
"""How long nothing changes before a dashboard is read; all rates are taken over less."""
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """A job of the script: times in business seconds."""

    organization: str
    program: str
    gpu_class: str
    gpus: int
    load: str = "steady:0.8"
    pods: int = 1
    walltime_s: int = 3600
    runs_s: int = 3600
    grace_s: int = 30
    stop_s: int = 1
    exit_code: int = 0


DONE = Load("alpha", "ai-seoul", "h100", 2, runs_s=20, walltime_s=600)
DONE_A100 = Load("beta", "ai-seoul", "a100", 1, runs_s=20, walltime_s=600)
LATE = Load("beta", "ai-seoul", "h100", 1, walltime_s=20, grace_s=20, stop_s=12)
"""Is stopped at its time limit and takes its time to die, which the platform pays."""
FAILING = Load("beta", "ai-seoul", "h100", 1, runs_s=20, walltime_s=600, exit_code=3)
TRAINING = Load("alpha", "ai-seoul", "h100", 4)
IDLE = Load("beta", "ai-seoul", "h100", 4, "idle")
SMALL = Load("beta", "ai-seoul", "a100", 2, "steady:0.5")
STOPPED = Load("delta", "campus", "h100", 1)
"""Its firm cancels it."""
DOZING = Load("delta", "campus", "h100", 1, "idle")
"""Its programme's rules are quick: it is warned twice and then stopped."""
TOO_BIG = Load("gamma", "campus", "h100", 8, pods=2)
"""There is no room for it while the others run."""
TOO_DEAR = Load("alpha", "ai-seoul", "h100", 8)
"""Its grant could pay for it, were it not for what is held for the training."""

JOBS = {
    "done": DONE,
    "done-a100": DONE_A100,
    "late": LATE,
    "failing": FAILING,
    "training": TRAINING,
    "idle": IDLE,
    "small": SMALL,
    "stopped": STOPPED,
    "dozing": DOZING,
    "too-big": TOO_BIG,
    "too-dear": TOO_DEAR,
}
FIRST, THEN, WAITING = (
    ("done", "done-a100", "late", "failing"),
    ("training", "idle", "small", "stopped", "dozing"),
    ("too-big", "too-dear"),
)
RUNNING = ("training", "idle", "small")
BOOKED_GPUS, FOREIGN_GPUS = 2, 1
COMPARED = {"ledger": 7200, "cluster": 7236, "observed": 6840, "busy": 3600}
"""GPU seconds of a day that the books tell of."""
COMPARED_DAY, COMPARED_DAY_S, DIFFERENCES = "2026-01-02", 1767279600, 3


class World:
    """The hub, its lab node and its Prometheus, with the script's jobs by name."""

    def __init__(self, hub: Hub, operator: QuotaClient, lab: Lab, prometheus: Prometheus) -> None:
        self.hub, self.operator, self.lab, self.prometheus = hub, operator, lab, prometheus
        told = operator.read_clock()
        self.clock = Clock.from_text(f"{told.business_at},{told.wall_at},{told.speed}")
        self.job_ids: dict[str, str] = {}
        self.grant_ids: dict[tuple[str, str], str] = {}
        self.broken: Broken

    def job(self, name: str) -> JobDetail:
        """A job of the script as the API shows it now."""
        return self.operator.read_job(self.job_ids[name])

    def grants(self) -> dict[tuple[str, str], Grant]:
        """Every grant as the API shows it now, by organization and programme."""
        return {pair: self.operator.read_grant(grant_id) for pair, grant_id in self.grant_ids.items()}

    def instance(self, name: str) -> str:
        """The address of one of the hub's programs as Prometheus calls it."""
        return self.hub.url(name).removeprefix("http://")

    # --- the script ---

    def found(self) -> None:
        """Classes, programmes, firms and their grants."""
        client = self.operator
        for name, rate, price in CLASSES:
            client.put_gpu_class(NewGpuClass(id=name, name=name, rate_thousandths=rate, price_krw=price))
        for name in PROGRAMS:
            client.create_program(NewProgram(id=name, name=name, budget_gpu_hours=1000, reason="test"))
        for name in sorted({organization for organization, _ in GRANTS}):
            client.create_organization(NewOrganization(id=name, name=name))
        begins_at = self.clock.now_ms()
        for (organization, program), (gpu_hours, term_hours) in GRANTS.items():
            award = Award(
                program_id=program,
                organization_id=organization,
                gpu_hours=gpu_hours,
                starts_at=begins_at,
                ends_at=begins_at + term_hours * HOUR_MS,
                reason="test",
            )
            made = client.award_grant(award, f"grant-{organization}-{program}")
            self.grant_ids[organization, program] = made.id
        client.put_idle_policy(IdlePolicyPut(policy=IDLE_RULES, reason="test"))
        wait_for_nodes(client, {name for name, _, _ in CLASSES})

    def submit(self, *names: str) -> None:
        """Hand jobs of the script in."""
        for name in names:
            load = JOBS[name]
            job = JobSubmission(
                name=name,
                gpu_class=load.gpu_class,
                gpus_per_pod=load.gpus,
                pods=load.pods,
                walltime_s=load.walltime_s,
                grace_s=load.grace_s,
                grant_id=self.grant_ids[load.organization, load.program],
                image="registry.local/demo:1",
                command=("python", "train.py"),
                annotations={
                    "simulate.gpuhub/duration_s": str(load.runs_s),
                    "simulate.gpuhub/exit_code": str(load.exit_code),
                    "simulate.gpuhub/load": load.load,
                    "simulate.gpuhub/stop_s": str(load.stop_s),
                },
                organization_id=load.organization,
            )
            self.job_ids[name] = self.operator.submit_job(job, f"job-{name}").id

    def play(self) -> None:
        """The whole script, up to the state in which it stays."""
        client = self.operator
        self.submit(*FIRST)
        self._until("the first jobs are settled", lambda: all(is_settled(self.job(name)) for name in FIRST))
        client.pause_gpu_class("h100", PlacementChange(paused=True, reason="to make jobs wait"))
        self.submit(*THEN)
        time.sleep(12 / SPEED)
        client.pause_gpu_class("h100", PlacementChange(paused=False, reason="they have waited"))
        self._until("the next jobs run", lambda: all(self._state(name) is JobState.RUNNING for name in THEN))
        client.cancel_job(self.job_ids["stopped"])
        self._until("the cancelled job is settled", lambda: is_settled(self.job("stopped")))
        self.submit(*WAITING)
        self._disturb()
        self._break()
        self._until("waiting jobs say why", lambda: all(self._waits_for(name) for name in WAITING))
        self.lab.disturb()
        self._until("the idle job is warned", lambda: self._found_idle("idle") is IdleState.WARNED)
        self._until("the dozing one is stopped", lambda: is_settled(self.job("dozing")), 2 * PATIENCE_S)

    def _disturb(self) -> None:
        """What operators, others and accidents do."""
        client, now_ms = self.operator, self.clock.now_ms()
        client.change_node("sim", "sim-2", NodeChange(cordoned=True, reason="a fan is loud"))
        self._plant(fault="foreign", node="sim-1", gpu_class="h100", count=FOREIGN_GPUS)
        booking = NewBooking(
            organization_id="gamma",
            name="demonstration",
            gpu_class="h100",
            gpus_per_pod=BOOKED_GPUS,
            pods=1,
            starts_at=now_ms + 2 * HOUR_MS,
            ends_at=now_ms + 3 * HOUR_MS,
            reason="test",
        )
        client.create_booking(booking, "booking")
        row = EvidenceRow(
            job_id="nobody",
            attempt=1,
            gpu_uuid="GPU-00000000-0000-0000-0000-000000000000",
            gpu_class="h100",
            node="sim-0",
            hour=now_ms // HOUR_MS * HOUR_MS,
            agent_epoch="stranger",
            seq=1,
            busy_ms=1,
            observed_ms=1,
        )
        with self.hub.client(token_name(Role.AGENT)) as agent:
            agent.deliver_evidence(EvidenceBatch(rows=(row,)))
        connection = sqlite3.connect(self.hub.data.database, timeout=30)
        with connection:
            connection.execute(
                "INSERT INTO reconciliations (day, cluster, done_at_ms, attempts, ledger_gpu_ms, cluster_gpu_ms,"
                " observed_gpu_ms, busy_gpu_ms, differences) VALUES (?, 'sim', ?, 4, ?, ?, ?, ?, ?)",
                (COMPARED_DAY, now_ms, *(1000 * value for value in COMPARED.values()), DIFFERENCES),
            )
        connection.close()

    def gpus_shown(self) -> list[tuple[str, dict[str, Any]]]:
        """Node and figures of every GPU, as the cluster shows them."""
        asked = {"after_ms": self.clock.now_ms()}
        url = f"{self.hub.url('cluster')}/v1/gpus"
        nodes = httpx2.get(url, params=asked, headers=self._token(), trust_env=False).json()["nodes"]
        return [(node["node"], gpu) for node in nodes for gpu in node["gpus"]]

    def _break(self) -> None:
        """Let GPUs break that no job holds, on the node that is cordoned first."""
        shown = self.gpus_shown()
        register_most(self.operator, [gpu["gpu_uuid"] for _, gpu in shown])
        free = [(node, gpu["gpu_uuid"]) for node, gpu in shown if not gpu["workload"]]
        closed = [place for place in free if place[0] == "sim-2"]
        still_open = [place for place in free if place[0] != "sim-2"]
        self.broken = break_some(self.operator, self._plant, self._until, closed, still_open)

    def _plant(self, **fault: object) -> None:
        url = f"{self.hub.url('cluster')}/v1/faults"
        httpx2.post(url, json=fault, headers=self._token(), trust_env=False).raise_for_status()

    def _token(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.hub.tokens['cluster']}"}

    def _found_idle(self, name: str) -> IdleState | None:
        found = self.job(name).idle
        return None if found is None else found.state

    def _state(self, name: str) -> JobState:
        return self.job(name).state

    def _waits_for(self, name: str) -> str:
        waiting = self.job(name).waiting
        return "" if waiting is None or waiting.code is WaitReason.NEW else waiting.code.value

    def _until(self, what: str, holds: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
        deadline_s = time.monotonic() + patience_s
        while not holds():
            assert time.monotonic() < deadline_s, (what, [self.job(name) for name in self.job_ids])
            time.sleep(0.1)


class Lab:
    """A node with three real-looking GPUs: an agent of its own on a fake driver and kubelet, its clock the wall's."""

    def __init__(self, agent: NvmlAgent, driver: FakeDriver, kubelet: FakeKubelet) -> None:
        self._agent, self._driver, self._kubelet = agent, driver, kubelet
        self.silent_s = 0.0
        """How long its kubelet did not answer, at most."""

    @property
    def instance(self) -> str:
        """The agent's address."""
        return f"127.0.0.1:{self._agent.logged('agent_started')[0]['port']}"

    def disturb(self) -> None:
        """Let one GPU be slowed down and lose a row of memory, another fall off the bus, and the kubelet be away.

        Before that a pod comes and goes whose measurements find no room on the agent's disk.
        """
        dropped = "hub_agent_records_dropped_total"
        self._kubelet.pods = [FakePod("hub-lab", "job-lab-1-0-abcde", {"nvidia.com/gpu": [LAB_GPUS[0]]})]
        self._agent.wait_for(lambda series: series[dropped][()] >= 1)
        self._kubelet.pods = []
        self._agent.wait_for(lambda series: series["hub_gpu_allocated"].get((LAB_GPUS[0], LAB)) == 0)
        self._kubelet.offered = {"nvidia.com/gpu": list(LAB_GPUS[:2])}
        _, hot, lost = self._driver.gpus
        hot |= {"temperature": 88, "clocks_reasons": 0x4, "ecc_uncorrected": 2, "remapped": "0 1 1 0"}
        hot |= {"field_230": 1}
        lost["lost"] = 1
        self._driver.events += [(0, 0x8, XID_OF_JOB), (2, 0x8, XID_LOST)]
        self._driver.write()
        self._agent.wait_for(lambda series: series["hub_gpu_lost"].get((LAB_GPUS[2], LAB)) == 1)

        gap = "hub_agent_pods_gap_seconds_total"
        before_s, began_s = self._agent.series()[gap][()], time.monotonic()
        self._kubelet.stop()
        self._agent.wait_for(lambda series: series[gap][()] > before_s + SILENT_S)
        self._kubelet.start()
        self._agent.wait_for(lambda series: series["hub_agent_pods_up"] == {(): 1})
        self.silent_s = before_s + time.monotonic() - began_s

    def work(self) -> None:
        """Let the meters of the two others run on by known amounts, at once."""
        healthy, hot, _ = self._driver.gpus
        healthy["energy_mj"] = int(str(healthy["energy_mj"])) + 1000 * JOULES
        hot["field_269"] = int(str(hot["field_269"])) + int(THROTTLED_S * 1e9)
        hot["pcie_replays"] = int(str(hot["pcie_replays"])) + REPLAYS
        self._driver.write()


def fill_spool(path: Path) -> None:
    """As many measurements of an hour that is over as the agent may keep: its service was away for long."""
    now_ms = time.time_ns() // 1_000_000
    hour_ms = now_ms // HOUR_MS * HOUR_MS - 2 * HOUR_MS
    gpu = "GPU-00000000-0000-0000-0000-0000000000a1"
    outbox = open_outbox(path)
    gains = {RowKey(f"job-{number}", 1, gpu, hour_ms): Measured(0, 1) for number in range(SPOOL_ROWS)}
    outbox.store([GpuState(gpu, LAB_CLASS, LAB, hour_ms + HOUR_MS, ())], gains, now_ms, now_ms)
    outbox.forget_gpus(now_ms)
    outbox.close()


@contextmanager
def a_world(folder: Path) -> Iterator[World]:
    """Everything, read by Prometheus once a second; the script has not begun."""
    driver = FakeDriver(
        folder / "driver", [an_h100(0, power_limit_mw=700_000, depth=SAMPLES_KEPT), _busy(), an_h100(2)]
    )
    driver.write()
    wish = Wish(
        DataDir(folder / "hub"),
        clock_speed=SPEED,
        nodes=NODES,
        sample_interval_s=SAMPLE_S,
        send_interval_s=1.0,
    )
    quiet = Progress(Console(file=io.StringIO()))
    lab_folder = folder / "lab"
    lab_folder.mkdir()
    classes = f'{{"{MODEL}": "{LAB_CLASS}"}}'
    socket = lab_folder / "kubelet.sock"
    asked = {
        "gpu_classes": classes,
        "pods_socket": str(socket),
        "pods_interval_s": PODS_S,
        "pods_timeout_s": PATIENT_S,
        "nvml_deadline_s": PATIENT_S,
        "spool_rows": SPOOL_ROWS,
    }
    fill_spool(lab_folder / "outbox.sqlite3")
    with (
        FakeKubelet(socket, {"nvidia.com/gpu": list(LAB_GPUS)}) as kubelet,
        an_nvml_agent(driver, build(folder / "nvml"), lab_folder, **asked) as agent,
        running(wish, quiet) as hub,
        hub.client() as operator,
    ):
        agent.wait_for(lambda series: len(series.get("hub_gpu_observed_seconds_total", {})) == len(LAB_GPUS))
        lab = Lab(agent, driver, kubelet)
        quota, port = hub.url("quota").removeprefix("http://"), hub.url("quota").rpartition(":")[2]
        targets = {
            # the same service twice, as two replicas of it would answer
            "quota": [quota, f"localhost:{port}"],
            "scheduler": [hub.url("scheduler").removeprefix("http://")],
            "agent": [hub.url("agent").removeprefix("http://"), lab.instance],
        }
        with a_prometheus(folder / "prometheus", targets) as prometheus:
            prometheus.await_targets()
            yield World(hub, operator, lab, prometheus)


def _busy() -> dict[str, object]:
    return an_h100(
        1, util=None, gpm=100, gpm_sm=20, gpm_support=1, processes=f"1:{4 << 30}", power_limit_mw=700_000
    )
