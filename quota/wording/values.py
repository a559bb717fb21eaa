"""Numbers and moments as people read them: GPU hours, durations, ordinals, the time in Seoul."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from quota.clock import SEOUL_MS
from quota.i18n import Language
from quota.schemas.values import GPU_US_PER_HOUR, LAST_INSTANT_MS

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MINUTE_MS = 60_000
_UNITS = (
    (86_400_000, "d", "일"),
    (3_600_000, "h", "시간"),
    (_MINUTE_MS, "min", "분"),
    (1000, "s", "초"),
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def moment_text(language: Language, moment_ms: int, now_ms: int) -> str:
    """A time in Seoul to the minute, rounded up; its day unless that is today, its year unless that is this one."""
    at = _in_seoul(-(-moment_ms // _MINUTE_MS) * _MINUTE_MS)
    today = _in_seoul(now_ms)
    clock = f"{at:%H:%M}"
    if language is Language.KOREAN:
        day = f"{at.month}월 {at.day}일 "
        return (
            (f"{at.year}년 " if at.year != today.year else "")
            + (day if _day(at) != _day(today) else "")
            + clock
        )
    day = f" on {at.day} {_MONTHS[at.month - 1]}" if _day(at) != _day(today) else ""
    return f"{clock} KST{day}" + (f" {at.year}" if at.year != today.year else "")


def duration_text(language: Language, duration_ms: int) -> str:
    """A duration in its two largest units, rounded down to the second: `1 h 30 min`, `1시간 30분`."""
    parts: list[str] = []
    left_ms = max(0, duration_ms)
    for unit_ms, english, korean in _UNITS:
        count, left_ms = divmod(left_ms, unit_ms)
        if count and len(parts) < 2:
            parts.append(f"{count:,}{korean}" if language is Language.KOREAN else f"{count:,} {english}")
        elif parts:
            break  # the next unit is 0, or there are two already
    return " ".join(parts) or ("0초" if language is Language.KOREAN else "0 s")


def hours_text(amount_gpu_us: int, *, up: bool) -> str:
    """GPU hours, two decimals from one hour on, else six. Rounded up for what is needed, down for what is left.

    So of two amounts the greater never looks equal to the smaller one.
    """
    exact = Decimal(amount_gpu_us) / GPU_US_PER_HOUR
    step = Decimal("0.01") if abs(amount_gpu_us) >= GPU_US_PER_HOUR else Decimal("0.000001")
    text = f"{exact.quantize(step, ROUND_CEILING if up else ROUND_FLOOR):,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def thousandths_text(language: Language, thousandths: int) -> str:
    """A share in per cent: 31 is `3.1 %`."""
    whole, tenths = divmod(abs(thousandths), 10)
    number = f"{whole}.{tenths}" if tenths else str(whole)
    return f"{number}%" if language is Language.KOREAN else f"{number} %"


def ordinal_text(language: Language, number: int) -> str:
    """`1st`, `12th`; `1번째`."""
    if language is Language.KOREAN:
        return f"{number:,}번째"
    teens = 10 < number % 100 < 20
    return f"{number:,}" + ("th" if teens else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th"))


def _in_seoul(moment_ms: int) -> datetime:
    shown_ms = min(
        max(0, moment_ms), LAST_INSTANT_MS - 2 * SEOUL_MS
    )  # what no calendar has is no reason to fail
    return _EPOCH + timedelta(milliseconds=shown_ms + SEOUL_MS)


def _day(at: datetime) -> tuple[int, int, int]:
    return at.year, at.month, at.day
