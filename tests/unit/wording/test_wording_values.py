"""Amounts, moments, durations and ordinals as people read them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quota.clock import instant_ms
from quota.i18n import Language
from quota.schemas.values import BIGGEST_GPU_US, GPU_US_PER_HOUR, LAST_INSTANT_MS
from quota.wording.values import duration_text, hours_text, moment_text, ordinal_text, thousandths_text

EN, KO = Language.ENGLISH, Language.KOREAN
NOW = instant_ms("2026-11-30T14:50:00Z")  # 23:50 in Seoul
S, MIN, H, DAY = 1000, 60_000, 3_600_000, 86_400_000


@pytest.mark.parametrize(
    ("moment", "english", "korean"),
    [
        ("2026-11-30T14:59:00Z", "23:59 KST", "23:59"),
        ("2026-11-30T14:59:00.001Z", "00:00 KST on 1 Dec", "12월 1일 00:00"),
        ("2026-11-30T15:00:00Z", "00:00 KST on 1 Dec", "12월 1일 00:00"),
        ("2026-11-29T15:00:00Z", "00:00 KST", "00:00"),
        ("2026-11-29T14:58:30Z", "23:59 KST on 29 Nov", "11월 29일 23:59"),
        ("2026-12-31T15:00:00Z", "00:00 KST on 1 Jan 2027", "2027년 1월 1일 00:00"),
        ("2025-11-30T14:50:00Z", "23:50 KST on 30 Nov 2025", "2025년 11월 30일 23:50"),
    ],
)
def test_a_moment_is_told_in_seoul(moment: str, english: str, korean: str) -> None:
    assert moment_text(EN, instant_ms(moment), NOW) == english
    assert moment_text(KO, instant_ms(moment), NOW) == korean


@given(st.integers(-(1 << 70), 1 << 70), st.sampled_from(Language))
def test_any_number_is_told_as_a_moment(moment_ms: int, language: Language) -> None:
    assert moment_text(language, moment_ms, NOW)
    assert "9999" in moment_text(language, max(moment_ms, LAST_INSTANT_MS), NOW)


@pytest.mark.parametrize(
    ("duration_ms", "english", "korean"),
    [
        (0, "0 s", "0초"),
        (999, "0 s", "0초"),
        (S, "1 s", "1초"),
        (59 * S + 999, "59 s", "59초"),
        (MIN, "1 min", "1분"),
        (90 * S, "1 min 30 s", "1분 30초"),
        (H + 30 * MIN, "1 h 30 min", "1시간 30분"),
        (H + 30 * S, "1 h", "1시간"),
        (2 * DAY + 3 * H + 59 * MIN, "2 d 3 h", "2일 3시간"),
        (1500 * DAY, "1,500 d", "1,500일"),
        (-5, "0 s", "0초"),
    ],
)
def test_a_duration_has_two_units_at_most(duration_ms: int, english: str, korean: str) -> None:
    assert duration_text(EN, duration_ms) == english
    assert duration_text(KO, duration_ms) == korean


@pytest.mark.parametrize(
    ("amount", "up", "down"),
    [
        (0, "0", "0"),
        (1, "0.000001", "0"),
        (GPU_US_PER_HOUR // 2, "0.5", "0.5"),
        (GPU_US_PER_HOUR - 1, "1", "0.999999"),
        (GPU_US_PER_HOUR, "1", "1"),
        (GPU_US_PER_HOUR + 1, "1.01", "1"),
        (1500 * GPU_US_PER_HOUR, "1,500", "1,500"),
        (BIGGEST_GPU_US, "2,500,000,000", "2,500,000,000"),
    ],
)
def test_gpu_hours_are_rounded_against_the_reader(amount: int, up: str, down: str) -> None:
    assert (hours_text(amount, up=True), hours_text(amount, up=False)) == (up, down)


@given(st.integers(0, BIGGEST_GPU_US), st.integers(1, BIGGEST_GPU_US))
def test_what_is_needed_never_looks_like_less_than_what_is_left(left: int, more: int) -> None:
    needed_text, left_text = hours_text(left + more, up=True), hours_text(left, up=False)
    assert Decimal(needed_text.replace(",", "")) > Decimal(left_text.replace(",", ""))


@pytest.mark.parametrize(
    ("number", "english"),
    [
        (1, "1st"),
        (2, "2nd"),
        (3, "3rd"),
        (4, "4th"),
        (10, "10th"),
        (11, "11th"),
        (12, "12th"),
        (13, "13th"),
        (21, "21st"),
        (111, "111th"),
        (112, "112th"),
        (1002, "1,002nd"),
        (50_000, "50,000th"),
    ],
)
def test_ordinals(number: int, english: str) -> None:
    assert ordinal_text(EN, number) == english
    assert ordinal_text(KO, number) == f"{number:,}번째"


def test_shares_are_told_in_per_cent() -> None:
    assert [thousandths_text(EN, number) for number in (0, 4, 30, 31, -31, 1000)] == [
        "0 %",
        "0.4 %",
        "3 %",
        "3.1 %",
        "3.1 %",
        "100 %",
    ]
    assert thousandths_text(KO, 31) == "3.1%"
