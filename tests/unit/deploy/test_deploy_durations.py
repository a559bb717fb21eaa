"""Durations as people type them."""

from __future__ import annotations

import pytest

from deploy.durations import duration_s, duration_text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5400", 5400), ("90m", 5400), ("1h30m", 5400), ("2d", 172_800), ("1d2h3m4s", 93_784), (" 45S ", 45)],
)
def test_reads_units_and_plain_seconds(text: str, seconds: int) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0h", "1.5h", "-5", "h", "30m1h", "1h1h", "1h 30m x", "5 m", "१२"])
def test_refuses_what_could_be_read_in_two_ways(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration|must"):
        duration_s(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (3.21, "3.2s"), (65, "1m 5s"), (5400, "1h 30m"), (90_061, "1d 1h"), (-65, "-1m 5s")],
)
def test_shows_the_two_greatest_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
