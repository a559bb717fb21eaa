"""What if: the same queue and ledger under other numbers, played side by side before anything is changed.

A future is played in virtual time by the scheduler's own core. `difference` is always changed minus base.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from quota.schemas.fair_share import FairShare
from quota.schemas.values import (
    ClassId,
    Flag,
    GpuHoursIn,
    GpuUs,
    Id,
    Instant,
    Reply,
    Request,
    ShortId,
    Thousandths,
    wrong,
)

MOST_CHANGES = 100
MOST_JOBS = 10_000
"""So many jobs can be added in all."""
LONGEST_HORIZON_H = 366 * 24
WEEK_H = 7 * 24

Gpus = Annotated[int, Field(strict=True, ge=1, le=1024)]


class GrantWhatIf(Request):
    """A grant with another amount, cap or end; what is left out stays as it is."""

    kind: Literal["grant"]
    id: ShortId
    gpu_hours: GpuHoursIn | None = None
    """What is granted in all. Shares and tranches of it stay as they are."""
    max_gpus: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] | None = None
    """How many GPUs its attempts may keep at once; null: no cap."""
    ends_at: Instant | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> GrantWhatIf:
        if not self.model_fields_set & {"gpu_hours", "max_gpus", "ends_at"}:
            raise wrong("name gpu_hours, max_gpus or ends_at")
        if "gpu_hours" in self.model_fields_set and self.gpu_hours is None:
            raise wrong("a grant always has an amount; leave gpu_hours out to keep it")
        if "ends_at" in self.model_fields_set and self.ends_at is None:
            raise wrong("a grant always has an end; leave ends_at out to keep it")
        return self


class FairShareWhatIf(Request):
    """The hub shares otherwise: first like a preset, then with these numbers."""

    kind: Literal["fair_share"]
    preset: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,40}$")] | None = None
    """A policy by its name, as `gpuhub replay` knows them; null: as the hub shares now."""
    changes: FairShare | None = None
    """What is not named stays as it is, also of `lane` and `preemption`; null turns these off."""

    @model_validator(mode="after")
    def _changes_something(self) -> FairShareWhatIf:
        if self.preset is None and (self.changes is None or not self.changes.model_fields_set):
            raise wrong("name preset, changes or both")
        return self


class NodesWhatIf(Request):
    """More or fewer nodes of a GPU class. Fewer: the emptiest take no more jobs, what runs on them goes on."""

    kind: Literal["nodes"]
    gpu_class: ClassId
    change: Annotated[int, Field(strict=True, ge=-10_000, le=10_000)]
    """How many are added, or with a minus taken away."""
    gpus_per_node: Gpus | None = None
    """Of those that are added; null: as most nodes of the class have."""
    cluster: Id | None = None
    """null: the cluster with the most GPUs of the class."""

    @model_validator(mode="after")
    def _changes_something(self) -> NodesWhatIf:
        if self.change == 0:
            raise wrong("change must be more or less than 0")
        return self


class GpuClassWhatIf(Request):
    """A GPU class with another rate, or paused; what is left out stays as it is."""

    kind: Literal["gpu_class"]
    id: ClassId
    rate_thousandths: Thousandths | None = None
    paused: Flag | None = None

    @model_validator(mode="after")
    def _changes_something(self) -> GpuClassWhatIf:
        if self.rate_thousandths is None and self.paused is None:
            raise wrong("name rate_thousandths, paused or both")
        return self


class ClusterWhatIf(Request):
    """A cluster paused, or let go on."""

    kind: Literal["cluster"]
    id: Id
    paused: Flag


class OrganizationWhatIf(Request):
    """An organization frozen, or let go on; what it runs goes on."""

    kind: Literal["organization"]
    id: Id
    frozen: Flag


class HubWhatIf(Request):
    """The whole hub paused, or let go on."""

    kind: Literal["hub"]
    paused: Flag


class JobsWhatIf(Request):
    """Jobs that an organization submits besides, all alike."""

    kind: Literal["jobs"]
    organization_id: Id
    gpu_class: ClassId
    gpus_per_pod: Gpus = 1
    pods: Annotated[int, Field(strict=True, ge=1, le=4096)] = 1
    walltime_s: Annotated[int, Field(strict=True, ge=1, le=366 * 86_400)]
    count: Annotated[int, Field(strict=True, ge=1, le=MOST_JOBS)] = 1
    every_s: Annotated[int, Field(strict=True, ge=0, le=366 * 86_400)] = 0
    """Pause between two of them; 0: all at once."""
    in_s: Annotated[int, Field(strict=True, ge=0, le=366 * 86_400)] = 0
    """When the first one comes, from the moment of the state on."""
    grant_id: ShortId | None = None
    restartable: Flag = False
    opportunistic: Flag = False
    """Jobs on GPUs that nobody else could use, paid by a programme."""
    program_id: ShortId | None = None
    """The programme that pays for opportunistic ones; may be left out where only one pays for the organization's."""

    @model_validator(mode="after")
    def _one_payer(self) -> JobsWhatIf:
        if self.program_id is not None and not self.opportunistic:
            raise wrong("program_id is for opportunistic jobs: grant_id names the grant that pays")
        if self.grant_id is not None and self.opportunistic:
            raise wrong(
                "an opportunistic job is paid by a programme: program_id, and not grant_id, may name it"
            )
        return self


WhatIfChange = Annotated[
    GrantWhatIf
    | FairShareWhatIf
    | NodesWhatIf
    | GpuClassWhatIf
    | ClusterWhatIf
    | OrganizationWhatIf
    | HubWhatIf
    | JobsWhatIf,
    Field(discriminator="kind"),
]


class WhatIfRequest(Request):
    """What would be otherwise, one change after the other, and how far to look."""

    changes: Annotated[tuple[WhatIfChange, ...], Field(min_length=1, max_length=MOST_CHANGES)]
    horizon_h: Annotated[int, Field(strict=True, ge=1, le=LONGEST_HORIZON_H)] = WEEK_H
    """Hours of the hub's time that are played."""
    runs_thousandths: Annotated[int, Field(strict=True, ge=1, le=1000)] = 1000
    """How much of its walltime every job is taken to run; of a job that runs already, of what is left of it."""

    @model_validator(mode="after")
    def _not_too_many_jobs(self) -> WhatIfRequest:
        added = sum(change.count for change in self.changes if isinstance(change, JobsWhatIf))
        if added > MOST_JOBS:
            raise wrong("at most {most} jobs can be added in all, not {added}", most=MOST_JOBS, added=added)
        return self


class Waits(Reply):
    """What becomes of the jobs that wait or come within the horizon. Waits count from the submission.

    A job that does not start within the horizon counts as waiting until its end.
    """

    jobs: int
    started: int
    ended: int
    mean_wait_ms: int
    p95_wait_ms: int
    """So long or less wait 95 in 100 of them (nearest rank)."""
    preemptions: int
    """Of all jobs, those that run already included."""


class OrganizationWaits(Waits):
    """The same of one organization, and what its grants are charged."""

    used_gpu_us: GpuUs
    """Charged within the horizon to grants whose lead it is; another party's jobs on them included."""
    delivered_thousandths: int
    """How much of these grants is used by the end of the horizon."""


class GrantDelivery(Reply):
    """What a grant has delivered by the end of the horizon."""

    granted_gpu_us: GpuUs
    used_gpu_us: GpuUs
    delivered_thousandths: int
    due_thousandths: int
    """How much of its term is over by then."""


class Future(Reply):
    """What the hub would do until the end of the horizon."""

    all_jobs: Waits
    organizations: dict[str, OrganizationWaits]
    sizes: dict[str, Waits]
    """By the GPUs of a job: `1-4`, `5-31`, `32+`."""
    grants: dict[str, GrantDelivery]
    """Of those that had not ended when the state was taken."""
    occupied_gpu_ms: int
    """GPUs x time that the hub's attempts occupy within the horizon."""


class WhatIfReply(Reply):
    """Two futures of one state, and what is different."""

    taken_at: Instant
    """The moment of the state that was played."""
    until: Instant
    runs_thousandths: int
    changed_to: tuple[str, ...]
    """What was changed, one English line each, with what it was before."""
    base: Future
    changed: Future
    difference: Future
    """Changed minus base, number by number."""
