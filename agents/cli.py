"""`gpuhub agent run`: builds the parts of an agent from its settings and runs them until a signal."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import structlog
import typer
from prometheus_client.metrics_core import Metric
from pydantic import ValidationError

from agents import memory
from agents.crash import watched
from agents.exposition import PortTaken, make_app, serve
from agents.gpus.nvml.reader import NvmlReader
from agents.gpus.nvml.supervisor import Timing
from agents.gpus.simulated import SimulatedReader
from agents.health import Timing as HealthTiming
from agents.health_file import HealthFile
from agents.health_metrics import health_families
from agents.loop import Deliverer, Loop, Sampler
from agents.metrics import AgentCollector, Counts
from agents.outbox import Outbox, open_outbox
from agents.outbox_file import OutboxUnusable
from agents.pods.cgroups import Node
from agents.pods.tracker import KubeletSettings, PodTracker
from agents.settings import LEAST_SAMPLING_WALL_S, AgentSettings
from agents.verdicts import HealthCounts, Verdicts, VerdictSender
from quota.client import QuotaClient
from quota.clock import HOUR_MS, Clock

PATIENCE_S = 5.0
"""How long the end waits for the last sampling and delivery, in wall seconds."""

REMEMBERED_MS = 7 * 24 * HOUR_MS
"""How long a GPU that is gone is remembered, in business time."""

_log = structlog.get_logger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

app = typer.Typer(
    name="agent",
    help="Measure what GPUs really do and deliver it as evidence.",
    pretty_exceptions_enable=False,
)


@app.callback()
def agent() -> None:
    """Measure what GPUs really do and deliver it as evidence."""


@app.command()
def run(
    quota_url: Annotated[str | None, typer.Option(help="The quota service's address.")] = None,
    token_env: Annotated[str | None, typer.Option(help="Environment variable that holds the token.")] = None,
    reader: Annotated[str | None, typer.Option(help="What reads the GPUs: simulated or nvml.")] = None,
    cluster_url: Annotated[str | None, typer.Option(help="The simulated cluster's address.")] = None,
    node: Annotated[list[str] | None, typer.Option(help="Read this node; repeatable. None: all.")] = None,
    outbox: Annotated[Path | None, typer.Option(help="The file that keeps the evidence.")] = None,
    clock: Annotated[
        str | None, typer.Option(envvar="GPUHUB_CLOCK", help="BUSINESS_MS,WALL_MS,SPEED of the hub.")
    ] = None,
    sample_interval_s: Annotated[float | None, typer.Option(help="Business seconds between reads.")] = None,
    send_interval_s: Annotated[float | None, typer.Option(help="Wall seconds between deliveries.")] = None,
    host: Annotated[str | None, typer.Option(help="Where /metrics is served.")] = None,
    port: Annotated[int | None, typer.Option(help="Its port; 0 takes a free one.")] = None,
) -> None:
    """Read GPUs, keep evidence, deliver it, serve /metrics, until SIGTERM or SIGINT."""
    given = {
        "quota_url": quota_url,
        "token_env": token_env,
        "reader": reader,
        "cluster_url": cluster_url,
        "node": node or None,
        "outbox": outbox,
        "clock": clock,
        "sample_interval_s": sample_interval_s,
        "send_interval_s": send_interval_s,
        "host": host,
        "port": port,
    }
    _log_to_stderr()
    try:
        settings = AgentSettings.model_validate(
            AgentSettings().model_dump() | {name: value for name, value in given.items() if value is not None}
        )
        status = run_agent(settings, _clock(settings.clock), _token(settings.token_env))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _end(f"--{'-'.join(map(str, first['loc'])).replace('_', '-')}: {first['msg']}") from error
    except (_Unusable, OutboxUnusable, PortTaken) as error:
        raise _end(str(error)) from error
    raise typer.Exit(status)


def run_agent(settings: AgentSettings, clock: Clock, token: str) -> int:
    """Run one agent until SIGTERM or SIGINT; the process's exit status.

    Raises OutboxUnusable, PortTaken and, for settings that do not go together, _Unusable.
    """
    memory.keep_one_arena()
    with ExitStack() as closing:
        # Blocked before any thread is started, so that only the wait below gets them.
        masked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        closing.callback(signal.pthread_sigmask, signal.SIG_SETMASK, masked)
        outbox = open_outbox(settings.outbox, settings.spool_rows)
        closing.callback(outbox.close)
        # a clock that is wrong at the start must not make it forget
        outbox.forget_gpus(min(clock.now_ms(), outbox.newest_ms() or 0) - REMEMBERED_MS)
        source = _source(settings, clock, outbox)
        closing.callback(source.reader.close)
        quota = closing.enter_context(QuotaClient(settings.quota_url, token, settings.send_timeout_s))
        counts, health = Counts(), HealthCounts()
        sample_every_s = max(LEAST_SAMPLING_WALL_S, clock.wall_s(round(settings.sample_interval_s * 1000)))
        sampler = Sampler(source.reader, outbox, clock, counts, source.nodes)
        verdicts = _verdicts(settings, clock, sample_every_s, health)
        sender = VerdictSender(quota, verdicts, health, settings.send_interval_s)

        def sample() -> None:
            sampler.sample_once()
            verdicts.observe(counts.view.readings)

        loop = Loop(
            sample,
            Deliverer(watched(quota, os.environ), outbox, counts).deliver_once,
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
        memory.give_back()
        _log.info("agent_started", epoch=outbox.epoch, port=server.server_port, nodes=source.nodes or "all")
        _wait_for_signal(lambda: loop.broken or source.hopeless())
        deadline_s = time.monotonic() + PATIENCE_S
        finished = loop.stop(PATIENCE_S)
        finished = sender.stop(max(0.0, deadline_s - time.monotonic())) and finished
        _log.info("agent_stopped", finished=finished)
        if not finished:
            # A thread is still at work with all of this; the end of the process is as safe as a crash.
            closing.pop_all()
        return 1 if loop.broken or source.hopeless() else 0


def _verdicts(settings: AgentSettings, clock: Clock, sample_every_s: float, counts: HealthCounts) -> Verdicts:
    # On a fast clock readings lie far apart in business time without a break.
    gap_ms = max(HealthTiming().gap_ms, round(5000 * clock.speed * sample_every_s))
    timing = HealthTiming(round(settings.health_hold_down_s * 1000), gap_ms)
    file = HealthFile(settings.outbox.with_name(f"{settings.outbox.name}.health.json"))
    return Verdicts(file, counts, timing, clock.at_wall)


@dataclass(frozen=True)
class _Source:
    reader: SimulatedReader | NvmlReader
    nodes: tuple[str, ...]
    metrics: Callable[[], Iterable[Metric]] = tuple
    hopeless: Callable[[], bool] = lambda: False


def _source(settings: AgentSettings, clock: Clock, outbox: Outbox) -> _Source:
    if settings.reader == "simulated":
        token = os.environ.get(settings.cluster_token_env, "")
        period_ms = round(settings.sample_period_s * 1000)
        return _Source(SimulatedReader(settings.cluster_url, token, period_ms), settings.node)
    if len(settings.node) > 1:
        raise _Unusable(
            f"--node: {len(settings.node)} nodes given, but this machine's GPUs are of one; give it once"
        )
    timing = Timing(
        cycle_s=settings.nvml_cycle_s,
        deadline_s=settings.nvml_deadline_s,
        first_retry_s=settings.nvml_retry_s,
        longest_retry_s=20 * settings.nvml_retry_s,
    )
    try:
        pods = _pods(settings, clock, outbox)
        nvml = NvmlReader(clock, "".join(settings.node), timing, settings.gpu_classes, pods=pods)
    except ValueError as error:
        raise _Unusable(str(error)) from error
    nvml.start()
    return _Source(nvml, (nvml.node,), nvml.metrics, lambda: nvml.hopeless)


def _pods(settings: AgentSettings, clock: Clock, outbox: Outbox) -> PodTracker | None:
    if not settings.pods_socket:
        return None
    kubelet = KubeletSettings(
        Path(settings.pods_socket),
        settings.pods_interval_s,
        settings.pods_timeout_s,
        settings.pods_namespace_prefix,
    )
    node = Node(settings.pods_cgroups, settings.pods_proc, settings.pods_logs)
    return PodTracker(kubelet, clock, outbox, node)


def _wait_for_signal(broken: Callable[[], bool]) -> None:
    while not broken():
        if signal.sigtimedwait(_SIGNALS, 0.5) is not None:
            return


class _Unusable(Exception):
    """A setting that cannot be used; the message says what to do."""


def _clock(text: str) -> Clock:
    try:
        return Clock.from_text(text)
    except ValueError as error:
        raise _Unusable(f"--clock: {error}; give it as BUSINESS_MS,WALL_MS,SPEED") from error


def _token(variable: str) -> str:
    token = os.environ.get(variable, "")
    if not token:
        raise _Unusable(f"no token: put the agent's token into the environment variable {variable}")
    return token


def _end(message: str) -> typer.Exit:
    sys.stderr.write(f"gpuhub agent: {message}\n")
    return typer.Exit(2)


def _log_to_stderr() -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    app()
