"""The replay's books, and that a grant of many terms is the same to every rule of a policy."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest

from scheduler.core.policy import PRESETS, Lane, Policy, Preemption
from scheduler.replay.ledger import MILLION, Book, books, stretched
from scheduler.replay.settings import LedgerKind

HALF_LIFE_MS = 7 * 86_400_000
TERM_S = 86_400


def a_book(kind: LedgerKind = LedgerKind.SOFT, grant_gpu_s: int = 1000, terms: int = 8) -> Book:
    return Book("o", grant_gpu_s, TERM_S, terms, kind, HALF_LIFE_MS)


def left_gpu_s(book: Book) -> int:
    return book.grant().paths[0].accounts[0].left_gpu_us // MILLION


def test_what_is_held_becomes_used_or_is_let_go() -> None:
    book = a_book(LedgerKind.HARD)
    book.hold(900 * MILLION)
    assert left_gpu_s(book) == 100
    book.settle(900 * MILLION, gpus=2, useful_ms=100_000, now_ms=100_000)
    assert (book.held_gpu_us, book.used_gpu_us) == (0, 200 * MILLION)
    assert left_gpu_s(book) == 800


def test_a_soft_ledger_never_refuses() -> None:
    book = a_book()
    book.hold(10**9 * MILLION)
    assert left_gpu_s(book) > 10**12


def test_a_new_term_brings_the_grant_anew_and_what_was_left_lapses() -> None:
    book = a_book(LedgerKind.HARD)
    book.settle(0, gpus=1, useful_ms=300_000, now_ms=300_000)
    book.hold(500 * MILLION)
    book.renew(running_gpu_us=200 * MILLION)
    assert left_gpu_s(book) == 1000 - (500 - 200)


def test_usage_decays_while_it_is_made_and_after() -> None:
    book = a_book()
    book.settle(0, gpus=3, useful_ms=HALF_LIFE_MS, now_ms=HALF_LIFE_MS)
    steps = 10_000
    plain = sum(3 * 1000 * HALF_LIFE_MS / steps * 0.5 ** ((i + 0.5) / steps) for i in range(steps))
    assert book.organization().decayed_usage_gpu_us == pytest.approx(plain, rel=1e-6)
    book.settle(0, gpus=1, useful_ms=0, now_ms=2 * HALF_LIFE_MS)
    assert book.organization().decayed_usage_gpu_us == pytest.approx(plain / 2, rel=1e-6)
    assert book.organization().as_of_ms == 2 * HALF_LIFE_MS


def test_the_core_is_shown_terms_enough() -> None:
    found = books({"o": 1000}, TERM_S, 100 * TERM_S, LedgerKind.SOFT, HALF_LIFE_MS)
    grant = found["o"].grant()
    assert grant.ends_at_ms > 100 * TERM_S * 1000
    assert grant.ends_at_ms / (TERM_S * 1000) == grant.paths[0].accounts[0].granted_gpu_us / (1000 * MILLION)


@pytest.mark.parametrize("terms", [1, 8, 1024])
def test_shares_of_one_term_become_shares_of_all(terms: int) -> None:
    policy = replace(PRESETS["gpuhub"], lag_bound_share=0.25)
    shown = stretched(policy, [a_book(terms=terms)])
    assert shown.lag_bound_share * terms == 0.25
    assert policy.lane
    assert shown.lane
    for (limit, z), (same, of_all) in zip(policy.lane.tapers, shown.lane.tapers, strict=True):
        assert limit == same
        assert (1 + of_all) * terms == pytest.approx(1 + z, rel=1e-9)


def test_no_lane_stays_none() -> None:
    assert stretched(Policy(), [a_book()]).lane is None


def test_every_number_of_a_policy_was_looked_at() -> None:
    """A new one that is a share of a grant or of a term has to be divided in `stretched`; then name it here."""
    assert {f.name for f in fields(Policy)} == {
        *(
            "half_life_ms",
            "lag_bound_share",
            "idle_lag_share",
            "floor_share",
            "floor_lag_ms",
            "hold_share",
            "cluster_unseen_ms",
        ),
        *("placement_paused", "walltime_step_ms", "ranking", "gang_first_gpus", "reservations"),
        "larger_gangs_first",
        *(
            "reservations_per_organization",
            "reservation_gpus",
            "promise_gpus",
            "promises_per_organization",
            "lane",
            "preemption",
        ),
        *("booking_lead_ms", "booking_over_ms", "booking_unused_ms"),
        *("organization_pool_thousandths", "organization_pool_from_gpus"),
        *("entitlements", "organization_weights", "opportunistic_notice_ms"),
    }
    assert {f.name for f in fields(Lane)} == {"gpus", "area_gpu_ms", "tapers", "delivery_weight"}
    assert {f.name for f in fields(Preemption)} == {
        *(
            "gang_gpus",
            "gangs",
            "gangs_at_once",
            "victim_gpus",
            "lead_ms",
            "protected_ms",
            "cooldown_ms",
            "times_per_day",
        ),
        *("notice_ms", "checkpoint_ms", "restart_ms"),
    }
    assert math.isfinite(Policy().lag_bound_share)
