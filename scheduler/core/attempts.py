"""The attempts that are known: on which nodes and grants they run, and for which jobs they are stopped."""

from collections import Counter
from collections.abc import Iterable, Mapping

from scheduler.core.backfill import Place
from scheduler.core.entitlement import Remaining
from scheduler.core.model import Attempt, JobState
from scheduler.core.profile import NEVER_MS, Profile


class Attempts:
    """All of them, ended ones that still matter included; `profiles` are told when their GPUs come back."""

    __slots__ = ("_by_id", "_profiles", "_remaining", "_running_on", "stops_for")

    def __init__(self, profiles: Mapping[Place, Profile]) -> None:
        self._profiles = profiles
        self._by_id: dict[str, Attempt] = {}
        self._remaining: dict[str, Remaining] = {}  # by grant
        self._running_on: dict[str, dict[str, Attempt]] = {}  # by grant: running, and nobody stops them
        self.stops_for: dict[str, dict[str, Attempt]] = {}  # by the job that the room is freed for

    def put(self, attempt: Attempt) -> Attempt | None:
        """Take an attempt as it is now. Returns what was known of it."""
        before = self.drop(attempt.id)
        self._by_id[attempt.id] = attempt
        self._show(attempt)
        if attempt.stop and attempt.stop.for_job:
            self.stops_for.setdefault(attempt.stop.for_job, {})[attempt.id] = attempt
        return before

    def drop(self, attempt_id: str) -> Attempt | None:
        """Forget an attempt. Returns what was known of it."""
        attempt = self._by_id.pop(attempt_id, None)
        if attempt is None:
            return None
        self._hide(attempt)
        if attempt.stop and attempt.stop.for_job:
            stops = self.stops_for[attempt.stop.for_job]
            del stops[attempt_id]
            if not stops:
                del self.stops_for[attempt.stop.for_job]
        return attempt

    def all(self) -> Iterable[Attempt]:
        """In no order that means anything."""
        return self._by_id.values()

    def running_on(self, grant_id: str) -> Mapping[str, Attempt]:
        """The running attempts that draw on a grant and that nobody stops, by id."""
        return self._running_on.get(grant_id, {})

    def remaining_on(self, grant_id: str) -> Remaining:
        """What the attempts that draw on a grant may still use, now and whatever comes."""
        return self._remaining.setdefault(grant_id, Remaining())

    def _show(self, attempt: Attempt) -> None:
        """Its GPUs come back when it ends."""
        if attempt.state is JobState.RUNNING and attempt.stop is None:
            self._running_on.setdefault(attempt.grant_id, {})[attempt.id] = attempt
        self.remaining_on(attempt.grant_id).add(attempt)
        if attempt.capacity_held:
            ends_ms = NEVER_MS if attempt.ends_at_ms is None else attempt.ends_at_ms
            for (gpu_class, node), gpus in _on_nodes(attempt).items():
                self._profiles[gpu_class, attempt.cluster].touch(node).put(attempt.id, ends_ms, gpus)

    def _hide(self, attempt: Attempt) -> None:
        self._remaining[attempt.grant_id].add(attempt, sign=-1)
        self._running_on.get(attempt.grant_id, {}).pop(attempt.id, None)
        for gpu_class, node in _on_nodes(attempt) if attempt.capacity_held else ():
            self._profiles[gpu_class, attempt.cluster].touch(node).drop(attempt.id)


def _on_nodes(attempt: Attempt) -> Counter[tuple[str, str]]:
    """GPUs by (class, node)."""
    found: Counter[tuple[str, str]] = Counter()
    for pod in attempt.pods:
        found[pod.gpu_class, pod.node] += pod.count
    return found
