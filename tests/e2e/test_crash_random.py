"""kill -9 at any moment, 100 times and more, while firms submit and cancel: the books stay exact."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from crash_workload import Crowd, Weather, verdict
from hub_processes import a_hub

pytestmark = [pytest.mark.crash, pytest.mark.e2e, pytest.mark.timeout(3600)]

KILLS = int(os.environ.get("GPUHUB_CRASH_KILLS", "110"))
"""In all; `make soak` asks for more."""
VICTIMS = (("quota",), ("scheduler",), ("cluster",), ("agent",), ("quota", "scheduler", "cluster", "agent"))
ROUND = 100
"""So many kills a hub lives through before it is settled and judged."""


@pytest.mark.parametrize("victims", VICTIMS, ids=lambda names: names[0] if len(names) == 1 else "anyone")
def test_killed_at_random_moments(victims: tuple[str, ...], tmp_path: Path) -> None:
    seed = os.environ.get("GPUHUB_CRASH_SEED") or str(random.SystemRandom().randrange(10**9))
    kills = -(-KILLS // len(VICTIMS))
    for number, begin in enumerate(range(0, kills, ROUND)):
        live_through(tmp_path / str(number), victims, min(ROUND, kills - begin), f"{seed}-{number}")


def live_through(folder: Path, victims: tuple[str, ...], kills: int, seed: str) -> None:
    print(f"GPUHUB_CRASH_SEED={seed}: {kills} kills of {', '.join(victims)}")
    with a_hub(folder) as hub:
        with Crowd(hub, seed) as crowd, Weather(hub, seed):
            hub.kill_at_random(victims, kills, random.Random(seed))
        verdict(hub, crowd)
        assert hub.kills == kills
        assert len(crowd.submitted) > kills / 4, "the firms were not silenced"
