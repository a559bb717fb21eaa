"""Settings of the quota service, from `GPUHUB_QUOTA_*` or the command line."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Built once in `cli.py` or a test."""

    model_config = SettingsConfigDict(env_prefix="GPUHUB_QUOTA_")

    database: str = "sqlite:///quota.db"
    """SQLAlchemy URL: sqlite:///PATH for one process, postgresql://… for service."""
    host: str = "127.0.0.1"
    port: int = 8080
    lease_ttl_s: float = 15.0
    """How long a scheduler lease lasts by database time; renewed every third of it."""
    feed_poll_s: float = 0.5
    """How often a long poll looks at the feed's head in the database."""
    body_limit_bytes: int = 32 * 1024 * 1024
    """Largest request body; a report of 2,000 items is about 1 MiB."""
    pool_size: int = 16
    tasks: bool = True
    """Run the periodic tasks in this process."""
