"""A request to every operation that changes something, on objects of its own, that the service takes.

`REQUESTS` is checked against the OpenAPI document, so that a new operation cannot be forgotten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from quota.client import QuotaClient
from quota.clock import instant_text
from quota.fleet import service as fleet
from quota.fleet.tables import hub_switches, nodes
from quota.identity import service as identity
from quota.identity import tokens
from quota.jobs import switches
from quota.programs import awards, endings
from quota.schemas.bookings import NewBooking
from quota.schemas.fleet import NewCluster, NewGpuClass
from quota.schemas.gpus import ExpectedGpu, Inventory
from quota.schemas.identity import NewOrganization, NewToken, Role
from quota.schemas.jobs import Job
from quota.schemas.programs import Grant, NewProgram
from quota.schemas.switches import PlacementChange
from tests.builders import DAY_MS, MINUTE_MS, OPERATOR, Api, Hub, node_reports, started
from tests.integration.quota.idle_world import exempt
from tests.integration.quota.limits_builders import divide, give

WHY = {"reason": "a test", "evidence": "paper 1"}
REASON = {"reason": "a test"}
_numbers = count(1)


@dataclass(frozen=True)
class Request:
    """What is sent, and by whom; `ids` fill the operation's path."""

    client: QuotaClient
    body: Any = None
    ids: dict[str, str] = field(default_factory=dict)


Maker = Callable[[Api], Request]


def more_room(hub: Hub) -> None:
    """Nodes that take whatever the tests start."""
    hub.report(nodes=node_reports({"n0": {"h100": 8000}, "n1": {"h100": 8}}))


def _new(kind: str) -> str:
    return f"{kind}-{next(_numbers)}"


def _grant(api: Api, hours: str = "10") -> Grant:
    return api.hub.award("alpha", hours)


def _job(api: Api) -> tuple[Job, Grant]:
    grant = _grant(api)
    go_on = PlacementChange(paused=False, reason="a test")
    api.hub.database.write(lambda tx: switches.pause(tx, OPERATOR, "hub", "hub", go_on))
    return api.hub.submit("alpha", grant_id=grant.id), grant


def _running(api: Api) -> Job:
    job, grant = _job(api)
    api.hub.take_lease()
    api.hub.run(job, grant)
    return job


def _organization(api: Api) -> str:
    body = NewOrganization(id=_new("org"), name="Org")
    return api.hub.database.write(lambda tx: identity.create_organization(tx, OPERATOR, body)).id


def _token(api: Api, organization: str | None = None) -> str:
    body = NewToken(role=Role.MEMBER, organization_id=organization or _organization(api))
    return api.hub.database.write(lambda tx: tokens.create_token(tx, "test", body)).id


def _of_operator(body: Any, **ids: str) -> Callable[[Api], Request]:
    return lambda api: Request(api.operator, body, ids)


def _of_grant(body: Any) -> Maker:
    return lambda api: Request(api.operator, body, {"grant_id": _grant(api).id})


def _refund(api: Api) -> Request:
    job = _running(api)
    begins = api.hub.now
    api.hub.clock.advance(10 * MINUTE_MS)
    api.hub.finish(job)
    span = {"starts_at": instant_text(begins), "ends_at": instant_text(begins + MINUTE_MS)}
    return Request(api.operator, {"attempt": 1, "kind": "fault", **span, **WHY}, {"job_id": job.id})


def _carry_over(api: Api) -> Request:
    hub = api.hub
    ended = hub.award("alpha", "10", ends_at=hub.now + MINUTE_MS)
    hub.clock.advance(2 * MINUTE_MS)
    endings.expire_due(hub.database)
    body = {"gpu_hours": "1", "to_grant_id": _grant(api).id, **WHY}
    return Request(api.operator, body, {"grant_id": ended.id})


def _shares(api: Api) -> Grant:
    grant = _grant(api)
    give(api.hub, grant, "alpha", 4)
    give(api.hub, grant, "beta", 4)
    return grant


def _divided(api: Api) -> Grant:
    grant = _grant(api)
    divide(api.hub, grant, 4, 4)
    return grant


def _program(api: Api) -> str:
    body = NewProgram(id=_new("program"), name="P", budget_gpu_hours="5")
    return api.hub.database.write(lambda tx: awards.create_program(tx, OPERATOR, body)).id


def _cluster(api: Api) -> str:
    body = NewCluster(id=_new("cluster"), kind="simulated")
    return api.hub.database.write(lambda tx: fleet.create_cluster(tx, OPERATOR, body)).id


def _class(api: Api) -> str:
    body = NewGpuClass(id=_new("class"), name="C", rate_thousandths=500, price_krw=100)
    return api.hub.database.write(lambda tx: fleet.put_gpu_class(tx, OPERATOR, body)).id


def _pause_hub(api: Api) -> Request:
    rows = api.hub.rows(hub_switches)
    return Request(api.operator, {"paused": not (rows and rows[0].placement_paused), **REASON})


def _node(api: Api) -> Request:
    cordoned = api.hub.row(nodes, cluster="sim", node="n1").cordoned
    body = {"cordoned": not cordoned, **REASON}
    return Request(api.operator, body, {"cluster": "sim", "node": "n1"})


def _decisions(api: Api) -> Request:
    job, grant = _job(api)
    api.hub.take_lease()
    item = api.hub.start_item(job, grant).model_dump(mode="json")
    seq = api.hub.sequences.get("decisions", 0) + 1
    body = {"epoch": api.hub.epoch, "stream": "decisions", "seq": seq, "items": [item]}
    return Request(api.scheduler, body)


def _reports(api: Api) -> Request:
    job, grant = _job(api)
    api.hub.take_lease()
    api.hub.start(job, grant)
    item = started(job, api.hub.now, api.hub.now).model_dump(mode="json")
    body = {
        "epoch": api.hub.epoch,
        "stream": "cluster:sim",
        "seq": api.hub.sequences["cluster:sim"] + 1,
        "cluster": "sim",
        "items": [item],
        "observed_through": instant_text(api.hub.now),
    }
    return Request(api.scheduler, body)


def _forecast(api: Api) -> Request:
    api.hub.take_lease()
    job, _grant = _job(api)
    at = instant_text(api.hub.now)
    eta = {"low": at, "median": at, "high": at, "basis": "exact"}
    return Request(api.scheduler, {"epoch": api.hub.epoch, "as_of": at, "etas": {job.id: eta}})


def _ranking(api: Api) -> Request:
    api.hub.take_lease()
    job, _grant = _job(api)
    at = instant_text(api.hub.now)
    body = {
        "epoch": api.hub.epoch,
        "cycle": 1,
        "at": at,
        "order": [job.id],
        "reasons": {},
    }
    return Request(api.scheduler, body)


def _evidence(api: Api) -> Request:
    job = _running(api)
    row = {
        "job_id": job.id,
        "attempt": 1,
        "gpu_uuid": "GPU-1",
        "gpu_class": "h100",
        "node": "n0",
        "hour": instant_text(api.hub.now - api.hub.now % 3_600_000),
        "agent_epoch": "epoch-01",
        "seq": 1,
        "busy_ms": 1,
        "observed_ms": 1,
    }
    return Request(api.agent, {"rows": [row]})


def _gpu_report(api: Api) -> Request:
    row = {
        "gpu_uuid": _new("GPU"),
        "node": "n9",
        "gpu_class": "h100",
        "health": "healthy",
        "proven": False,
        "observed_at": instant_text(api.hub.now),
    }
    return Request(api.agent, {"gpus": [row]})


def _gpu(api: Api) -> str:
    """One of a node that no other request needs."""
    line = ExpectedGpu(gpu_uuid=_new("GPU"))
    api.operator.register_gpus(Inventory(gpus=(line,), reason="a test"))
    return line.gpu_uuid


def _day(api: Api) -> Request:
    api.hub.clock.advance(2 * DAY_MS)
    return Request(api.operator, {"day": instant_text(api.hub.now - 2 * DAY_MS)[:10]})


REQUESTS: dict[str, Maker] = {
    "submit_job": lambda api: Request(
        api.firms["alpha"],
        {"name": "j", "gpu_class": "h100", "walltime_s": 60, "grant_id": _grant(api).id},
    ),
    "cancel_job": lambda api: Request(api.firms["alpha"], None, {"job_id": _job(api)[0].id}),
    "extend_job": lambda api: Request(
        api.firms["alpha"], {"walltime_s": 60, **REASON}, {"job_id": _running(api).id}
    ),
    "refund_job": _refund,
    "requeue_job": lambda api: Request(api.operator, REASON, {"job_id": _running(api).id}),
    "freeze_organization": lambda api: Request(
        api.operator, {"frozen": True, **REASON}, {"organization_id": _organization(api)}
    ),
    "pause_hub": _pause_hub,
    "pause_cluster": lambda api: Request(
        api.operator, {"paused": True, **REASON}, {"cluster": _cluster(api)}
    ),
    "pause_gpu_class": lambda api: Request(
        api.operator, {"paused": True, **REASON}, {"class_id": _class(api)}
    ),
    "change_node": _node,
    "edit_grant": _of_grant({"max_gpus": 5, **REASON}),
    "create_program": lambda api: Request(
        api.operator, {"id": _new("program"), "name": "P", "budget_gpu_hours": "5", **REASON}
    ),
    "award_grant": lambda api: Request(
        api.operator,
        {
            "program_id": "ax",
            "organization_id": "alpha",
            "gpu_hours": "3",
            "ends_at": instant_text(api.hub.now + DAY_MS),
            **REASON,
        },
    ),
    "change_program": lambda api: Request(
        api.operator, {"name": "N", **REASON}, {"program_id": _program(api)}
    ),
    "adjust_program": lambda api: Request(
        api.operator, {"gpu_hours": "1", **WHY}, {"program_id": _program(api)}
    ),
    "top_up_grant": _of_grant({"gpu_hours": "1", **WHY}),
    "cut_grant": _of_grant({"gpu_hours": "1", **WHY}),
    "adjust_grant": _of_grant({"gpu_hours": "-1", **WHY}),
    "transfer_hours": lambda api: Request(
        api.operator,
        {"gpu_hours": "1", "to_grant_id": _grant(api).id, **WHY},
        {"grant_id": _grant(api).id},
    ),
    "carry_over_hours": _carry_over,
    "put_policy": lambda api: Request(
        api.operator, {"policy": {"overdraft_thousandths": 1}, **REASON}, {"policy_id": _new("policy")}
    ),
    "put_fund": lambda api: Request(
        api.operator,
        {"gpu_hours": "1", "ends_at": instant_text(api.hub.now + DAY_MS), **REASON},
        {"program_id": _program(api)},
    ),
    "put_fair_share": lambda api: Request(
        api.operator, {"fair_share": {"gang_first_gpus": 1000 + next(_numbers)}, **REASON}
    ),
    "create_booking": lambda api: Request(api.operator, _booking(api)),
    "cancel_booking": lambda api: Request(
        api.operator, REASON, {"booking_id": api.operator.create_booking(NewBooking(**_booking(api))).id}
    ),
    "put_caps": lambda api: Request(
        api.operator, {"caps": {"queued_jobs": 100_000 + next(_numbers)}, **REASON}
    ),
    "put_idle_policy": lambda api: Request(
        api.operator, {"policy": {"warning_gap_s": 1000 + next(_numbers)}, **REASON}
    ),
    "create_idle_exemption": lambda api: Request(
        api.operator,
        {
            "kind": "organization",
            "subject": "alpha",
            "expires_at": instant_text(api.hub.now + DAY_MS),
            **REASON,
        },
    ),
    "end_idle_exemption": lambda api: Request(
        api.operator, REASON, {"exemption_id": exempt(api.hub, "organization", "alpha").id}
    ),
    "put_organization_caps": lambda api: Request(
        api.operator, {"caps": {"max_gpus": 99}, **REASON}, {"organization_id": _organization(api)}
    ),
    "put_program_caps": lambda api: Request(
        api.operator, {"caps": {"job_gpus": 99}, **REASON}, {"program_id": _program(api)}
    ),
    "put_share": lambda api: Request(
        api.operator, {"gpu_hours": "2", **REASON}, {"grant_id": _grant(api).id, "organization_id": "beta"}
    ),
    "move_share": lambda api: Request(
        api.operator,
        {"from_organization_id": "alpha", "to_organization_id": "beta", "gpu_hours": "1", **REASON},
        {"grant_id": _shares(api).id},
    ),
    "open_tranches": _of_grant({"tranches": [{"gpu_hours": "4", "label": "first"}], **REASON}),
    "put_tranche": lambda api: Request(
        api.operator, {"gpu_hours": "3", **REASON}, {"grant_id": _divided(api).id, "position": "1"}
    ),
    "release_tranche": lambda api: Request(
        api.operator, WHY, {"grant_id": _divided(api).id, "position": "2"}
    ),
    "create_cluster": lambda api: Request(api.operator, {"id": _new("cluster"), "kind": "simulated"}),
    "put_gpu_class": lambda api: _put_class(api, _new("class")),
    "create_organization": lambda api: Request(api.operator, {"id": _new("org"), "name": "O"}),
    "change_organization": lambda api: Request(
        api.operator, {"name": "Other", **REASON}, {"organization_id": _organization(api)}
    ),
    "revoke_organization_tokens": lambda api: _revoke_all(api, _organization(api)),
    "create_token": lambda api: Request(api.operator, {"role": "member", "organization_id": "alpha"}),
    "rotate_token": lambda api: Request(api.operator, REASON, {"token_id": _token(api)}),
    "revoke_token": lambda api: Request(api.operator, REASON, {"token_id": _token(api)}),
    "take_lease": lambda api: Request(api.scheduler, {"holder": "scheduler-0", "instance": "instance-2"}),
    "send_decisions": _decisions,
    "send_reports": _reports,
    "put_ranking": _ranking,
    "put_forecast": _forecast,
    "deliver_evidence": _evidence,
    "report_gpus": _gpu_report,
    "register_gpus": lambda api: Request(
        api.operator, {"gpus": [{"gpu_uuid": _new("GPU"), "site": "gwangju-1"}], **REASON}
    ),
    "change_gpu": lambda api: Request(api.operator, {"quarantined": True, **REASON}, {"gpu_uuid": _gpu(api)}),
    "put_gpu_policy": lambda api: Request(
        api.operator, {"policy": {"vanished_wall_s": 600 + next(_numbers)}, **REASON}
    ),
    "reconcile_day": _day,
}


def _booking(api: Api) -> dict[str, Any]:
    """One GPU for an hour that nobody else has booked."""
    starts = api.hub.now + next(_numbers) * DAY_MS
    size = {"gpu_class": "h100", "gpus_per_pod": 1, "pods": 1}
    times = {"starts_at": instant_text(starts), "ends_at": instant_text(starts + 60 * MINUTE_MS)}
    return {"organization_id": "alpha", "name": "a class", **size, **times, **REASON}


def _put_class(api: Api, name: str) -> Request:
    body = {"id": name, "name": "C", "rate_thousandths": 700, "price_krw": 5}
    return Request(api.operator, body, {"class_id": name})


def _revoke_all(api: Api, organization: str) -> Request:
    _token(api, organization)
    return Request(api.operator, REASON, {"organization_id": organization})
