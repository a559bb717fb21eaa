"""A seeded crowd: three firms submit and cancel jobs of every kind, and do not give up when nobody answers."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from hub_processes import ORGANIZATIONS, Hub

from quota.client import QuotaClient, ServiceUnavailable
from quota.schemas.jobs import JobSubmission

T = TypeVar("T")

CANCELLED_SHARE = 0.25
KINDS: dict[str, dict[str, object]] = {
    "one": {"runs_s": (1, 900)},
    "several": {"gpus_per_pod": (2, 8), "runs_s": (60, 900)},
    "gang": {"gpus_per_pod": (1, 8), "pods": (2, 3), "runs_s": (60, 600), "start_s": "5"},
    "slice": {"gpu_class": "h100-1g.10gb", "gpus_per_pod": (1, 4), "runs_s": (30, 900)},
    "failing": {"runs_s": (10, 600), "exit_code": "3"},
    "instant": {"runs_s": (0, 1), "start_s": "0"},
    "stubborn": {"runs_s": (2000, 4000), "walltime_s": 240, "stop_s": "90", "grace_s": 45},
    "long": {"runs_s": (3000, 5000), "walltime_s": 7200},
    "too long": {"runs_s": (4000, 9000), "walltime_s": 900, "stop_s": "20", "grace_s": 30},
    "deaf": {"runs_s": (4000, 9000), "walltime_s": 600, "stop_s": "900", "grace_s": 120},
    "restartable": {"gpus_per_pod": (1, 4), "runs_s": (60, 1200), "restartable": True},
}


BRISK = ("one", "several", "gang", "slice", "failing", "instant", "stubborn", "restartable")
"""Kinds that are over soon."""


@dataclass
class Crowd:
    """One thread per firm. `start` and `stop` it; afterwards it knows what it was promised."""

    hub: Hub
    seed: str
    kinds: tuple[str, ...] = tuple(KINDS)
    pause_s: tuple[float, float] = (0.1, 0.5)
    submitted: dict[str, str] = field(default_factory=dict)
    """Job ids by the names that were submitted."""
    cancelled: set[str] = field(default_factory=set)
    troubles: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._firm, args=(name,), name=f"firm-{name}") for name in ORGANIZATIONS
        ]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def broken_promises(self) -> list[str]:
        """What was answered to a firm and is not so in the database; a job that is there twice."""
        rows = self.hub.ask(
            "SELECT name, id, cancel_requested_at_ms, state, end_reason FROM jobs WHERE name LIKE ?",
            f"{self.seed} %",
        )
        there = {name: row for name, *row in rows}
        counts = Counter(row[0] for row in rows)
        broken = [f"{name} is there {n} times" for name, n in counts.items() if n > 1]
        for name, job_id in self.submitted.items():
            if name not in there or there[name][0] != job_id:
                broken.append(f"{name} was answered as {job_id}, but is {there.get(name)}")
        broken += [f"{row[0]} was never submitted" for row in rows if row[0] not in self.submitted]
        for name, (job_id, asked_at, state, reason) in there.items():
            if job_id in self.cancelled and asked_at is None and state != "ended":
                broken.append(f"{name} was cancelled, but is {state} {reason}")
        return broken + self.troubles

    def _firm(self, name: str) -> None:
        rng = random.Random(f"{self.seed} {name}")
        leaving: list[tuple[float, str]] = []
        number = 0
        try:
            with self.hub.client(name, 3.0) as client:
                while not self._over.is_set():
                    number += 1
                    job_id = self._submit(client, f"{self.seed} {name} {number}", rng)
                    if rng.random() < CANCELLED_SHARE:
                        leaving.append((time.monotonic() + rng.choice([0, rng.uniform(0, 2)]), job_id))
                    self._over.wait(rng.uniform(*self.pause_s))
                    for due in [due for due in leaving if due[0] <= time.monotonic()]:
                        leaving.remove(due)
                        self._cancel(client, due[1])
                for _, job_id in leaving:
                    self._cancel(client, job_id)
        except Exception as trouble:
            self.troubles.append(f"{name} got {trouble!r}")

    def _submit(self, client: QuotaClient, name: str, rng: random.Random) -> str:
        body = a_job(name, rng.choice(self.kinds), rng)
        job = insist(lambda: client.submit_job(body, f"key {name}"))
        self.submitted[name] = job.id
        return job.id

    def _cancel(self, client: QuotaClient, job_id: str) -> None:
        insist(lambda: client.cancel_job(job_id))
        self.cancelled.add(job_id)


class Weather:
    """Now and then a node is lost with everything on it, and comes back a while later."""

    def __init__(self, hub: Hub, seed: str) -> None:
        self._hub = hub
        self._rng = random.Random(f"{seed} weather")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._blow, name="weather")

    def __enter__(self) -> Weather:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _blow(self) -> None:
        while not self._over.wait(self._rng.uniform(0.5, 3)):
            node = self._rng.choice(["sim-1", "sim-2"])
            silent_ms = self._rng.choice([0, 60_000, 600_000])
            self._hub.plant(fault="lose_node", node=node, silent_ms=silent_ms)
            self._over.wait(self._rng.uniform(0.2, 3))
            self._hub.plant(fault="return_node", node=node)


def a_job(name: str, kind: str, rng: random.Random) -> JobSubmission:
    """A job of a kind, its numbers by chance."""
    words = {
        key: rng.randint(*value) if isinstance(value, tuple) else value for key, value in KINDS[kind].items()
    }
    runs_s = int(str(words.pop("runs_s")))
    notes = {"duration_s": str(runs_s)}
    for key in ("start_s", "stop_s", "exit_code"):
        if key in words:
            notes[key] = str(words.pop(key))
    usual = {"gpu_class": "h100", "walltime_s": max(1800, runs_s * 2), "grace_s": 30}
    annotations = {f"simulate.gpuhub/{key}": text for key, text in notes.items()}
    return JobSubmission.model_validate({"name": name, **usual, **words, "annotations": annotations})


def verdict(hub: Hub, *crowds: Crowd) -> None:
    """Everything comes to its end, and nobody finds a fault: oracle, firms, the hub itself, its logs."""
    hub.settle()
    assert hub.judge() == []
    for crowd in crowds:
        assert crowd.broken_promises() == []
    assert hub.findings() == []
    assert hub.troubles() == []
    hub.sound = True


def insist(call: Callable[[], T], patience_s: float = 60.0) -> T:
    """Ask again until somebody answers."""
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            return call()
        except ServiceUnavailable:
            assert time.monotonic() < deadline_s, f"nobody answered for {patience_s:.0f} s"
            time.sleep(0.05)
