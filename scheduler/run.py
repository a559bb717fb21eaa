"""The scheduler process: threads that listen, one loop that decides, a pool that acts on the clusters."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import assert_never

import structlog

from quota.client import ServiceProblem, ServiceUnavailable
from quota.clock import Clock
from scheduler.actions import Done, Hands
from scheduler.backoff import Backoffs
from scheduler.clusters.port import Cluster, ClusterUnavailable
from scheduler.crash import CrashPlan
from scheduler.door import Readiness
from scheduler.explain import explain
from scheduler.feed import FeedFollower, FeedRead, SnapshotTaken
from scheduler.forecasting import ForecastDesk, Forecaster
from scheduler.gateway import Quota
from scheduler.inbox import Inbox, Message, Observed
from scheduler.lease import Lease, LeaseDesk, LeaseKeeper
from scheduler.metrics import Metrics
from scheduler.settings import Settings
from scheduler.streams import SteppedDown
from scheduler.term import Intervals, Surroundings, Term
from scheduler.views import ClusterView

OBSERVE_PAUSE_S = 0.1

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Lines:
    """Connections to the quota service: a slow answer on one must not hold the others."""

    lease: LeaseDesk
    feed: Quota
    loop: Quota
    forecast: ForecastDesk | None = None
    """None: nothing is foretold."""


class Scheduler:
    """Everything of one process. `turn` is one round of the loop; `run` goes round until it is told to stop."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        lines: Lines,
        clusters: Mapping[str, Cluster],
        metrics: Metrics,
        crash: CrashPlan,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._lines = lines
        self._clusters = clusters
        self._metrics = metrics
        self._inbox = Inbox()
        self._stopping = threading.Event()
        self._lease_bell = threading.Event()
        # one each: a cluster that does not answer holds its own hands only
        self._pools = {name: ThreadPoolExecutor(settings.hands, f"hand-{name}") for name in clusters}
        self._views = {name: ClusterView(name) for name in clusters}
        self._keeper = LeaseKeeper(lines.lease, settings.holder, on_change=self._inbox.ring)
        rng = random.Random()
        self._rests: Backoffs[str] = Backoffs(rng, time.monotonic, first_s=1.0, longest_s=30.0)
        self._around = Surroundings(
            quota=lines.loop,
            clock=clock,
            views=self._views,
            hands=Hands(clusters, self._pools, self._inbox.put, crash),
            holds=self._keeper.holds,
            metrics=metrics,
            crash=crash,
            intervals=Intervals(settings.report_interval_s, settings.ranking_interval_s),
            start_limit_s=settings.start_limit_s,
            rng=rng,
        )
        self._forecaster = None if lines.forecast is None else self._make_forecaster(lines.forecast)
        self._term: Term | None = None
        self._term_over = threading.Event()

    def _make_forecaster(self, desk: ForecastDesk) -> Forecaster | None:
        settings = self._settings
        if settings.forecast_interval_s == 0:
            return None
        return Forecaster(
            desk,
            self._clock,
            self._metrics,
            self._keeper.holds,
            settings.forecast_interval_s,
            settings.forecast_limit_s,
        )

    def register(self, url: str) -> None:
        """Where others reach this process while it leads."""
        self._keeper.url = url

    def door_secret(self) -> str:
        """What the quota service shows at the door; nothing while this process does not lead."""
        lease = self._keeper.lease()
        return "" if lease is None else lease.door_secret

    def run(self) -> None:
        """Lead when the lease is ours, stand by when it is not, until `stop`."""
        self._start_threads()
        while not self._stopping.is_set():
            began_s = time.monotonic()
            self.turn()
            self._stopping.wait(self._settings.cycle_interval_s - (time.monotonic() - began_s))
            self._inbox.wait(self._patience_s())
        self._end_term()
        if self._forecaster is not None:
            self._forecaster.stop()
        # what is under way is finished here; what is not begun is done by whoever leads next
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)

    def stop(self) -> None:
        """End after the present step. Safe in a signal handler."""
        self._stopping.set()
        self._inbox.ring()
        self._lease_bell.set()

    def turn(self) -> None:
        """Look at the lease first, then take in what was seen, then do one step of the term."""
        latest = self._keeper.latest()
        if latest is None or (self._term is not None and self._term.epoch != latest.epoch):
            self._end_term()
        lease = self._keeper.lease()
        if lease is not None and self._term is None and not self._rests.waits("term"):
            self._begin_term(lease)
        for message in self._inbox.drain():
            self._take(message)
        self._metrics.lead(lease is not None and self._term is not None)
        if lease is None or self._term is None or not self._term.ready:
            return
        began_s = time.monotonic()
        self._step(self._term)
        self._metrics.cycle(time.monotonic() - began_s)
        self._foretell()

    def readiness(self) -> Readiness:
        """Ready = the lease is held and the snapshot is loaded."""
        term = self._term
        if self._keeper.lease() is None:
            return Readiness(False, self._keeper.standby_reason or "lease_lost")
        if term is None or not term.ready:
            return Readiness(False, "loading")
        return Readiness(True, f"epoch {term.epoch}")

    def waiting(self) -> list[str]:
        """Why each waiting job waits, in the order of the queue."""
        term = self._term
        if term is None:
            return []
        standing = term.standing
        lines = []
        for position, job_id in enumerate(standing.order, start=1):
            why = standing.reasons.get(job_id)
            lines.append(f"{position} {job_id} {'' if why is None else explain(why)}")
        return lines

    # --- the loop ---

    def _foretell(self) -> None:
        """Hand over what is known, if a forecast is due and the term goes on."""
        if self._forecaster is None or self._term is None or not self._forecaster.due():
            return
        standpoint = self._term.standpoint()
        if standpoint is not None:
            self._forecaster.ask(standpoint)

    def _begin_term(self, lease: Lease) -> None:
        self._term = Term(lease, self._around)
        self._term_over = threading.Event()
        follower = FeedFollower(self._lines.feed, lease.epoch, self._inbox.put, self._settings.feed_wait_s)
        self._start_thread(f"feed-{lease.epoch}", follower.follow_once, self._term_over)

    def _end_term(self) -> None:
        if self._term is None:
            return
        log.info("term_ended", epoch=self._term.epoch)
        self._term = None
        self._term_over.set()

    def _take(self, message: Message) -> None:
        match message:
            case Observed(cluster=name, observation=observation, at_ms=at_ms):
                self._views[name].take(observation, at_ms)
            case Done():
                outcome = "failed" if message.trouble else "done"
                self._metrics.acted(message.action.key[2], outcome)
                if self._term is not None:
                    self._term.take_done(message)
            case SnapshotTaken() | FeedRead():
                if self._term is not None:
                    self._term.take_feed(message)
            case _:
                assert_never(message)

    def _step(self, term: Term) -> None:
        try:
            term.step()
            self._rests.succeeded("term")
        except SteppedDown as over:
            log.warning("stepped_down", epoch=term.epoch, code=over.code, detail=str(over))
            self._leave(term, superseded=over.code == "stale_epoch")
        except Exception:  # the loop's edge: drop all memory and begin again from a snapshot
            log.exception("step_failed", epoch=term.epoch)
            self._leave(term, superseded=False)

    def _leave(self, term: Term, *, superseded: bool) -> None:
        self._end_term()
        self._rests.failed("term")
        self._keeper.step_down(term.epoch, superseded=superseded)
        self._lease_bell.set()

    def _patience_s(self) -> float:
        """Until when nothing needs doing, unless the bell rings."""
        term, idle_s = self._term, self._settings.idle_interval_s
        if term is None:
            return idle_s
        due_ms, ranking_s = term.next_due_ms(), term.ranking_due_in_s()
        # what changed right after a ranking is told with the next one, which is not to wait for the idle interval
        waits_s = [idle_s] if ranking_s == 0 else [idle_s, ranking_s]
        if due_ms is not None:
            waits_s.append(max(0.0, self._clock.wall_s(due_ms - self._clock.now_ms())))
        return min(waits_s)

    # --- the threads ---

    def _start_threads(self) -> None:
        threading.Thread(target=self._keep_lease, name="lease", daemon=True).start()
        if self._forecaster is not None:
            threading.Thread(target=self._forecaster.run, name="forecast", daemon=True).start()
        for name in self._clusters:
            self._start_thread(f"observe-{name}", partial(self._observe_once, name), self._stopping)

    def _start_thread(self, name: str, once: Callable[[], None], over: threading.Event) -> None:
        threading.Thread(target=self._repeat, args=(name, once, over), name=name, daemon=True).start()

    def _repeat(self, name: str, once: Callable[[], None], over: threading.Event) -> None:
        """Call `once` again and again; after a failure a little later."""
        pauses: Backoffs[str] = Backoffs(random.Random(), time.monotonic, first_s=0.5, longest_s=10.0)
        while not (over.is_set() or self._stopping.is_set()):
            try:
                once()
            except (ServiceUnavailable, ServiceProblem, ClusterUnavailable) as trouble:
                pause_s = pauses.failed(name)
                if not over.is_set():
                    log.warning(
                        "unavailable", thread=name, trouble=str(trouble), again_in_s=round(pause_s, 1)
                    )
                over.wait(pause_s)
            except Exception:  # this thread's edge: without it nobody would listen any more
                log.exception("thread_failed", thread=name)
                over.wait(pauses.failed(name))
            else:
                pauses.succeeded(name)

    def _observe_once(self, name: str) -> None:
        observation = self._clusters[name].observe(self._settings.observe_wait_s)
        self._inbox.put(Observed(name, observation, self._clock.now_ms()))
        # a busy cluster answers at once: let some changes gather
        self._stopping.wait(min(OBSERVE_PAUSE_S, self._settings.cycle_interval_s))

    def _lease_pause_s(self, held: bool) -> float:
        lease = self._keeper.latest()
        if not held or lease is None:
            return self._settings.lease_retry_s
        # a third of its life, so that one lost renewal costs nothing
        return min(self._settings.lease_renew_s, lease.ttl_s / 3)

    def _keep_lease(self) -> None:
        while not self._stopping.is_set():
            try:
                held = self._keeper.keep_once()
            except Exception:  # this thread's edge: without it the process would stand by for ever
                log.exception("thread_failed", thread="lease")
                held = False
            self._lease_bell.wait(self._lease_pause_s(held))
            self._lease_bell.clear()
