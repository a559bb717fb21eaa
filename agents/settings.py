"""The agent's settings: what one agent does, for whom, and where it keeps its outbox."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from quota.clock import Clock
from quota.schemas.values import ClassId

HANDED_OVER = "GPUHUB_AGENT_HANDED_OVER"
"""The environment variable through which the command hands the settings to the agent that it becomes."""

LEAST_SAMPLING_WALL_S = 0.2
"""However fast business time runs, GPUs are not read more often than this."""

Url = Annotated[str, StringConstraints(pattern=r"^https?://[^/\s]+(/\S*)?$")]


class AgentSettings(BaseModel):
    """From the command line, else from the environment (`agents.environment`), else these."""

    model_config = ConfigDict(extra="forbid")

    quota_url: Url = "http://127.0.0.1:8000"
    """The quota service."""
    token_env: str = "GPUHUB_TOKEN"
    """Name of the environment variable with the agent's token; the token itself is never an argument."""
    reader: Literal["simulated", "nvml"] = "simulated"
    """What reads the GPUs: the simulated cluster, or this machine's driver."""
    gpu_classes: dict[str, ClassId] = {}
    """GPU classes by the driver's product name, where the one taken from the name does not do."""
    nvml_cycle_s: Annotated[float, Field(ge=0.05, le=60)] = 3.0
    """How often the driver is read, in wall seconds: its buffers hold a few seconds of samples."""
    nvml_deadline_s: Annotated[float, Field(ge=0.05, le=600)] = 10.0
    """How long a GPU's read may take before it counts as hanging."""
    nvml_retry_s: Annotated[float, Field(ge=0.05, le=3600)] = 30.0
    """How long GPUs that hang or are lost wait for a new collector while others are well; doubled each time."""
    pods_socket: str = "/var/lib/kubelet/pod-resources/kubelet.sock"
    """The kubelet's socket for who holds the GPUs (nvml); empty on a machine without a kubelet."""
    pods_interval_s: Annotated[float, Field(ge=0.05, le=60)] = 3.0
    """How often the kubelet is asked, in wall seconds."""
    pods_timeout_s: Annotated[float, Field(ge=0.05, le=60)] = 2.0
    """How long it may take to answer."""
    pods_namespace_prefix: Annotated[str, StringConstraints(min_length=1, max_length=62)] = "hub-"
    """What the names of the organizations' namespaces begin with; as in the cluster's configuration."""
    pods_cgroups: Path = Path("/sys/fs/cgroup")
    """Where cgroups are, to tell pods that have ended."""
    pods_proc: Path = Path("/proc")
    """Where the node's processes are."""
    pods_logs: Path = Path("/var/log/pods")
    """The kubelet's folders of logs, whose names tell the pods' UIDs."""
    cluster_url: Url = "http://127.0.0.1:8090"
    """The simulated cluster's door."""
    cluster_token_env: str = "GPUHUB_CLUSTER_TOKEN"
    """Name of the environment variable with the simulated cluster's token, if it wants one."""
    node: tuple[str, ...] = ()
    """The nodes to read; none means all."""
    outbox: Path = Path("gpuhub-agent.sqlite3")
    """The file with measured evidence and what is still to be sent; one agent each."""
    spool_rows: Annotated[int, Field(ge=1_000, le=10_000_000)] = 200_000
    """How many rows the outbox keeps at most; each takes about 250 bytes."""
    clock: str = ""
    """BUSINESS_MS,WALL_MS,SPEED; empty means the wall's time."""
    sample_interval_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """How often GPUs are read, in business seconds. Shorter finds idle jobs sooner, longer spares the CPU."""
    sample_period_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    """How often the driver samples, in business seconds; it judges only a new GPU's first few distances."""
    send_interval_s: Annotated[float, Field(ge=0.1, le=3600)] = 60.0
    """How often evidence is delivered, in wall seconds; slices are settled behind it."""
    health_hold_down_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """How long a GPU must be without a bad sign before it counts as well again, in business seconds."""
    send_timeout_s: Annotated[float, Field(ge=0.1, le=600)] = 30.0
    """How long one delivery may take, in wall seconds."""
    host: str = "127.0.0.1"
    """Where /metrics is served."""
    port: Annotated[int, Field(ge=0, le=65535)] = 9410
    """Its port; 0 takes a free one and logs it."""


class Unusable(Exception):
    """A setting that cannot be used; the message says what to do."""


def clock_of(settings: AgentSettings) -> Clock:
    """The hub's clock. Raises Unusable."""
    try:
        return Clock.from_text(settings.clock)
    except ValueError as error:
        raise Unusable(f"--clock: {error}; give it as BUSINESS_MS,WALL_MS,SPEED") from error


def token_of(settings: AgentSettings) -> str:
    """The token, from the environment. Raises Unusable."""
    token = os.environ.get(settings.token_env, "")
    if not token:
        raise Unusable(f"no token: put the agent's token into the environment variable {settings.token_env}")
    return token
