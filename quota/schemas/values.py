"""The values that every wire type is made of: times, amounts, names.

A time is an `int` of milliseconds since 1970 in Python and RFC 3339 text in JSON. A ledger amount is an
`int` of GPU-microseconds of the reference GPU in Python and a decimal string in JSON, because
JavaScript's numbers end at 2^53.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticCustomError

from quota.clock import HOUR_MS, instant_ms, instant_text

M = TypeVar("M", bound=BaseModel)

GPU_US_PER_HOUR = HOUR_MS * 1000
"""One hour on one reference GPU: 3,600,000 ms x 1 GPU x 1000 thousandths."""

BIGGEST_AWARD_GPU_US = 90_000_000_000_000_000
"""25 million GPU hours: a hundred such budgets still add up in 64 bits."""

BIGGEST_GPU_US = 9_000_000_000_000_000_000
"""Just under 2^63: what a database column of 64 bits holds."""

LAST_INSTANT_MS = 253_402_300_799_999
"""9999-12-31T23:59:59.999Z: the last time that RFC 3339 can write."""

_DIGITS = re.compile(r"-?[0-9]{1,19}")
_HOURS = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,60})?")


def wrong(template: str, **values: int | str) -> PydanticCustomError:
    """A value's error with a text that exists in every language: English with named fields, never the input itself."""
    return PydanticCustomError("wrong_value", template, {"template": template} | values)


def _parse_instant(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise wrong("a time is RFC 3339 text such as 2026-11-22T09:00:00.000Z")
    try:
        moment = instant_ms(value) if isinstance(value, str) else value
    except ValueError as error:
        raise wrong(
            "a time is RFC 3339 text such as 2026-11-22T09:00:00.000Z, with a zone and at most three decimals"
        ) from error
    if not 0 <= moment <= LAST_INSTANT_MS:
        raise wrong("a time lies in the years 1970 to 9999")
    return moment


def _parse_gpu_us(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        amount = value
    elif isinstance(value, str) and _DIGITS.fullmatch(value):
        amount = int(value)
    else:
        raise wrong("an amount is a string of digits: whole GPU-microseconds of the reference GPU")
    if abs(amount) > BIGGEST_GPU_US:
        raise wrong("an amount is at most {most_gpu_us} GPU-microseconds", most_gpu_us=str(BIGGEST_GPU_US))
    return amount


def _parse_gpu_hours(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise wrong("GPU hours are a decimal string such as '1500' or '0.5'")
    if isinstance(value, str) and not _HOURS.fullmatch(value):
        raise wrong("GPU hours are a decimal string such as '1500' or '0.5'")
    with localcontext(prec=100):  # exact: rounding would accept more decimals than an amount has
        amount = Decimal(value) * GPU_US_PER_HOUR
    if abs(amount) > BIGGEST_AWARD_GPU_US:
        raise wrong("GPU hours must be finite and at most 25,000,000 at once")
    whole = int(amount)
    if whole != amount:
        raise wrong("GPU hours must come to a whole number of GPU-microseconds (at most 9 decimals)")
    return whole


def _read_gpu_hours(value: object) -> int:
    return value if isinstance(value, int) else _parse_gpu_hours(value)


def _read_numbers(value: object) -> object:
    if not isinstance(value, dict):
        return value
    return {
        name: int(number)
        if isinstance(number, str) and str(name).endswith("_gpu_us") and _DIGITS.fullmatch(number)
        else number
        for name, number in value.items()
    }


def numbers_json(numbers: Mapping[str, int | str]) -> dict[str, int | str]:
    """Numbers beside a code, as JSON has them: amounts (`*_gpu_us`) are decimal strings."""
    return {
        name: str(value) if name.endswith("_gpu_us") and isinstance(value, int) else value
        for name, value in numbers.items()
    }


def exact_hours_text(amount_gpu_us: int) -> str:
    """GPU hours of the reference GPU to their last decimal, as they are sent."""
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
    PlainSerializer(exact_hours_text, return_type=str, when_used="json"),
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

Number = Annotated[int, Field(strict=True)] | str
Numbers = Annotated[
    dict[str, Number],
    BeforeValidator(_read_numbers),
    PlainSerializer(numbers_json, return_type=dict[str, int | str], when_used="json"),
    WithJsonSchema(
        {
            "type": "object",
            "additionalProperties": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
            "examples": [{"needed_gpu_us": "39600000000", "left_gpu_us": "36000000000"}],
        }
    ),
]
"""Numbers and names beside a code. Amounts (`*_gpu_us`) are ints in Python and decimal strings in JSON."""

Flag = Annotated[bool, Field(strict=True)]
"""True or false, and nothing that could be meant for one."""
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
Id = Annotated[
    str, Field(pattern=r"^[a-z0-9][a-z0-9:_.-]{0,127}$", examples=["job-01jd8x2m9q4t6v8w0y2z4b6d8f"])
]
RackName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$", examples=["rack-b2"])
]
"""A Kubernetes label's value."""
NodeToken = Annotated[
    str,
    Field(
        pattern=r"^[a-z0-9][a-z0-9:_.-]{0,127}/[a-z0-9][a-z0-9.-]{0,252}$",
        description="The `next` of the page before: `<cluster>/<node>`.",
        examples=["sim/sim-0"],
    ),
]
NO_NUL = r"^[^\x00]*$"
"""PostgreSQL's texts hold any character but this one."""
ShortId = Annotated[
    str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,59}$", examples=["job-01jd8x2m9q4t6v8w0y2z4b6d8f"])
]
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


def built(model: type[M], /, **fields: Any) -> M:
    """A model of values that need no check, such as a row's: pydantic's `model_construct` at a fifth of its time.

    Every field without a default must be given; none is checked.
    """
    template, factories, required = _plan(model)
    assert required <= fields.keys(), f"{model.__name__} lacks {sorted(required - fields.keys())}"
    values = {**template, **fields}
    for name, factory in factories:
        if name not in fields:
            values[name] = factory()
    made = model.__new__(model)
    object.__setattr__(made, "__dict__", values)
    object.__setattr__(made, "__pydantic_fields_set__", set(fields))
    object.__setattr__(made, "__pydantic_extra__", None)
    object.__setattr__(made, "__pydantic_private__", None)
    return made


@cache
def _plan(model: type[BaseModel]) -> tuple[dict[str, Any], list[tuple[str, Any]], frozenset[str]]:
    """Defaults by field in their order, fields whose default is made anew, and those that must be given."""
    fields = model.model_fields
    template = {name: None if field.is_required() else field.default for name, field in fields.items()}
    factories = [(name, field.default_factory) for name, field in fields.items() if field.default_factory]
    return template, factories, frozenset(name for name, field in fields.items() if field.is_required())
