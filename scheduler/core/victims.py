"""The attempts that may be stopped for others in a cycle. For `picking`, which asks once per gang."""

from bisect import bisect_right
from collections.abc import Iterable

from scheduler.core.entitlement import GrantBook
from scheduler.core.model import Job
from scheduler.core.policy import Preemption
from scheduler.core.preempt import Victim, victim_of
from scheduler.core.state import Knowledge


class Pool:
    """The attempts that may be stopped now, by class, those furthest ahead of their pace first."""

    def __init__(self, known: Knowledge, books: Iterable[GrantBook], rule: Preemption) -> None:
        self._known, self._rule = known, rule
        self._books = sorted(books, key=lambda book: (book.rank_lag_ms, book.grant.id))
        self._lags = [book.rank_lag_ms for book in self._books]
        self._by_class: dict[str, list[list[tuple[str, Victim]]]] = {}
        self._chosen: set[str] = set()

    def below(self, job: Job, gpu_class: str, lag_ms: int) -> list[Victim]:
        """Of other organizations, drawing on grants that are at most so far behind."""
        count = bisect_right(self._lags, lag_ms)
        return [
            victim
            for found in self._of(gpu_class)[:count]
            for organization, victim in found
            if organization != job.organization_id and victim.attempt.id not in self._chosen
        ]

    def drop(self, victims: Iterable[Victim]) -> None:
        """These are being stopped."""
        self._chosen.update(victim.attempt.id for victim in victims)

    def _of(self, gpu_class: str) -> list[list[tuple[str, Victim]]]:
        found = self._by_class.get(gpu_class)
        if found is None:
            found = self._by_class[gpu_class] = [self._on(book, gpu_class) for book in self._books]
        return found

    def _on(self, book: GrantBook, gpu_class: str) -> list[tuple[str, Victim]]:
        known, found = self._known, list[tuple[str, Victim]]()
        for attempt in known.attempts.running_on(book.grant.id).values():
            job = known.jobs.get(attempt.job_id)
            if job and attempt.pods[0].gpu_class == gpu_class:
                victim = victim_of(job, attempt, gpu_class, self._rule, known.now_ms)
                if victim:
                    found.append((job.organization_id, victim))
        return found
