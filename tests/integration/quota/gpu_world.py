"""Agents' deliveries for tests: rows and verdicts of GPUs on a hub's nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from quota.dispatch import gpu_reports
from quota.fleet import inventory, quarantine
from quota.fleet.gpu_tables import gpus
from quota.schemas.gpus import (
    ExpectedGpu,
    Gpu,
    GpuChange,
    GpuHealth,
    GpuPolicy,
    GpuPolicyDocument,
    GpuPolicyPut,
    GpuReport,
    GpuReportReply,
    GpuRow,
    GpuVerdict,
    Holder,
    Inventory,
    InventoryReply,
)
from quota.schemas.identity import Caller, Role
from quota.schemas.jobs import Job
from quota.schemas.programs import Grant
from tests.builders import MINUTE_MS, OPERATOR, Hub, a_hub
from tests.property.ledger.ledger_checks import violations

AGENT = Caller(token_id="agent", role=Role.AGENT, organization_id=None, node="n*")
_numbers = count(1)


def uuids(node: str, number: int) -> list[str]:
    return [f"GPU-{node}-{place}" for place in range(number)]


def a_row(hub: Hub, gpu_uuid: str, node: str = "n0", **fields: Any) -> GpuRow:
    known = {
        "gpu_class": "h100",
        "model": "NVIDIA H100",
        "health": "healthy",
        "proven": True,
        "observed_at": hub.now,
    }
    return GpuRow.model_validate({"gpu_uuid": gpu_uuid, "node": node} | known | fields)


def a_verdict(hub: Hub, gpu_uuid: str, node: str = "n0", **fields: Any) -> GpuVerdict:
    known = {
        "id": f"0123456789abcdef-{next(_numbers)}",
        "health": "unhealthy",
        "rule": "xid_hardware",
        "xid": 79,
        "fault": True,
        "since": hub.now,
        "at": hub.now,
        "detail": "XID 79: GPU has fallen off the bus",
    }
    return GpuVerdict.model_validate({"gpu_uuid": gpu_uuid, "node": node} | known | fields)


def held(*held_by: tuple[Job, int]) -> tuple[Holder, ...]:
    return tuple(Holder(job_id=job.id, attempt=attempt) for job, attempt in held_by)


def tell(
    hub: Hub, rows: Iterable[GpuRow] = (), verdicts: Iterable[GpuVerdict] = (), caller: Caller = AGENT
) -> GpuReportReply:
    return gpu_reports.deliver(hub.database, caller, GpuReport(gpus=tuple(rows), verdicts=tuple(verdicts)))


def see(hub: Hub, node: str, number: int, **fields: Any) -> list[str]:
    """An agent reads a node's GPUs now."""
    names = uuids(node, number)
    tell(hub, [a_row(hub, name, node, **fields) for name in names])
    return names


def break_gpu(hub: Hub, gpu_uuid: str, node: str = "n0", **fields: Any) -> GpuVerdict:
    """The agent reads a GPU as unhealthy and says why."""
    verdict = a_verdict(hub, gpu_uuid, node, **fields)
    row = a_row(hub, gpu_uuid, node, health=verdict.health, proven=False)
    tell(hub, [row], [verdict])
    return verdict


def policy(hub: Hub, **fields: Any) -> GpuPolicyDocument:
    body = GpuPolicyPut(policy=GpuPolicy.model_validate(fields), reason="a test")
    return hub.database.write(lambda tx: quarantine.put_policy(tx, OPERATOR, body))


def register(hub: Hub, *lines: ExpectedGpu) -> InventoryReply:
    body = Inventory(gpus=lines, reason="a test")
    return hub.database.write(lambda tx: inventory.register(tx, OPERATOR, body))


def change(hub: Hub, gpu_uuid: str, *, quarantined: bool) -> None:
    body = GpuChange(quarantined=quarantined, reason="a test")
    hub.database.write(lambda tx: quarantine.change_gpu(tx, OPERATOR, gpu_uuid, body))


def gpu(hub: Hub, gpu_uuid: str) -> Gpu:
    with hub.database.read() as connection:
        return inventory.read_gpu(connection, hub.now, hub.clock.speed, gpu_uuid).gpu


def out_of_use(hub: Hub) -> set[str]:
    return {row.gpu_uuid for row in hub.rows(gpus) if row.quarantine}


def is_open(hub: Hub, node: str) -> bool:
    """Whether the scheduler may start work there."""
    _, items = hub.snapshot()
    found = items["node", f"{hub.cluster}/{node}"].node
    assert found is not None
    return found.schedulable


WELL, BAD, LOST = GpuHealth.HEALTHY, GpuHealth.UNHEALTHY, GpuHealth.LOST


NODES = {"n0": {"h100": 8}, "n1": {"h100": 8}}


@contextmanager
def a_seen_hub(database_url: str) -> Iterator[Hub]:
    """A hub whose agents have told of all GPUs, and whose ledger is in order at the end."""
    made = a_hub(database_url, nodes=NODES)
    for node in NODES:
        see(made, node, 8)
    yield made
    with made.database.read() as connection:
        assert violations(connection) == []
    made.close()


def ran(hub: Hub, grant: Grant, minutes: int = 30, **fields: object) -> Job:
    """A job that has run for so long on one GPU."""
    job = hub.submit(**{"walltime_s": 24 * 3600, "restartable": True} | fields)
    hub.run(job, grant)
    hub.clock.advance(minutes * MINUTE_MS)
    return job
