"""One hub in memory: quota and cluster models, and a scheduler process that can be killed at any step."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

from quota.clock import Clock
from scheduler.actions import Done, Hands
from scheduler.crash import CrashPlan
from scheduler.feed import FeedFollower, FeedNews
from scheduler.lease import LeaseKeeper
from scheduler.metrics import Metrics
from scheduler.streams import SteppedDown
from scheduler.term import Intervals, Surroundings, Term
from scheduler.views import ClusterView
from tests.unit.scheduler.cluster_model import ClusterModel, Time
from tests.unit.scheduler.quota_model import QuotaModel


class Killed(BaseException):
    """The process died at a named point."""


class KillAt(CrashPlan):
    """Raises where the real plan would send a signal."""

    def arm(self, name: str, count: int) -> None:
        """Die at the `count`-th pass of this point."""
        self._name, self._left = name, count

    def reach(self, name: str) -> None:
        """Die here if it is time."""
        if name == self._name:
            self._left -= 1
            if self._left == 0:
                raise Killed(name)


class HandClock(Clock):
    """Business time that stands still until the test moves it."""

    def __init__(self, time: Time) -> None:
        super().__init__()
        object.__setattr__(self, "time", time)

    def now_ms(self) -> int:
        """The test's time."""
        now_ms: int = self.__dict__["time"].now_ms
        return now_ms


class InlineExecutor(Executor):
    """Does at once what it is given."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run it now; a killed process takes the caller with it."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@dataclass
class Process:
    """A scheduler's memory; all of it is lost when it is killed."""

    keeper: LeaseKeeper
    around: Surroundings
    views: dict[str, ClusterView]
    inbox: list[FeedNews | Done]
    term: Term | None = None
    follower: FeedFollower | None = None


@dataclass
class World:
    """Quota, one cluster, and at most one scheduler at a time."""

    time: Time = field(default_factory=Time)
    seed: int = 0

    def __post_init__(self) -> None:
        self.quota = QuotaModel(self.time)
        self.cluster = ClusterModel(self.time)
        self.clock = HandClock(self.time)
        self.process: Process | None = None
        self.instances = 0
        self.crash = KillAt()

    def boot(self, holder: str = "one") -> Process:
        """Start a scheduler with an empty memory; the one before it is dead."""
        inbox: list[FeedNews | Done] = []
        views = {"sim": ClusterView("sim")}
        plan = self.crash = KillAt()
        keeper = LeaseKeeper(
            self.quota, holder, monotonic_s=self.time.monotonic_s, new_instance=self._new_instance
        )
        around = Surroundings(
            quota=self.quota,
            clock=self.clock,
            views=views,
            hands=Hands({"sim": self.cluster}, {"sim": InlineExecutor()}, inbox.append, plan),
            holds=keeper.holds,
            metrics=Metrics(),
            crash=plan,
            intervals=Intervals(report_s=1.0, ranking_s=1.0),
            rng=random.Random(self.seed),
            monotonic_s=self.time.monotonic_s,
        )
        self.cluster.forget_observations()
        self.process = Process(keeper, around, views, inbox)
        return self.process

    def round(self, pass_ms: int = 250) -> None:
        """Let time pass, then one turn of the scheduler if it lives."""
        self.time.now_ms += pass_ms
        self.cluster.pass_time()
        if self.process is not None:
            try:
                self._turn(self.process)
            except Killed:
                self.process = None

    def rounds(self, count: int, pass_ms: int = 250) -> None:
        """Several of them."""
        for _ in range(count):
            self.round(pass_ms)

    def _turn(self, process: Process) -> None:
        process.keeper.keep_once()
        latest, lease = process.keeper.latest(), process.keeper.lease()
        if latest is None or (process.term is not None and process.term.epoch != latest.epoch):
            process.term = None
        if lease is not None and process.term is None:
            process.term = Term(lease, process.around)
            process.follower = FeedFollower(self.quota, lease.epoch, process.inbox.append, 0)
        process.views["sim"].take(self.cluster.observe(0), self.time.now_ms)
        if process.term is None or process.follower is None:
            return
        process.follower.follow_once()
        while process.inbox:
            message = process.inbox.pop(0)
            if isinstance(message, Done):
                process.term.take_done(message)
            else:
                process.term.take_feed(message)
        if process.term.ready:
            try:
                process.term.step()
            except SteppedDown as over:
                process.keeper.step_down(process.term.epoch, superseded=over.code == "stale_epoch")
                process.term = None

    def _new_instance(self) -> str:
        self.instances += 1
        return f"instance-{self.instances:04d}"
