"""Kill -9 between any two steps: after the next start the evidence is that of an undisturbed agent."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from quota.clock import wall_ms
from tests.integration.agents.agent_stubs import ROOT, Stubs, a_process, killer
from tests.unit.agents.agent_world import HOUR_MS, START_MS, Gpu, Gpus, Hold, steady

END_MS = START_MS + 2 * HOUR_MS
DYING = [sys.executable, str(Path(__file__).with_name("dying_agent.py"))]
ROUNDS = "25"
"""So many readings reach the end of the two hours."""

pytestmark = pytest.mark.crash


@pytest.fixture
def stubs() -> Iterator[Stubs]:
    """Two GPUs busy for two hours: one with one job, one with a job every ten minutes."""
    samples = steady(0.5, START_MS - HOUR_MS, END_MS)
    short = [Hold(f"job-{n}", START_MS + n * 600_000, START_MS + (n + 1) * 600_000) for n in range(12)]
    gpus = {"GPU-1": Gpu(samples, [Hold("job-long", START_MS)]), "GPU-2": Gpu(samples, short, node="sim-1")}
    with Stubs(Gpus(gpus), END_MS) as running:
        yield running


def truth() -> dict[tuple[str, int], tuple[int, int]]:
    short = {(f"job-{n}", START_MS + n // 6 * HOUR_MS): (300_000, 600_000) for n in range(12)}
    long = {("job-long", START_MS + n * HOUR_MS): (HOUR_MS // 2, HOUR_MS) for n in range(2)}
    return long | short


def an_agent(stubs: Stubs, outbox: Path, *more: str) -> AbstractContextManager[subprocess.Popen[str]]:
    doors = ("--quota-url", stubs.url, "--cluster-url", stubs.url, "--port", "0", "--send-interval-s", "0.1")
    own = ("--outbox", str(outbox), "--clock", f"{START_MS},{wall_ms()},1000")
    return a_process("-m", "agents.cli", "run", *doors, *own, *more)


def end(agent: subprocess.Popen[str], by: signal.Signals) -> str:
    agent.send_signal(by)
    said = agent.communicate(timeout=30)[1]
    assert agent.returncode == (0 if by == signal.SIGTERM else -by)
    return said


STEPS = ["BEGIN", "INSERT INTO evidence", "INSERT OR REPLACE", "DELETE", "UPDATE agent", "COMMIT"]


@pytest.mark.parametrize(
    ("kind", "number"), [(step, 7) for step in STEPS] + [("COMMIT", 8), ("SELECT id", 5)]
)
def test_dying_before_any_statement_loses_and_doubles_nothing(
    stubs: Stubs, tmp_path: Path, kind: str, number: int
) -> None:
    outbox = str(tmp_path / "outbox.sqlite3")
    died = subprocess.run([*DYING, stubs.url, outbox, ROUNDS, kind, str(number)], cwd=ROOT, timeout=60)
    assert died.returncode == -signal.SIGKILL
    subprocess.run([*DYING, stubs.url, outbox, ROUNDS], cwd=ROOT, timeout=60, check=True)
    assert stubs.service.totals() == truth()
    assert len({row.agent_epoch for row in stubs.service.rows.values()}) == 1


@pytest.mark.parametrize("moment", ["before", "after"])
def test_dying_while_a_delivery_is_under_way(stubs: Stubs, tmp_path: Path, moment: str) -> None:
    outbox = tmp_path / "outbox.sqlite3"
    with an_agent(stubs, outbox) as first:
        stubs.wait_for(lambda: len(stubs.service.deliveries) >= 2)
        setattr(stubs.service, moment, killer(first.pid))
        first.communicate(timeout=30)
        assert first.returncode == -signal.SIGKILL
    setattr(stubs.service, moment, lambda batch: None)
    with an_agent(stubs, outbox) as second:
        stubs.wait_for(lambda: stubs.service.totals() == truth())
        end(second, signal.SIGTERM)
    assert stubs.service.totals() == truth()


def test_kills_at_any_moment_and_a_second_agent_that_is_turned_away(stubs: Stubs, tmp_path: Path) -> None:
    outbox = tmp_path / "outbox.sqlite3"
    for _ in range(3):
        seen = len(stubs.service.deliveries)
        with an_agent(stubs, outbox) as agent:
            stubs.wait_for(lambda seen=seen: len(stubs.service.deliveries) > seen)
            end(agent, signal.SIGKILL)
    seen = len(stubs.service.deliveries)
    with an_agent(stubs, outbox) as last:
        stubs.wait_for(lambda: len(stubs.service.deliveries) > seen)
        with an_agent(stubs, outbox) as second:
            said = second.communicate(timeout=30)[1]
            assert (second.returncode, said.count("\n")) == (2, 1)
            assert f"in use by another agent (process {last.pid})" in said
        stubs.wait_for(lambda: stubs.service.totals() == truth())
        end(last, signal.SIGTERM)


def test_the_end_delivers_what_was_sampled_last(stubs: Stubs, tmp_path: Path) -> None:
    """The delivering rhythm does not come round before the signal, so the delivery is the end's."""
    with an_agent(stubs, tmp_path / "outbox.sqlite3", "--send-interval-s", "3600") as agent:
        stubs.wait_for(lambda: stubs.gpus.now_ms > START_MS + 1_200_000)
        assert stubs.service.deliveries == []
        said = end(agent, signal.SIGTERM)
    assert '"finished": true' in said
    assert stubs.service.totals()["job-long", START_MS][1] >= 600_000
