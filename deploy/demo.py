"""The demo programme of `gpuhub up`: a budget, three organizations with grants, and a handful of jobs.

Everything goes through the API, and every step may be repeated: what exists is left alone, grants and jobs
carry Idempotency-Keys. A crash in the middle is finished by the next start.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from deploy.hub import Hub
from quota.client import QuotaClient, ServiceProblem
from quota.client.paging import every
from quota.clock import HOUR_MS
from quota.schemas.fleet import NewGpuClass
from quota.schemas.identity import NewOrganization, NewToken, OrganizationKind, Role
from quota.schemas.jobs import JobSubmission
from quota.schemas.programs import Award, NewProgram

PROGRAM = "ax-demo"
MEMBER = "alpha-lab"
"""The organization whose member token is shown to the person at the terminal."""

TERM_MS = 90 * 24 * HOUR_MS
NODES_PATIENCE_S = 60.0

ORGANIZATIONS = (
    (NewOrganization(id="alpha-lab", name="Alpha Lab", kind=OrganizationKind.STARTUP), 20_000),
    (NewOrganization(id="beta-robotics", name="Beta Robotics", kind=OrganizationKind.SME), 15_000),
    (
        NewOrganization(id="gamma-university", name="Gamma University", kind=OrganizationKind.UNIVERSITY),
        8_000,
    ),
)
BUDGET_GPU_HOURS = 60_000

CLASSES = (
    NewGpuClass(id="h100", name="NVIDIA H100 80 GB", rate_thousandths=1000, price_krw=4_107),
    NewGpuClass(id="a100", name="NVIDIA A100 80 GB", rate_thousandths=400, price_krw=1_643),
    NewGpuClass(id="h100-1g.10gb", name="H100 MIG slice 1g.10gb", rate_thousandths=143, price_krw=587),
)


@dataclass(frozen=True, slots=True)
class DemoJob:
    """A job of the demo: what it asks for, and what the simulated cluster shall do with it."""

    organization: str
    name: str
    gpu_class: str
    gpus: int
    walltime_s: int
    runs_s: int
    pods: int = 1
    exit_code: int = 0
    load: str = "steady:0.85"
    restartable: bool = False

    def submission(self) -> JobSubmission:
        """The body of the request."""
        return JobSubmission(
            name=self.name,
            gpu_class=self.gpu_class,
            gpus_per_pod=self.gpus,
            pods=self.pods,
            walltime_s=self.walltime_s,
            restartable=self.restartable,
            image="registry.local/demo:1",
            command=("python", f"{self.name}.py"),
            annotations={
                "simulate.gpuhub/duration_s": str(self.runs_s),
                "simulate.gpuhub/exit_code": str(self.exit_code),
                "simulate.gpuhub/load": self.load,
            },
            organization_id=self.organization,
        )


JOBS = (
    DemoJob("alpha-lab", "first-light", "h100", 1, walltime_s=600, runs_s=3),
    DemoJob("beta-robotics", "perception", "a100", 1, walltime_s=600, runs_s=3),
    DemoJob(
        "gamma-university", "class-seat", "h100-1g.10gb", 1, walltime_s=600, runs_s=3, load="burst:2:0.5"
    ),
    DemoJob("alpha-lab", "finetune", "h100", 4, walltime_s=1800, runs_s=40, load="ramp:0.2:0.95"),
    DemoJob("beta-robotics", "gang-of-two-nodes", "h100", 8, walltime_s=3600, runs_s=30, pods=2),
    DemoJob("alpha-lab", "wrong-config", "a100", 1, walltime_s=600, runs_s=5, exit_code=1),
    DemoJob("alpha-lab", "nightly-train", "h100", 8, walltime_s=7200, runs_s=1200, restartable=True),
    DemoJob("gamma-university", "forgotten-notebook", "a100", 2, walltime_s=3600, runs_s=900, load="idle"),
)


def seed(hub: Hub, *, with_jobs: bool = True) -> None:
    """Make the demo programme, once; a half-made one is completed."""
    done = hub.data.read("state.json")
    with hub.client() as client:
        if done.get("demo") == "complete":
            make_member_tokens(hub, client)
            return
        register_fleet(client)
        if "demo_began_at_ms" not in done:
            # Written down before it is used: the same Idempotency-Key needs the same end of the term.
            done["demo_began_at_ms"] = str(client.read_clock().now)
            hub.data.write("state.json", done)
        award_grants(client, int(done["demo_began_at_ms"]))
        make_member_tokens(hub, client)
        jobs = JOBS if with_jobs else ()
        wait_for_nodes(client, {job.gpu_class for job in jobs})
        for job in jobs:
            client.submit_job(job.submission(), f"demo:{job.organization}:{job.name}")
    hub.data.write("state.json", {**done, "demo": "complete"})


def register_fleet(client: QuotaClient) -> None:
    """Register the GPU classes that the hub does not have yet; a rate an operator changed since stays."""
    known = {item.id for item in every(client.list_gpu_classes)}
    for gpu_class in CLASSES:
        if gpu_class.id not in known:
            client.put_gpu_class(gpu_class)


def award_grants(client: QuotaClient, began_at_ms: int) -> None:
    """Open the programme and award the 90-day grants."""
    with existing_is_fine():
        client.create_program(
            NewProgram(
                id=PROGRAM, name="AX demo", budget_gpu_hours=BUDGET_GPU_HOURS, reason="seeded by gpuhub up"
            )
        )
    for organization, gpu_hours in ORGANIZATIONS:
        with existing_is_fine():
            client.create_organization(organization)
        award = Award(
            program_id=PROGRAM,
            organization_id=organization.id,
            gpu_hours=gpu_hours,
            ends_at=began_at_ms + TERM_MS,
            reason="demo grant",
        )
        client.award_grant(award, f"demo:grant:{organization.id}")


def make_member_tokens(hub: Hub, client: QuotaClient) -> None:
    """A member token for each organization of the demo that has none in the data directory."""
    for organization, _ in ORGANIZATIONS:
        make_member_token(hub, client, organization.id)


def make_member_token(hub: Hub, client: QuotaClient, organization: str) -> None:
    """A member token for an organization, kept in the data directory."""
    if organization not in hub.tokens:
        made = client.create_token(
            NewToken(role=Role.MEMBER, organization_id=organization, label="gpuhub up")
        )
        hub.remember_tokens({organization: made.secret})


def wait_for_nodes(client: QuotaClient, classes: set[str]) -> None:
    """Wait until the scheduler has reported nodes with all these classes. Raises TimeoutError."""
    deadline = time.monotonic() + NODES_PATIENCE_S
    while True:
        nodes = list(every(client.list_nodes))
        missing = classes - {c.gpu_class for node in nodes for c in node.capacities if c.total > 0}
        if not missing:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"the scheduler reported no nodes with {', '.join(sorted(missing))}"
                f" within {NODES_PATIENCE_S:.0f} s"
            )
        time.sleep(0.1)


@contextlib.contextmanager
def existing_is_fine() -> Iterator[None]:
    """Let pass that the object is there already."""
    try:
        yield
    except ServiceProblem as problem:
        if problem.code != "already_exists":
            raise
