"""The agent at work: builds its parts from its settings and runs them until a signal.

`python -m agents.node` is what `gpuhub agent run` becomes (`agents.cli`): it imports only what it goes on using.
"""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from typing import Protocol, cast

from agents import log, memory
from agents.crash import watched
from agents.exposition import PortTaken, make_app, serve
from agents.gpus.source import Source
from agents.health import Timing as HealthTiming
from agents.health_file import HealthFile
from agents.health_metrics import health_families
from agents.loop import Deliverer, Loop, Sampler
from agents.metrics import AgentCollector, Counts
from agents.outbox import Outbox, open_outbox
from agents.outbox_file import OutboxUnusable
from agents.quota_door import QuotaDoor
from agents.settings import (
    HANDED_OVER,
    LEAST_SAMPLING_WALL_S,
    AgentSettings,
    Unusable,
    clock_of,
    token_of,
)
from agents.verdicts import HealthCounts, Verdicts, VerdictSender
from quota.clock import HOUR_MS, Clock

SOURCES = {"nvml": "agents.gpus.nvml.source", "simulated": "agents.gpus.simulated_source"}
"""By `reader`: each loads libraries that the other has no use for."""

PATIENCE_S = 5.0
"""How long the end waits for the last sampling and delivery, in wall seconds."""

SETTLED_S = 15.0
"""After so long everything has been done once, and what only the first time needed is given back."""

REMEMBERED_MS = 7 * 24 * HOUR_MS
"""How long a GPU that is gone is remembered, in business time."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def main() -> int:
    """Run with the settings that were handed over; the exit status."""
    handed_over = os.environ.pop(HANDED_OVER, "")
    if not handed_over:
        sys.stderr.write("gpuhub agent: start it with `gpuhub agent run`\n")
        return 2
    settings = AgentSettings.model_validate_json(handed_over)
    try:
        return run_agent(settings, clock_of(settings), token_of(settings))
    except (Unusable, OutboxUnusable, PortTaken) as error:
        sys.stderr.write(f"gpuhub agent: {error}\n")
        return 2


def run_agent(settings: AgentSettings, clock: Clock, token: str) -> int:
    """Run one agent until SIGTERM or SIGINT; the process's exit status.

    Raises OutboxUnusable, PortTaken and, for settings that do not go together, Unusable.
    """
    memory.keep_little()
    memory.give_back()
    with ExitStack() as closing:
        # Blocked before any thread is started, so that only the wait below gets them.
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        closing.callback(signal.pthread_sigmask, signal.SIG_SETMASK, masked)
        outbox = open_outbox(settings.outbox, settings.spool_rows)
        closing.callback(outbox.close)
        # a clock that is wrong at the start must not make it forget
        outbox.forget_gpus(min(clock.now_ms(), outbox.newest_ms() or 0) - REMEMBERED_MS)
        quota = _quota_door(settings, token)
        source = _open_source(settings, clock, outbox)
        closing.callback(source.reader.close)
        counts, health = Counts(), HealthCounts()
        sample_every_s = max(LEAST_SAMPLING_WALL_S, clock.wall_s(round(settings.sample_interval_s * 1000)))
        sampler = Sampler(source.reader, outbox, clock, counts, source.nodes)
        verdicts = _verdicts(settings, clock, sample_every_s, health)
        doors = watched(quota, os.environ)
        sender = VerdictSender(doors, verdicts, health, settings.send_interval_s)

        def sample() -> None:
            sampler.sample_once()
            verdicts.observe(counts.view.readings)

        loop = Loop(
            sample,
            Deliverer(doors, outbox, counts).deliver_once,
            sample_every_s,
            settings.send_interval_s,
            # Agents that start together must not deliver together.
            random.uniform(0, settings.send_interval_s),
        )
        collector = AgentCollector(
            counts, outbox.spool, lambda: (*source.metrics(), *health_families(health))
        )
        server = serve(settings.host, settings.port, make_app(collector, counts, lambda: not loop.broken))
        closing.callback(server.server_close)
        closing.callback(server.shutdown)
        loop.start()
        sender.start()
        log.info("agent_started", epoch=outbox.epoch, port=server.server_port, nodes=source.nodes or "all")
        _wait_for_signal(lambda: loop.broken or source.hopeless())
        deadline_s = time.monotonic() + PATIENCE_S
        finished = loop.stop(PATIENCE_S)
        finished = sender.stop(max(0.0, deadline_s - time.monotonic())) and finished
        log.info("agent_stopped", finished=finished)
        if not finished:
            # A thread is still at work with all of this; the end of the process is as safe as a crash.
            closing.pop_all()
        return 1 if loop.broken or source.hopeless() else 0


def _quota_door(settings: AgentSettings, token: str) -> QuotaDoor:
    try:
        return QuotaDoor(settings.quota_url, token, settings.send_timeout_s)
    except ValueError as error:
        raise Unusable(f"--quota-url: {error}") from error


class _SourceModule(Protocol):
    def open_source(self, settings: AgentSettings, clock: Clock, outbox: Outbox) -> Source: ...


def _open_source(settings: AgentSettings, clock: Clock, outbox: Outbox) -> Source:
    module = cast("_SourceModule", import_module(SOURCES[settings.reader]))
    return module.open_source(settings, clock, outbox)


def _verdicts(settings: AgentSettings, clock: Clock, sample_every_s: float, counts: HealthCounts) -> Verdicts:
    # On a fast clock readings lie far apart in business time without a break.
    gap_ms = max(HealthTiming().gap_ms, round(5000 * clock.speed * sample_every_s))
    timing = HealthTiming(round(settings.health_hold_down_s * 1000), gap_ms)
    file = HealthFile(settings.outbox.with_name(f"{settings.outbox.name}.health.json"))
    return Verdicts(file, counts, timing, clock.at_wall)


def _wait_for_signal(broken: Callable[[], bool]) -> None:
    settled_s = time.monotonic() + SETTLED_S
    while not broken():
        if signal.sigtimedwait(_SIGNALS, 0.5) is not None:
            return
        if time.monotonic() >= settled_s:
            memory.give_back()
            settled_s = math.inf


if __name__ == "__main__":
    sys.exit(main())
