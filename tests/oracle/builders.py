"""A small consistent world for the oracle's own tests: ledger and journal of one day, told by hand.

It books what the design says should be booked, with sums of its own; it uses nothing of the services but their schema.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine

from quota.schema import metadata

HOUR = 3_600_000
MINUTE = 60_000
DAY = 1_800_000_000_000 // HOUR * HOUR
"""Midnight of the story; every time below is minutes after it."""
RATES = {"h100": 1000, "a100": 500}
FLEET = {"sim-0": ("h100", 8), "sim-1": ("h100", 8), "sim-2": ("a100", 8), "sim-3": ("a100", 8)}
GRANT = "grant:g1"
PATH = ("grant:g1", "share:g1:lab", "tranche:g1:1")

TRANSFER_BLANKS = (
    "job_id",
    "attempt",
    "hold_id",
    "slice_id",
    "refund_of",
    "refund_kind",
    "starts_at_ms",
    "ends_at_ms",
)
ATTEMPT_BLANKS = (
    "first_started_at_ms",
    "last_started_at_ms",
    "ended_at_ms",
    "exit_code",
    "end_reason",
    "stop_reason",
)
"""Columns without a value unless a story gives one; the rest of them may be left out."""

Pods = list[tuple[str, int]]
"""Node and number of GPUs of each pod; the node's one class is meant."""


def at(minute: float) -> int:
    """The moment `minute` minutes after midnight."""
    return DAY + round(minute * MINUTE)


def gpu(node: str, number: int) -> str:
    """The id of a node's GPU."""
    return f"GPU-{node}-{number}"


@dataclass
class Attempt:
    """One attempt while its story is told."""

    job: str
    number: int
    pods: Pods
    hold: dict[str, Any]
    row: dict[str, Any]
    path: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.job}-{self.number}"

    @property
    def gpu_class(self) -> str:
        return FLEET[self.pods[0][0]][0]

    @property
    def gpus(self) -> int:
        return sum(count for _, count in self.pods)

    @property
    def rate(self) -> int:
        return RATES[self.gpu_class]


@dataclass
class World:
    """The rows of every table and the lines of the journal."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    journal: list[dict[str, Any]] = field(default_factory=list)
    seq: int = 0

    def event(self, moment: int, kind: str, **fields: Any) -> None:
        self.journal.append({"t": moment, "event": kind, **fields})

    def transaction(self) -> int:
        """The next seq of the feed, with a row for it."""
        self.seq += 1
        self.rows["feed"].append({"seq": self.seq, "kind": "job", "id": "any"})
        return self.seq

    def transfer(
        self, key: str, kind: str, amount: int, legs: dict[str, tuple[int, int, int]], **more: Any
    ) -> None:
        seq = more.pop("seq", None) or self.transaction()
        blank = dict.fromkeys(TRANSFER_BLANKS)
        fixed = {
            "id": key,
            "seq": seq,
            "position": 0,
            "type": kind,
            "at_ms": DAY,
            "actor": "hub",
            "reason": "told",
        }
        self.rows["transfers"].append(blank | fixed | {"amount_gpu_us": amount} | more)
        for account, (granted, held, used) in legs.items():
            leg = {"transfer_id": key, "account_id": account, "seq": seq}
            self.rows["transfer_legs"].append(leg | {"d_granted": granted, "d_held": held, "d_used": used})

    def account(self, key: str, kind: str, parent: str | None = None, grant: str | None = None) -> None:
        self.rows["accounts"].append(
            {"id": key, "kind": kind, "parent_id": parent, "program_id": None, "organization_id": None}
            | {"grant_id": grant, "released": 1, "overdraft_gpu_us": 0}
        )

    def claim(
        self, job: str, minute: float, pods: Pods, walltime_min: float, path: tuple[str, ...] = (GRANT,)
    ) -> Attempt:
        """Hold and capacity, then the object on the cluster."""
        earlier = [row for row in self.rows["attempts"] if row["job_id"] == job]
        number, walltime = len(earlier) + 1, round(walltime_min * MINUTE)
        hold_id, gpu_class = f"{job}:{number}:hold", FLEET[pods[0][0]][0]
        gpus = sum(count for _, count in pods)
        amount = walltime * gpus * RATES[gpu_class]
        hold = {"id": hold_id, "job_id": job, "attempt": number, "grant_id": "g1", "amount_gpu_us": amount}
        hold |= dict.fromkeys(["settled_gpu_us", "released_gpu_us", "refunded_gpu_us", "platform_gpu_us"], 0)
        hold |= {"resolved": 0, "gpu_class": gpu_class, "gpus": gpus, "rate_id": f"{gpu_class}:1"}
        hold |= {"rate_thousandths": RATES[gpu_class], "price_krw": 3000, "extensions": 0}
        self.rows["holds"].append(hold)
        self.rows["hold_accounts"] += [{"hold_id": hold_id, "account_id": account} for account in path]
        row: dict[str, Any] = dict.fromkeys(ATTEMPT_BLANKS)
        row |= {
            "job_id": job,
            "attempt": number,
            "organization_id": "lab",
            "state": "starting",
            "cluster": "sim",
        }
        row |= {"grant_id": "g1", "hold_id": hold_id, "walltime_ms": walltime, "grace_ms": 30_000}
        row |= {"claimed_at_ms": at(minute), "lost": 0, "capacity_held": 1, "settled": 0}
        self.rows["attempts"].append(row)
        spec = [
            {"index": index, "node": node, "gpu_class": FLEET[node][0], "count": count}
            for index, (node, count) in enumerate(pods)
        ]
        for pod in spec:
            place = {"job_id": job, "attempt": number, "pod_index": pod["index"], "cluster": "sim"}
            place |= {"node": pod["node"], "gpu_class": pod["gpu_class"], "gpus": pod["count"]}
            self.rows["placements"].append(place)
        attempt = Attempt(job, number, pods, hold, row, path)
        self.move(attempt, "hold", hold_id, amount, held=amount, hold_id=hold_id)
        self.event(
            at(minute), "object_created", name=attempt.name, job_id=job, attempt=number, suspend=False,
            abandoned=False, spec_hash="aa", walltime_ms=walltime, grace_ms=30_000, pods=spec, annotations={},
        )  # fmt: skip
        return attempt

    def move(
        self, attempt: Attempt, kind: str, key: str, amount: int, *, held: int = 0, used: int = 0, platform: int = 0,
        **more: Any,
    ) -> None:  # fmt: skip
        """A transfer on the hold's path, on the platform, or on both."""
        legs = {account: (0, held, used) for account in attempt.path} if held or used else {}
        legs |= {"platform": (0, 0, platform)} if platform else {}
        self.transfer(key, kind, amount, legs, job_id=attempt.job, attempt=attempt.number, **more)

    def extend(self, attempt: Attempt, walltime_min: float) -> None:
        """More time, held at the attempt's rate on its whole path."""
        more, hold = round(walltime_min * MINUTE), attempt.hold
        amount = more * attempt.gpus * attempt.rate
        hold["extensions"] += 1
        hold["amount_gpu_us"] += amount
        attempt.row["walltime_ms"] += more
        key = f"{attempt.job}:{attempt.number}:extend:{hold['extensions']}"
        self.move(attempt, "extend", key, amount, held=amount, hold_id=hold["id"])

    def start(self, attempt: Attempt, index: int, minute: float, numbers: list[int]) -> None:
        node, _ = attempt.pods[index]
        self.event(
            at(minute), "pod_started", name=attempt.name, job_id=attempt.job, attempt=attempt.number,
            pod_index=index, node=node, gpu_class=FLEET[node][0], gpu_uuids=[gpu(node, number) for number in numbers],
        )  # fmt: skip
        row = attempt.row
        row["first_started_at_ms"] = row["first_started_at_ms"] or at(minute)
        row["last_started_at_ms"], row["state"] = at(minute), "running"

    def stop(self, attempt: Attempt, index: int, minute: float, reason: str, code: int | None) -> None:
        self.event(
            at(minute), "pod_ended", name=attempt.name, job_id=attempt.job, attempt=attempt.number, pod_index=index,
            node=attempt.pods[index][0], exit_code=code, reason=reason,
        )  # fmt: skip

    def slice(self, attempt: Attempt, begin: float, end: float, payer: str = "grant") -> None:
        """One settled stretch of time."""
        starts, ends, hold = at(begin), at(end), attempt.hold
        amount = (ends - starts) * attempt.gpus * attempt.rate
        key = f"{attempt.job}:{attempt.number}:slice:{starts}"
        terms = {
            name: hold[name] for name in ("gpus", "gpu_class", "rate_id", "rate_thousandths", "price_krw")
        }
        paid = payer == "grant"
        self.move(
            attempt, "settle", key, amount, held=-amount * paid, used=amount * paid, platform=amount * (not paid),
            slice_id=key, starts_at_ms=starts, ends_at_ms=ends, gpus=attempt.gpus, rate_id=hold["rate_id"],
        )  # fmt: skip
        self.rows["slices"].append(
            {"id": key, "seq": self.seq, "job_id": attempt.job, "attempt": attempt.number, "starts_at_ms": starts}
            | {"ends_at_ms": ends, "payer": payer, "amount_gpu_us": amount} | terms
        )  # fmt: skip
        hold["settled_gpu_us" if paid else "platform_gpu_us"] += amount

    def refund(self, attempt: Attempt, slice_begin: float, begin: float, end: float, kind: str) -> None:
        """Give back a part of a slice that the grant paid."""
        key = f"{attempt.job}:{attempt.number}:slice:{at(slice_begin)}"
        amount = (at(end) - at(begin)) * attempt.gpus * attempt.rate
        platform = 0 if kind == "correction" else amount
        self.move(
            attempt, "refund", f"{key}:{kind}", amount, used=-amount, platform=platform, slice_id=key, refund_of=key,
            refund_kind=kind, starts_at_ms=at(begin), ends_at_ms=at(end), gpus=attempt.gpus,
            rate_id=attempt.hold["rate_id"],
        )  # fmt: skip
        attempt.hold["refunded_gpu_us"] += amount
        attempt.hold["platform_gpu_us"] += platform

    def end(self, attempt: Attempt, minute: float, reason: str, **more: Any) -> None:
        """The attempt is over, settled and free; what its hold still has is released."""
        hold = attempt.hold
        rest = hold["amount_gpu_us"] - hold["settled_gpu_us"]
        if rest:
            key = f"{attempt.job}:{attempt.number}:release"
            self.move(attempt, "release", key, rest, held=-rest, hold_id=hold["id"])
        hold |= {"released_gpu_us": rest, "resolved": 1}
        closed = {
            "state": "ended",
            "ended_at_ms": at(minute),
            "end_reason": reason,
            "capacity_held": 0,
            "settled": 1,
        }
        attempt.row.update(closed | more)

    def evidence(
        self, attempt: Attempt, number: int, hour: int, epoch: str, busy: float, observed: float
    ) -> None:
        node = attempt.pods[0][0]
        self.rows["evidence"].append(
            {
                "job_id": attempt.job,
                "attempt": attempt.number,
                "gpu_uuid": gpu(node, number),
                "hour_ms": at(hour * 60),
            }
            | {
                "agent_epoch": epoch,
                "node": node,
                "gpu_class": FLEET[node][0],
                "seq": 9,
                "received_at_ms": DAY,
            }
            | {"busy_ms": round(busy * MINUTE), "observed_ms": round(observed * MINUTE)}
        )


def a_world(*, still_running: bool = False, more: Callable[[World], None] = lambda _: None) -> World:
    """A day on which every rule has something to judge; with `still_running` one job has not ended.

    `more` tells further jobs before the books are closed.
    """
    world = World()
    _open_accounts(world)
    for node, (gpu_class, count) in FLEET.items():
        devices = [{"gpu_uuid": gpu(node, number), "gpu_class": gpu_class} for number in range(count)]
        world.event(DAY, "node_added", node=node, gpus=devices)
    _normal_job(world)
    _job_past_its_walltime(world)
    _job_on_a_lost_node(world)
    _gang_over_the_hour(world)
    _job_that_never_started(world)
    if still_running:
        _running_job(world)
    more(world)
    world.event(at(750), "foreign_set", node="sim-0", gpu_class="h100", count=2)
    _close(world)
    return world


def _open_accounts(world: World) -> None:
    budget, award = 9_000 * HOUR * 1000, 1_000 * HOUR * 1000
    world.account("treasury", "treasury")
    world.account("platform", "platform")
    world.account("program:p1", "program")
    world.account(GRANT, "grant", grant="g1")
    world.account("tranche:g1:1", "tranche", GRANT, "g1")
    world.account("share:g1:lab", "share", "tranche:g1:1", "g1")
    world.transfer("budget", "deposit", budget, {"treasury": (-budget, 0, 0), "program:p1": (budget, 0, 0)})
    world.transfer("award", "deposit", award, {"program:p1": (-award, 0, 0), GRANT: (award, 0, 0)})
    world.transfer("tranche", "transfer", award // 2, {"tranche:g1:1": (award // 2, 0, 0)})
    world.transfer("share", "transfer", award // 4, {"share:g1:lab": (award // 4, 0, 0)})
    world.transfer("cut", "pullback", HOUR, {GRANT: (-HOUR, 0, 0), "program:p1": (HOUR, 0, 0)})
    _earlier_grant(world)
    world.rows["grants"].append(
        {"id": "g1", "program_id": "p1", "organization_id": "lab", "account_id": GRANT, "starts_at_ms": DAY}
        | {"ends_at_ms": at(90_000), "created_at_ms": DAY, "pace_lag_ms": None, "pace_as_of_ms": None}
        | {"pace_spent_gpu_us": None}
    )


def _earlier_grant(world: World) -> None:
    """It gave some of its hours away, the rest expired with it, and a part of that was carried over."""
    old, over, fund = "grant:g0", "expired:p1", "program:p1"
    world.account(old, "grant", grant="g0")
    world.account(over, "expired")
    for key, kind, hours, source, target in (
        ("first", "deposit", 50, fund, old),
        ("moved", "transfer", 10, old, GRANT),
        ("adjusted", "adjust", 2, old, fund),
        ("g0:expire:1", "expire", 38, old, over),
        ("g0:carry-over:1", "transfer", 15, over, GRANT),
    ):
        amount = hours * HOUR * 1000
        world.transfer(key, kind, amount, {source: (-amount, 0, 0), target: (amount, 0, 0)})


def _normal_job(world: World) -> None:
    alpha = world.claim("alpha", 609, [("sim-0", 4)], 60, path=PATH)
    world.start(alpha, 0, 610, [0, 1, 2, 3])
    world.stop(alpha, 0, 640, "completed", 0)
    world.slice(alpha, 610, 640)
    world.end(alpha, 640, "succeeded", exit_code=0)
    # the agent lost its outbox at 620 and began a new epoch
    world.evidence(alpha, 0, 10, "epoch-one", busy=8, observed=9.5)
    world.evidence(alpha, 0, 10, "epoch-two", busy=15, observed=20)
    world.evidence(alpha, 1, 10, "epoch-one", busy=0, observed=30)


def _job_past_its_walltime(world: World) -> None:
    delta = world.claim("delta", 619, [("sim-0", 2)], 20)
    world.start(delta, 0, 620, [4, 5])
    world.extend(delta, 4)
    world.extend(delta, 6)
    world.event(at(650), "object_suspended", name="delta-1", abandoned=False, grace_ms=30_000)
    world.stop(delta, 0, 650.3, "stopped", 143)
    world.slice(delta, 620, 650)
    world.slice(delta, 650, 650.3, "platform")
    world.end(delta, 650.3, "time_limit", stop_reason="time_limit", stop_at_ms=at(650), stop_grace_ms=30_000)


def _job_on_a_lost_node(world: World) -> None:
    charlie = world.claim("charlie", 604, [("sim-2", 8)], 120, path=PATH)
    world.start(charlie, 0, 605, list(range(8)))
    world.slice(charlie, 605, 660)  # it seemed to run on
    world.event(at(645), "node_lost", node="sim-2", silent_ms=17 * MINUTE)
    world.stop(charlie, 0, 645, "node_lost", None)
    world.event(at(662), "node_noticed", node="sim-2")
    world.refund(charlie, 605, 645, 660, "correction")
    world.refund(charlie, 605, 615, 645, "fault")
    world.end(charlie, 645, "node_failed", lost=1)
    again = world.claim("charlie", 663, [("sim-3", 8)], 120, path=PATH)
    world.start(again, 0, 664, list(range(8)))
    world.event(at(690), "node_returned", node="sim-2")
    world.stop(again, 0, 700, "completed", 0)
    world.slice(again, 664, 700)
    world.end(again, 700, "succeeded", exit_code=0)
    world.evidence(charlie, 0, 10, "epoch-one", busy=40, observed=40)


def _gang_over_the_hour(world: World) -> None:
    bravo = world.claim("bravo", 649, [("sim-0", 4), ("sim-1", 4)], 60)
    world.start(bravo, 0, 652, [0, 1, 2, 3])
    world.start(bravo, 1, 655, [0, 1, 2, 3])
    world.slice(bravo, 652, 655, "platform")
    world.slice(bravo, 655, 660)
    world.stop(bravo, 0, 680, "completed", 0)
    world.stop(bravo, 1, 685, "completed", 0)
    world.slice(bravo, 660, 685)
    world.end(bravo, 685, "succeeded", exit_code=0)


def _job_that_never_started(world: World) -> None:
    echo = world.claim("echo", 690, [("sim-1", 8)], 10)
    world.event(at(700), "object_suspended", name="echo-1", abandoned=True, grace_ms=30_000)
    stopped = {"stop_reason": "abandoned", "stop_at_ms": at(700), "stop_grace_ms": 30_000}
    world.end(echo, 700, "abandoned", **stopped)


def _running_job(world: World) -> None:
    golf = world.claim("golf", 708, [("sim-1", 8)], 300)
    world.start(golf, 0, 709, list(range(8)))
    world.slice(golf, 709, 720)
    golf.row["settled_through_ms"] = at(720)


def _close(world: World) -> None:
    """Everything that follows from the rest: balances, jobs, capacity, the feed's head, line numbers."""
    balances: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for leg in world.rows["transfer_legs"]:
        for place, name in enumerate(("d_granted", "d_held", "d_used")):
            balances[leg["account_id"]][place] += leg[name]
    for account in world.rows["accounts"]:
        granted, held, used = balances[account["id"]]
        account |= {"granted_gpu_us": granted, "held_gpu_us": held, "used_gpu_us": used}
    latest = {row["job_id"]: row for row in world.rows["attempts"]}
    for job, row in latest.items():
        placed = next(place for place in world.rows["placements"] if place["job_id"] == job)
        world.rows["jobs"].append(_job_row(job, row, placed["gpu_class"]))
    holding = {(row["job_id"], row["attempt"]) for row in world.rows["attempts"] if row["capacity_held"]}
    for node, (gpu_class, count) in FLEET.items():
        used = sum(
            place["gpus"]
            for place in world.rows["placements"]
            if place["node"] == node and (place["job_id"], place["attempt"]) in holding
        )
        world.rows["node_capacity"].append(
            {
                "cluster": "sim",
                "node": node,
                "gpu_class": gpu_class,
                "total": count,
                "foreign_used": 0,
                "used": used,
            }
        )
    for gpu_class, rate in RATES.items():
        world.rows["rates"].append(
            {"id": f"{gpu_class}:1", "gpu_class": gpu_class, "rate_thousandths": rate, "price_krw": 3000}
            | {"valid_from_ms": DAY}
        )
    world.rows["clusters"].append(
        {"id": "sim", "kind": "simulated", "paused": 0, "observed_through_ms": at(760)}
    )
    # a transaction that the feed need not show still leaves its trace in the audit
    world.seq += 1
    world.rows["audit"].append(
        {
            "id": 1,
            "seq": world.seq,
            "at_ms": DAY,
            "actor": "op",
            "action": "read",
            "subject": "g1",
            "reason": "",
        }
        | {"detail": "{}"}
    )
    world.rows["feed_head"].append({"id": 1, "seq": world.seq, "oldest": 0})
    world.journal.sort(key=lambda line: line["t"])
    for number, line in enumerate(world.journal, 1):
        line["n"] = number


def _job_row(job: str, attempt: dict[str, Any], gpu_class: str) -> dict[str, Any]:
    return {
        "id": job, "name": job, "organization_id": "lab", "grant_id": None, "gpu_class": gpu_class,
        "fallback_classes": '["h200"]', "gpus_per_pod": 1, "pods": 1,
        "walltime_ms": attempt["walltime_ms"], "grace_ms": 30_000, "restartable": 1,
        "checkpoint_interval_ms": 10 * MINUTE, "spec": "{}", "submitted_by": "token", "submitted_at_ms": DAY,
        "state": attempt["state"], "end_reason": attempt["end_reason"], "ended_at_ms": attempt["ended_at_ms"],
        "attempt": attempt["attempt"], "abandonments": 0, "not_before_ms": None, "cancel_requested_at_ms": None,
    }  # fmt: skip


@dataclass
class Files:
    """A world on disk, to be judged or to be corrupted."""

    database: Path
    journal: Path

    def change(self, *statements: str) -> None:
        """Write into the database what its constraints would not allow."""
        connection = sqlite3.connect(self.database, isolation_level=None)
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            changed = connection.execute(statement).rowcount
            assert changed != 0, f"nothing to corrupt: {statement}"
        connection.close()

    def lines(self) -> list[dict[str, Any]]:
        """The journal's lines."""
        return [json.loads(line) for line in self.journal.read_text().splitlines()]

    def write_lines(self, lines: list[dict[str, Any]]) -> None:
        """A new journal, its lines numbered anew."""
        numbered = (json.dumps(line | {"n": number}) + "\n" for number, line in enumerate(lines, 1))
        self.journal.write_text("".join(numbered))


def write(world: World, folder: Path) -> Files:
    """The world as a SQLite file and a journal."""
    files = Files(folder / "hub.db", folder / "journal.jsonl")
    engine = create_engine(f"sqlite:///{files.database}")
    metadata.create_all(engine)
    engine.dispose()
    connection = sqlite3.connect(files.database)
    for table, rows in world.rows.items():
        for row in rows:
            marks = ", ".join("?" * len(row))
            names = ", ".join(f'"{name}"' for name in row)
            connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(row.values()))
    connection.commit()
    connection.close()
    files.write_lines(world.journal)
    return files
