"""Settings from the environment; apart from the settings because the agent at work needs no reader of variables."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict

from agents.settings import AgentSettings


class SettingsFromEnvironment(AgentSettings, BaseSettings):
    """Each setting as `GPUHUB_AGENT_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="GPUHUB_AGENT_", extra="forbid")
