"""Jobs and quotes with their sentences, in one language. What a sentence says is in the model already.

Names are looked up for the ids that stand among a model's numbers, and nothing else: what a reader may not know was
taken out of them before (`quota.jobs.views`), so no sentence can tell it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, select

from quota.fleet.tables import gpu_classes
from quota.i18n import Language
from quota.identity.tables import organizations
from quota.ledger.tables import accounts
from quota.programs.tables import grants, programs
from quota.schemas.jobs import Attempt, Job, JobDetail
from quota.schemas.quotes import Quote
from quota.schemas.scheduling import JobState, Waiting
from quota.wording.ends import end_text, payer_text, place_text, stop_text
from quota.wording.idles import idle_text
from quota.wording.waits import Names, waiting_text

J = TypeVar("J", bound=Job)


class Teller:
    """Tells models of one moment in one language."""

    def __init__(self, connection: Connection | None, language: Language, now_ms: int) -> None:
        """Without a connection only what names nothing can be told: a job that was just submitted, or has ended."""
        self._connection, self._language, self._now_ms = connection, language, now_ms

    def job(self, job: J) -> J:
        """The job with its sentences, and those of its attempts."""
        return self.jobs([job])[0]

    def jobs(self, found: Sequence[J]) -> tuple[J, ...]:
        """Many at once: names are looked up for all of them together."""
        names = self._names([job.waiting for job in found if job.waiting is not None])
        return tuple(self._told(job, names) for job in found)

    def quote(self, quote: Quote) -> Quote:
        """The quote with why the job would wait, and of an opportunistic one with who pays and when it leaves."""
        if quote.program_id is not None and quote.leaves_within_s is not None:
            program = self._named(select(programs.c.id, programs.c.name), programs.c.id, {quote.program_id})
            name = program.get(quote.program_id, quote.program_id)
            payer = payer_text(self._language, name, quote.leaves_within_s * 1000)
            quote = quote.model_copy(update={"payer_text": payer})
        waiting = quote.estimate.waiting
        if waiting is None:
            return quote
        text = waiting_text(self._language, waiting, self._names([waiting]), self._now_ms)
        return quote.model_copy(update={"estimate": quote.estimate.model_copy(update={"waiting_text": text})})

    def _told(self, job: J, names: Names) -> J:
        language = self._language
        texts: dict[str, object] = {}
        if job.waiting is not None:
            texts["waiting_text"] = waiting_text(language, job.waiting, names, self._now_ms)
        if job.position is not None:
            texts["place_text"] = place_text(
                language, job.position, job.queue_length, job.own_position, job.own_queue_length
            )
        if job.end_reason is not None:
            texts["end_text"] = end_text(language, job.end_reason)
        if job.idle is not None:
            texts["idle_text"] = idle_text(language, job.idle, self._now_ms) or None
        if isinstance(job, JobDetail):
            texts["attempts"] = tuple(self._attempt(attempt) for attempt in job.attempts)
        return job.model_copy(update=texts)

    def _attempt(self, attempt: Attempt) -> Attempt:
        if attempt.end_reason is not None:
            return attempt.model_copy(update={"end_text": end_text(self._language, attempt.end_reason)})
        if attempt.stop_reason is None or attempt.stop_at is None or attempt.state is JobState.ENDED:
            return attempt
        text = stop_text(self._language, attempt.stop_reason, attempt.stop_at, self._now_ms)
        return attempt.model_copy(update={"stop_text": text})

    def _names(self, reasons: Sequence[Waiting]) -> Names:
        named = {
            name: _ids(reasons, name)
            for name in ("organization", "grant", "gpu_class", "name", "account", "program")
        }
        found = select(grants.c.id, programs.c.name).join(programs, programs.c.id == grants.c.program_id)
        return Names(
            organizations=self._named(
                select(organizations.c.id, organizations.c.name), organizations.c.id, named["organization"]
            ),
            grants=self._named(found, grants.c.id, named["grant"]),
            gpu_classes=self._named(
                select(gpu_classes.c.id, gpu_classes.c.name),
                gpu_classes.c.id,
                named["gpu_class"] | named["name"],
            ),
            accounts=self._named(select(accounts.c.id, accounts.c.kind), accounts.c.id, named["account"]),
            programs=self._named(select(programs.c.id, programs.c.name), programs.c.id, named["program"]),
        )

    def _named(self, statement: Select[Any], key: ColumnElement[str], ids: set[str]) -> dict[str, str]:
        if not ids:
            return {}
        assert self._connection is not None, f"names of {sorted(ids)[:3]} need a connection"
        rows = self._connection.execute(statement.where(key.in_(ids)))
        return {row[0]: row[1] for row in rows}


def _ids(reasons: Iterable[Waiting], name: str) -> set[str]:
    return {str(waiting.numbers[name]) for waiting in reasons if waiting.numbers.get(name)}
