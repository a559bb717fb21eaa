"""Settings of the quota service, from `GPUHUB_QUOTA_*` or the command line."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Built once in `cli.py` or a test."""

    model_config = SettingsConfigDict(env_prefix="GPUHUB_QUOTA_")

    database: str = "sqlite:///quota.db"
    """SQLAlchemy URL: sqlite:///PATH for one process, postgresql://… for service."""
    host: str = "127.0.0.1"
    port: int = 8080
    trusted_proxies: str = ""
    """Addresses and networks, separated by commas, whose X-Forwarded-For is believed. Nobody's by default: whoever
    is believed can claim any address, and so dodge a lockout or aim it at others. The proxy must set the header."""
    lease_ttl_s: float = 15.0
    """How long a scheduler lease lasts by database time; renewed every third of it."""
    feed_poll_s: float = 0.5
    """How often a long poll looks at the feed's head in the database."""
    body_limit_bytes: int = 64 * 1024 * 1024
    """Largest request body; a report of 2,000 items is about 1 MiB, a whole ranking of 200,000 waiting jobs 45 MiB."""
    member_requests_per_s: Annotated[float, Field(ge=0)] = 50.0
    """How many requests a member's token may send a second, per process; 0: as many as it likes."""
    member_requests_burst: Annotated[int, Field(ge=1)] = 100
    """How many it may send at once after a rest."""
    staff_requests_per_s: Annotated[float, Field(ge=0)] = 1000.0
    """The same for operators and auditors. Scheduler and agents are not limited."""
    staff_requests_burst: Annotated[int, Field(ge=1)] = 2000
    log_limit_bytes: Annotated[int, Field(ge=1)] = 10 * 1024 * 1024
    """Largest log that one request answers, followed or not."""
    log_limit_s: Annotated[float, Field(gt=0, le=3600)] = 600.0
    """How long one request may read or follow a log."""
    logs_per_token: Annotated[int, Field(ge=1)] = 4
    """Logs that one token may read at once, per process. Each holds a connection and two threads of the scheduler."""
    logs_at_once: Annotated[int, Field(ge=1)] = 48
    """The same for all tokens together; the scheduler's own limit is its `log_streams`."""
    what_if_limit_s: Annotated[int, Field(ge=1, le=600)] = 60
    """How long one what-if question may be played, by the scheduler that leads."""
    lockout_pair_failures: Annotated[int, Field(ge=1)] = 10
    """Failures of one address with one token's first characters within the window that lock this pair out."""
    lockout_address_failures: Annotated[int, Field(ge=1)] = 100
    """Unknown tokens from one address (IPv6: its /64) within the window that lock the address out. Behind a
    proxy all callers share its address unless `trusted_proxies` names it."""
    lockout_window_s: Annotated[int, Field(ge=1)] = 300
    lockout_s: Annotated[int, Field(ge=1)] = 900
    """How long a lock lasts, in seconds of the wall."""
    pool_size: int = 16
    tasks: bool = True
    """Run the periodic tasks in this process."""
