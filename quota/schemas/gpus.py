"""GPUs by UUID: what agents report of them, how healthy they are, and what operators know and decide about them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from quota.schemas.usage import GpuUuid
from quota.schemas.values import (
    NO_NUL,
    AttemptNumber,
    ClassId,
    Flag,
    Instant,
    NodeName,
    Reason,
    Reply,
    Request,
    ShortId,
    wrong,
)

Said = Annotated[str, Field(max_length=200, pattern=NO_NUL)]
"""What a driver or a person says of a GPU; empty: not known."""
AssetNumber = Annotated[str, Field(max_length=60, pattern=NO_NUL)]
Site = Annotated[str, Field(max_length=60, pattern=NO_NUL)]
VerdictId = Annotated[str, Field(pattern=r"^[a-z0-9]{8,40}-[0-9]{1,12}$", examples=["3f9c2a7e11d04b6a-12"])]
RuleName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$", examples=["xid_hardware"])]


class GpuHealth(StrEnum):
    """How healthy a GPU is, the worst last."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    """It works, and somebody should look at it."""
    UNHEALTHY = "unhealthy"
    """It needs a reset, a reboot or a repair: work should not be given to it."""
    LOST = "lost"
    """The driver cannot reach it any more."""


BAD = frozenset({GpuHealth.UNHEALTHY, GpuHealth.LOST})
"""What takes a GPU out of use."""


class Holder(Request):
    """An attempt that held a GPU when something happened to it."""

    job_id: ShortId
    attempt: AttemptNumber


class GpuRow(Request):
    """A GPU as its node's agent last read it."""

    gpu_uuid: GpuUuid
    node: NodeName
    gpu_class: ClassId
    model: Said = ""
    serial: Said = ""
    pci_bus_id: Said = ""
    driver: Said = ""
    health: GpuHealth
    proven: Flag
    """Whether the agent watched it without a break and without anything bad for the whole hold-down."""
    withdrawn: Flag = False
    """Whether the node itself gives it to nobody any more."""
    observed_at: Instant
    """When it was read; of two reports the later one counts."""


class GpuVerdict(Request):
    """What an agent found of one GPU, by which rule. Sending it again changes nothing."""

    id: VerdictId
    gpu_uuid: GpuUuid
    node: NodeName
    health: GpuHealth
    """The GPU's health from then on."""
    rule: RuleName
    xid: Annotated[int, Field(strict=True, ge=0, le=100_000)] | None = None
    fault: Flag
    """Whether what ran on the GPU may have died of it."""
    since: Instant
    """It happened at this time at the earliest,"""
    at: Instant
    """and at this time at the latest."""
    detail: Said = ""
    holders: Annotated[tuple[Holder, ...], Field(max_length=64)] = ()
    """Who held the GPU in that time, as far as the agent knows."""

    @model_validator(mode="after")
    def _ends_after_it_began(self) -> Self:
        if self.since > self.at:
            raise wrong("since must not be after at")
        return self


class GpuReport(Request):
    """One delivery of an agent: its GPUs as they are, and verdicts that are new."""

    gpus: Annotated[tuple[GpuRow, ...], Field(max_length=5000)] = ()
    verdicts: Annotated[tuple[GpuVerdict, ...], Field(max_length=1000)] = ()


class GpuReportReply(Reply):
    """What became of a delivery."""

    gpus: int
    """Rows that were newer than what was known."""
    verdicts: int
    """Verdicts that were new."""
    conflicts: int
    """Rows and verdicts of GPUs that another node reports; kept as findings."""


class InventoryState(StrEnum):
    """What the inventory says of a GPU."""

    EXPECTED = "expected"
    """Registered, and seen lately."""
    UNKNOWN = "unknown"
    """Seen, but not registered."""
    VANISHED = "vanished"
    """Registered, and not seen for too long, or never."""
    GONE = "gone"
    """Not registered, and not seen for too long."""


QuarantineKind = Literal["", "agent", "operator"]
Outcome = Literal["recorded", "quarantined", "withheld", "observed"]


class Gpu(Reply):
    """A GPU: what it is, where, how healthy, and whether it is in quarantine."""

    gpu_uuid: str
    serial: str
    asset_number: str
    site: str
    node: str
    gpu_class: str
    model: str
    pci_bus_id: str
    driver: str
    registered: bool
    inventory: InventoryState
    health: GpuHealth | None = None
    """As its agent last said; absent for one never seen."""
    health_since: Instant | None = None
    rule: str = ""
    """The rule that made it so."""
    withdrawn: bool = False
    quarantine: QuarantineKind = ""
    """Who took it out of use; empty: nobody."""
    quarantined_at: Instant | None = None
    quarantined_by: str = ""
    """The verdict, or the operator's token."""
    quarantine_reason: str = ""
    withheld: bool = False
    """A verdict would have taken it out of use, but the circuit breaker or the observe-only switch did not let it."""
    first_seen: Instant | None = None
    last_seen: Instant | None = None
    etag: str = ""
    """Its version, for If-Match: changes with its quarantine."""


class GpuList(Reply):
    """GPUs in order of UUID; pass `next` as `after` for the following page."""

    items: tuple[Gpu, ...]
    next: str | None = None


class StoredVerdict(Reply):
    """A verdict and what followed from it."""

    id: str
    gpu_uuid: str
    node: str
    health: GpuHealth
    rule: str
    xid: int | None
    fault: bool
    since: Instant
    at: Instant
    detail: str
    received_at: Instant
    outcome: Outcome


class GpuDetails(Reply):
    """One GPU with its latest verdicts, newest first."""

    gpu: Gpu
    verdicts: tuple[StoredVerdict, ...]


class ExpectedGpu(Request):
    """One line of the inventory: a GPU that should be there."""

    gpu_uuid: GpuUuid
    serial: Said = ""
    asset_number: AssetNumber = ""
    site: Site = ""
    node: Annotated[str, Field(pattern=r"^$|^[a-z0-9][a-z0-9.-]{0,251}[a-z0-9]$|^[a-z0-9]$")] = ""
    """Where it should be; empty: wherever it is seen."""
    gpu_class: Annotated[str, Field(pattern=r"^$|^[a-z0-9][a-z0-9.-]{0,62}$")] = ""
    model: Said = ""
    expected: Flag = True
    """False takes it out of the inventory: it was sold, or sent in."""


class Inventory(Request):
    """Lines of the inventory; GPUs that it does not name stay as they are."""

    gpus: Annotated[tuple[ExpectedGpu, ...], Field(min_length=1, max_length=5000)]
    reason: Reason


class InventoryReply(Reply):
    """How many lines changed something."""

    changed: int
    unchanged: int


class GpuChange(Request):
    """Take a GPU out of use by hand, or let it be used again."""

    quarantined: Flag
    reason: Reason


class GpuPolicy(Request):
    """What agents' verdicts may do by themselves, and when a GPU counts as vanished."""

    auto_thousandths: Annotated[int, Field(strict=True, ge=0, le=1000)] = 100
    """So much of the fleet verdicts may take out of use at once, all GPUs of a closed node counted. The first bad GPU
    passes however small the fleet is; with 0 none does."""
    observe_only: Flag = False
    """Verdicts are recorded and flagged, and nothing is taken out of use."""
    stop_after_s: Annotated[int, Field(strict=True, ge=60, le=86_400)] = 600
    """How long a job may stay on a GPU in quarantine that is lost or hangs, in business seconds."""
    vanished_wall_s: Annotated[int, Field(strict=True, ge=60, le=604_800)] = 600
    """How long a GPU may go unseen, in wall seconds."""


class GpuPolicyPut(Request):
    """A new policy, whole."""

    policy: GpuPolicy
    reason: Reason


class GpuPolicyDocument(Reply):
    """The policy in force, and what it lets verdicts do now."""

    policy: GpuPolicy
    changed_at: Instant | None
    etag: str = ""
    fleet_gpus: int
    """GPUs that count: those seen lately."""
    most_gpus: int
    """How many of them verdicts may take out of use."""
    out_of_use_gpus: int
    """How many they took."""
    withheld_gpus: int
    """GPUs that a verdict would have taken, had it been let."""
