"""Settings of the scheduler, from `GPUHUB_SCHEDULER_*` or the command line."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Built once in `cli.py` or a test. All times are wall seconds."""

    model_config = SettingsConfigDict(env_prefix="GPUHUB_SCHEDULER_")

    quota_url: str = "http://127.0.0.1:8080"
    clusters: dict[str, str] = Field(default_factory=dict)
    """Base URL of each simulated cluster by its id in the quota service."""
    kubernetes: dict[str, Path] = Field(default_factory=dict)
    """The file that describes each Kubernetes cluster, by the cluster's id in the quota service."""
    clock: str = ""
    """`BUSINESS_MS,WALL_MS,SPEED`; empty = the wall's time."""
    host: str = "127.0.0.1"
    port: int = Field(default=9090, ge=0, le=65535)
    """Where /metrics and the health checks are; 0 picks a free one."""
    url: str = Field(default="", max_length=500)
    """Where the quota service reaches that address, for logs; `http://HOST:PORT` if empty."""
    holder: str = Field(default="", max_length=180)
    """Name in the lease. A restart under the same name takes over at once; replicas need different names."""
    cycle_interval_s: float = Field(default=0.25, gt=0, le=60)
    """Least time from one cycle's start to the next. Longer plans more at once, shorter answers sooner."""
    idle_interval_s: float = Field(default=1.0, gt=0, le=60)
    """A cycle runs this often even when nothing happened: pauses end, grants begin."""
    report_interval_s: float = Field(default=2.0, gt=0, le=600)
    """A cluster's watermark is told this often without events; the ledger's slices close behind it."""
    ranking_interval_s: float = Field(default=0.5, gt=0, le=600)
    """The queue's order and reasons are published at most this often."""
    forecast_interval_s: float = Field(default=60.0, ge=0, le=86_400)
    """When jobs will start is foretold at most this often, in a process of its own; 0: never."""
    forecast_limit_s: float = Field(default=120.0, gt=0, le=3600)
    """A forecast that takes longer is given up, and the next one comes later."""
    observe_wait_s: float = Field(default=1.0, ge=0, le=60)
    """How long a cluster is asked to wait for a change before it answers that there was none."""
    feed_wait_s: float = Field(default=25.0, ge=0, le=60)
    """How long the quota service is asked to wait for a change."""
    lease_renew_s: float = Field(default=5.0, gt=0, le=60)
    """How often the lease is renewed; at least three times in its life."""
    lease_retry_s: float = Field(default=1.0, gt=0, le=60)
    """How often a standby, or a leader whose renewal went unanswered, asks."""
    call_timeout_s: float = Field(default=10.0, gt=0, le=120)
    """A call to the quota service is given up after this; its outcome is then unknown."""
    log_streams: int = Field(default=64, ge=1, le=1000)
    """Logs read from the clusters at once, each with two threads."""
    hands: int = Field(default=8, ge=1, le=64)
    """Starts and stops under way at once on each cluster."""
    start_limit_s: float | None = Field(default=None, gt=0)
    """An attempt that has not started whole after this is given up; never later than the hub's own limit."""
