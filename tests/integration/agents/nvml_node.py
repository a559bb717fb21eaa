"""A node of a hub for tests: agent and service are real, the driver, the kubelet and the node's folders are played."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quota.schemas.identity import NewToken, Role
from quota.schemas.jobs import Job
from quota.usage.tables import evidence
from tests.builders import Api
from tests.fakekubelet.kubelet import FakeKubelet
from tests.fakekubelet.messages import FakePod
from tests.fakekubelet.node import FakeNode
from tests.fakenvml.build import FakeDriver, an_h100
from tests.integration.agents.nvml_agent import NvmlAgent, an_nvml_agent

FIRST, SECOND = (str(an_h100(number)["uuid"]) for number in range(2))
NODE, SPACE, GPU = "n0", "hub-alpha", "nvidia.com/gpu"
RING = 3_000
"""Samples that the driver remembers: a minute, so that an agent that was killed can read them again."""


@dataclass
class World:
    """One node of a hub: its driver, its kubelet, its folders; and the service, with a grant for its jobs."""

    folder: Path
    library: Path
    api: Api
    kubelet: FakeKubelet
    node: FakeNode
    driver: FakeDriver
    token: str
    jobs: list[Job] = field(default_factory=list)

    def agent(self, **settings: object) -> AbstractContextManager[NvmlAgent]:
        """The agent of this node."""
        return an_nvml_agent(
            self.driver,
            self.library,
            self.folder,
            node=NODE,
            quota_url=self.api.base_url,
            token=self.token,
            **{
                "send_interval_s": 0.2,
                "pods_socket": self.kubelet.socket,
                "pods_interval_s": 0.1,
                "pods_cgroups": self.node.cgroups,
                "pods_proc": self.node.proc,
                "pods_logs": self.node.logs,
            }
            | settings,
        )

    def start(self, *ids: str, listed: bool = True) -> tuple[Job, FakePod]:
        """A job's first attempt begins on this node, and the kubelet gave its pod these devices."""
        hub = self.api.hub
        grant = hub.award(hours="10")
        job = hub.submit(grant_id=grant.id)
        hub.run(job, grant, NODE)
        pod = FakePod(SPACE, f"{job.id}-1-0-h7x2q", {GPU: list(ids)})
        self.node.pod(pod.namespace, pod.name)
        if listed:
            self.kubelet.pods = [*self.kubelet.pods, pod]
        self.jobs.append(job)
        return job, pod

    def measured(self, job: Job) -> dict[str, tuple[int, int]]:
        """(busy, observed) milliseconds that the service knows, by GPU."""
        found: dict[str, tuple[int, int]] = {}
        for row in self.api.hub.rows(evidence, job_id=job.id):
            busy_ms, observed_ms = found.get(row.gpu_uuid, (0, 0))
            found[row.gpu_uuid] = (busy_ms + row.busy_ms, observed_ms + row.observed_ms)
        return found

    def seen_ms(self, job: Job, gpu_uuid: str = FIRST) -> int:
        """Observed milliseconds that the service knows."""
        return self.measured(job).get(gpu_uuid, (0, 0))[1]

    def findings(self) -> list[Any]:
        """What the service finds strange."""
        return list(self.api.auditor.list_findings().items)


@contextmanager
def a_world(folder: Path, library: Path, api: Api) -> Iterator[World]:
    """A node with two GPUs; its jobs are ended at the end."""
    driver = FakeDriver(folder / "state", [an_h100(0, depth=RING), an_h100(1, depth=RING)])
    driver.write()
    token = api.operator.create_token(NewToken(role=Role.AGENT, node=NODE)).secret
    with FakeKubelet(folder / "kubelet.sock") as kubelet:
        made = World(folder, library, api, kubelet, FakeNode(folder / "node"), driver, token)
        yield made
        for job in made.jobs:
            made.api.hub.finish(job)
