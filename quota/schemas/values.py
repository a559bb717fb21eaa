"""The values that every wire type is made of: times, amounts, names.

A time is an `int` of milliseconds since 1970 in Python and RFC 3339 text in JSON. A ledger amount is an
`int` of GPU-microseconds of the reference GPU in Python and a decimal string in JSON, because
JavaScript's numbers end at 2^53.
"""

from __future__ import annotations

import re
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from quota.clock import HOUR_MS, instant_ms, instant_text

GPU_US_PER_HOUR = HOUR_MS * 1000
"""One hour on one reference GPU: 3,600,000 ms x 1 GPU x 1000 thousandths."""

BIGGEST_AWARD_GPU_US = 90_000_000_000_000_000
"""25 million GPU hours: a hundred such budgets still add up in 64 bits."""

BIGGEST_GPU_US = 9_000_000_000_000_000_000
"""Just under 2^63: what a database column of 64 bits holds."""

LAST_INSTANT_MS = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z: the last time that RFC 3339 can write."""

_HOURS = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,60})?")


def _parse_instant(value: object) -> int:
    if isinstance(value, bool):
        raise ValueError("a time is RFC 3339 text, not a boolean")
    if not isinstance(value, int | str):
        raise ValueError("a time is RFC 3339 text such as 2026-11-22T09:00:00.000Z")
    moment = instant_ms(value) if isinstance(value, str) else value
    if not 0 <= moment <= LAST_INSTANT_MS:
        raise ValueError("a time lies in the years 1970 to 9999")
    return moment


def _parse_gpu_us(value: object) -> int:
    if isinstance(value, bool):
        raise ValueError("an amount is a decimal string, not a boolean")
    if isinstance(value, int):
        amount = value
    elif isinstance(value, str) and value.lstrip("-").isdecimal() and len(value) <= 20:
        amount = int(value)
    else:
        raise ValueError("an amount is a string of digits: whole GPU-microseconds of the reference GPU")
    if abs(amount) > BIGGEST_GPU_US:
        raise ValueError(f"an amount is at most {BIGGEST_GPU_US} GPU-microseconds")
    return amount


def _parse_gpu_hours(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("GPU hours are a decimal string such as '1500' or '0.5'")
    if isinstance(value, str) and not _HOURS.fullmatch(value):
        raise ValueError("GPU hours are a decimal string such as '1500' or '0.5'")
    with localcontext(prec=100):  # exact: rounding would accept more decimals than an amount has
        amount = Decimal(value) * GPU_US_PER_HOUR
    if abs(amount) > BIGGEST_AWARD_GPU_US:
        raise ValueError("GPU hours must be finite and at most 25,000,000 at once")
    whole = int(amount)
    if whole != amount:
        raise ValueError("GPU hours must come to a whole number of GPU-microseconds (at most 9 decimals)")
    return whole


def _read_gpu_hours(value: object) -> int:
    return value if isinstance(value, int) else _parse_gpu_hours(value)


def _exact_hours_text(amount_gpu_us: int) -> str:
    with localcontext(prec=60):
        return f"{(Decimal(amount_gpu_us) / GPU_US_PER_HOUR).normalize():f}" if amount_gpu_us else "0"


def gpu_hours_text(amount_gpu_us: int) -> str:
    """GPU hours of the reference GPU for people, rounded half even to six decimals: `12.5`."""
    hours = (Decimal(amount_gpu_us) / GPU_US_PER_HOUR).quantize(Decimal("0.000001"), ROUND_HALF_EVEN)
    return f"{hours.normalize():f}" if hours else "0"


Instant = Annotated[
    int,
    BeforeValidator(_parse_instant),
    PlainSerializer(instant_text, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-11-22T09:00:00.000Z"]}),
]
"""Milliseconds since 1970 (UTC) in Python, RFC 3339 with three decimals in JSON."""

GpuUs = Annotated[
    int,
    BeforeValidator(_parse_gpu_us),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": "^-?[0-9]{1,19}$", "examples": ["3600000000"]}),
]
"""GPU-microseconds of the reference GPU; a decimal string in JSON."""

GpuHoursIn = Annotated[
    int,
    BeforeValidator(_parse_gpu_hours),
    PlainSerializer(_exact_hours_text, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?$", "examples": ["1500", "0.5"]}),
]
"""An amount typed by a person: give hours (an int, or a decimal string), read GPU-microseconds."""

GpuHoursOut = Annotated[
    int,
    BeforeValidator(_read_gpu_hours),
    PlainSerializer(gpu_hours_text, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["12.5"]}),
]
"""GPU-microseconds shown to people as hours, rounded to six decimals; the exact amount stands beside it."""

Count = Annotated[int, Field(strict=True, ge=0, le=1_000_000)]
Milliseconds = Annotated[int, Field(strict=True, ge=0, le=10_000_000_000_000)]
Thousandths = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Sequence = Annotated[int, Field(strict=True, ge=0, le=BIGGEST_GPU_US)]

Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,38}[a-z0-9]$", examples=["alpha-lab"])]
"""A short name chosen by an operator; also a namespace on a cluster."""
ClassId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$", examples=["h100", "h100-1g.10gb"])]
NodeName = Annotated[
    str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,251}[a-z0-9]$|^[a-z0-9]$", examples=["sim-0"])
]
Id = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9:_.-]{0,127}$")]
NO_NUL = r"^[^\x00]*$"
"""PostgreSQL's texts hold any character but this one."""
ShortId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,59}$")]
"""The id of a job or a grant."""
AttemptNumber = Annotated[int, Field(strict=True, ge=1, le=10_000)]
RowNumber = Annotated[int, Field(ge=0, le=BIGGEST_GPU_US)]
Text = Annotated[str, Field(max_length=500, pattern=NO_NUL)]
Reason = Annotated[
    str, Field(min_length=1, max_length=500, pattern=NO_NUL, description="Why; kept in the audit trail.")
]
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=NO_NUL)]


class Request(BaseModel):
    """A body sent to the service: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Reply(BaseModel):
    """An answer of the service: unknown fields are a newer service's and ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)
