"""The scheduler dies at each of its named steps, five times each; whoever comes next finishes the step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from crash_workload import BRISK, Crowd, verdict
from hub_processes import Hub, Shelf

from scheduler.crash import POINTS

pytestmark = [pytest.mark.crash, pytest.mark.e2e, pytest.mark.timeout(300)]

DEATHS = 5


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    with Shelf(tmp_path_factory) as shelf:
        yield shelf


@pytest.fixture
def hub(shelf: Shelf) -> Iterator[Hub]:
    with shelf.lend() as hub:
        yield hub


@pytest.mark.parametrize("point", POINTS)
def test_scheduler_dies_at(point: str, hub: Hub) -> None:
    with Crowd(hub, point, kinds=BRISK, pause_s=(0.05, 0.3)) as crowd:
        hub.crash("scheduler", f"{point}:2", DEATHS)
    verdict(hub, crowd)
