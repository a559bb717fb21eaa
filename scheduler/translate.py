"""Between the words of the quota service, of the core and of a cluster. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import assert_never

from pydantic import TypeAdapter, ValidationError

from quota.clock import Clock
from quota.schemas import scheduling as wire
from quota.schemas.values import ClassId, NodeName
from scheduler.clusters.port import NodeStatus, ObjectSpec, ObjectStatus
from scheduler.clusters.port import PodPlacement as ClusterPodPlacement
from scheduler.core import model
from scheduler.core.policy import Policy

_NODE_NAME: TypeAdapter[str] = TypeAdapter(NodeName)
_CLASS_ID: TypeAdapter[str] = TypeAdapter(ClassId)


# --- from quota to the core -----------------------------------------------------------------------


def changes_of(
    items: Iterable[wire.FeedItem], clock: Clock, held_back: Mapping[str, int], last_seen: Mapping[str, int]
) -> list[model.Change]:
    """Feed items as changes of the core's state.

    `held_back`: until when a job refused at its start waits. `last_seen`: when each cluster last answered.
    """
    changes: list[model.Change] = []
    for item in items:
        change = _tombstone(item) if item.gone else _change_of(item, clock, held_back, last_seen)
        if change is not None:
            changes.append(change)
    return changes


def _tombstone(item: wire.FeedItem) -> model.Tombstone | None:
    match item.kind:
        case "policy":
            return None  # the last one stays in force
        case "job" | "attempt" | "grant" | "organization" | "gpu_class" | "node" | "cluster":
            return model.Tombstone(model.Kind(item.kind), item.id)
    assert_never(item.kind)


def _change_of(
    item: wire.FeedItem, clock: Clock, held_back: Mapping[str, int], last_seen: Mapping[str, int]
) -> model.Change | None:
    match item:
        case wire.FeedItem(kind="job", job=wire.JobObject() as job):
            return job_of(job, held_back.get(job.id))
        case wire.FeedItem(kind="attempt", attempt=wire.AttemptObject() as attempt):
            return _attempt_of(attempt)
        case wire.FeedItem(kind="grant", grant=wire.GrantObject() as grant):
            return _grant_of(grant)
        case wire.FeedItem(kind="organization", organization=wire.OrganizationObject() as organization):
            return model.Organization(
                organization.id,
                organization.frozen,
                organization.decayed_usage_gpu_us,
                organization.decayed_as_of,
            )
        case wire.FeedItem(kind="gpu_class", gpu_class=wire.GpuClassObject() as gpu_class):
            return model.GpuClass(gpu_class.id, gpu_class.rate_thousandths, gpu_class.paused)
        case wire.FeedItem(kind="node", node=wire.NodeObject() as node):
            return _node_of(node)
        case wire.FeedItem(kind="cluster", cluster=wire.ClusterObject() as cluster):
            return cluster_of(cluster, last_seen)
        case wire.FeedItem(kind="policy", policy=wire.PolicyObject() as policy):
            return policy_of(policy, clock)
    return None


def job_of(job: wire.JobObject, held_back_until_ms: int | None) -> model.Job:
    """A job; one whose start quota refused waits a moment longer than it says itself."""
    not_before_ms = job.not_before
    if held_back_until_ms is not None:
        not_before_ms = max(held_back_until_ms, not_before_ms or 0)
    return model.Job(
        id=job.id,
        organization_id=job.organization_id,
        grant_id=job.grant_id,
        gpu_class=job.gpu_class,
        gpus_per_pod=job.gpus_per_pod,
        pods=job.pods,
        walltime_ms=job.walltime_ms,
        submitted_at_ms=job.submitted_at,
        state=model.JobState(job.state),
        attempt=job.attempt,
        not_before_ms=not_before_ms,
        cancel_requested=job.cancel_requested_at is not None,
    )


def cluster_of(cluster: wire.ClusterObject, last_seen: Mapping[str, int]) -> model.Cluster:
    """A cluster; one that this process never saw was last seen at the beginning of time."""
    return model.Cluster(cluster.id, last_seen.get(cluster.id, 0), cluster.paused)


def policy_of(policy: wire.PolicyObject, clock: Clock) -> Policy:
    """The core's numbers; wall seconds become business milliseconds."""
    return Policy(
        half_life_ms=policy.half_life_ms,
        lag_bound_share=policy.lag_bound_thousandths / 1000,
        cluster_unseen_ms=policy.cluster_unseen_wall_s * 1000 * clock.speed,
        placement_paused=policy.placement_paused,
    )


def _attempt_of(attempt: wire.AttemptObject) -> model.Attempt:
    return model.Attempt(
        job_id=attempt.job_id,
        attempt=attempt.attempt,
        grant_id=attempt.grant_id,
        state=model.JobState(attempt.state),
        cluster=attempt.cluster,
        pods=tuple(model.PodPlacement(pod.node, pod.gpu_class, pod.count) for pod in attempt.pods),
        cost_gpu_us=attempt.cost_gpu_us,
        claimed_at_ms=attempt.claimed_at,
        stop=None if attempt.stop is None else model.Stop(attempt.stop.reason, attempt.stop.for_job),
        capacity_held=attempt.capacity_held,
    )


def _grant_of(grant: wire.GrantObject) -> model.Grant:
    return model.Grant(
        id=grant.id,
        program_id=grant.program_id,
        organization_id=grant.organization_id,
        starts_at_ms=grant.starts_at,
        ends_at_ms=grant.ends_at,
        paths=tuple(_path_of(path) for path in grant.paths),
        pace=None if grant.pace is None else _pace(grant.pace),
        max_gpus=grant.max_gpus,
    )


def _path_of(path: wire.AccountPath) -> model.Path:
    accounts = tuple(
        model.Account(
            account.id,
            account.granted_gpu_us,
            account.held_gpu_us,
            account.used_gpu_us,
            account.overdraft_gpu_us,
        )
        for account in path.accounts
    )
    return model.Path(accounts, path.organization_id)


def _node_of(node: wire.NodeObject) -> model.Node:
    return model.Node(
        node.cluster,
        node.node,
        node.schedulable,
        {
            capacity.gpu_class: model.Capacity(capacity.total, capacity.foreign, capacity.used)
            for capacity in node.capacities
        },
    )


# --- from the core to quota -----------------------------------------------------------------------


def start_item(start: model.Start) -> wire.StartItem:
    """A start of the plan as a decision."""
    return wire.StartItem(
        job_id=start.job_id,
        attempt=start.attempt,
        grant_id=start.grant_id,
        account_path=start.account_path,
        cluster=start.cluster,
        pods=tuple(
            wire.PodPlacement(index=index, node=pod.node, gpu_class=pod.gpu_class, count=pod.count)
            for index, pod in enumerate(start.pods)
        ),
    )


def waiting_of(reason: model.Reason) -> wire.Waiting:
    """Why a job waits, for the people who ask."""
    return wire.Waiting(code=wire.WaitReason(reason.code), numbers=dict(reason.numbers))


def _pace(pace: wire.Pace) -> model.Pace:
    return model.Pace(pace.lag_ms, pace.as_of, pace.spent_gpu_us)


def pace_of(pace: model.Pace) -> wire.Pace:
    """A grant's pace as quota keeps it."""
    return wire.Pace(lag_ms=pace.lag_ms, as_of=pace.as_of_ms, spent_gpu_us=pace.spent_gpu_us)


# --- between quota and a cluster ------------------------------------------------------------------


def spec_of(attempt: wire.AttemptObject) -> ObjectSpec:
    """The cluster object of an attempt, as it is started: always the same for the same attempt."""
    return ObjectSpec(
        name=attempt.id,
        job_id=attempt.job_id,
        attempt=attempt.attempt,
        pods=tuple(
            ClusterPodPlacement(pod.index, pod.node, pod.gpu_class, pod.count)
            for pod in sorted(attempt.pods, key=lambda pod: pod.index)
        ),
        walltime_ms=attempt.walltime_ms,
        grace_ms=attempt.grace_ms,
        organization_id=attempt.organization_id,
        image=attempt.image,
        command=attempt.command,
        environment=tuple(sorted(attempt.environment.items())),
        annotations=tuple(sorted(attempt.annotations.items())),
    )


def stop_spec_of(attempt: wire.AttemptObject) -> ObjectSpec:
    """The same object, ending within the grace of the recorded stop."""
    spec = spec_of(attempt)
    return spec if attempt.stop is None else replace(spec, grace_ms=attempt.stop.grace_ms)


def stranger_of(seen: ObjectStatus) -> ObjectSpec:
    """Enough of a specification to stop an object that quota does not know."""
    return ObjectSpec(
        name=seen.name, job_id=seen.job_id, attempt=seen.attempt, pods=(), walltime_ms=0, grace_ms=0
    )


def node_reports(nodes: Iterable[NodeStatus]) -> tuple[tuple[wire.NodeReport, ...], tuple[str, ...]]:
    """The nodes as quota takes them, and the names of those it could not take."""
    taken: list[wire.NodeReport] = []
    left_out: list[str] = []
    for node in nodes:
        report = _node_report(node)
        if report is None:
            left_out.append(node.node)
        else:
            taken.append(report)
    return tuple(sorted(taken, key=lambda report: report.node)), tuple(left_out)


def _node_report(node: NodeStatus) -> wire.NodeReport | None:
    foreign = dict(node.foreign)
    try:
        return wire.NodeReport(
            node=_NODE_NAME.validate_python(node.node),
            schedulable=node.ready,
            classes=tuple(
                wire.ClassCount(
                    gpu_class=_CLASS_ID.validate_python(gpu_class),
                    total=total,
                    foreign=foreign.get(gpu_class, 0),
                )
                for gpu_class, total in sorted(node.classes)
            ),
        )
    except ValidationError:
        return None
