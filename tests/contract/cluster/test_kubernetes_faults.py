"""The API server dies, forgets, repeats itself, mixes things up or falls silent; what is seen stays right."""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections.abc import Iterator
from datetime import datetime
from http.client import HTTPSConnection
from urllib.parse import urlsplit

import pytest
from kubernetes_subject import NAMESPACE, KubernetesUnderTest, running

from deploy.controlplane.programs import API_SERVER
from scheduler.clusters.kubernetes import watch
from scheduler.clusters.kubernetes.cluster import KubernetesCluster
from scheduler.clusters.port import ClusterUnavailable, ObjectSpec, ObjectStatus, PodPhase, PodPlacement
from tests.kubernetes_plane import until
from tests.kubernetes_proxy import Asked, watches

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(180)]

JOBS = 12
EXPIRED = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubernetesUnderTest]:
    with running(tmp_path_factory.mktemp("faults"), "f-[0-9]:h100=8") as world:
        yield world


@pytest.fixture(autouse=True)
def _no_fault_stays(world: KubernetesUnderTest) -> Iterator[None]:
    yield
    world.proxy.clear()


class Watcher:
    """A client that watches, and what it has seen."""

    def __init__(self, cluster: KubernetesCluster) -> None:
        self.cluster = cluster
        self.seen: dict[str, ObjectStatus] = {}
        self.history: dict[str, list[str]] = {}
        self.through: list[int] = []

    def look(self, wait_s: float = 0.5) -> None:
        try:
            observation = self.cluster.observe(wait_s)
        except ClusterUnavailable:
            time.sleep(0.1)
            return
        self.through.append(observation.through_ms)
        if observation.complete:
            self.seen.clear()
        for thing in observation.objects:
            self.seen[thing.name] = thing
            phases = [pod.phase.value for pod in thing.pods]
            past = self.history.setdefault(thing.name, [])
            if phases and phases != past[-1:]:
                past += phases
        for name in observation.gone:
            self.seen.pop(name, None)

    def until(self, holds, patience_s: float = 90) -> None:
        until(self.look, lambda _: holds(self.seen), patience_s)


def jobs(word: str, count: int = JOBS) -> list[ObjectSpec]:
    return [
        ObjectSpec(
            name=f"{word}-{number}-1",
            job_id=f"{word}-{number}",
            attempt=1,
            pods=(PodPlacement(0, f"f-{number % 10}", "h100", 1),),
            walltime_ms=3_600_000,
            grace_ms=2_000,
            organization_id="contract",
            image="none.invalid/x:1",
            annotations=(
                ("simulate.gpuhub/duration_s", str(1 + number % 4)),
                ("simulate.gpuhub/start_s", "0"),
            ),
        )
        for number in range(count)
    ]


def run_all(world: KubernetesUnderTest, watcher: Watcher, specs: list[ObjectSpec]) -> None:
    """Start everything by a client without faults, and watch until everything has ended."""
    names = {spec.name for spec in specs}
    with KubernetesCluster("starter", world.settings()) as starter:
        for spec in specs:
            starter.start(spec)
    watcher.until(
        lambda seen: (
            names <= seen.keys()
            and all(pod.phase is PodPhase.SUCCEEDED for name in names for pod in seen[name].pods)
            and all(seen[name].pods for name in names)
        )
    )
    for name in names:
        times = watcher.seen[name].pods[0]
        assert times.started_ms is not None
        assert times.ended_ms is not None
        # never back: a pod that ran does not wait again, one that ended does not run again
        order = [PodPhase.PENDING, PodPhase.RUNNING, PodPhase.SUCCEEDED]
        places = [order.index(PodPhase(phase)) for phase in watcher.history[name]]
        assert places == sorted(places)
    assert watcher.through == sorted(watcher.through)


def test_watch_cut_every_second_loses_nothing(world):
    def cut(lines: Iterator[bytes]) -> Iterator[bytes]:
        end_s = time.monotonic() + 1.0
        for line in lines:
            yield line
            if time.monotonic() > end_s:
                raise OSError("cut")

    world.proxy.plant(lambda asked: asked.is_watch, count=10**6, change_lines=cut)
    with KubernetesCluster("cut", world.settings()) as cluster:
        run_all(world, Watcher(cluster), jobs("cut"))


def test_events_that_come_twice_and_mixed_up_change_nothing(world):
    def garble(lines: Iterator[bytes]) -> Iterator[bytes]:
        held: list[bytes] = []
        last = b""
        for line in lines:
            event = json.loads(line)
            if event["type"] == "BOOKMARK":
                yield from held
                held.clear()
                yield line
                continue
            # every second event after its successor, and each of them again later
            held.append(line)
            if len(held) == 2:
                yield held[1]
                yield held[0]
                if last:
                    yield last
                last = held[0]
                held.clear()

    world.proxy.plant(lambda asked: asked.is_watch, count=10**6, change_lines=garble)
    with KubernetesCluster("garbled", world.settings()) as cluster:
        run_all(world, Watcher(cluster), jobs("garbled"))


@pytest.mark.parametrize("kind", ["jobs", "pods", "nodes"])
def test_expired_watch_is_listed_anew(world, kind):
    def expire(lines: Iterator[bytes]) -> Iterator[bytes]:
        yield json.dumps({"type": "ERROR", "object": EXPIRED}).encode() + b"\n"

    def lists(asked: Asked) -> bool:
        return asked.path.endswith(f"/{kind}") and asked.query.get("limit") == [str(watch.PAGE)]

    with KubernetesCluster("expired", world.settings()) as cluster:
        watcher = Watcher(cluster)
        watcher.until(lambda _: True)
        before = len(world.proxy.asked)
        world.proxy.plant(watches(kind), count=1, change_lines=expire)
        world.proxy.plant(watches(kind), count=1, refuse=(410, "too old resource version"))
        run_all(world, watcher, jobs(f"expired-{kind}", 3))
        until(
            lambda: [one for one in world.proxy.asked[before:] if lists(one)], lambda found: len(found) >= 2
        )


def test_list_comes_in_pages_and_begins_anew_when_its_snapshot_is_forgotten(world, monkeypatch):
    monkeypatch.setattr(watch, "PAGE", 3)
    world.proxy.plant(
        lambda asked: "continue" in asked.query and asked.path.endswith("/nodes"),
        count=1,
        refuse=(410, "the provided continue parameter is too old"),
    )
    before = len(world.proxy.asked)
    with KubernetesCluster("pages", world.settings()) as cluster:
        observation = cluster.observe(wait_s=5)
        assert {node.node for node in observation.nodes} >= {f"f-{number}" for number in range(10)}
    pages = [one for one in world.proxy.asked[before:] if one.path.endswith("/nodes") and not one.is_watch]
    assert [("continue" in one.query) for one in pages][:6] == [False, True, False, True, True, True]


def test_watch_whose_other_end_is_gone_is_noticed(world):
    with KubernetesCluster("silent", world.settings()) as cluster:
        watcher = Watcher(cluster)
        watcher.until(lambda _: True)
        for kind in ("jobs", "pods"):
            world.proxy.plant(watches(kind), count=1, silent=True)
        run_all(world, watcher, jobs("silent", 4))


def test_watermark_stands_still_while_a_watch_is_silent(world):
    """It must not promise what it cannot know: every event up to it is contained."""
    with KubernetesCluster("still", world.settings()) as cluster:
        watcher = Watcher(cluster)
        watcher.until(lambda _: len(set(watcher.through)) > 1)
        world.proxy.plant(watches("pods"), count=10**6, silent=True)
        # what runs now may still end as it should; the next watch is silent
        until(lambda: world.proxy.asked[-1], lambda asked: watches("pods")(asked), 30)
        spec = jobs("still", 1)[0]
        with KubernetesCluster("starter", world.settings()) as starter:
            starter.start(spec)
        ended = until(
            lambda: world.pods(spec.name), lambda pods: pods and pods[0]["status"]["phase"] == "Succeeded"
        )
        end_s = time.monotonic() + 3
        while time.monotonic() < end_s:
            watcher.look()
        started = ended[0]["status"]["containerStatuses"][0]["state"]["terminated"]["startedAt"]
        assert watcher.through[-1] < _ms(started) + 1000
        world.proxy.clear()


def test_dead_api_server_is_asked_patiently_and_missed_nothing_when_it_is_back(world):
    with KubernetesCluster("dead", world.settings()) as cluster:
        watcher = Watcher(cluster)
        specs = jobs("dead")
        watcher.until(lambda _: True)
        with KubernetesCluster("starter", world.settings()) as starter:
            for spec in specs:
                starter.start(spec)
        world.plane.stop_program(API_SERVER)
        try:
            before = len(world.proxy.asked)
            end_s = time.monotonic() + 12
            answers = 0
            while time.monotonic() < end_s:
                try:
                    cluster.observe(wait_s=0.2)
                    answers += 1
                except ClusterUnavailable:
                    time.sleep(0.2)
        finally:
            world.plane.start_program(API_SERVER)
        watching = [
            one for one in world.proxy.asked[before:] if one.is_watch or one.query.get("limit") == ["500"]
        ]
        assert answers < 12, "what it learned a moment ago may still be told, no more"
        assert len(watching) < 60, "three watches that wait longer each time"
        run_all(world, watcher, specs)


def test_compacted_history_is_listed_anew(world):
    """etcd forgets and the API server is new: neither remembers the version from which a watch would go on."""
    with KubernetesCluster("compacted", world.settings()) as cluster:
        watcher = Watcher(cluster)
        watcher.until(lambda _: True)
        for kind in ("jobs", "pods", "nodes"):
            world.proxy.plant(watches(kind), count=10**6, refuse=(503, "not now"))
        specs = jobs("compacted", 6)
        with KubernetesCluster("starter", world.settings()) as starter:
            for spec in specs:
                starter.start(spec)
        until(
            lambda: [pod for spec in specs for pod in world.pods(spec.name)],
            lambda pods: [pod["status"]["phase"] for pod in pods] == ["Succeeded"] * 6,
        )
        revision = world.plane.api.get("/api/v1/pods?limit=1")[1]["metadata"]["resourceVersion"]
        _compact(world, int(revision))
        world.plane.restart_program(API_SERVER)
        before = len(world.proxy.asked)
        world.proxy.clear()
        run_all(world, watcher, specs)
        lists = [one for one in world.proxy.asked[before:] if one.query.get("limit") == [str(watch.PAGE)]]
        assert lists


def _compact(world: KubernetesUnderTest, revision: int) -> None:
    """Let etcd forget everything before a revision, by its own JSON gateway."""
    known = world.plane.layout.credentials
    context = ssl.create_default_context(cafile=str(known.ca))
    context.load_cert_chain(known.client_certificate, known.client_key)
    line = HTTPSConnection(urlsplit(world.plane.layout.url("etcd")).netloc, context=context, timeout=10)
    body = json.dumps({"revision": str(revision), "physical": True})
    line.request("POST", "/v3/kv/compaction", body, {"Content-Type": "application/json"})
    answer = line.getresponse()
    content = answer.read()
    line.close()
    assert answer.status == 200, content


def _ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def test_account_that_may_not_is_told_so(world, tmp_path):
    """A wrong token is no reason to hammer the server, and the trouble names what was refused."""
    kubeconfig = world.proxy.kubeconfig(tmp_path / "wrong", base64.b64encode(b"wrong").decode())
    settings = world.settings(timeout_s=3).model_copy(update={"kubeconfig": kubeconfig})
    with (
        KubernetesCluster("wrong", settings) as cluster,
        pytest.raises(ClusterUnavailable, match="401"),
    ):
        cluster.observe(wait_s=0)


def test_jobs_of_others_are_never_touched(world):
    """A Job without the hub's labels is no object of the hub's, whatever its name."""
    other = {
        "metadata": {"name": "other-1-1"},
        "spec": {
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{"name": "main", "image": "none.invalid/x:1"}],
                }
            }
        },
    }
    path = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
    assert world.plane.api.post(path, other)[0] == 201
    with KubernetesCluster("others", world.settings()) as cluster:
        assert cluster.get("other-1-1") is None
        assert "other-1-1" not in {thing.name for thing in cluster.observe(wait_s=2).objects}
        assert cluster.delete("other-1-1")
    assert world.plane.api.get(f"{path}/other-1-1")[0] == 200
