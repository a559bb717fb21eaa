"""Requests and replies that are lost, late or doubled, between all programs: asked again, done once."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from crash_door import Door, Fate
from crash_workload import BRISK, Crowd, verdict
from hub_processes import Hub, Shelf, until

pytestmark = [pytest.mark.crash, pytest.mark.e2e, pytest.mark.timeout(300)]

TIMES = 3
FATES = (Fate.LOSE_REQUEST, Fate.LOSE_REPLY, Fate.LATE_REPLY, Fate.LATE_REQUEST, Fate.TWICE)
FORGETS: dict[str, object] = {"fault": "forget_reply", "count": TIMES}
ANSWERS_LATE: dict[str, object] = {"fault": "answer_late", "count": 1, "delay_s": 6.5}
"""Later than the scheduler waits for a cluster."""
FOREIGN: dict[str, object] = {"fault": "foreign", "node": "sim-0", "gpu_class": "h100"}
CALL_TIMEOUT_S = 0.8
"""Shorter than the door's lateness, so that what is late was given up."""


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.close()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, door: Door) -> Iterator[Shelf]:
    with Shelf(tmp_path_factory, door=door, call_timeout_s=CALL_TIMEOUT_S) as shelf:
        yield shelf


@pytest.fixture
def hub(shelf: Shelf, door: Door) -> Iterator[Hub]:
    with shelf.lend() as hub:
        yield hub
        door.release()


@pytest.mark.parametrize(
    "path", ["decisions", "reports", "ranking", "lease", "snapshot", "feed", "evidence", "jobs", "cancel"]
)
def test_quota_is_misheard_on(path: str, hub: Hub, door: Door) -> None:
    door.met.clear()
    with Crowd(hub, path, kinds=BRISK, pause_s=(0.1, 0.5)) as crowd:
        door.mishear(f"/{path}", FATES)
        if path == "snapshot":
            hub.crash("scheduler", "before_ranking:1", TIMES)
        else:
            until(lambda: all(door.met.get(fate, 0) >= TIMES for fate in FATES), f"{path} was misheard")
        door.release()
    verdict(hub, crowd)


@pytest.mark.parametrize("path", ["create", "suspend", "list", "nodes", "gpus"])
@pytest.mark.parametrize("fault", [FORGETS, ANSWERS_LATE], ids=lambda words: words["fault"])
def test_cluster_is_misheard_on(fault: dict[str, object], path: str, hub: Hub) -> None:
    with Crowd(hub, f"{fault['fault']} {path}", kinds=BRISK, pause_s=(0.1, 0.5)) as crowd:
        hub.plant(**fault, path=path)
        until(lambda: stir(hub, path) and not hub.planted(), f"{fault['fault']} on {path}")
        hub.plant(**FOREIGN, count=0)
    verdict(hub, crowd)


def test_cluster_refuses_starts(hub: Hub) -> None:
    with Crowd(hub, "refused", kinds=BRISK, pause_s=(0.1, 0.5)) as crowd:
        hub.plant(fault="refuse_start", count=2 * TIMES)
        until(lambda: not hub.planted(), "starts were refused")
    verdict(hub, crowd)


def stir(hub: Hub, path: str) -> bool:
    """The nodes are only asked for when something about them changes."""
    if path == "nodes":
        for count in (1, 0):
            hub.plant(**FOREIGN, count=count)
            time.sleep(0.2)
    return True
