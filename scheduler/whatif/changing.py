"""A state under other numbers: each change is applied to the objects as the hub itself would write them. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, assert_never

from pydantic import BaseModel, ValidationError

from quota.clock import instant_text
from quota.schemas import what_if as wire
from quota.schemas.fair_share import FairShare, ProgramShare
from quota.schemas.scheduling import (
    FeedItem,
    FeedKind,
    GpuClassObject,
    GrantObject,
    JobObject,
    JobState,
    NodeCapacityObject,
    NodeObject,
    PolicyObject,
)
from quota.schemas.snapshots import SchedulerState
from quota.schemas.values import gpu_hours_text
from scheduler.core.policy import PRESETS
from scheduler.whatif.presets import fair_share_of

M = TypeVar("M", bound=BaseModel)
SHOWN_NAMES = 10


class BadChange(Exception):
    """A change that this state cannot have: which, what is wrong, and what would be right."""

    def __init__(self, number: int, field: str, detail: str) -> None:
        """`number` counts from 0, `field` is of the change."""
        self.field = f"changes.{number}.{field}" if field else f"changes.{number}"
        self.number = number
        self.detail = detail
        super().__init__(f"{self.field}: {detail}")


class _Wrong(Exception):
    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail)
        self.field = field


@dataclass(frozen=True, slots=True)
class Changed:
    """A state's objects after all changes, jobs that come besides, and each change in words."""

    items: tuple[FeedItem, ...]
    arrivals: tuple[JobObject, ...]
    """In order of submission."""
    told: tuple[str, ...]


def change(state: SchedulerState, changes: Iterable[wire.WhatIfChange]) -> Changed:
    """Apply one change after the other. Raises BadChange."""
    draft = _Draft({(item.kind, item.id): item for item in state.items}, state.taken_at)
    for number, each in enumerate(changes):
        try:
            draft.apply(each, number)
        except _Wrong as wrong:
            raise BadChange(number, wrong.field, str(wrong)) from wrong
    arrivals = sorted(draft.arrivals, key=lambda job: (job.submitted_at, job.id))
    return Changed(tuple(draft.items.values()), tuple(arrivals), tuple(draft.told))


@dataclass(slots=True)
class _Draft:
    items: dict[tuple[str, str], FeedItem]
    now_ms: int
    arrivals: list[JobObject] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def apply(self, change: wire.WhatIfChange, number: int) -> None:
        """Raises _Wrong."""
        match change:
            case wire.GrantWhatIf():
                self._grant(change)
            case wire.FairShareWhatIf():
                self._fair_share(change)
            case wire.NodesWhatIf():
                self._nodes(change, number)
            case wire.GpuClassWhatIf():
                before = self._found("gpu_class", change.id, "id")
                assert isinstance(before, GpuClassObject)
                self._set("gpu_class", change.id, before, change, ("rate_thousandths", "paused"))
            case wire.ClusterWhatIf():
                self._set("cluster", change.id, self._found("cluster", change.id, "id"), change, ("paused",))
            case wire.OrganizationWhatIf():
                found = self._found("organization", change.id, "id")
                self._set("organization", change.id, found, change, ("frozen",))
            case wire.HubWhatIf():
                policy = self._policy()
                self.told.append(f"hub: paused {policy.placement_paused} -> {change.paused}")
                self._put("policy", "default", policy, {"placement_paused": change.paused})
            case wire.JobsWhatIf():
                self._jobs(change, number)
            case _:
                assert_never(change)

    # --- grants and how the hub shares ---

    def _grant(self, change: wire.GrantWhatIf) -> None:
        grant = self._found("grant", change.id, "id")
        assert isinstance(grant, GrantObject)
        if change.gpu_hours is not None:
            grant = self._granted(grant, change.gpu_hours)
        if change.ends_at is not None:
            if change.ends_at <= max(self.now_ms, grant.starts_at):
                moment = instant_text(max(self.now_ms, grant.starts_at))
                raise _Wrong("ends_at", f"a grant cannot end before now or before it starts: after {moment}")
            self.told.append(
                f"grant {grant.id}: ends_at {instant_text(grant.ends_at)} -> {instant_text(change.ends_at)}"
            )
            grant = grant.model_copy(update={"ends_at": change.ends_at})
        if "max_gpus" in change.model_fields_set:
            before, after = grant.max_gpus or "none", change.max_gpus or "none"
            self.told.append(f"grant {grant.id}: max_gpus {before} -> {after}")
            grant = grant.model_copy(update={"max_gpus": change.max_gpus})
        self._put("grant", grant.id, grant, {})

    def _granted(self, grant: GrantObject, gpu_us: int) -> GrantObject:
        own = next((path.accounts[-1] for path in grant.paths), None)
        if own is None:
            raise _Wrong("gpu_hours", f"grant {grant.id} has no account open yet: release a tranche first")
        spent = own.held_gpu_us + own.used_gpu_us
        if gpu_us < spent:
            hours = gpu_hours_text(spent)
            raise _Wrong("gpu_hours", f"grant {grant.id} has used and holds {hours} GPU hours; at least that")
        self.told.append(
            f"grant {grant.id}: gpu_hours {gpu_hours_text(own.granted_gpu_us)} -> {gpu_hours_text(gpu_us)}"
        )
        account = own.model_copy(update={"granted_gpu_us": gpu_us})
        paths = tuple(
            path.model_copy(update={"accounts": (*path.accounts[:-1], account)}) for path in grant.paths
        )
        return grant.model_copy(update={"paths": paths})

    def _fair_share(self, change: wire.FairShareWhatIf) -> None:
        policy = self._policy()
        share = policy.fair_share
        if change.preset is not None:
            if change.preset not in PRESETS:
                raise _Wrong("preset", f"there is no policy {change.preset}; there are {', '.join(PRESETS)}")
            # who weighs more and what is reserved for whom is not a way of sharing: it stays
            kept = {name: getattr(share, name) for name in ("programs", "organization_weights")}
            share = fair_share_of(PRESETS[change.preset]).model_copy(update=kept)
        if change.changes is not None:
            self._known_shares(change.changes)
            patch = change.changes.model_dump(exclude_unset=True)
            try:
                share = FairShare.model_validate(_patched(share.model_dump(), patch))
            except ValidationError as error:
                # each number was checked when it was read, but not what they come to with those that stay
                first = error.errors(include_url=False, include_input=False, include_context=False)[0]
                field = ".".join(("changes", *map(str, first["loc"])))
                raise _Wrong(field, first["msg"].removeprefix("Value error, ")) from error
        before = _with_shares_of(share, policy.fair_share)
        self.told += _differences(before.model_dump(mode="json"), share.model_dump(mode="json"))
        self._put("policy", "default", policy, {"fair_share": share})

    def _known_shares(self, changes: FairShare) -> None:
        """A weight of somebody that the state does not know would change nothing, without a word."""
        for organization_id in changes.organization_weights:
            self._found("organization", organization_id, f"changes.organization_weights.{organization_id}")
        known = {item.grant.program_id for item in self.items.values() if item.grant is not None}
        for program_id in changes.programs:
            if program_id not in known:
                there = ", ".join(sorted(known)) or "none"
                raise _Wrong(
                    f"changes.programs.{program_id}",
                    f"no grant of the state is of programme {program_id}; there are grants of {there}",
                )

    def _policy(self) -> PolicyObject:
        policy = self._found("policy", "default", "kind")
        assert isinstance(policy, PolicyObject)
        return policy

    # --- capacity and demand ---

    def _nodes(self, change: wire.NodesWhatIf, number: int) -> None:
        self._found("gpu_class", change.gpu_class, "gpu_class")
        if change.cluster is not None:
            self._found("cluster", change.cluster, "cluster")
        nodes = [
            (item.node, each)
            for item in self.items.values()
            if item.node is not None and change.cluster in (None, item.node.cluster)
            for each in item.node.capacities
            if each.gpu_class == change.gpu_class
        ]
        if change.change > 0:
            self._more_nodes(change, nodes, number)
        else:
            self._fewer_nodes(change, [pair for pair in nodes if pair[0].schedulable])

    def _more_nodes(
        self, change: wire.NodesWhatIf, nodes: list[tuple[NodeObject, NodeCapacityObject]], number: int
    ) -> None:
        totals = Counter(each.total for _, each in nodes)
        size = change.gpus_per_node or (max(totals, key=lambda n: (totals[n], n)) if totals else 0)
        if not size:
            raise _Wrong("gpus_per_node", f"no node has {change.gpu_class} yet: say how many GPUs each has")
        clusters: Counter[str] = Counter()
        for node, each in nodes:
            clusters[node.cluster] += each.total
        cluster = change.cluster or max(clusters, key=lambda name: (clusters[name], name), default="")
        if not cluster:
            raise _Wrong("cluster", f"no cluster has {change.gpu_class} yet: name one")
        capacity = NodeCapacityObject(gpu_class=change.gpu_class, total=size, foreign=0, used=0)
        for n in range(change.change):
            name = f"what-if-{number}-{n:05d}"
            node = NodeObject(cluster=cluster, node=name, schedulable=True, capacities=(capacity,))
            self._put("node", f"{cluster}/{name}", node, {})
        self.told.append(f"{change.change} nodes with {size} {change.gpu_class} more in cluster {cluster}")

    def _fewer_nodes(
        self, change: wire.NodesWhatIf, nodes: list[tuple[NodeObject, NodeCapacityObject]]
    ) -> None:
        count = -change.change
        if count > len(nodes):
            raise _Wrong(
                "change", f"only {len(nodes)} nodes with {change.gpu_class} take jobs; at most so many"
            )
        # taken away are those whose room is free first: the difference is then capacity, not luck
        emptiest = sorted(nodes, key=lambda pair: (pair[1].used, pair[0].cluster, pair[0].node))[:count]
        for node, _ in emptiest:
            self._put("node", f"{node.cluster}/{node.node}", node, {"schedulable": False})
        gpus = sum(each.total - each.foreign for _, each in emptiest)
        self.told.append(f"{count} nodes with {gpus} {change.gpu_class} in all take no more jobs")

    def _jobs(self, change: wire.JobsWhatIf, number: int) -> None:
        self._found("organization", change.organization_id, "organization_id")
        self._found("gpu_class", change.gpu_class, "gpu_class")
        if change.grant_id is not None:
            self._found("grant", change.grant_id, "grant_id")
        program_id = self._payer(change) if change.opportunistic else None
        for n in range(change.count):
            self.arrivals.append(
                JobObject(
                    id=f"what-if-{number}-{n:05d}",
                    organization_id=change.organization_id,
                    grant_id=change.grant_id,
                    gpu_class=change.gpu_class,
                    gpus_per_pod=change.gpus_per_pod,
                    pods=change.pods,
                    walltime_ms=change.walltime_s * 1000,
                    grace_ms=30_000,
                    restartable=change.restartable,
                    submitted_at=self.now_ms + (change.in_s + n * change.every_s) * 1000,
                    state=JobState.QUEUED,
                    attempt=0,
                    not_before=None,
                    cancel_requested_at=None,
                    program_id=program_id,
                )
            )
        shape = f"{change.pods} x {change.gpus_per_pod} {change.gpu_class} for {change.walltime_s} s"
        paid = "" if program_id is None else f", opportunistic, paid by {program_id}"
        self.told.append(f"{change.count} jobs of {change.organization_id} more, each {shape}{paid}")

    def _payer(self, change: wire.JobsWhatIf) -> str:
        """The programme that pays for opportunistic jobs of this organization."""
        grants = [item.grant for item in self.items.values() if item.grant is not None]
        paying = {grant.program_id for grant in grants if not grant.organization_id}
        mine = {
            grant.program_id
            for grant in grants
            if change.organization_id in {grant.organization_id, *(p.organization_id for p in grant.paths)}
        }
        could = sorted(paying & mine)
        if change.program_id is None and len(could) == 1:
            return could[0]
        if change.program_id in could:
            return str(change.program_id)
        there = ", ".join(could) or "none"
        raise _Wrong(
            "program_id", f"name a programme that pays for opportunistic jobs of this organization: {there}"
        )

    # --- objects ---

    def _found(self, kind: FeedKind, ident: str, field: str) -> BaseModel:
        item = self.items.get((kind, ident))
        if item is None:
            names = sorted(name for known, name in self.items if known == kind)
            more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
            there = f"there are {', '.join(names[:SHOWN_NAMES])}{more}" if names else "there is none"
            raise _Wrong(field, f"the state has no {kind} {ident}; {there}")
        body = getattr(item, kind)
        assert isinstance(body, BaseModel)
        return body

    def _set(
        self, kind: FeedKind, ident: str, before: BaseModel, change: BaseModel, names: Iterable[str]
    ) -> None:
        """Take over those of these fields that the change names."""
        update = {name: value for name in names if (value := getattr(change, name)) is not None}
        for name, value in update.items():
            self.told.append(f"{kind} {ident}: {name} {getattr(before, name)} -> {value}")
        self._put(kind, ident, before, update)

    def _put(self, kind: FeedKind, ident: str, body: BaseModel, update: Mapping[str, object]) -> None:
        changed = body.model_copy(update=update)
        self.items[kind, ident] = FeedItem.model_validate(
            {"kind": kind, "id": ident, "seq": 0, kind: changed}
        )


def _patched(document: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The document with what is named; parts of it are changed field by field."""
    patched = dict(document)
    for name, value in changes.items():
        before = patched.get(name)
        patched[name] = _patched(before or {}, value) if isinstance(value, dict) else value
    return patched


def _with_shares_of(other: FairShare, share: FairShare) -> FairShare:
    """The same, with what everybody has by default written out for those that the other one names."""
    programs = dict.fromkeys(other.programs, ProgramShare()) | share.programs
    weights = dict.fromkeys(other.organization_weights, 1000) | share.organization_weights
    return share.model_copy(update={"programs": programs, "organization_weights": weights})


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "fair_share") -> list[str]:
    lines = []
    for name, value in after.items():
        old = before.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            lines += _differences(old, value, f"{path}.{name}")
        elif old != value:
            lines.append(f"{path}.{name} {_shown(old)} -> {_shown(value)}")
    return lines


def _shown(value: object) -> str:
    if isinstance(value, list):
        return json.dumps(value)
    return "off" if value is None else "on" if isinstance(value, dict) else str(value)
