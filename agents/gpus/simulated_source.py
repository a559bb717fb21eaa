"""The simulated cluster's GPUs, as the agent's settings name them."""

from __future__ import annotations

import os

from agents.gpus.simulated import SimulatedReader
from agents.gpus.source import Source
from agents.outbox import Outbox
from agents.settings import AgentSettings
from quota.clock import Clock


def open_source(settings: AgentSettings, clock: Clock, outbox: Outbox) -> Source:
    """A reader of the simulated cluster; neither clock nor outbox is of use to it."""
    token = os.environ.get(settings.cluster_token_env, "")
    period_ms = round(settings.sample_period_s * 1000)
    return Source(SimulatedReader(settings.cluster_url, token, period_ms), settings.node)
