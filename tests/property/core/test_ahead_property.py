"""Random hubs, looked ahead: no node is overfull, no account overdrawn, nobody runs twice, and it can be repeated."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.ahead.outlook import Outlook
from scheduler.ahead.play import look_ahead
from scheduler.core.model import Account, Attempt, Change, Grant, Job, JobState, Node, Plan, Reservations
from scheduler.core.policy import PRESETS, Policy
from tests.property.core.core_chaos import HOUR_MS, START_MS, World, a_random_world

HORIZON_MS = 200 * HOUR_MS


def a_random_snapshot(rng: Random) -> list[Change]:
    """Attempts are of jobs that run, and on nodes that know of them."""
    world: World = a_random_world(rng)
    objects = [each for each in world.values() if not isinstance(each, Attempt)]
    objects = [each for each in objects if not isinstance(each, Job) or each.state is JobState.QUEUED]
    if rng.random() < 0.5:
        objects = [each for each in objects if not isinstance(each, Policy)] + [PRESETS["gpuhub"]]
    return [*objects, Reservations()]


class Witness:
    """Counts again what every plan starts, from the plans alone, with runs of a known length."""

    def __init__(self, objects: list[Change], run_ms: int) -> None:
        self.run_ms = run_ms
        self.nodes = {each.id: each for each in objects if isinstance(each, Node)}
        self.jobs = {each.id: each for each in objects if isinstance(each, Job)}
        self.left: dict[str, int] = {}
        for grant in objects:
            for account in _accounts(grant):
                self.left[account.id] = min(account.left_gpu_us, self.left.get(account.id, 1 << 80))
        self.ends: list[tuple[int, list[tuple[str, str, int]], tuple[str, ...], int]] = []
        self.used: Counter[tuple[str, str]] = Counter()
        self.started: Counter[str] = Counter()

    def __call__(self, now_ms: int, plan: Plan) -> None:
        for ended in [each for each in self.ends if each[0] <= now_ms]:
            self.ends.remove(ended)
            for cluster, gpu_class, count in ended[1]:
                self.used[cluster, gpu_class] -= count
            for account in ended[2]:
                self.left[account] += ended[3]
        for start in plan.starts:
            job = self.jobs[start.job_id]
            self.started[job.id] += 1
            runs_ms = min(self.run_ms, job.walltime_ms)
            pods = [(f"{start.cluster}/{pod.node}", pod.gpu_class, pod.count) for pod in start.pods]
            for node, gpu_class, count in pods:
                self.used[node, gpu_class] += count
                capacity = self.nodes[node].capacities[gpu_class]
                assert self.used[node, gpu_class] <= capacity.total - capacity.foreign - capacity.used
            for account in start.account_path:
                self.left[account] -= start.cost_gpu_us
                assert self.left[account] >= 0
            back = start.cost_gpu_us - start.cost_gpu_us // job.walltime_ms * runs_ms
            self.ends.append((now_ms + runs_ms, pods, start.account_path, back))
        assert not plan.stops, "nothing here is restartable"


def _accounts(each: Change) -> list[Account]:
    return [account for path in each.paths for account in path.accounts] if isinstance(each, Grant) else []


def _look(objects: list[Change], run_ms: int, tell: Witness | None = None) -> Outlook:
    return look_ahead(objects, START_MS, lambda job: run_ms, horizon_ms=HORIZON_MS, tell=tell)


@given(st.integers(0, 2**32), st.sampled_from((60_000, HOUR_MS // 2, 3 * HOUR_MS)))
@settings(max_examples=150, deadline=None)
def test_nothing_is_given_twice_and_the_same_question_has_the_same_answer(seed: int, run_ms: int) -> None:
    objects = a_random_snapshot(Random(seed))
    witness = Witness(objects, run_ms)
    outlook = _look(objects, run_ms, witness)
    assert set(outlook.jobs) == set(witness.jobs)
    for id, prospect in outlook.jobs.items():
        assert witness.started[id] == (prospect.start_ms is not None)
        if prospect.start_ms is not None and prospect.end_ms is not None:
            assert prospect.end_ms - prospect.start_ms == min(run_ms, witness.jobs[id].walltime_ms)
    Random(seed).shuffle(objects)
    assert _look(objects, run_ms) == outlook


def test_random_hubs_do_start_something() -> None:
    """Or the test above would show nothing."""
    outlooks = [_look(a_random_snapshot(Random(seed)), HOUR_MS) for seed in range(100)]
    started = sum(each.start_ms is not None for outlook in outlooks for each in outlook.jobs.values())
    later = sum(
        each.start_ms is not None and each.start_ms > START_MS
        for outlook in outlooks
        for each in outlook.jobs.values()
    )
    assert started > 80
    assert later > 15
