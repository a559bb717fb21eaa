"""Gangs on one node or in one rack, as the quota service knows them; on both databases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from quota.errors import NeverFits
from quota.fleet import views
from quota.jobs import reach
from quota.jobs.quoting import quote
from quota.schemas.quotes import Quote, StartOutlook
from quota.schemas.scheduling import JobObject, NodeObject, NodeReport, Topology
from scheduler.core import model
from scheduler.core.cycle import decide
from scheduler.core.state import State
from scheduler.translate import Moment, changes_of, start_item
from tests.builders import HOUR_MS, Hub, a_hub, a_submission, node_reports

FLEET = {name: {"h100": 8} for name in ("n0", "n1", "n2", "n3")}
RACKS = {"n0": "r1", "n1": "r1", "n2": "r2"}


def reports(racks: Mapping[str, str]) -> tuple[NodeReport, ...]:
    return tuple(each.model_copy(update={"rack": racks.get(each.node)}) for each in node_reports(FLEET))


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    made = a_hub(database_url)
    made.report(nodes=reports(RACKS))
    yield made
    made.close()


def _quote(hub: Hub, **fields: Any) -> Quote:
    with hub.database.read() as connection:
        hub.queue.refresh(connection)
        return quote(connection, "alpha", a_submission(**fields), hub.queue, hub.clock)


def test_a_rack_is_kept_as_its_cluster_reports_it_last(hub: Hub) -> None:
    def racks() -> dict[str, str | None]:
        with hub.database.read() as connection:
            listed = {node.node: node.rack for node in views.list_nodes(connection).items if node.schedulable}
        objects = [item.node for item in hub.snapshot()[1].values() if isinstance(item.node, NodeObject)]
        assert listed == {node.node: node.rack for node in objects if node.schedulable}
        return listed

    assert racks() == {"n0": "r1", "n1": "r1", "n2": "r2", "n3": None}
    seq = hub.snapshot()[0]
    hub.report(nodes=reports(RACKS | {"n3": "r2"}))
    assert racks()["n3"] == "r2"
    assert hub.snapshot()[0] > seq
    hub.report(nodes=reports({}))
    assert set(racks().values()) == {None}


def test_what_no_node_or_rack_could_ever_hold_is_refused(hub: Hub) -> None:
    hub.award(hours="1000")
    for topology, gpus, pods in (("same_node", 4, 2), ("same_rack", 8, 2), ("prefer_same_node", 8, 4)):
        assert hub.submit(topology=topology, gpus_per_pod=gpus, pods=pods).topology == topology
    for topology, gpus, pods in (("same_node", 3, 3), ("same_rack", 8, 3)):
        with pytest.raises(NeverFits, match=f"never fit together as topology {topology} has it") as error:
            hub.submit(topology=topology, gpus_per_pod=gpus, pods=pods)
        assert error.value.field == "topology"


def test_the_scheduler_reads_it_and_a_single_pod_is_any(hub: Hub) -> None:
    hub.award()
    job = hub.submit(topology="same_rack", pods=2)
    shown = hub.snapshot()[1]["job", job.id].job
    assert isinstance(shown, JobObject)
    assert shown.topology is Topology.SAME_RACK
    assert hub.submit(topology="same_rack").topology is Topology.SAME_RACK
    assert "topology" not in a_submission().model_dump(mode="json")
    assert [each.value for each in Topology] == [each.value for each in model.Topology]


def test_a_start_that_does_not_lie_as_it_has_to_is_refused(hub: Hub) -> None:
    grant = hub.award()
    node, rack = (hub.submit(topology=topology, pods=2) for topology in ("same_node", "same_rack"))
    for job, nodes in ((node, ("n0", "n1")), (rack, ("n0", "n2")), (rack, ("n2", "n3"))):
        refused = hub.try_start(job, grant, *nodes)
        assert (refused.outcome, refused.code) == ("refused", "wrong_state")
    assert hub.start(node, grant, "n0") == 1
    assert hub.start(rack, grant, "n0", "n1") == 1
    alone = hub.submit(topology="same_rack")
    assert hub.start(alone, grant, "n3") == 1


def test_from_the_report_to_the_start(hub: Hub) -> None:
    grant = hub.award(hours="1000")
    hub.start(hub.submit(gpus_per_pod=1), grant, "n0")
    waits = hub.submit(gpus_per_pod=8, pods=2, topology="same_rack")
    starts = hub.submit(gpus_per_pod=2, pods=4, topology="same_node")

    def plan() -> model.Plan:
        items = hub.snapshot()[1].values()
        return decide(State(), changes_of(items, hub.clock, Moment(last_seen={"sim": hub.now})), hub.now)[0]

    found = plan()
    assert [(start.job_id, len({pod.node for pod in start.pods})) for start in found.starts] == [
        (starts.id, 1)
    ]
    told = found.reasons[waits.id]
    assert (told.code, told.numbers["within"]) == (model.WaitReason.RESERVED, "rack")
    hub.report(nodes=reports(RACKS | {"n3": "r2"}))
    (start,) = [start for start in plan().starts if start.job_id == waits.id]
    assert {pod.node for pod in start.pods} == {"n2", "n3"}
    assert hub.decide(start_item(start)).results[0].outcome == "accepted"


def test_a_quote_counts_the_room_of_one_node_or_rack(hub: Hub) -> None:
    grant = hub.award(hours="1000")
    hub.start(hub.submit(gpus_per_pod=8, walltime_s=7200), grant, "n1")
    hub.start(hub.submit(gpus_per_pod=8, walltime_s=3600), grant, "n2")
    anywhere = _quote(hub, gpus_per_pod=8, pods=2)
    in_rack = _quote(hub, gpus_per_pod=8, pods=2, topology="same_rack")
    assert (anywhere.estimate.starts, in_rack.estimate.starts) == (StartOutlook.NOW, StartOutlook.LATER)
    room = in_rack.estimate.room_at_the_latest
    assert room is not None
    assert room >= hub.now + 2 * HOUR_MS
    hub.start(hub.submit(gpus_per_pod=5, walltime_s=3600), grant, "n0")
    hub.start(hub.submit(gpus_per_pod=5, walltime_s=3600), grant, "n3")
    scattered = {"gpus_per_pod": 2, "pods": 2}
    assert _quote(hub, **scattered).estimate.starts is StartOutlook.NOW
    assert _quote(hub, **scattered, topology="same_node").estimate.starts is StartOutlook.LATER


def test_a_cordon_shuts_out_who_needs_its_rack(hub: Hub) -> None:
    hub.award(hours="1000")
    rack, anywhere = (
        hub.submit(gpus_per_pod=8, pods=2, topology=topology)
        for topology in ("same_rack", "prefer_same_rack")
    )
    with hub.database.read() as connection:
        shut_out = {name: reach.of_node(connection, "sim", name).waiting.ids for name in ("n1", "n2")}
    assert shut_out == {"n1": (rack.id,), "n2": ()}
    assert anywhere.topology is Topology.PREFER_SAME_RACK
