"""Reconciliation: one day of the ledger, the clusters' reports and the agents' evidence side by side."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from quota.clock import day_start_ms
from quota.schemas.values import Instant, Reply, Request, wrong

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def _a_day(text: str) -> str:
    if not _DAY.fullmatch(text):
        raise wrong("a day is YYYY-MM-DD, such as 2026-11-22")
    day_start_ms(text)
    return text


Day = Annotated[
    str,
    Field(max_length=10, json_schema_extra={"format": "date"}, examples=["2026-11-21"]),
    AfterValidator(_a_day),
]
"""A day of Asia/Seoul."""


class ReconcileDay(Request):
    """Compare a day again, for instance after agents delivered late."""

    day: Day


class Reconciliation(Reply):
    """One day of one cluster in GPU milliseconds. What differs is listed as findings of that day."""

    day: Day
    cluster: str
    done_at: Instant
    attempts: int
    """Attempts that occupied GPUs within the day."""
    ledger_gpu_ms: int
    """By the ledger: settled less corrected, whoever paid."""
    cluster_gpu_ms: int
    """By the cluster's times: first container's start to last pod's end."""
    observed_gpu_ms: int
    """Agents looked at the GPUs this long."""
    busy_gpu_ms: int
    """Of that, kernels were running."""
    unobserved_gpu_ms: int
    """Cluster time that no agent looked at; unknown, not idle."""
    differences: int
    """How many findings of this day's comparison there are."""


class ReconciliationPage(Reply):
    """Reconciliations, newest day first; pass `next` as `before` for the following page."""

    items: tuple[Reconciliation, ...]
    next: str | None
