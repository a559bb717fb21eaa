"""GPUs out of use: by verdicts as far as the circuit breaker lets them, by operators without limit; and their nodes.

A placement says node, class and count; which GPU a pod gets is the node's choice. So a node with a bad GPU takes no
jobs, unless it withdrew that GPU itself and counts it no more: then its total is already less, and nothing is
subtracted twice. Whoever changes what is in quarantine locks the policy's row first, so two deliveries never both find
the same room.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select, update

from quota.audit import service as audit
from quota.db import Tx
from quota.door import check_match, etag
from quota.errors import NotFound
from quota.fleet.gpu_rules import Spot, may_take, most_gpus, must_hold_back, out_of_use
from quota.fleet.gpu_tables import gpu_policy, gpus
from quota.fleet.tables import node_capacity, nodes
from quota.schemas.gpus import GpuChange, GpuPolicy, GpuPolicyDocument, GpuPolicyPut, Outcome
from quota.schemas.identity import Caller

SUBJECT = "gpu-policy"
AGENT, OPERATOR = "agent", "operator"
_POLICY = select(gpu_policy).where(gpu_policy.c.id == 1)
_GPUS = (
    gpus.c.gpu_uuid,
    gpus.c.node,
    gpus.c.gpu_class,
    gpus.c.withdrawn,
    gpus.c.quarantine,
    gpus.c.last_seen_ms,
)


def read_policy(connection: Connection) -> GpuPolicy:
    """What verdicts may do by themselves."""
    return GpuPolicy.model_validate_json(connection.execute(_POLICY).one().document)


def seen_after_ms(connection: Connection, now_ms: int, speed: int) -> int:
    """GPUs that were last seen before this count as gone."""
    return now_ms - read_policy(connection).vanished_wall_s * 1000 * speed


def policy_document(connection: Connection, now_ms: int, speed: int) -> GpuPolicyDocument:
    """The policy, and what it lets verdicts do now."""
    row = connection.execute(_POLICY).one()
    policy = GpuPolicy.model_validate_json(row.document)
    fleet = _Fleet.read(connection, now_ms - policy.vanished_wall_s * 1000 * speed)
    withheld = select(gpus.c.gpu_uuid).where(gpus.c.withheld_verdict.is_not(None), gpus.c.quarantine == "")
    return GpuPolicyDocument(
        policy=policy,
        changed_at=row.changed_at_ms,
        etag=etag(policy.model_dump(mode="json")),
        fleet_gpus=fleet.gpus,
        most_gpus=most_gpus(policy, fleet.gpus),
        out_of_use_gpus=out_of_use(fleet.taken, fleet.by_node),
        withheld_gpus=len(connection.execute(withheld).all()),
    )


def put_policy(tx: Tx, caller: Caller, body: GpuPolicyPut, if_match: str | None = None) -> GpuPolicyDocument:
    """Change the policy, whole; what it withheld before is judged anew, in the order of the verdicts' ids.

    GPUs that verdicts took under the old policy stay out of use. Raises PreconditionFailed.
    """
    before = lock_policy(tx)
    check_match(if_match, etag(before.model_dump(mode="json")))
    if before != body.policy:
        values = {"document": body.policy.model_dump_json(), "changed_at_ms": tx.now_ms}
        tx.connection.execute(update(gpu_policy).where(gpu_policy.c.id == 1).values(values))
        states = {"before": before.model_dump(mode="json"), "after": body.policy.model_dump(mode="json")}
        audit.record(tx, caller, "gpu_policy.put", SUBJECT, reason=body.reason, **states)
        tx.memo.pop(SUBJECT, None)
        waiting = select(gpus.c.gpu_uuid, gpus.c.withheld_verdict).where(
            gpus.c.withheld_verdict.is_not(None), gpus.c.quarantine == ""
        )
        for row in tx.connection.execute(waiting.order_by(gpus.c.gpu_uuid)).all():
            take_by_verdict(tx, row.gpu_uuid, row.withheld_verdict, "judged anew under a changed policy")
    return policy_document(tx.connection, tx.now_ms, tx.speed)


def lock_policy(tx: Tx) -> GpuPolicy:
    """The policy, kept from changing until the transaction ends; so is what is in quarantine."""

    def load() -> GpuPolicy:
        row = tx.connection.execute(_POLICY.with_for_update()).one()
        return GpuPolicy.model_validate_json(row.document)

    return tx.once(SUBJECT, load)


def take_by_verdict(tx: Tx, gpu_uuid: str, verdict_id: str, why: str) -> Outcome:
    """Take a GPU out of use because of a verdict, if the policy lets it. Locks the policy."""
    policy = lock_policy(tx)
    row = tx.connection.execute(select(gpus).where(gpus.c.gpu_uuid == gpu_uuid)).one()
    if row.quarantine:
        return "recorded"
    fleet = _Fleet.read(tx.connection, tx.now_ms - policy.vanished_wall_s * 1000 * tx.speed)
    if may_take(policy, fleet.taken, _spot(row), fleet.by_node, fleet.gpus):
        _take(tx, row, AGENT, verdict_id, why)
        audit.record(tx, "hub", "gpu.quarantine", gpu_uuid, reason=why, detail={"verdict": verdict_id})
        return "quarantined"
    tx.connection.execute(update(gpus).where(gpus.c.gpu_uuid == gpu_uuid).values(withheld_verdict=verdict_id))
    numbers: dict[str, int | str] = {
        "most_gpus": most_gpus(policy, fleet.gpus),
        "out_of_use_gpus": out_of_use(fleet.taken, fleet.by_node),
        "fleet_gpus": fleet.gpus,
        "verdict": verdict_id,
    }
    if policy.observe_only:
        audit.find(tx, "gpu_only_observed", gpu_uuid, f"verdict {verdict_id} on {row.node}: {why}", numbers)
        return "observed"
    detail = f"verdict {verdict_id} on {row.node}: {why}; verdicts may take no more GPUs out of use"
    audit.find(tx, "gpu_quarantine_withheld", gpu_uuid, detail, numbers)
    return "withheld"


def release_by_agent(tx: Tx, gpu_uuid: str, why: str) -> bool:
    """A GPU that its agent found well again: what verdicts did to it is over; what an operator did stays."""
    lock_policy(tx)
    row = tx.connection.execute(select(gpus).where(gpus.c.gpu_uuid == gpu_uuid)).one()
    if row.withheld_verdict is not None:
        tx.connection.execute(update(gpus).where(gpus.c.gpu_uuid == gpu_uuid).values(withheld_verdict=None))
    if row.quarantine != AGENT:
        return False
    _release(tx, row)
    audit.record(tx, "hub", "gpu.release", gpu_uuid, reason=why, detail={"was": row.quarantined_by})
    return True


def tag_of(row: Row[Any]) -> str:
    """A GPU's version for If-Match."""
    return etag(row.gpu_uuid, row.quarantine, row.quarantined_by, row.withheld_verdict or "")


def change_gpu(tx: Tx, caller: Caller, gpu_uuid: str, body: GpuChange, if_match: str | None = None) -> None:
    """Take a GPU out of use by hand, without limit, or let it be used; the same again changes nothing.

    A verdict's quarantine becomes the operator's own when he asks for one: then no verdict lifts it. After a release
    only a new sign takes it out of use again. Raises NotFound, PreconditionFailed.
    """
    lock_policy(tx)
    row = tx.connection.execute(select(gpus).where(gpus.c.gpu_uuid == gpu_uuid)).one_or_none()
    if row is None:
        raise NotFound("there is no GPU {gpu_uuid}", gpu_uuid=gpu_uuid)
    check_match(if_match, tag_of(row))
    if body.quarantined:
        if row.quarantine == OPERATOR:
            return
        _take(tx, row, OPERATOR, caller.token_id, body.reason)
    else:
        if not row.quarantine and row.withheld_verdict is None:
            return
        tx.connection.execute(update(gpus).where(gpus.c.gpu_uuid == gpu_uuid).values(withheld_verdict=None))
        if row.quarantine:
            _release(tx, row)
    action = "gpu.quarantine" if body.quarantined else "gpu.release"
    states = {
        "before": {"quarantine": row.quarantine},
        "after": {"quarantine": OPERATOR if body.quarantined else ""},
    }
    audit.record(tx, caller, action, gpu_uuid, reason=body.reason, **states)


def judge_nodes(tx: Tx, cluster: str | None = None, names: Sequence[str] | None = None) -> None:
    """Hold back the nodes that might give a bad GPU to somebody, and no others.

    Of one cluster or all; without `names` those that have, or had, a GPU in quarantine.
    """
    concerned = set(names or ())
    if names is None:
        bad = select(gpus.c.node).where(gpus.c.quarantine != "").distinct()
        held = select(nodes.c.node).where(nodes.c.held_back.is_(True))
        concerned = set(tx.connection.execute(bad).scalars()) | set(tx.connection.execute(held).scalars())
    for name in sorted(concerned - {""}):
        _judge_node(tx, name, cluster)


def _judge_node(tx: Tx, name: str, cluster: str | None) -> None:
    after_ms = seen_after_ms(tx.connection, tx.now_ms, tx.speed)
    here = tx.connection.execute(select(*_GPUS).where(gpus.c.node == name)).all()
    bad = [_spot(row) for row in here if row.quarantine]
    seen = [_spot(row) for row in here if (row.last_seen_ms or 0) >= after_ms]
    places = select(nodes.c.cluster, nodes.c.held_back).where(nodes.c.node == name)
    if cluster is not None:
        places = places.where(nodes.c.cluster == cluster)
    for place in tx.connection.execute(places.order_by(nodes.c.cluster)).all():
        spot = (node_capacity.c.cluster == place.cluster, node_capacity.c.node == name)
        totals = {
            row.gpu_class: row.total
            for row in tx.connection.execute(
                select(node_capacity.c.gpu_class, node_capacity.c.total).where(*spot)
            )
        }
        held_back = must_hold_back(bad, seen, totals)
        if held_back != place.held_back:
            this = (nodes.c.cluster == place.cluster, nodes.c.node == name)
            tx.connection.execute(update(nodes).where(*this).values(held_back=held_back))
            tx.touch("node", f"{place.cluster}/{name}")
            detail: dict[str, object] = {"gpus": sorted(spot.gpu_uuid for spot in bad)}
            action = "node.hold_back" if held_back else "node.take_back"
            audit.record(tx, "hub", action, f"{place.cluster}/{name}", detail=detail)


def _take(tx: Tx, row: Row[Any], kind: str, who: str, why: str) -> None:
    values = {
        "quarantine": kind,
        "quarantined_at_ms": tx.now_ms,
        "quarantined_by": who,
        "quarantine_reason": why[:500],
        "withheld_verdict": None,
    }
    tx.connection.execute(update(gpus).where(gpus.c.gpu_uuid == row.gpu_uuid).values(values))
    judge_nodes(tx, names=[row.node])


def _release(tx: Tx, row: Row[Any]) -> None:
    values = {"quarantine": "", "quarantined_at_ms": None, "quarantined_by": "", "quarantine_reason": ""}
    tx.connection.execute(update(gpus).where(gpus.c.gpu_uuid == row.gpu_uuid).values(values))
    judge_nodes(tx, names=[row.node])


@dataclass(frozen=True, slots=True)
class _Fleet:
    """What the circuit breaker counts."""

    gpus: int
    by_node: dict[str, int]
    taken: list[Spot]

    @classmethod
    def read(cls, connection: Connection, after_ms: int) -> _Fleet:
        """GPUs that were seen since, and those that verdicts took, seen or not."""
        by_node: Counter[str] = Counter()
        taken: list[Spot] = []
        for row in connection.execute(select(*_GPUS)):
            if (row.last_seen_ms or 0) >= after_ms:
                by_node[row.node] += 1
            if row.quarantine == AGENT:
                taken.append(_spot(row))
        return cls(by_node.total(), dict(by_node), taken)


def _spot(row: Any) -> Spot:
    return Spot(row.gpu_uuid, row.node, row.gpu_class, row.withdrawn)
