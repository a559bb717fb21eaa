"""When a timetable is, and what is left of the nodes beside other bookings: pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta, timezone

from quota.schemas.bookings import Timetable, Weekday

SEOUL = timezone(timedelta(hours=9), "KST")
_WEEKDAYS = tuple(Weekday)


@dataclass(frozen=True, slots=True)
class Span:
    """A time: from, until; half open, business ms."""

    starts_at_ms: int
    ends_at_ms: int

    def overlaps(self, other: Span) -> bool:
        """Whether they share a moment."""
        return self.starts_at_ms < other.ends_at_ms and other.starts_at_ms < self.ends_at_ms


@dataclass(frozen=True, slots=True)
class Wish:
    """Pods of one size in one cluster, or in any, for a time."""

    id: str
    span: Span
    gpus_per_pod: int
    pods: int
    cluster: str | None


def spans_of(timetable: Timetable) -> list[Span]:
    """Every time of a timetable, in order."""
    days = (timetable.last_day - timetable.first_day).days
    wanted = {_WEEKDAYS.index(day) for day in timetable.weekdays}
    found = []
    for number in range(days + 1):
        day = timetable.first_day + timedelta(days=number)
        if day.weekday() in wanted and day not in timetable.without:
            begins, ends = (
                int(datetime.combine(day, time.fromisoformat(text), SEOUL).timestamp()) * 1000
                for text in (timetable.begins, timetable.ends)
            )
            found.append(Span(begins, ends))
    return found


def pods_free(nodes: Mapping[str, Sequence[int]], others: Iterable[Wish], wish: Wish) -> int:
    """How many of the wished pods fit at once, all its time, in the cluster that has the most room for them.

    `nodes`: by cluster the GPUs of each node. The others keep to one node per pod for all their time, as the
    scheduler lays them out: the first to begin first, on the nodes with the least left.
    """
    board = _Board(nodes)
    for other in sorted(others, key=lambda other: (other.span.starts_at_ms, other.id)):
        if other.span.overlaps(wish.span):
            board.put(other)
    clusters = [wish.cluster] if wish.cluster is not None else sorted(nodes)
    return max((len(board.slots(cluster, wish)) for cluster in clusters), default=0)


class _Board:
    """What is taken of each node when."""

    def __init__(self, nodes: Mapping[str, Sequence[int]]) -> None:
        self._nodes = nodes
        self._taken: dict[tuple[str, int], list[tuple[Span, int]]] = {}

    def put(self, wish: Wish) -> None:
        """Lay a booking out: whole in the first cluster that has it, else as much as fits where most does."""
        clusters = [wish.cluster] if wish.cluster is not None else sorted(self._nodes)
        best: list[tuple[str, int]] = []
        for cluster in clusters:
            slots = self.slots(cluster, wish)
            if len(slots) > len(best):
                best = slots
            if len(best) == wish.pods:
                break
        for slot in best:
            self._taken.setdefault(slot, []).append((wish.span, wish.gpus_per_pod))

    def slots(self, cluster: str, wish: Wish) -> list[tuple[str, int]]:
        """A node per pod that fits, `wish.pods` at most."""
        left = sorted(
            (gpus - self._peak((cluster, number), wish.span), number)
            for number, gpus in enumerate(self._nodes.get(cluster, ()))
        )
        found: list[tuple[str, int]] = []
        for gpus, number in left:
            here = min(wish.pods - len(found), max(0, gpus) // wish.gpus_per_pod)
            found += [(cluster, number)] * here
        return found

    def _peak(self, slot: tuple[str, int], span: Span) -> int:
        """The most that is taken of a node at any moment of a time."""
        here = [(other, gpus) for other, gpus in self._taken.get(slot, ()) if other.overlaps(span)]
        moments = {max(span.starts_at_ms, other.starts_at_ms) for other, _ in here}
        return max(
            (
                sum(gpus for other, gpus in here if other.starts_at_ms <= at_ms < other.ends_at_ms)
                for at_ms in moments
            ),
            default=0,
        )
