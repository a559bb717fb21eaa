"""Tiny traces whose every start was computed by hand, and the books of random ones."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from scheduler.core.policy import PRESETS, Policy, Preemption
from scheduler.replay import engine
from scheduler.replay.settings import LedgerKind, Settings, arrange, gang
from scheduler.replay.traces import TraceJob
from tests.unit.replay.replay_world import (
    HOUR_S,
    a_job,
    a_pool,
    ends,
    most_at_once,
    occupied_gpu_s,
    play,
    starts,
    useful_gpu_s,
)

EAGER = Policy(
    lag_bound_share=1.0,
    idle_lag_share=1.0,
    preemption=Preemption(
        gang_gpus=4, victim_gpus=3, lead_ms=0, protected_ms=0, cooldown_ms=0, notice_ms=600_000
    ),
)
"""Stops small jobs for any gang of four whose grant is behind."""


def test_whoever_waits_longest_and_fits_starts() -> None:
    jobs = [
        a_job("a", 0, gpus=3, run_s=100),
        a_job("b", 1, gpus=4, run_s=10),  # waits for a
        a_job("c", 2, gpus=1, run_s=5),  # passes b
        a_job("d", 3, gpus=1, run_s=50),  # waits for c
    ]
    history = play(jobs)
    assert starts(history) == {"a": 0, "b": 100, "c": 2, "d": 7}
    assert ends(history) == {"a": 100, "b": 110, "c": 7, "d": 57}
    assert history.end_s == 110


def test_a_reservation_keeps_long_jobs_from_delaying_a_gang() -> None:
    jobs = [
        a_job("a", 0, gpus=3, run_s=100, limit_s=4 * HOUR_S),
        a_job("b", 1, gpus=4, run_s=10),  # may start after four hours at the latest
        a_job("c", 2, gpus=1, run_s=5, limit_s=12 * HOUR_S),  # could run beyond that
        a_job("d", 3, gpus=1, run_s=50, limit_s=HOUR_S),  # could not
    ]
    assert starts(play(jobs, policy="grant-easy")) == {"a": 0, "b": 100, "c": 110, "d": 3}


def test_a_gang_needs_its_room_on_nodes() -> None:
    jobs = [
        a_job("a", 0, gpus=6, run_s=100),  # 3 + 3 of 4 + 4
        a_job("b", 1, gpus=2, run_s=10),  # 1 + 1 are free, not 2
    ]
    assert starts(play(jobs, a_pool(gpus=4, nodes=2))) == {"a": 0, "b": 100}
    assert starts(play(jobs, a_pool(gpus=8))) == {"a": 0, "b": 1}


def test_the_grant_further_behind_is_served_first() -> None:
    jobs = [
        a_job("x1", 0, gpus=4, run_s=HOUR_S, organization="x"),
        a_job("x2", 10, gpus=4, run_s=HOUR_S, organization="x"),
        a_job("y1", 20, gpus=4, run_s=HOUR_S, organization="y"),
    ]
    assert starts(play(jobs)) == {"x1": 0, "x2": HOUR_S, "y1": 2 * HOUR_S}
    assert starts(play(jobs, policy="grant-skip")) == {"x1": 0, "x2": 2 * HOUR_S, "y1": HOUR_S}


def test_a_run_is_cut_at_its_limit_and_told() -> None:
    history = play([a_job("a", run_s=5000, limit_s=3600), a_job("b", 1)])
    assert ends(history) == {"a": 3600, "b": 101}
    assert history.cut_jobs == 1


def test_a_job_of_no_time_starts_and_ends() -> None:
    history = play([a_job("a", 5, gpus=4, run_s=0), a_job("b", 5, gpus=4, run_s=1)])
    assert starts(history) == {"a": 5, "b": 5}


def test_decisions_at_a_period_only() -> None:
    jobs = [a_job("a", 1, gpus=4, run_s=100), a_job("b", 2, gpus=4, run_s=10), a_job("c", 61, gpus=4)]
    history = play(jobs, a_pool(every_s=60))
    assert starts(history) == {"a": 60, "b": 180, "c": 240}
    assert ends(history) == {"a": 160, "b": 190, "c": 340}, "an end is exact, only decisions wait"


def test_until_cuts_and_what_never_started_stays_open() -> None:
    jobs = [a_job("a", 0, gpus=4, run_s=2 * HOUR_S), a_job("b", 1, gpus=4), a_job("c", 3 * HOUR_S)]
    history = play(jobs, a_pool(until_days=1 / 24))
    assert starts(history) == {"a": 0, "b": None, "c": None}
    assert (history.end_s, history.submitted) == (HOUR_S, 2)
    assert useful_gpu_s(history) == 4 * HOUR_S
    assert history.used_gpu_s == {"o": 0}, "a job that still runs is not settled"


def test_a_job_larger_than_the_pool_never_starts_and_ends_nothing() -> None:
    history = play([a_job("a", 0, gpus=5), a_job("b", 1), a_job("c", 500, gpus=5)])
    assert starts(history) == {"a": None, "b": 1, "c": None}
    assert history.submitted == 3


def test_a_hard_ledger_waits_for_the_hold_and_then_for_the_next_term() -> None:
    jobs = [a_job("a", 0, gpus=4, run_s=600), a_job("b", 0, gpus=4, run_s=600)]  # each holds 4 GPU hours
    one_hour = 1 / 24  # so is the whole grant
    assert starts(play(jobs, a_pool(days=one_hour))) == {"a": 0, "b": 600}
    hard = play(jobs, a_pool(days=one_hour, ledger=LedgerKind.HARD))
    assert starts(hard) == {"a": 0, "b": HOUR_S}
    assert hard.used_gpu_s == {"o": 4800}


def test_what_no_grant_can_ever_hold_never_starts() -> None:
    history = play([a_job("a", limit_s=5 * HOUR_S * 4)], a_pool(days=1 / 24, ledger=LedgerKind.HARD))
    assert starts(history) == {"a": None}


def test_preempted_jobs_lose_what_they_did_since_the_last_checkpoint() -> None:
    half_past_two = 9000
    jobs = [a_job(f"x{i}", 0, run_s=10 * HOUR_S, limit_s=10 * HOUR_S, organization="x") for i in range(4)]
    jobs.append(a_job("y", half_past_two, gpus=4, run_s=HOUR_S, organization="y"))
    history = play(jobs, policy=EAGER)
    stopped = half_past_two + 600  # after the notice
    again = stopped + HOUR_S
    ended = again + 600 + 8 * HOUR_S  # two hours were saved, the restart takes ten minutes
    assert starts(history) == {"x0": 0, "x1": 0, "x2": 0, "x3": 0, "y": stopped}
    assert ends(history) == {**{f"x{i}": ended for i in range(4)}, "y": again}
    assert [record.preemptions for record in history.records] == [1, 1, 1, 1, 0]
    assert [record.lost_gpu_s for record in history.records] == [40 * 60 + 600] * 4 + [0]
    assert history.used_gpu_s == {"x": 40 * HOUR_S, "y": 4 * HOUR_S}


def test_a_job_that_ends_under_notice_loses_nothing() -> None:
    jobs = [a_job(f"x{i}", 0, run_s=3 * HOUR_S, limit_s=10 * HOUR_S, organization="x") for i in range(4)]
    jobs.append(a_job("y", 3 * HOUR_S - 300, gpus=4, run_s=60, organization="y"))
    history = play(jobs, policy=EAGER)
    assert starts(history)["y"] == 3 * HOUR_S
    assert sum(record.preemptions for record in history.records) == 0
    assert occupied_gpu_s(history) == useful_gpu_s(history)


def test_room_freed_for_a_gang_is_nobody_elses() -> None:
    jobs = [
        a_job("x0", 0, gpus=2, run_s=10 * HOUR_S, limit_s=10 * HOUR_S, organization="x"),
        a_job("x1", 0, gpus=2, run_s=2 * HOUR_S + 100, limit_s=10 * HOUR_S, organization="x"),
        a_job("y", 2 * HOUR_S, gpus=4, run_s=60, organization="y"),  # x0 and x1 have notice until +600
        a_job("x2", 2 * HOUR_S, gpus=1, run_s=10, organization="x"),  # would fit when x1 ends at +100
    ]
    history = play(jobs, policy=EAGER)
    assert starts(history) == {"x0": 0, "x1": 0, "y": 2 * HOUR_S + 600, "x2": 2 * HOUR_S + 660}


def a_random_trace(seed: int) -> list[TraceJob]:
    rng = random.Random(seed)
    jobs = []
    for i in range(250):
        run_s = rng.choice((30, 600, 5000, 20_000, 60_000))
        jobs.append(
            TraceJob(
                f"j{i:03d}",
                rng.choice("xyz"),
                rng.randrange(0, 200_000, 50),
                rng.choice((1, 1, 1, 2, 3, 4, 6, 8)),
                run_s,
                rng.choice((run_s, 2 * run_s + 1, 72 * HOUR_S)),
            )
        )
    return sorted(jobs, key=lambda job: (job.submit_s, job.id))


@pytest.mark.parametrize("policy", [*PRESETS, "eager"])
@pytest.mark.parametrize(("nodes", "gpus"), [(1, 16), (4, 4)])
def test_used_and_lost_make_up_what_was_occupied(policy: str, nodes: int, gpus: int) -> None:
    jobs = a_random_trace(nodes)
    history = play(jobs, a_pool(gpus, nodes, days=2.0), EAGER if policy == "eager" else policy)
    assert all(record.end_s is not None for record in history.records)
    assert history.used_gpu_s == history.demand_gpu_s, "every job did all its work, and paid for no more"
    lost = sum(record.lost_gpu_s for record in history.records)
    assert sum(history.used_gpu_s.values()) == useful_gpu_s(history)
    assert sum(history.used_gpu_s.values()) + lost == occupied_gpu_s(history)
    assert most_at_once(history) <= nodes * gpus
    preempted = Counter({r.id: r.preemptions for r in history.records})
    assert bool(preempted.total()) == bool(lost)
    if policy == "eager":
        assert preempted.total() > 5, "this trace was to try preemption"


@pytest.mark.parametrize("policy", ["fifo-skip", "eager"])
def test_a_cut_replay_keeps_its_books(policy: str) -> None:
    jobs = a_random_trace(3)
    chosen = EAGER if policy == "eager" else PRESETS[policy]
    history = play(jobs, a_pool(16, until_days=0.9), chosen)
    in_flight = useful_gpu_s(history) - sum(history.used_gpu_s.values())
    assert in_flight > 0
    ended = sum(r.gpus * r.run_s for r in history.records if r.end_s is not None)
    assert sum(history.used_gpu_s.values()) >= ended
    assert max(stretch.end_s for stretch in history.stretches) == history.end_s


def test_equal_input_gives_equal_histories() -> None:
    jobs = a_random_trace(5)
    one, two = (replace(play(jobs, a_pool(16), "gpuhub"), wall_s=0.0) for _ in range(2))
    assert one == two


def test_a_rotated_and_compressed_trace_runs_to_its_end() -> None:
    settings = a_pool(16, days=3, load=1.5, seed=4, organizations=5)
    history = play(arrange(a_random_trace(6), settings), settings, "gpuhub")
    assert all(record.end_s is not None for record in history.records)
    assert set(history.grants_gpu_s) == {f"org-{i}" for i in range(1, 6)}


@pytest.mark.parametrize("policy", PRESETS)
def test_the_number_of_terms_that_the_core_is_shown_changes_nothing(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = a_random_trace(8)
    plain = play(jobs, a_pool(16, days=1.5), policy)
    monkeypatch.setattr(engine, "_longest_s", lambda jobs, settings: 10**10)
    assert replace(play(jobs, a_pool(16, days=1.5), policy), wall_s=plain.wall_s) == plain


def a_crowd(seed: int) -> tuple[list[TraceJob], Settings, Policy]:
    """More jobs at once than a small pool takes, long and short limits mixed, under one of all policies."""
    rng = random.Random(seed)
    nodes, gpus = rng.choice([(1, 8), (1, 32), (4, 4), (6, 8), (3, 2)])
    jobs = []
    for i in range(rng.choice((50, 150, 300))):
        run_s = rng.choice((0, 30, 600, 5000, 20_000, 60_000))
        jobs.append(
            TraceJob(
                f"j{i:03d}",
                rng.choice("vwxyz"),
                rng.randrange(0, rng.choice((1000, 200_000)), 50),
                rng.choice((1, 1, 1, 2, 3, 4, 6, 8, 16, 32)),
                run_s,
                rng.choice((max(1, run_s), 2 * run_s + 1, 72 * HOUR_S, HOUR_S)),
            )
        )
    name = rng.choice([*PRESETS, "eager"])
    days, ledger = rng.choice((0.1, 2, 10)), rng.choice(list(LedgerKind))
    settings = a_pool(gpus, nodes, days, ledger, every_s=rng.choice((0, 0, 60)))
    policy = EAGER if name == "eager" else PRESETS[name]
    return sorted(jobs, key=lambda job: (job.submit_s, job.id)), settings, policy


# those above 11 have found a fault of the core: a jam of reservations, a preemption that forgot what it took
@pytest.mark.parametrize("seed", [*range(12), 21, 112, 135, 192, 246])
def test_whoever_fits_gets_its_turn_and_the_books_are_right(seed: int) -> None:
    jobs, settings, policy = a_crowd(seed)
    history = play(jobs, settings, policy)
    lost = sum(record.lost_gpu_s for record in history.records)
    assert sum(history.used_gpu_s.values()) == useful_gpu_s(history)
    assert useful_gpu_s(history) + lost == occupied_gpu_s(history)
    assert most_at_once(history) <= settings.gpus
    if settings.ledger is LedgerKind.SOFT:
        for record in history.records:
            pods, gpus_per_pod = gang(record.gpus, settings.gpus_per_node)
            fits = pods <= settings.nodes * (settings.gpus_per_node // gpus_per_pod)
            assert (record.end_s is not None) == fits, f"{record} beside an empty pool"
