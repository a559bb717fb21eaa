"""Times, amounts, names and ids at the edge: what is read back is what was said, the rest is refused."""

from __future__ import annotations

import itertools
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from quota import ids
from quota.clock import HOUR_MS, Clock, instant_ms, instant_text
from quota.schemas.fleet import NewGpuClass
from quota.schemas.jobs import JobSubmission
from quota.schemas.programs import Award
from quota.schemas.usage import EvidenceRow
from quota.schemas.values import (
    BIGGEST_AWARD_GPU_US,
    BIGGEST_GPU_US,
    GpuHoursIn,
    GpuHoursOut,
    GpuUs,
    Id,
    Instant,
    NodeName,
    Slug,
    gpu_hours_text,
)

YEAR_9999_MS = 253_402_300_799_999


NO_AMOUNTS = (
    *(True, None, 1.0, float("nan"), Decimal(1), BIGGEST_GPU_US + 1, 10**400),
    *("1.0", "1e3", "", "-", "--5", "0x10", "NaN", " 5", "5 ", str(BIGGEST_GPU_US + 1), "9" * 5000),
)
NO_HOURS = (
    *(True, False, None, 1.5, float("nan"), 10**400),
    *("", "x", "NaN", "sNaN", "Infinity", "-Infinity", "1,5", "1_000", " 5 ", "9" * 5000),
    *("1e999999", "1E+99999999999", "1e-999999", "2500000001", "1.0000000000000000000000000000000000000001"),
)


class Said(BaseModel):
    at: Instant = 0
    amount: GpuUs = 0
    hours: GpuHoursIn = 0
    shown: GpuHoursOut = 0


def refused(kind: Any, value: object) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return True
    return False


# --- times -------------------------------------------------------------------------------------------


@given(st.integers(0, YEAR_9999_MS))
def test_a_time_written_is_the_time_read(moment: int) -> None:
    assert instant_ms(instant_text(moment)) == moment
    assert Said.model_validate_json(Said(at=moment).model_dump_json()).at == moment


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2026-11-22T09:00:00.000Z", 1_795_338_000_000),
        ("2026-11-22T18:00:00+09:00", 1_795_338_000_000),
        ("2026-11-22T18:00:00.250+09:00", 1_795_338_000_250),
        ("2026-11-22T09:00:00.5Z", 1_795_338_000_500),
        ("2026-11-22T09:00:00.05Z", 1_795_338_000_050),
        ("9999-12-31T23:59:59.999Z", YEAR_9999_MS),
    ],
)
def test_times_are_read_exactly(text: str, moment: int) -> None:
    assert TypeAdapter(Instant).validate_python(text) == moment


@pytest.mark.parametrize(
    "value",
    [
        True,
        False,
        1.5,
        float("nan"),
        float("inf"),
        None,
        [],
        {},
        "",
        "now",
        "2026-11-22",
        "2026-11-22T09:00:00",
        "2026-11-22T09:00:00.0001Z",
        "2026-11-22T09:00:00.000001+09:00",
        "2026-13-01T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-11-22T24:00:01Z",
        "2026-11-22T09:00:00Z\n",
        "1969-12-31T23:59:59.500+00:00",
        "9999-12-31T23:59:59-09:00",
        -1,
        YEAR_9999_MS + 1,
        10**30,
        -(10**30),
    ],
)
def test_what_is_no_time_is_refused(value: object) -> None:
    assert refused(Instant, value)


# --- amounts -----------------------------------------------------------------------------------------


@given(st.integers(-BIGGEST_GPU_US, BIGGEST_GPU_US))
def test_an_amount_travels_as_a_decimal_string(amount: int) -> None:
    document = json.loads(Said(amount=amount).model_dump_json())
    assert document["amount"] == str(amount)
    assert Said.model_validate(document).amount == amount


@pytest.mark.parametrize("value", NO_AMOUNTS)
def test_what_is_no_amount_is_refused(value: object) -> None:
    assert refused(GpuUs, value)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("1", 3_600_000_000),
        ("0.5", 1_800_000_000),
        (100, 360_000_000_000),
        ("0.000000001", None),
        ("0.00000000027777777777777777777777777777777777777", None),
        ("25000000", BIGGEST_AWARD_GPU_US),
    ],
)
def test_hours_are_read_exactly_or_refused(text: object, amount: int | None) -> None:
    if amount is None:
        assert refused(GpuHoursIn, text)
    else:
        assert TypeAdapter(GpuHoursIn).validate_python(text) == amount


@pytest.mark.parametrize("value", NO_HOURS)
def test_what_are_no_hours_is_refused(value: object) -> None:
    assert refused(GpuHoursIn, value)


@given(st.integers(0, BIGGEST_AWARD_GPU_US))
def test_hours_typed_by_a_person_come_back_exactly(amount: int) -> None:
    """The client writes hours out so that the service reads the same amount."""
    text = json.loads(Said(hours="0").model_copy(update={"hours": amount}).model_dump_json())["hours"]
    whole = Decimal(text) * 3_600_000_000
    assert abs(whole - amount) < Decimal("0.001")
    if Decimal(amount) % 36 == 0:  # a multiple of a hundred-millionth of an hour ends
        assert TypeAdapter(GpuHoursIn).validate_python(text) == amount


@given(st.integers(-BIGGEST_GPU_US, BIGGEST_GPU_US))
def test_hours_shown_to_people_have_six_decimals_at_most(amount: int) -> None:
    text = gpu_hours_text(amount)
    assert abs(Decimal(text) * 3_600_000_000 - amount) <= 1800
    assert "e" not in text.lower()
    assert len(text.partition(".")[2]) <= 6


def test_hours_shown_are_plain() -> None:
    assert [gpu_hours_text(hours * 3_600_000_000) for hours in (0, 1, 10, 1500)] == ["0", "1", "10", "1500"]
    assert gpu_hours_text(45_000_000_000) == "12.5"


# --- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (
            Slug,
            ["alpha-lab", "a1"],
            ["", "a", "A1", "-a", "a-", "1a", "a_b", "a" * 41, "가나", "ab\n", "a\x00b"],
        ),
        (Id, ["job-1", "grant:x.y_z"], ["", "-a", "A", "a b", "a/b", "a" * 129, "a\n"]),
        (NodeName, ["n", "gpu-07.rack1"], ["", "-", "n-", "N1", "n/1", "n" * 254, "n\n"]),
    ],
)
def test_names_are_read_or_refused(kind: Any, good: list[str], bad: list[str]) -> None:
    assert [name for name in good if refused(kind, name)] == []
    assert [name for name in bad if not refused(kind, name)] == []


JOB: dict[str, Any] = {"name": "a", "gpu_class": "h100", "walltime_s": 60}


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("walltime_s", [0, -1, True, 1.5, 60.0, "60", float("nan"), 10**18, None, 30 * 86400 + 1]),
        ("gpus_per_pod", [0, -1, True, 1.0, "1", float("nan"), 1025, 10**30]),
        ("pods", [0, -8, False, 2.0, "2", float("inf"), 4097]),
        ("grace_s", [-1, True, 0.5, 3601]),
        ("checkpoint_interval_s", [0, -1, True, 0.5]),
        ("restartable", ["yes", 1, 0, "true"]),
        ("name", ["", "x" * 201, 5, None, True, "a\x00b"]),
        ("gpu_class", ["", "H100", "h100 ", "한"]),
        ("environment", [{"A B": "x"}, {"A": 1}, {"A": "x" * 1001}, {str(n): "" for n in range(51)}]),
        ("gpu_count", [1]),
    ],
)
def test_a_submission_refuses_what_is_no_number_name_or_field(field: str, values: list[object]) -> None:
    JobSubmission.model_validate(JOB)
    for value in values:
        with pytest.raises(ValidationError) as caught:
            JobSubmission.model_validate(JOB | {field: value})
        assert {error["loc"][0] for error in caught.value.errors()} == {field}


def test_a_grants_term_is_ordered() -> None:
    body = {"program_id": "ax", "organization_id": "alpha", "gpu_hours": "1", "reason": "r"}
    Award.model_validate(body | {"starts_at": 1, "ends_at": 2})
    for starts, ends in ((2, 2), (3, 2)):
        with pytest.raises(ValidationError):
            Award.model_validate(body | {"starts_at": starts, "ends_at": ends})


@pytest.mark.parametrize(
    "change", [{"busy_ms": 11}, {"hour": 1}, {"observed_ms": HOUR_MS + 1}, {"busy_ms": True}]
)
def test_evidence_lies_within_its_hour(change: dict[str, object]) -> None:
    row = {
        "job_id": "job-1",
        "attempt": 1,
        "gpu_uuid": "GPU-0001",
        "gpu_class": "h100",
        "node": "n0",
        "hour": 5 * HOUR_MS,
        "agent_epoch": "epoch-01",
        "seq": 1,
        "busy_ms": 10,
        "observed_ms": 10,
    }
    EvidenceRow.model_validate(row)
    with pytest.raises(ValidationError):
        EvidenceRow.model_validate(row | change)


@pytest.mark.parametrize("value", [0, True, 1.0, "1000", 1_000_001])
def test_a_rate_is_a_whole_number_of_thousandths(value: object) -> None:
    with pytest.raises(ValidationError):
        NewGpuClass.model_validate({"id": "x1", "name": "X", "rate_thousandths": value, "price_krw": 1})


# --- ids and clock -------------------------------------------------------------------------------------


def test_ids_sort_by_the_time_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0, 1, 1_795_338_000_000, 1_795_338_000_001, 2**47])
    monkeypatch.setattr(ids, "wall_ms", lambda: next(moments))
    made = [ids.new_id("job") for _ in range(5)]
    assert made == sorted(made)
    assert len({len(name) for name in made}) == 1


def test_ids_of_one_moment_differ_and_fit_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "wall_ms", lambda: 1_795_338_000_000)
    made = {ids.new_id("job") for _ in range(2000)}
    assert len(made) == 2000
    assert all(len(name) <= 58 and name.replace("-", "").isalnum() and name.islower() for name in made)
    assert not any(refused(Id, name) for name in itertools.islice(made, 50))


@given(st.integers(0, 2**45), st.integers(0, 2**45), st.integers(1, 10_000), st.integers(0, 10**9))
def test_a_clock_is_a_straight_line_that_survives_its_text(
    business: int, wall: int, speed: int, after: int
) -> None:
    clock = Clock(business, wall, speed)
    assert clock.at_wall(wall) == business
    assert clock.at_wall(wall + after) == business + after * speed
    assert Clock.from_text(clock.text()) == clock
    assert clock.wall_s(after * speed) == pytest.approx(after / 1000)


@pytest.mark.parametrize("text", ["1", "1,2", "1,2,3,4", "a,b,c", "1,2,0", "1,2,-1", "1.5,2,3"])
def test_a_clock_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Clock.from_text(text)


def test_no_text_is_the_wall() -> None:
    assert Clock.from_text("") == Clock()
