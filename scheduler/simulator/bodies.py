"""The request bodies of the simulated cluster's door: strict, with nothing extra in them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from scheduler.simulator.behavior import PREFIX, BadAnnotation, read_behavior
from scheduler.simulator.events import ObjectCreated, PodSpec
from scheduler.simulator.faults import DoorPath

Milliseconds = Annotated[int, Field(ge=0, le=10**13)]
Name = Annotated[
    str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
]


class Invalid(Exception):
    """A body that is well formed and still makes no sense; `field` says where."""

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail)
        self.field, self.detail = field, detail


class Body(BaseModel):
    """No booleans or floats for integers, and nothing unknown."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class PodBody(Body):
    """The GPUs that one pod wants."""

    index: Annotated[int, Field(ge=0, lt=100_000)]
    node: Name
    gpu_class: Name
    count: Annotated[int, Field(ge=1, le=1024)]


class CreateBody(Body):
    """An object to create, or a tombstone (`suspend`)."""

    name: Name
    job_id: Name
    attempt: Annotated[int, Field(ge=0, lt=10**9)]
    suspend: bool = False
    abandoned: bool = False
    spec_hash: Annotated[str, Field(max_length=256)]
    walltime_ms: Annotated[int, Field(ge=1, le=10**13)]
    grace_ms: Milliseconds
    pods: Annotated[list[PodBody], Field(max_length=10_000)]
    annotations: dict[str, str] = {}

    def event(self, now_ms: int, speedy: bool) -> ObjectCreated:
        """The creation as an event. Raises Invalid."""
        if self.name != f"{self.job_id}-{self.attempt}":
            raise Invalid("name", f"must be <job_id>-<attempt>, here {self.job_id}-{self.attempt}")
        if self.abandoned and not self.suspend:
            raise Invalid("abandoned", "only a suspended object can be abandoned")
        if not self.suspend and not self.pods:
            raise Invalid("pods", "an object to run has at least one pod")
        if len({pod.index for pod in self.pods}) < len(self.pods):
            raise Invalid("pods", "two pods have the same index")
        annotations = self.annotations
        if speedy:
            annotations = {PREFIX + "start_s": "0", PREFIX + "stop_s": "0"} | annotations
        try:
            read_behavior(annotations, self.walltime_ms)
        except BadAnnotation as bad:
            raise Invalid(f"annotations.{bad.key}", str(bad)) from bad
        # An object created suspended never gets pods, so none are recorded.
        pods = () if self.suspend else tuple(PodSpec(**pod.model_dump()) for pod in self.pods)
        return ObjectCreated(
            t=now_ms,
            name=self.name,
            job_id=self.job_id,
            attempt=self.attempt,
            suspend=self.suspend,
            abandoned=self.abandoned,
            spec_hash=self.spec_hash,
            walltime_ms=self.walltime_ms,
            grace_ms=self.grace_ms,
            pods=tuple(sorted(pods, key=lambda pod: pod.index)),
            annotations=tuple(annotations.items()),
        )


class SuspendBody(Body):
    """A stop."""

    suspend: Literal[True]
    abandoned: bool = False
    grace_ms: Milliseconds


class FailPod(Body):
    """Let a running pod crash."""

    fault: Literal["fail_pod"]
    name: Name
    pod_index: Annotated[int, Field(ge=0)]
    exit_code: Annotated[int, Field(ge=1, le=255)] = 1


class LoseNode(Body):
    """Let a node die; nobody notices for `silent_ms`."""

    fault: Literal["lose_node"]
    node: Name
    silent_ms: Milliseconds = 0


class ReturnNode(Body):
    """Let a lost node boot again."""

    fault: Literal["return_node"]
    node: Name


class Foreign(Body):
    """Let others than the hub use `count` GPUs; 0 ends it."""

    fault: Literal["foreign"]
    node: Name
    gpu_class: Name
    count: Annotated[int, Field(ge=0)]


class BreakGpu(Body):
    """Let a GPU show an XID or fall off the bus; `kills` ends its pod, `withdrawn` keeps it from later ones."""

    fault: Literal["break_gpu"]
    node: Name
    gpu_uuid: Name
    xid: Annotated[int, Field(ge=1, le=100_000)] | None = None
    lost: bool = False
    recovery_action: Annotated[int, Field(ge=0, le=7)] = 0
    withdrawn: bool = False
    kills: bool = True


class MendGpu(Body):
    """Let a broken GPU work again."""

    fault: Literal["mend_gpu"]
    node: Name
    gpu_uuid: Name


class RefuseStart(Body):
    """Decline the next `count` creations of objects to run."""

    fault: Literal["refuse_start"]
    count: Annotated[int, Field(ge=1)] = 1


class AnswerLate(Body):
    """Do the work at once and answer the next `count` requests `delay_s` wall seconds later."""

    fault: Literal["answer_late"]
    delay_s: Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)]
    count: Annotated[int, Field(ge=1)] = 1
    path: DoorPath | None = Field(default=None, strict=False)


class ForgetReply(Body):
    """Do the work of the next `count` requests and cut their connections without an answer."""

    fault: Literal["forget_reply"]
    count: Annotated[int, Field(ge=1)] = 1
    path: DoorPath | None = Field(default=None, strict=False)


ClusterFault = FailPod | LoseNode | ReturnNode | Foreign | BreakGpu | MendGpu
DoorFault = RefuseStart | AnswerLate | ForgetReply
FaultBody = Annotated[ClusterFault | DoorFault, Field(discriminator="fault")]
FAULTS = frozenset(
    {
        "fail_pod",
        "lose_node",
        "return_node",
        "foreign",
        "break_gpu",
        "mend_gpu",
        "refuse_start",
        "answer_late",
        "forget_reply",
    }
)
