"""A request to every operation that succeeds in `tenant_world`: the document's example, about what is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from quota.clock import HOUR_MS
from quota.programs import endings
from tests.builders import START_MS
from tests.integration.quota.door_world import Operation
from tests.integration.quota.idle_world import exempt
from tests.integration.quota.tenant_world import World

GPU = "GPU-6f9619ff-8b86-d011-b42d-00cf4fc964ff"
PROBES = {"read_health", "read_readiness"}
"""For machines that keep processes alive."""


@dataclass(frozen=True, slots=True)
class Valid:
    """Who asks, what stands in the path and in the query, and the body."""

    caller: str
    ids: dict[str, Any] = field(default_factory=dict)
    query: dict[str, Any] = field(default_factory=dict)
    body: dict[str, Any] | None = None

    def send(self, world: World, operation: Operation, **more: Any) -> httpx2.Response:
        """Ask it over HTTP; `params` and `headers` in `more` come on top."""
        url = operation.path.format(**self.ids)
        params = self.query | more.pop("params", {})
        return world.ask(self.caller, operation.method, url, params=params, body=self.body, **more)


def valid_requests(world: World) -> dict[str, Callable[[], Valid]]:
    """A valid request to each operation, in an order in which each finds what it is about.

    Each is made when it is called, which may first bring about what it needs.
    """
    plan = _jobs(world) | _identity(world) | _programs(world) | _limits(world) | _fleet(world)
    return plan | _programs_doors(world) | _trail(world) | {"carry_over_hours": lambda: _expired(world)}


def _identity(world: World) -> dict[str, Callable[[], Valid]]:
    delta = {"token_id": world.tokens["delta"]}
    return {
        "read_clock": _get("agent"),
        "read_caller": _get("beta"),
        "create_organization": _post(world, "create_organization", "operator"),
        "list_organizations": _get("auditor"),
        "read_organization": _get("alpha", organization_id="alpha"),
        "change_organization": _post(
            world, "change_organization", "operator", {"organization_id": "alpha-lab"}
        ),
        "read_organization_caps": _get("alpha", organization_id="alpha"),
        "put_organization_caps": _post(
            world, "put_organization_caps", "operator", {"organization_id": "alpha-lab"}
        ),
        "create_token": _post(world, "create_token", "operator"),
        "list_tokens": _get("auditor"),
        "rotate_token": _post(world, "rotate_token", "operator", delta),
        "revoke_token": _post(world, "revoke_token", "operator", delta, reason="lost"),
        "revoke_organization_tokens": _post(
            world, "revoke_organization_tokens", "operator", {"organization_id": "delta"}
        ),
    }


def _programs(world: World) -> dict[str, Callable[[], Valid]]:
    own, beta = {"grant_id": world.grants["alpha"].id}, world.grants["beta"].id
    return {
        "put_policy": _post(world, "put_policy", "operator", {"policy_id": "strict"}),
        "read_policy": _get("auditor", policy_id="strict"),
        "list_policies": _get("auditor"),
        "create_program": _post(world, "create_program", "operator", policy_id="strict"),
        "read_program": _get("auditor", program_id="ax-2026"),
        "change_program": _post(world, "change_program", "operator", {"program_id": "ax-2026"}),
        "put_fund": _post(world, "put_fund", "operator", {"program_id": "ax"}),
        "read_fund": _get("auditor", program_id="ax"),
        "put_program_caps": _post(world, "put_program_caps", "operator", {"program_id": "ax-2026"}),
        "read_program_caps": _get("auditor", program_id="ax-2026"),
        "adjust_program": _post(world, "adjust_program", "operator", {"program_id": "ax"}),
        "list_programs": _get("auditor"),
        "award_grant": _post(world, "award_grant", "operator", organization_id="beta"),
        "list_grants": _get("beta"),
        "read_grant": _get("alpha", **own),
        "top_up_grant": _post(world, "top_up_grant", "operator", own),
        "cut_grant": _post(world, "cut_grant", "operator", own),
        "adjust_grant": _post(world, "adjust_grant", "operator", own),
        "transfer_hours": _post(world, "transfer_hours", "operator", own, to_grant_id=beta),
        "edit_grant": _post(world, "edit_grant", "operator", own),
        "list_transfers": _get("alpha"),
        "read_statement": _get("alpha", **own),
        "list_statements": _get("alpha", **own),
    }


def _limits(world: World) -> dict[str, Callable[[], Valid]]:
    own, divided = {"grant_id": world.grants["alpha"].id}, {"grant_id": world.grants["consortium"].id}
    gamma, second = divided | {"organization_id": "gamma"}, divided | {"position": 2}
    parties = {"from_organization_id": "alpha", "to_organization_id": "gamma"}
    return {
        "open_tranches": _post(world, "open_tranches", "operator", own),
        "put_tranche": _post(world, "put_tranche", "operator", second, gpu_hours="59"),
        "release_tranche": _post(world, "release_tranche", "operator", second),
        "put_share": _post(world, "put_share", "alpha", gamma, gpu_hours="19"),
        "read_share": _get("alpha", **gamma),
        "move_share": _post(world, "move_share", "alpha", divided, gpu_hours="1", **parties),
        "read_limits": _get("alpha", **divided),
    }


def _fleet(world: World) -> dict[str, Callable[[], Valid]]:
    return {
        "create_cluster": _post(world, "create_cluster", "operator", id="sim-2"),
        "list_clusters": _get("alpha"),
        "put_gpu_class": _post(world, "put_gpu_class", "operator", {"class_id": "h100"}),
        "list_gpu_classes": _get("alpha"),
        "list_nodes": _get("auditor"),
        "report_gpus": lambda: _seen(world),
        "list_gpus": _get("auditor"),
        "register_gpus": _post(world, "register_gpus", "operator"),
        "read_gpu": _get("auditor", gpu_uuid=GPU),
        "change_gpu": _post(world, "change_gpu", "operator", {"gpu_uuid": GPU}, quarantined=True),
        "read_gpu_policy": _get("auditor"),
        "put_gpu_policy": _post(world, "put_gpu_policy", "operator"),
        "change_node": _post(
            world, "change_node", "operator", {"cluster": "sim", "node": "n0"}, cordoned=True
        ),
        "create_booking": _post(world, "create_booking", "operator"),
        "list_bookings": _get("alpha"),
        "read_booking": _get("alpha", booking_id=world.bookings["alpha"].id),
        "cancel_booking": _post(
            world, "cancel_booking", "operator", {"booking_id": world.bookings["alpha"].id}
        ),
        "list_placement": _get("auditor"),
        "read_fair_share": _get("auditor"),
        "put_fair_share": _post(world, "put_fair_share", "operator"),
        "read_caps": _get("auditor"),
        "put_caps": _post(world, "put_caps", "operator"),
        "read_idle_policy": _get("auditor"),
        "put_idle_policy": _post(world, "put_idle_policy", "operator"),
        "list_idle_jobs": _get("auditor"),
        "create_idle_exemption": _post(world, "create_idle_exemption", "operator", subject="alpha"),
        "list_idle_exemptions": _get("auditor"),
        "end_idle_exemption": lambda: _exempted(world),
        "read_scheduler_state": _get("auditor"),
        "ask_what_if": _post(world, "ask_what_if", "operator"),
        "pause_hub": _post(world, "pause_hub", "operator", paused=True),
        "pause_cluster": _post(world, "pause_cluster", "operator", {"cluster": "sim"}, paused=True),
        "pause_gpu_class": _post(world, "pause_gpu_class", "operator", {"class_id": "a100"}, paused=True),
    }


def _seen(world: World) -> Valid:
    """An agent reads a GPU of a node that no cluster has, so that nothing else is touched."""
    example = world.operations()["report_gpus"].example()
    row = example["gpus"][0] | {"gpu_uuid": GPU, "node": "n9", "health": "healthy"}
    return Valid("agent", body={"gpus": [row], "verdicts": []})


def _jobs(world: World) -> dict[str, Callable[[], Valid]]:
    jobs = {name: {"job_id": job.id} for name, job in world.jobs.items()}
    evidence = {"job_id": world.jobs["beta"].id, "node": "n1", "attempt": 1}
    rows = [world.operations()["deliver_evidence"].example()["rows"][0] | evidence]
    return {
        "submit_job": _post(world, "submit_job", "alpha"),
        "list_jobs": _get("alpha"),
        "read_job": _get("alpha", **jobs["alpha"]),
        "read_job_logs": _get("alpha", **jobs["alpha"]),
        "cancel_job": lambda: Valid("alpha", jobs["alpha/waiting"]),
        "extend_job": _post(world, "extend_job", "alpha", jobs["alpha"], walltime_s=60),
        "requeue_job": _post(world, "requeue_job", "operator", jobs["gamma"]),
        "deliver_evidence": _post(world, "deliver_evidence", "agent", rows=rows),
        "refund_job": lambda: _refundable(world),
        "freeze_organization": _post(
            world, "freeze_organization", "operator", {"organization_id": "gamma"}, frozen=True
        ),
    }


def _programs_doors(world: World) -> dict[str, Callable[[], Valid]]:
    hub = world.hub
    lease: dict[str, Any] = {"holder": "scheduler-0", "instance": "instance-1", "epoch": hub.epoch}

    def batch(operation: str, stream: str) -> Callable[[], Valid]:
        def made() -> Valid:
            seq = hub.sequences.get(stream, 0) + 1
            return _post(world, operation, "scheduler", epoch=hub.epoch, stream=stream, seq=seq, items=[])()

        return made

    return {
        "take_lease": _post(world, "take_lease", "scheduler", **lease),
        "read_snapshot": _get("scheduler"),
        "follow_feed": lambda: Valid("scheduler", query={"after": 0, "wait": 0}),
        "send_decisions": batch("send_decisions", "decisions"),
        "send_reports": batch("send_reports", "cluster:sim"),
        "put_ranking": _post(
            world,
            "put_ranking",
            "scheduler",
            epoch=hub.epoch,
            order=[world.jobs["beta/waiting"].id],
            reasons={},
        ),
        "put_forecast": _post(world, "put_forecast", "scheduler", epoch=hub.epoch, etas={}),
        "read_recent_jobs": _get("scheduler"),
    }


def _trail(world: World) -> dict[str, Callable[[], Valid]]:
    return {
        "list_reconciliations": _get("auditor"),
        "reconcile_day": _post(world, "reconcile_day", "operator", day="2026-11-21"),
        "list_findings": _get("auditor"),
        "list_audit": _get("auditor"),
        "list_seals": _get("auditor"),
        "list_tasks": _get("auditor"),
        "export_ledger": lambda: Valid("auditor", query={"reason": "the yearly audit"}),
    }


def _get(caller: str, **ids: Any) -> Callable[[], Valid]:
    return lambda: Valid(caller, ids)


def _post(
    world: World, operation: str, caller: str, ids: dict[str, Any] | None = None, **changed: Any
) -> Callable[[], Valid]:
    """The document's example with what is here in place of what it names."""
    return lambda: Valid(caller, ids or {}, body=world.operations()[operation].example() | changed)


def _exempted(world: World) -> Valid:
    made = exempt(world.hub, "organization", "beta")
    return _post(world, "end_idle_exemption", "operator", {"exemption_id": made.id})()


def _refundable(world: World) -> Valid:
    job = world.jobs["beta"]
    if world.hub.job(job.id).state.value != "ended":
        world.hub.finish(job)
    moments = {"starts_at": START_MS, "ends_at": START_MS + 60_000}
    return _post(world, "refund_job", "operator", {"job_id": job.id}, **moments, kind="fault")()


def _expired(world: World) -> Valid:
    hub = world.hub
    ended = hub.award("alpha", "200", ends_at=hub.now + HOUR_MS)
    hub.clock.advance(2 * HOUR_MS)
    assert endings.expire_due(hub.database) == 1
    own = world.grants["alpha"].id
    return _post(world, "carry_over_hours", "operator", {"grant_id": ended.id}, to_grant_id=own)()
