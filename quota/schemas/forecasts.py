"""When waiting jobs are likely to start: what the scheduler foretells, and the recent past that it draws on."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from quota.schemas.scheduling import Topology
from quota.schemas.values import ClassId, Id, Instant, Reply, Request, Sequence, wrong


class EtaBasis(StrEnum):
    """What an ETA rests on."""

    EXACT = "exact"
    """Futures of the hub that were played with the scheduler's own rules; the job starts in most of them."""
    RATE = "rate"
    """The job is further back: the work ahead of it, over the rate at which its organization was served in them."""


class EtaItem(Request):
    """When one job starts: in four of five cases between `low` and `high`, half of the time by `median`."""

    low: Instant
    median: Instant
    high: Instant
    basis: EtaBasis

    @model_validator(mode="after")
    def _in_order(self) -> EtaItem:
        if not self.low <= self.median <= self.high:
            raise wrong("low, median and high have to be in this order")
        return self


class NewcomerItem(Request):
    """How long jobs of one organization that are alike wait when they are submitted now. Bounds hold in all GPUs and
    in milliseconds: over the one, up to the other (null: any more)."""

    organization_id: Id
    program_id: Id | None = None
    """Of opportunistic jobs."""
    gpu_classes: Annotated[tuple[ClassId, ...], Field(min_length=1, max_length=16)]
    """Every class that they accept, in order of preference."""
    topology: Topology = Topology.ANY
    """What is required of a gang; a preference is `any`."""
    gpus_over: Annotated[int, Field(ge=0)] = 0
    gpus_to: Annotated[int, Field(ge=1)] | None = None
    walltime_over_ms: Annotated[int, Field(ge=0)] = 0
    walltime_to_ms: Annotated[int, Field(ge=1)] | None = None
    eta: EtaItem
    """Of one that is submitted at the forecast's moment."""
    jobs: Annotated[int, Field(ge=1)]
    """So many jobs of the futures were like this."""


class ForecastDocument(Request):
    """The ETAs of all jobs that wait for room; those that time alone does not help have none."""

    epoch: Sequence
    as_of: Instant
    """The moment that the futures were played from."""
    etas: Annotated[dict[Id, EtaItem], Field(max_length=200_000)]
    newcomers: Annotated[tuple[NewcomerItem, ...], Field(max_length=50_000)] = ()
    """What quotes are told. The first that fits a job counts: the closest likenesses come first."""


class ForecastReply(Reply):
    """The moment of the forecast that the service now shows: a later one stays."""

    as_of: Instant


class JobEta(Reply):
    """When a waiting job is likely to start, as last foretold."""

    low: Instant
    """In one of ten cases it starts before this."""
    median: Instant
    high: Instant
    """In one of ten cases it starts after this."""
    basis: EtaBasis
    as_of: Instant
    """The moment that this was foretold from: what happened since then is not in it."""


class RecentJob(Reply):
    """A job that was submitted lately."""

    organization_id: str
    grant_id: str | None
    gpu_class: str
    gpus_per_pod: int
    pods: int
    walltime_ms: int
    restartable: bool
    submitted_at: Instant
    ran_ms: int | None
    """From start to end, if its only attempt succeeded, failed, was cancelled or reached the limit; else null."""
    fallback_classes: tuple[str, ...] = ()
    """What it accepted besides `gpu_class`, in order of preference."""
    topology: Topology = Topology.ANY
    program_id: str | None = None
    """The programme that paid for an opportunistic job."""


class RecentJobs(Reply):
    """The latest jobs, newest first."""

    items: tuple[RecentJob, ...]
    opportunistic: tuple[RecentJob, ...] = ()
    """The opportunistic ones of the same time, as many at most: they come when there is room and tell of nobody's
    needs, so they take no place of the others."""
