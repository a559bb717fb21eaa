"""Implementations of the `Cluster` port for the contract suite.

Another implementation joins by one more parameter of `subject` that yields a `Subject`. The simulated cluster lives
200 times faster than Kubernetes; a `Tempo` says how long a test's seconds last there.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import pytest
from kubernetes_subject import TEMPO as KUBERNETES_TEMPO
from kubernetes_subject import KubernetesUnderTest
from kubernetes_subject import running as kubernetes_running
from simulator_process import SimulatorProcess, deadline
from tempo import Tempo

from scheduler.clusters.kubernetes.cluster import KubernetesCluster
from scheduler.clusters.port import (
    Cluster,
    ClusterUnavailable,
    ObjectSpec,
    ObjectStatus,
    Observation,
    PodPhase,
    PodPlacement,
)
from scheduler.clusters.simulated import SimulatedCluster

SPEED = 200
FOR_EVER_S = 10_000_000

_numbers = itertools.count()
_simulated_pairs = itertools.count()
_kubernetes_pairs = itertools.count()
"""Apart from the jobs' numbers and from each other, so that no two tests ever share nodes."""


class Mischief(Protocol):
    """What the suite may do to the cluster behind the port's back."""

    def fail_pod(self, name: str, index: int, exit_code: int) -> None: ...
    def lose_node(self, node: str) -> None: ...
    def return_node(self, node: str) -> None: ...
    def occupy(self, node: str, count: int) -> None: ...
    def refuse_next_start(self) -> None: ...
    def lose_next_reply(self, path: str) -> None: ...
    def delay_next_reply(self, path: str, delay_s: float) -> None: ...


@dataclass(frozen=True, slots=True)
class SimulatorMischief:
    """Mischief by planted faults."""

    process: SimulatorProcess

    def fail_pod(self, name: str, index: int, exit_code: int) -> None:
        self.process.plant(fault="fail_pod", name=name, pod_index=index, exit_code=exit_code)

    def lose_node(self, node: str) -> None:
        self.process.plant(fault="lose_node", node=node, silent_ms=10_000)

    def return_node(self, node: str) -> None:
        self.process.plant(fault="return_node", node=node)

    def occupy(self, node: str, count: int) -> None:
        self.process.plant(fault="foreign", node=node, gpu_class="h100", count=count)

    def refuse_next_start(self) -> None:
        self.process.plant(fault="refuse_start", count=1)

    def lose_next_reply(self, path: str) -> None:
        self.process.plant(fault="forget_reply", count=1, path=path)

    def delay_next_reply(self, path: str, delay_s: float) -> None:
        self.process.plant(fault="answer_late", count=1, path=path, delay_s=delay_s)


@dataclass(slots=True)
class Subject:
    """A cluster under test, with two nodes of 8 h100 that no other test uses."""

    cluster: Cluster
    mischief: Mischief
    nodes: tuple[str, str]
    connect: Callable[[float], Cluster]
    """Another client of the same cluster, with this timeout in seconds."""
    straight: Callable[[], Cluster]
    """Another client with nothing in between that could hold an answer back until it is whole."""
    tempo: Tempo = field(default_factory=Tempo)
    seen: dict[str, ObjectStatus] = field(default_factory=dict)

    def spec(self, *pods: tuple[int, str, int], duration_s: float = FOR_EVER_S, **words: str) -> ObjectSpec:
        """A new job's first attempt; pods as (index, node, count), one GPU on the first node by default."""
        words = {"duration_s": self.tempo.text(duration_s)} | words
        job_id = f"job-{next(_numbers)}"
        return ObjectSpec(
            name=f"{job_id}-1",
            job_id=job_id,
            attempt=1,
            pods=tuple(
                PodPlacement(i, node, "h100", count) for i, node, count in pods or [(0, self.nodes[0], 1)]
            ),
            walltime_ms=3_600_000,
            grace_ms=self.tempo.ms(30),
            organization_id="contract",
            image="none.invalid/train:1",
            annotations=tuple((f"simulate.gpuhub/{word}", text) for word, text in words.items()),
        )

    def until(self, spec: ObjectSpec, fits: Callable[[ObjectStatus], bool]) -> ObjectStatus:
        """Observe until the object fits."""
        until = deadline()
        while spec.name not in self.seen or not fits(self.seen[spec.name]):
            assert time.monotonic() < until, f"never came: {self.seen.get(spec.name)}"
            self.note(self.cluster.observe(wait_s=1.0))
            if spec.name in self.seen and self.seen[spec.name].gated:
                self.cluster.place(spec)
        return self.seen[spec.name]

    def until_phases(self, spec: ObjectSpec, *phases: PodPhase) -> ObjectStatus:
        """Observe until the pods are in these phases."""
        return self.until(spec, lambda thing: tuple(pod.phase for pod in thing.pods) == phases)

    def until_observed(self, fits: Callable[[Observation], bool]) -> Observation:
        """Observe until an observation fits."""
        until = deadline()
        while True:
            observation = self.cluster.observe(wait_s=1.0)
            self.note(observation)
            if fits(observation):
                return observation
            assert time.monotonic() < until, f"never came: {observation}"

    def until_unanswered(self) -> None:
        """Observe until the cluster does not answer."""
        until = deadline()
        while True:
            try:
                self.note(self.cluster.observe(wait_s=0))
            except ClusterUnavailable:
                return
            assert time.monotonic() < until, "it always answered"

    def note(self, observation: Observation) -> None:
        """Remember what an observation says."""
        if observation.complete:
            self.seen.clear()
        self.seen.update({thing.name: thing for thing in observation.objects})
        for name in observation.gone:
            self.seen.pop(name, None)


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimulatorProcess]:
    process = SimulatorProcess(tmp_path_factory.mktemp("simulator"), "n-[0-199]:h100=8", SPEED)
    process.start()
    yield process
    process.stop()


@pytest.fixture(scope="session")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesUnderTest]:
    with kubernetes_running(tmp_path_factory.mktemp("kubernetes"), "n-[0-199]:h100=8") as under_test:
        yield under_test


@pytest.fixture(params=["simulated", pytest.param("kubernetes", marks=pytest.mark.kubernetes)])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """One implementation after the other."""
    make = {"simulated": _simulated, "kubernetes": _kubernetes}[request.param]
    with make(request) as subject:
        yield subject


@contextmanager
def _simulated(request: pytest.FixtureRequest) -> Iterator[Subject]:
    process: SimulatorProcess = request.getfixturevalue("simulator")
    number = 2 * next(_simulated_pairs)
    assert number < 200, "more tests than pairs of nodes: give the simulator more"
    with ExitStack() as stack:

        def connect(timeout_s: float) -> SimulatedCluster:
            return stack.enter_context(SimulatedCluster("here", process.url, timeout_s=timeout_s))

        stack.callback(process.clear_faults)
        nodes = (f"n-{number}", f"n-{number + 1}")
        yield Subject(connect(10.0), SimulatorMischief(process), nodes, connect, lambda: connect(10.0))


@contextmanager
def _kubernetes(request: pytest.FixtureRequest) -> Iterator[Subject]:
    under_test: KubernetesUnderTest = request.getfixturevalue("kubernetes")
    number = 2 * next(_kubernetes_pairs)
    assert number < 200, "more tests than pairs of nodes: give the control plane more"
    with ExitStack() as stack:

        def connect(timeout_s: float) -> KubernetesCluster:
            return stack.enter_context(under_test.connect(timeout_s))

        stack.callback(under_test.proxy.clear)
        nodes = (f"n-{number}", f"n-{number + 1}")
        yield Subject(
            connect(10.0),
            under_test,
            nodes,
            connect,
            lambda: stack.enter_context(under_test.connect_straight()),
            KUBERNETES_TEMPO,
        )
