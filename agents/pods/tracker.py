"""Asks the kubelet every few seconds who holds which GPU, and keeps the answer; one thread of its own.

What happens when something fails or the process dies between two steps:

- the kubelet is away, slow, or its socket was replaced: every question has a connection of its own, so the next one
  finds the new socket. Until then holders stay as cgroups show them; the gap is counted.
- dies after the kubelet's answer, before it is kept: the next start asks again; who began to hold in between is
  believed from that start on, and the seconds before are the device's.
- dies after it was kept: the next start asks before anything is sampled. Who is still listed goes on without a hole;
  who is not gets nothing of the time that the dead process had not stored.
- the disk does not take it: it is kept in memory and offered again with every answer.
- samples are read while an answer is under way: they go to the holders of before. A holder's time ends and begins with
  the moment at which an answer is published, so samples read earlier are not taken back.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prometheus_client.metrics_core import Metric

from agents import families, log
from agents.attribution import by_gpu, present_of, spans_of
from agents.model import Holding, Shares
from agents.outbox_file import OutboxBroken, OutboxUnwritable
from agents.pods.cgroups import Node, Process
from agents.pods.holdings import Holdings, judge
from agents.pods.offers import Offer, Offers
from agents.pods.podresources import LIST, Malformed, pods_in
from agents.pods.unary import Caller, CallFailed, call
from quota.clock import Clock

LONGEST_BACKOFF_S = 30.0
MOST_ENDED_MS = 1_800_000
"""How long an ended holding waits for its last samples; no driver's buffer and no reader's memory reaches so far."""
USUAL_FAILURES = ("absent", "broken", "deadline_exceeded")
"""They have a series before there is any: Prometheus sees no increase in one that appears with a first failure."""
PROCESSES_KEPT = 4_096
"""So many processes have their pod remembered."""


class Shelf(Protocol):
    """Where holdings outlive the process; `agents.outbox.Outbox` is one."""

    def holdings(self) -> tuple[Holding, ...]:
        """What was kept last."""

    def keep_holdings(self, holdings: Iterable[Holding]) -> None:
        """Keep these instead of the ones before. Raises OutboxUnwritable, OutboxBroken."""


@dataclass(frozen=True, slots=True)
class KubeletSettings:
    """Where the kubelet is, how often it is asked, and which pods are the hub's."""

    socket: Path = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    interval_s: float = 3.0
    timeout_s: float = 2.0
    namespace_prefix: str = "hub-"


@dataclass(frozen=True, slots=True)
class View:
    """Who holds and held GPUs, as of the last answer."""

    holdings: tuple[Holding, ...] = ()
    known: bool = False
    """Whether the kubelet answers: if not, a GPU without a holder is not known to be free."""


@dataclass(frozen=True, slots=True)
class _Gap:
    """How long there was no answer: from the last one before each outage up to the first one after it."""

    counted_s: float = 0.0
    until_s: float | None = None
    """When it was counted last."""
    known: bool = True

    def after(self, now_s: float, known: bool) -> _Gap:
        """With the time up to now, in which an answer came or not."""
        open_s = 0.0 if self.until_s is None or (known and self.known) else now_s - self.until_s
        return _Gap(self.counted_s + open_s, now_s, known)

    def seconds(self, now_s: float) -> float:
        """All of it, that of an outage which goes on too."""
        return self.counted_s if self.known or self.until_s is None else self.counted_s + now_s - self.until_s


class PodTracker:
    """Keeps a `View`; thread-safe for readers."""

    def __init__(
        self,
        settings: KubeletSettings,
        clock: Clock,
        shelf: Shelf,
        node: Node | None = None,
        ask: Caller = call,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._clock, self._shelf, self._ask = settings, clock, shelf, ask
        self._monotonic = monotonic
        self._node = node or Node()
        kept = shelf.holdings()
        self._holdings = Holdings(kept)
        self._kept = kept
        self.view = View(kept)
        """Replaced as a whole."""
        self._after_ms = 0
        self._failures: Counter[str] = Counter(dict.fromkeys(USUAL_FAILURES, 0))
        self._pods: Mapping[str, int] = {}
        self._unknown: Mapping[str, int] = {}
        self._answered_wall_s: float | None = None
        self._gap = _Gap()
        self._offers = Offers(ask, settings.socket, settings.timeout_s, settings.interval_s, monotonic)
        self._claimed = False
        self._asked_s = monotonic()
        self._backoff_s = 0.0
        self._processes: dict[Process, str | None] = {}
        self._last_of_pid: dict[int, Process] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pods", daemon=True)

    def start(self) -> None:
        """Ask once, so that the first samples find their holders, and then every few seconds."""
        self.ask_once()
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(self._settings.timeout_s + 1)

    def ask_once(self) -> None:
        """Ask the kubelet unless it is being left alone, look at cgroups, publish, keep."""
        began_s = self._monotonic()
        pods = None
        if self._backoff_s == 0.0 or began_s >= self._asked_s + self._backoff_s:
            self._asked_s = began_s
            try:
                pods = pods_in(self._ask(self._settings.socket, LIST, b"", self._settings.timeout_s))
            except (CallFailed, Malformed) as error:
                self._failed(error)
        living = self._node.living()
        at_ms = self._clock.now_ms()
        if pods is None:
            self._holdings.unanswered(living, at_ms)
        else:
            prefix = self._settings.namespace_prefix
            listed = judge(pods, living, self._node.uids(), prefix, at_ms)
            self._holdings.listed(listed.held, living, at_ms)
            self._pods, self._unknown, self._claimed = listed.pods, listed.unknown, listed.claimed
            self._answered()
        self._holdings.forget(max(self._after_ms, at_ms - MOST_ENDED_MS))
        self._publish(known=pods is not None)
        self._keep()
        if pods is not None:
            # holders first: nobody waits for this answer
            self._offers.ask_if_due()

    def read_until(self, after_ms: int) -> View:
        """The view, for a reader that has counted everything up to `after_ms` and will not ask for it again."""
        self._after_ms = after_ms
        return self.view

    def offer(self) -> Offer | None:
        """Which devices the kubelet gives to pods, as of its last answer; None if that is not known now.

        Where claims give GPUs, too, what the kubelet's plugins do not offer may still be given: then it is not known.
        """
        return None if self._claimed else self._offers.fresh()

    def shares(
        self, gpu_uuid: str, since_ms: int, until_ms: int, percents: Iterable[tuple[int, float]], busy: float
    ) -> Shares | None:
        """How a GPU's busy time between two moments is divided by its processes; None if it is not shared.

        `percents` are (pid, 0-100) and `busy` is the device's own mean utilization (0-1) in that time: if all
        processes together say less, the rest is nobody's; if more, each one's part shrinks alike.
        """
        holdings = [holding for holding in self.view.holdings if holding.gpu_uuid == gpu_uuid]
        if not any(holding.replica for holding in holdings):
            return None
        if not any(span.shared and since_ms < span.until_ms for span in spans_of(holdings)):
            return None
        found: Counter[tuple[str, int]] = Counter()
        all_ppm = 0
        for pid, percent in percents:
            ppm = round(min(100.0, max(0.0, percent)) * 10_000)
            all_ppm += ppm
            uid = self._pod_of(pid)
            for holding in holdings:
                if uid is not None and holding.uid == uid and holding.job_id:
                    found[holding.job_id, holding.attempt] += ppm
                    break
        whole_ppm = max(all_ppm, round(busy * 1_000_000), 1)
        return Shares(
            since_ms, until_ms, {key: ppm * 1_000_000 // whole_ppm for key, ppm in sorted(found.items())}
        )

    def metrics(self) -> Iterator[Metric]:
        """How the asking goes."""
        yield families.PODS_UP.gauge(float(self.view.known))
        failures = dict(self._failures)
        yield families.PODS_FAILURES.counter_of({(reason,): count for reason, count in failures.items()})
        yield families.PODS_GAP.counter(self._gap.seconds(self._monotonic()))
        yield families.PODS_OFFERED_KNOWN.gauge(float(self.offer() is not None))
        offered = dict(self._offers.failures)
        yield families.PODS_OFFERED_FAILURES.counter_of(
            {(reason,): count for reason, count in offered.items()}
        )
        if self._answered_wall_s is not None:
            yield families.PODS_ANSWERED.gauge(self._answered_wall_s)
        if not self.view.known:
            return
        kinds = ("job", "foreign", "ended", "unverified")
        yield families.PODS.gauge_of({(kind,): self._pods.get(kind, 0) for kind in kinds})
        unknown = dict(self._unknown)
        yield families.PODS_UNKNOWN_DEVICES.gauge_of({(name,): count for name, count in unknown.items()})

    def _run(self) -> None:
        while not self._stopping.wait(self._settings.interval_s):
            try:
                self.ask_once()
            except OutboxBroken:
                # The loop meets it, too, and ends the process.
                return
            except Exception:
                # The edge of this thread: without it holders would stay as they are for ever.
                log.exception("pods_failed")

    def _failed(self, error: CallFailed | Malformed) -> None:
        reason = error.reason if isinstance(error, CallFailed) else "malformed"
        self._failures[reason] += 1
        if self._backoff_s == 0.0:
            log.warning("kubelet_does_not_answer", reason=str(error), socket=str(self._settings.socket))
        # agents of many nodes do not meet, but a kubelet that has just started has enough to do
        doubled_s = max(1.0, 2 * self._backoff_s) * random.uniform(0.9, 1.0)
        self._backoff_s = min(LONGEST_BACKOFF_S, doubled_s)
        self._offers.doubt()

    def _answered(self) -> None:
        if self._backoff_s:
            log.info("kubelet_answers_again")
        self._backoff_s = 0.0
        self._answered_wall_s = time.time()

    def _publish(self, known: bool) -> None:
        now_s = self._monotonic()
        self._gap = self._gap.after(now_s, known)
        self.view = View(self._holdings.all(), known)

    def _keep(self) -> None:
        if self.view.holdings == self._kept:
            return
        try:
            self._shelf.keep_holdings(self.view.holdings)
        except OutboxUnwritable as error:
            log.warning("holdings_not_kept", reason=str(error))
            return
        self._kept = self.view.holdings

    def _pod_of(self, pid: int) -> str | None:
        process = self._node.process(pid)
        if process is None:
            # It ended since the driver counted it: nothing has its number now, so it was who had it last.
            last = self._last_of_pid.get(pid)
            return None if last is None else self._processes.get(last)
        if process not in self._processes:
            if len(self._processes) >= PROCESSES_KEPT:
                self._processes.clear()
                self._last_of_pid.clear()
            self._processes[process] = self._node.pod_of(pid)
        self._last_of_pid[pid] = process
        return self._processes[process]


def alone_and_sharers(
    holdings: Iterable[Holding],
) -> dict[str, tuple[Holding | None, tuple[tuple[str, int], ...]]]:
    """By GPU: the pod of the hub's that holds it alone now, or (job, attempt) of those that share it."""
    found: dict[str, tuple[Holding | None, tuple[tuple[str, int], ...]]] = {}
    for gpu_uuid, held in by_gpu(holdings).items():
        present = present_of(held)
        sharers = tuple(sorted((span.job_id, span.attempt) for span in present if span.shared))
        alone = None
        if present and not sharers:
            whose = (present[-1].job_id, present[-1].attempt)
            alone = next(
                holding
                for holding in held
                if holding.until_ms is None and (holding.job_id, holding.attempt) == whose
            )
        found[gpu_uuid] = (alone, sharers)
    return found
