"""Why a job waits and where it stands, in one line: the service's sentences, or its codes where it has none."""

from __future__ import annotations

from quota.schemas.jobs import Job
from quota.schemas.scheduling import Waiting


def reason_text(waiting: Waiting | None, text: str | None) -> str:
    """The sentence that the service said; of an older one that says none the code and its numbers."""
    if waiting is None or text:
        return text or ""
    numbers = ", ".join(f"{name} {value}" for name, value in waiting.numbers.items())
    return waiting.code.value + (f" ({numbers})" if numbers else "")


def waiting_line(job: Job) -> str:
    """`needs 8 H100, 3 free now (3rd of 41 in the hub, 2nd of 5 of its organization)`; "" if it does not wait."""
    place = job.place_text or ("" if job.position is None else f"place {job.position} in the queue")
    reason = reason_text(job.waiting, job.waiting_text)
    return f"{reason} ({place})" if reason and place else reason
