"""What breaks in the script of `dashboard_world.py`, and who idles there. (It holds no test itself.)"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from quota.client import QuotaClient
from quota.schemas.gpus import ExpectedGpu, Gpu, GpuChange, Inventory
from quota.schemas.idle import IdleMode, IdlePolicy, IdleRules, IdleSpan, KindRules

XID_BROKEN, XID_CONTAINED = 79, 94
RESET = 1
"""The recovery action that a broken GPU's driver asks for until it is mended: it stays broken."""
UNKNOWN_GPUS = 2
"""Seen, and not in the inventory."""
NEVER_SEEN, SOLD = "GPU-00000000-0000-0000-0000-00000000dead", "GPU-00000000-0000-0000-0000-00000000501d"
FIRST_WARNING_S, LONG_S = 60, 86_000
QUICK = IdleSpan(first_warning_s=FIRST_WARNING_S, second_warning_s=125, stop_s=190)
IDLE_RULES = IdlePolicy(
    mode=IdleMode.WARN,
    batch=KindRules(
        from_start=IdleSpan(first_warning_s=FIRST_WARNING_S, second_warning_s=LONG_S, stop_s=LONG_S + 1),
        sliding=IdleSpan(first_warning_s=LONG_S - 1, second_warning_s=LONG_S, stop_s=LONG_S + 1),
    ),
    programs={
        "campus": IdleRules(
            batch=KindRules(from_start=QUICK, sliding=QUICK), observed_thousandths=500, warning_gap_s=60
        )
    },
)
"""Who never works is warned once, and that is all for a day; but on the campus he is stopped at once."""

Place = tuple[str, str]
"""Node and GPU."""
Until = Callable[[str, Callable[[], object]], None]


@dataclass(frozen=True, slots=True)
class Broken:
    """GPUs that nobody holds: what each one shows, and what followed."""

    quarantined: Place
    """XID 79: the first bad GPU passes the circuit breaker."""
    by_hand: Place
    """On the same node; nothing is wrong with it."""
    withheld: Place
    """XID 79: the breaker does not let it."""
    degraded: Place
    """XID 94, for as long as the hold-down lasts."""

    def recoveries(self) -> dict[str, object]:
        """What the drivers of GPUs want done, by place."""
        return {" ".join(place): RESET for place in (self.quarantined, self.withheld)}

    def xids(self) -> dict[str, str]:
        """The XID's class, by place and XID."""
        hardware = {
            f"{node} {gpu} {XID_BROKEN}": "hardware" for node, gpu in (self.quarantined, self.withheld)
        }
        node, gpu = self.degraded
        return hardware | {f"{node} {gpu} {XID_CONTAINED}": "contained"}

    def health(self, place: Place) -> int:
        """0 healthy, 1 degraded, 2 unhealthy."""
        if place in (self.quarantined, self.withheld):
            return 2
        return 1 if place == self.degraded else 0


def register_most(operator: QuotaClient, gpus: Iterable[str]) -> None:
    """An inventory of all these GPUs but UNKNOWN_GPUS, of one that nobody ever saw, and of one that was sold."""
    there = [*sorted(gpus)[UNKNOWN_GPUS:], NEVER_SEEN]
    lines = (
        *(ExpectedGpu(gpu_uuid=gpu) for gpu in there),
        ExpectedGpu(gpu_uuid=SOLD, expected=False),
    )
    operator.register_gpus(Inventory(gpus=lines, reason="test"))


def break_some(
    operator: QuotaClient,
    plant: Callable[..., None],
    until: Until,
    closed: Iterable[Place],
    free: Iterable[Place],
) -> Broken:
    """Break GPUs one after the other: of a node that takes no jobs anyway, and then of open ones."""
    (first, second, *_), (third, fourth, *_) = closed, free

    def gpu(place: Place) -> Gpu:
        return operator.read_gpu(place[1]).gpu

    def breaks(place: Place, xid: int, recovery_action: int) -> None:
        node, uuid = place
        plant(
            fault="break_gpu", node=node, gpu_uuid=uuid, xid=xid, recovery_action=recovery_action, kills=False
        )

    breaks(first, XID_BROKEN, RESET)
    until("the first bad GPU is in quarantine", lambda: gpu(first).quarantine == "agent")
    operator.change_gpu(second[1], GpuChange(quarantined=True, reason="a fan is loud"))
    breaks(third, XID_BROKEN, RESET)
    until("the next one is not", lambda: gpu(third).withheld)
    breaks(fourth, XID_CONTAINED, 0)
    until("one is degraded", lambda: gpu(fourth).health == "degraded")
    return Broken(first, second, third, fourth)
