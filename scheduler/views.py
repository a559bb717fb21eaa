"""One cluster as last seen: observations merged into objects, nodes and a watermark."""

from __future__ import annotations

from scheduler.clusters.port import NodeStatus, ObjectStatus, Observation

GONE_KEPT = 20_000


class ClusterView:
    """What the observations of one cluster add up to. Used by one thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.complete = False
        """A complete observation was seen: a name not in `objects` is not on the cluster."""
        self.through_ms = 0
        """Every event up to here is in this view."""
        self.seen_ms: int | None = None
        """Business time when the cluster last answered."""
        self.objects: dict[str, ObjectStatus] = {}
        self.gone: dict[str, int] = {}
        """Names that this process saw on the cluster and that are gone now, with `through_ms` of then."""
        self.nodes: tuple[NodeStatus, ...] | None = None
        self.expected_hashes: dict[str, str] = {}
        """Memory of `sightings.is_foreign`: what an attempt's object is expected to be. Never changes for a name."""

    def take(self, observation: Observation, now_ms: int) -> None:
        """Merge what the cluster answered at `now_ms`."""
        if observation.complete:
            present = {status.name for status in observation.objects}
            missing = [name for name in self.objects if name not in present]
            self.complete = True
        else:
            missing = list(observation.gone)
        for name in missing:
            if self.objects.pop(name, None) is not None:
                self.gone[name] = observation.through_ms
        for status in observation.objects:
            self.objects[status.name] = status
            self.gone.pop(status.name, None)
        if observation.nodes is not None:
            self.nodes = observation.nodes
        self.through_ms = max(self.through_ms, observation.through_ms)
        self.seen_ms = now_ms
        while len(self.gone) > GONE_KEPT:
            del self.gone[next(iter(self.gone))]
