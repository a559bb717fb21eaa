"""`gpuhub up --trace`: live through a window of a trace with the real programs on a fast clock; judge it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from deploy.commands.account import all_grants
from deploy.datadir import DataDir
from deploy.demo import CLASSES, existing_is_fine, make_member_token, wait_for_nodes
from deploy.durations import duration_text
from deploy.hub import Hub, running
from deploy.player import GPU_CLASS, Player, Tally
from deploy.programs import Wish
from deploy.progress import Progress
from deploy.session import Exit, UsageTrouble
from deploy.show import hours, table
from deploy.synthetic import synthetic_trace
from deploy.trace_report import deliveries, ends, use, waits
from deploy.traces import read_trace, window
from quota.client import QuotaClient, ServiceUnavailable
from quota.clock import HOUR_MS, Clock, wall_ms
from quota.schemas.caps import CapsPut, HubCaps
from quota.schemas.identity import NewOrganization
from quota.schemas.jobs import Job, JobDetail
from quota.schemas.programs import Award, Grant, NewProgram
from quota.schemas.scheduling import JobState
from scheduler.replay.settings import DAY_S
from scheduler.replay.traces import TraceJob

PROGRAM = "trace"
TERM_DAYS = 60
UNCAPPED = HubCaps(organization_pool_thousandths=1000, queued_jobs=1_000_000)
LEAD_WALL_S = 2.0
"""Between the last preparation and the first submission."""

LOOK_S = 5.0
SETTLE_PATIENCE_S = 300.0
SEND_INTERVAL_S = 5.0
OPEN_STATES = (JobState.QUEUED, JobState.STARTING, JobState.RUNNING, JobState.STOPPING)
ORACLE = Path(__file__).parent.parent / "tests" / "oracle" / "oracle.py"


@dataclass(frozen=True, slots=True)
class TraceWish:
    """Which part of which trace to live through, on how large a cluster, how fast."""

    source: str
    """A path, or `synthetic`."""
    hours: float
    start_day: int
    nodes: int
    gpus_per_node: int
    seed: int
    clock_speed: int

    @property
    def gpus(self) -> int:
        """GPUs of the cluster."""
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True, slots=True)
class Lived:
    """What was lived through, as the API tells it at the end."""

    first_ms: int
    last_ms: int
    tally: Tally
    open_at_end: Counter[str]
    jobs: Sequence[JobDetail]
    grants: Sequence[Grant]


def live_through(wish: TraceWish, data: DataDir, port: int | None, progress: Progress) -> int:
    """Play the trace, print what it came to and the oracle's verdict. Raises BadTrace, UsageTrouble."""
    whole, jobs = load(wish)
    if data.path.exists() and any(data.path.iterdir()):
        raise UsageTrouble(f"{data.path} is not empty; a trace needs a fresh --data-dir")
    progress.say(
        f"{len(jobs)} jobs in {wish.hours:g} h on {wish.nodes} x {wish.gpus_per_node} {GPU_CLASS}, "
        f"{wish.clock_speed} times as fast as the wall: {duration_text(wish.hours * 3600 / wish.clock_speed)}"
    )
    hub_wish = Wish(
        data,
        port,
        wish.clock_speed,
        (f"sim-[0-{wish.nodes - 1}]:{GPU_CLASS}={wish.gpus_per_node}",),
        sample_interval_s=min(max(10.0, wish.clock_speed * 0.7), 3600.0),
        send_interval_s=SEND_INTERVAL_S,
    )
    with running(hub_wish, progress) as hub, hub.client() as operator:
        with progress.step("awarding grants", "the programme, its organizations and their grants are there"):
            _prepare(hub, operator, whole, wish)
        lived = _play(hub, operator, jobs, wish, progress)
    _print_report(lived, wish, data, progress)
    return _ask_oracle(data, progress)


def load(wish: TraceWish) -> tuple[list[TraceJob], list[TraceJob]]:
    """All jobs of the trace and those of the window. Raises BadTrace, UsageTrouble."""
    if wish.source == "synthetic":
        jobs = synthetic_trace(wish.seed, wish.start_day, wish.hours, wish.gpus)
        return jobs, jobs
    path = Path(wish.source)
    if not path.exists():
        raise UsageTrouble(f"--trace {wish.source}: no such file; give a trace, or `synthetic`")
    whole = read_trace(path)
    try:
        return whole, window(whole, wish.start_day, wish.hours)
    except ValueError as error:
        raise UsageTrouble(f"--start-day {wish.start_day}: {error}") from error


def shares(jobs: Sequence[TraceJob], budget_gpu_hours: int) -> dict[str, int]:
    """Whole GPU hours for every organization, in proportion to its GPU time in the whole trace."""
    demand: Counter[str] = Counter()
    for job in jobs:
        demand[job.organization] += max(job.gpu_s, 1)
    total = sum(demand.values())
    return {name: max(budget_gpu_hours * asked // total, 1) for name, asked in sorted(demand.items())}


def _prepare(hub: Hub, operator: QuotaClient, whole: Sequence[TraceJob], wish: TraceWish) -> None:
    budget = wish.gpus * TERM_DAYS * 24
    granted = shares(whole, budget)
    operator.put_gpu_class(next(item for item in CLASSES if item.id == GPU_CLASS))
    operator.create_program(
        NewProgram(id=PROGRAM, name="Trace", budget_gpu_hours=max(budget, sum(granted.values())))
    )
    operator.put_caps(CapsPut(caps=UNCAPPED, reason="one organization of a trace may be half of its demand"))
    ends_at = operator.read_clock().now + TERM_DAYS * 24 * HOUR_MS
    for organization, gpu_hours in granted.items():
        with existing_is_fine():
            operator.create_organization(NewOrganization(id=organization, name=organization))
        award = Award(
            program_id=PROGRAM,
            organization_id=organization,
            gpu_hours=gpu_hours,
            ends_at=ends_at,
            reason="in proportion to its GPU hours in the trace",
        )
        operator.award_grant(award, f"trace:grant:{organization}")
        make_member_token(hub, operator, organization)
    wait_for_nodes(operator, {GPU_CLASS})


def _play(
    hub: Hub, operator: QuotaClient, jobs: Sequence[TraceJob], wish: TraceWish, progress: Progress
) -> Lived:
    told = operator.read_clock()
    clock = Clock(told.business_at, told.wall_at, told.speed)
    first_ms = clock.at_wall(wall_ms() + round(LEAD_WALL_S * 1000))
    last_ms = first_ms + round(wish.hours * HOUR_MS)
    with ExitStack() as stack:
        clients = {name: stack.enter_context(hub.client(name)) for name in {job.organization for job in jobs}}
        player = Player(clients, clock, first_ms, wish.start_day * DAY_S, wish.gpus_per_node)
        over = threading.Event()
        stack.callback(over.set)
        view = (hub, clock, first_ms, player.tally, progress, over)
        threading.Thread(target=_look_on, args=view, daemon=True).start()
        with progress.step("living through the trace", "lived through the trace"):
            player.play(jobs, last_ms)
    with progress.step("cancelling what is left", "cancelled what was left, and everything is settled"):
        open_at_end = _end_all(operator)
        _await_settled(operator)
        # The agents' last measurements are on their way.
        time.sleep(SEND_INTERVAL_S + 1)
    with progress.step("reading every job back", "read every job back"):
        details = _read_all(operator, list(player.tally.job_ids.values()))
        grants = all_grants(operator)
    return Lived(first_ms, last_ms, player.tally, open_at_end, details, grants)


def _look_on(
    hub: Hub, clock: Clock, first_ms: int, tally: Tally, progress: Progress, over: threading.Event
) -> None:
    """Tell now and then how far the trace is, in a thread of its own: submissions must not wait for it."""
    # In a file, a line every half minute is enough.
    pause_s = LOOK_S if progress.out.is_terminal else 6 * LOOK_S
    with hub.client() as operator:
        while not over.wait(pause_s):
            try:
                waiting = len(_list_all(operator, JobState.QUEUED))
                active = len(_list_all(operator, JobState.STARTING, JobState.RUNNING, JobState.STOPPING))
            except ServiceUnavailable:
                continue
            passed = duration_text(max(clock.now_ms() - first_ms, 0) / 1000)
            line = f"trace time {passed}: {len(tally.job_ids)} submitted, {waiting} waiting, {active} running"
            progress.update(line)
            if not progress.out.is_terminal:
                progress.say(line)


def _list_all(operator: QuotaClient, *states: JobState) -> list[Job]:
    found: list[Job] = []
    for state in states:
        after: str | None = None
        while True:
            page = operator.list_jobs(state, after=after, limit=200)
            found.extend(page.items)
            after = page.next
            if after is None:
                break
    return found


def _end_all(operator: QuotaClient) -> Counter[str]:
    """Cancel every job that has not ended; answers how many were in which state."""
    left = _list_all(operator, *OPEN_STATES)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(operator.cancel_job, [job.id for job in left]))
    return Counter(job.state.value for job in left)


def _await_settled(operator: QuotaClient) -> None:
    deadline = time.monotonic() + SETTLE_PATIENCE_S
    while True:
        open_jobs = len(_list_all(operator, *OPEN_STATES))
        held = [grant for grant in all_grants(operator) if grant.held_gpu_us]
        if not open_jobs and not held:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{open_jobs} jobs have not ended and {len(held)} grants still hold GPU time"
                f" {SETTLE_PATIENCE_S:.0f} s after everything was cancelled"
            )
        time.sleep(0.5)


def _read_all(operator: QuotaClient, job_ids: Sequence[str]) -> list[JobDetail]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(operator.read_job, job_ids))


def _print_report(lived: Lived, wish: TraceWish, data: DataDir, progress: Progress) -> None:
    tally = lived.tally
    refused = ", ".join(f"{count} {code}" for code, count in sorted(tally.refused.items())) or "none"
    open_jobs = ", ".join(f"{count} {state}" for state, count in sorted(lived.open_at_end.items())) or "none"
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(ends(lived.jobs).items()))
    progress.say("")
    progress.say(f"submitted   {len(tally.job_ids)} jobs; refused: {refused}; retries: {tally.retries}")
    progress.say(f"late        {tally.late} submissions, the worst by {tally.worst_late_s:.2f} s of the wall")
    progress.say(f"ended       {reasons}; open at the end and cancelled: {open_jobs}")
    used = use(lived.jobs, data.journal, wish.gpus, lived.first_ms, lived.last_ms)
    busy = "nothing measured" if used.measured_busy is None else f"{used.measured_busy:.1%}"
    progress.say(
        f"GPUs        utilisation {used.utilisation:.1%} (journal), held but not running"
        f" {used.held_idle:.2%} of what was held, measured busy {busy}"
    )
    wait_rows = [
        (
            row.size,
            str(row.started),
            str(row.never_started),
            duration_text(row.mean_s) if row.started else "-",
            duration_text(row.p95_s) if row.started else "-",
        )
        for row in waits(lived.jobs)
    ]
    columns = ("size", ">started", ">never started", ">mean wait", ">p95 wait")
    progress.say(
        f"\nwaits of those that started; a second of the programs' own work counts {wish.clock_speed} s"
    )
    progress.out.print(table("", columns, wait_rows))
    delivery_rows = [
        (
            row.organization,
            hours(row.granted_gpu_us),
            hours(row.due_gpu_us),
            hours(row.charged_gpu_us),
            f"{row.ratio:.2f}",
        )
        for row in deliveries(lived.jobs, lived.grants, lived.last_ms)
    ]
    columns = ("organization", ">granted GPU-h", ">due: granted x elapsed", ">delivered", ">delivered / due")
    progress.say("\ndelivered against the grants")
    progress.out.print(table("", columns, delivery_rows))
    progress.say("")


def _ask_oracle(data: DataDir, progress: Progress) -> int:
    if not ORACLE.exists():
        progress.say(f"oracle      absent ({ORACLE}): the books were not judged", "yellow")
        return int(Exit.OK)
    command = [sys.executable, str(ORACLE), "--database", str(data.database), "--journal", str(data.journal)]
    verdict = subprocess.run([*command, "--final"], check=False, capture_output=True, text=True)
    for line in (verdict.stdout + verdict.stderr).splitlines():
        progress.say(f"oracle      {line}")
    if verdict.returncode:
        progress.say("the oracle found faults", "red")
        return int(Exit.REFUSED)
    progress.say("the oracle found no fault: ledger = journal", "green")
    return int(Exit.OK)
