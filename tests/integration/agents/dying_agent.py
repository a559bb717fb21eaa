"""An agent that kills itself right before the n-th SQL statement of a kind: `URL OUTBOX ROUNDS [KIND N]`.

Run by `test_agent_crashes.py` as a process of its own; one round is one sampling and one delivery.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from agents.gpus.simulated import SimulatedReader
from agents.loop import Deliverer, Sampler
from agents.metrics import Counts
from agents.outbox import open_outbox
from agents.quota_door import QuotaDoor
from quota.clock import Clock, wall_ms
from tests.unit.agents.agent_world import START_MS


def main(url: str, path: str, rounds: str, kind: str = "", number: str = "0") -> None:
    outbox = open_outbox(Path(path))
    left = int(number)

    def die_in_time(statement: str) -> None:
        nonlocal left
        if kind and statement.startswith(kind):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    outbox._connection.set_trace_callback(die_in_time)
    counts = Counts()
    sampler = Sampler(SimulatedReader(url), outbox, Clock(START_MS, wall_ms()), counts)
    deliverer = Deliverer(QuotaDoor(url, "token"), outbox, counts)
    for _ in range(int(rounds)):
        sampler.sample_once()
        deliverer.deliver_once()
    outbox.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
