"""Bad GPUs leave use as far as the circuit breaker lets verdicts; operators decide the rest; both databases."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from quota.audit.tables import audit, findings
from quota.errors import Forbidden, NotFound
from quota.fleet import inventory
from quota.fleet.gpu_tables import gpu_verdicts
from quota.schemas.gpus import ExpectedGpu, InventoryState
from quota.schemas.identity import Caller, Role
from tests.builders import MINUTE_MS, Hub, a_hub, node_reports
from tests.integration.quota.gpu_world import (
    BAD,
    WELL,
    a_row,
    a_verdict,
    break_gpu,
    change,
    gpu,
    is_open,
    out_of_use,
    policy,
    register,
    see,
    tell,
    uuids,
)

FLEET = {f"n{number}": {"h100": 4} for number in range(10)}


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    """Ten nodes with four GPUs each, all seen."""
    made = a_hub(database_url, nodes=FLEET)
    for node in FLEET:
        see(made, node, 4)
    made.clock.advance(MINUTE_MS)
    yield made
    made.close()


def test_a_bad_gpu_closes_its_node_to_new_work_and_a_good_one_opens_it_again(hub: Hub) -> None:
    grant = hub.award()
    running = hub.submit(gpus_per_pod=2)
    hub.run(running, grant)
    verdict = break_gpu(hub, "GPU-n0-0")
    assert (gpu(hub, "GPU-n0-0").quarantine, gpu(hub, "GPU-n0-0").quarantined_by) == ("agent", verdict.id)
    assert not is_open(hub, "n0")
    refused = hub.try_start(hub.submit(), grant, "n0")
    assert (refused.outcome, refused.code) == ("refused", "not_schedulable")
    assert hub.try_start(hub.submit(), grant, "n1").outcome == "accepted"
    assert hub.job(running.id).state == "running"
    hub.clock.advance(11 * MINUTE_MS)
    tell(hub, [a_row(hub, "GPU-n0-0")])
    assert out_of_use(hub) == set()
    assert is_open(hub, "n0")
    assert hub.try_start(hub.submit(), grant, "n0").outcome == "accepted"


def test_a_gpu_that_is_not_proven_well_stays_out_of_use(hub: Hub) -> None:
    break_gpu(hub, "GPU-n0-0")
    hub.clock.advance(MINUTE_MS)
    tell(hub, [a_row(hub, "GPU-n0-0", proven=False)])
    assert out_of_use(hub) == {"GPU-n0-0"}


@pytest.mark.parametrize("health", ["healthy", "degraded"])
def test_verdicts_that_are_not_bad_take_nothing_out_of_use(hub: Hub, health: str) -> None:
    break_gpu(hub, "GPU-n0-0", health=health, rule="ecc_uncorrected", xid=None)
    assert out_of_use(hub) == set()
    assert hub.row(gpu_verdicts).outcome == "recorded"


def test_a_bad_rule_takes_out_only_what_the_breaker_lets_it(hub: Hub) -> None:
    """Every GPU of the hub is called unhealthy at once: 10 % of 40 GPUs are one node."""
    for node in FLEET:
        for name in uuids(node, 4):
            break_gpu(hub, name, node)
    assert out_of_use(hub) == set(uuids("n0", 4))
    assert [node for node in FLEET if not is_open(hub, node)] == ["n0"]
    outcomes = [row.outcome for row in hub.rows(gpu_verdicts)]
    assert (outcomes.count("quarantined"), outcomes.count("withheld")) == (4, 36)
    assert len(hub.rows(findings, code="gpu_quarantine_withheld")) == 36
    document = policy(hub)
    counts = (document.fleet_gpus, document.most_gpus, document.out_of_use_gpus, document.withheld_gpus)
    assert counts == (40, 4, 4, 36)


def test_an_operator_decides_beyond_the_breaker(hub: Hub) -> None:
    for node in ("n0", "n1", "n2"):
        break_gpu(hub, f"GPU-{node}-0", node)
    assert out_of_use(hub) == {"GPU-n0-0"}
    assert gpu(hub, "GPU-n1-0").withheld
    change(hub, "GPU-n1-0", quarantined=True)
    assert out_of_use(hub) == {"GPU-n0-0", "GPU-n1-0"}
    policy(hub, auto_thousandths=200)
    assert out_of_use(hub) == {"GPU-n0-0", "GPU-n1-0", "GPU-n2-0"}
    assert gpu(hub, "GPU-n1-0").quarantine == "operator"


def test_observing_only_takes_nothing_out_of_use_until_it_ends(hub: Hub) -> None:
    policy(hub, observe_only=True)
    break_gpu(hub, "GPU-n0-0")
    assert (out_of_use(hub), hub.row(gpu_verdicts).outcome) == (set(), "observed")
    assert len(hub.rows(findings, code="gpu_only_observed")) == 1
    policy(hub, observe_only=False)
    assert out_of_use(hub) == {"GPU-n0-0"}


def test_in_a_small_fleet_the_first_bad_gpu_passes_and_the_second_does_not(database_url: str) -> None:
    hub = a_hub(database_url, nodes={"n0": {"h100": 2}, "n1": {"h100": 2}})
    for node in ("n0", "n1"):
        see(hub, node, 2)
        break_gpu(hub, f"GPU-{node}-0", node)
    assert out_of_use(hub) == {"GPU-n0-0"}
    break_gpu(hub, "GPU-n0-1")
    assert out_of_use(hub) == {"GPU-n0-0", "GPU-n0-1"}, "its node is closed already: it costs nothing more"
    hub.close()


def test_deliveries_at_once_never_take_more_than_the_breaker_lets_them(hub: Hub) -> None:
    verdicts = {node: a_verdict(hub, f"GPU-{node}-0", node) for node in FLEET}
    rows = {node: a_row(hub, f"GPU-{node}-0", node, health=BAD, proven=False) for node in FLEET}
    threads = [threading.Thread(target=tell, args=(hub, [rows[node]], [verdicts[node]])) for node in FLEET]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(out_of_use(hub)) == 1
    assert len(hub.rows(gpu_verdicts)) == 10


def test_a_delivery_may_come_twice_late_or_never(hub: Hub) -> None:
    bad_row = a_row(hub, "GPU-n0-0", health=BAD, proven=False)
    verdict = a_verdict(hub, "GPU-n0-0")
    assert tell(hub, [bad_row], [verdict]).verdicts == 1
    before = hub.contents()
    assert tell(hub, [bad_row], [verdict]).model_dump() == {"gpus": 0, "verdicts": 0, "conflicts": 0}
    assert hub.contents() == before
    hub.clock.advance(11 * MINUTE_MS)
    tell(hub, [a_row(hub, "GPU-n0-0")])
    tell(hub, [bad_row], [verdict])
    assert out_of_use(hub) == set()
    assert gpu(hub, "GPU-n0-0").health is WELL
    late = a_verdict(hub, "GPU-n0-0", at=hub.now - 5 * MINUTE_MS, since=hub.now - 5 * MINUTE_MS)
    tell(hub, verdicts=[late])
    assert out_of_use(hub) == set(), "it was found well after that"
    assert len(hub.rows(gpu_verdicts)) == 2


def test_an_old_row_that_comes_late_does_not_undo_what_was_withheld(hub: Hub) -> None:
    old = a_row(hub, "GPU-n0-0")
    hub.clock.advance(1000)
    policy(hub, observe_only=True)
    break_gpu(hub, "GPU-n0-0")
    tell(hub, [old])
    assert gpu(hub, "GPU-n0-0").withheld
    hub.clock.advance(11 * MINUTE_MS)
    tell(hub, [a_row(hub, "GPU-n0-0")])
    assert not gpu(hub, "GPU-n0-0").withheld


def test_an_operators_quarantine_is_lifted_by_no_agent_and_his_release_holds_until_a_new_sign(
    hub: Hub,
) -> None:
    change(hub, "GPU-n0-0", quarantined=True)
    hub.clock.advance(11 * MINUTE_MS)
    tell(hub, [a_row(hub, "GPU-n0-0")])
    assert out_of_use(hub) == {"GPU-n0-0"}
    change(hub, "GPU-n0-0", quarantined=False)
    assert (out_of_use(hub), is_open(hub, "n0")) == (set(), True)
    verdict = break_gpu(hub, "GPU-n0-0")
    change(hub, "GPU-n0-0", quarantined=False)
    tell(hub, [a_row(hub, "GPU-n0-0", health=BAD, proven=False)], [verdict])
    assert out_of_use(hub) == set()
    break_gpu(hub, "GPU-n0-0")
    assert out_of_use(hub) == {"GPU-n0-0"}
    said = [(row.action, row.actor, row.reason) for row in hub.rows(audit, subject="GPU-n0-0")]
    assert ("gpu.quarantine", "operator", "a test") in said
    assert ("gpu.release", "operator", "a test") in said
    before = hub.contents()
    change(hub, "GPU-n1-0", quarantined=False)
    assert hub.contents() == before
    with pytest.raises(NotFound):
        change(hub, "GPU-none", quarantined=True)


def test_a_node_that_withdrew_its_bad_gpu_stays_open_and_nothing_is_subtracted_twice(hub: Hub) -> None:
    tell(
        hub, [a_row(hub, "GPU-n0-0", health=BAD, proven=False, withdrawn=True)], [a_verdict(hub, "GPU-n0-0")]
    )
    assert not is_open(hub, "n0"), "its cluster still counts four"
    hub.report(nodes=node_reports(FLEET | {"n0": {"h100": 3}}))
    assert is_open(hub, "n0")
    _, items = hub.snapshot()
    found = items["node", "sim/n0"].node
    assert found is not None
    assert found.capacities[0].total == 3
    change(hub, "GPU-n0-1", quarantined=True)
    assert not is_open(hub, "n0"), "this one it still gives away"
    change(hub, "GPU-n0-1", quarantined=False)
    hub.report(nodes=node_reports(FLEET))
    assert not is_open(hub, "n0"), "it counts four again"


def test_a_withdrawn_gpu_costs_the_fleet_only_itself(hub: Hub) -> None:
    for node in ("n0", "n1", "n2", "n3", "n4"):
        row = a_row(hub, f"GPU-{node}-0", node, health=BAD, proven=False, withdrawn=True)
        tell(hub, [row], [a_verdict(hub, f"GPU-{node}-0", node)])
    assert len(out_of_use(hub)) == 4


def test_an_agent_speaks_for_its_node_and_cannot_claim_a_gpu_of_another(hub: Hub) -> None:
    stranger = Caller(token_id="other", role=Role.AGENT, organization_id=None, node="m0")
    with pytest.raises(Forbidden):
        tell(hub, [a_row(hub, "GPU-n0-0")], caller=stranger)
    with pytest.raises(Forbidden):
        tell(hub, verdicts=[a_verdict(hub, "GPU-n0-0")], caller=stranger)
    hub.clock.advance(1)
    claimed = a_row(hub, "GPU-n0-0", "n1", health=BAD, proven=False)
    assert tell(hub, [claimed], [a_verdict(hub, "GPU-n0-0", "n1")]).conflicts == 2
    assert (gpu(hub, "GPU-n0-0").node, out_of_use(hub)) == ("n0", set())
    assert len(hub.rows(findings, code="gpu_claimed_twice")) == 1
    break_gpu(hub, "GPU-n0-0")
    hub.clock.advance(1)
    assert tell(hub, [a_row(hub, "GPU-n0-0", "n1")]).conflicts == 1
    assert out_of_use(hub) == {"GPU-n0-0"}, "another node cannot call it well"
    change(hub, "GPU-n0-0", quarantined=False)
    hub.clock.advance(11 * MINUTE_MS)
    tell(hub, [a_row(hub, "GPU-n0-0", "n1")])
    assert gpu(hub, "GPU-n0-0").node == "n1", "it was moved: its old node has not seen it for long"


def test_a_verdict_on_a_gpu_that_nobody_reported_is_a_finding(hub: Hub) -> None:
    assert tell(hub, verdicts=[a_verdict(hub, "GPU-nobody")]).conflicts == 1
    assert [row.subject for row in hub.rows(findings, code="verdict_on_unknown_gpu")] == ["GPU-nobody"]


def test_a_time_in_the_future_counts_as_now(hub: Hub) -> None:
    tell(hub, [a_row(hub, "GPU-n0-0", observed_at=hub.now + 60 * MINUTE_MS, model="X")])
    hub.clock.advance(1)
    tell(hub, [a_row(hub, "GPU-n0-0", model="Y")])
    assert gpu(hub, "GPU-n0-0").model == "Y"


def test_unknown_and_vanished_gpus_are_found_once_there_is_an_inventory(hub: Hub) -> None:
    assert inventory.find_strays(hub.database) == 0
    lines = [
        ExpectedGpu(gpu_uuid=name, serial="S1", asset_number=f"A-{name}", site="gwangju-1", node="n0")
        for name in (*uuids("n0", 4), "GPU-stored")
    ]
    assert register(hub, *lines).changed == 5
    assert register(hub, *lines).model_dump() == {"changed": 0, "unchanged": 5}
    assert inventory.find_strays(hub.database) == 37
    assert inventory.find_strays(hub.database) == 0
    stored = gpu(hub, "GPU-stored")
    assert (stored.inventory, stored.asset_number, stored.site) == (
        InventoryState.VANISHED, "A-GPU-stored", "gwangju-1",
    )  # fmt: skip
    assert [row.detail for row in hub.rows(findings, code="gpu_vanished")] == ["never seen"]
    assert len(hub.rows(findings, code="gpu_unknown")) == 36
    hub.clock.advance(11 * MINUTE_MS)
    for node in FLEET:
        see(hub, node, 4 if node != "n0" else 3)
    assert inventory.find_strays(hub.database) == 1
    assert gpu(hub, "GPU-n0-3").inventory is InventoryState.VANISHED
    register(hub, *(line.model_copy(update={"expected": False}) for line in lines[3:]))
    assert gpu(hub, "GPU-n0-3").inventory is InventoryState.GONE


def test_another_serial_or_place_than_registered_is_a_finding(hub: Hub) -> None:
    register(hub, ExpectedGpu(gpu_uuid="GPU-n0-0", serial="S1", node="n7"))
    hub.clock.advance(1)
    tell(hub, [a_row(hub, "GPU-n0-0", serial="S2")])
    details = [row.detail for row in hub.rows(findings, code="gpu_differs")]
    assert details == ["node is n0, the inventory says n7", "serial is S2, the inventory says S1"]


def test_a_quarantined_gpu_that_vanished_keeps_its_node_closed(hub: Hub) -> None:
    tell(
        hub, [a_row(hub, "GPU-n0-0", health=BAD, proven=False, withdrawn=True)], [a_verdict(hub, "GPU-n0-0")]
    )
    hub.report(nodes=node_reports(FLEET | {"n0": {"h100": 3}}))
    assert is_open(hub, "n0")
    hub.clock.advance(11 * MINUTE_MS)
    tell(hub, [a_row(hub, name) for name in uuids("n0", 4)[1:]])
    inventory.find_strays(hub.database)
    assert not is_open(hub, "n0"), "nobody knows whether it is still withdrawn"
    change(hub, "GPU-n0-0", quarantined=False)
    assert is_open(hub, "n0")
