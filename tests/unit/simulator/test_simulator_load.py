"""Utilisation profiles: the closed form against slices, and the texts that name them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.simulator.behavior import BadAnnotation, read_behavior
from scheduler.simulator.load import ActiveThenIdle, Burst, Load, Ramp, Steady, mean_ratio, read_load


def ratio_at(load: Load, moment_ms: float) -> float:
    """The utilisation at one moment, written down a second time."""
    match load:
        case Steady(ratio):
            return ratio
        case Ramp(first, last, span_ms):
            return last if moment_ms >= span_ms else first + (last - first) * moment_ms / span_ms
        case Burst(period_ms, busy_part_ms):
            return 1.0 if moment_ms % period_ms < busy_part_ms else 0.0
        case ActiveThenIdle(active_ms):
            return 1.0 if moment_ms < active_ms else 0.0


ratios = st.integers(0, 100).map(lambda percent: percent / 100)
loads = st.one_of(
    ratios.map(Steady),
    st.builds(Ramp, ratios, ratios, st.integers(0, 2_000)),
    st.integers(1, 500).flatmap(
        lambda period_ms: st.builds(Burst, st.just(period_ms), st.integers(0, period_ms))
    ),
    st.integers(0, 3_000).map(ActiveThenIdle),
)


@given(loads, st.integers(0, 3_000), st.integers(1, 1_500))
@settings(deadline=None)
def test_mean_is_the_mean_of_all_milliseconds(load, from_ms, length_ms):
    middle = (ratio_at(load, moment_ms + 0.5) for moment_ms in range(from_ms, from_ms + length_ms))
    assert mean_ratio(load, from_ms, from_ms + length_ms) == pytest.approx(sum(middle) / length_ms, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "load"),
    [
        ("idle", Steady(0.0)),
        ("steady:0.8", Steady(0.8)),
        ("ramp:0.1:0.9", Ramp(0.1, 0.9, 60_000)),
        ("burst:20:0.25", Burst(20_000, 5_000)),
        ("active_then_idle:1.5", ActiveThenIdle(1_500)),
    ],
)
def test_text_names_a_load(text, load):
    assert read_load(text, 60_000) == load


@pytest.mark.parametrize(
    "text", ["", "busy", "steady", "steady:1.1", "steady:nan", "ramp:1", "burst:0:0.5", "active_then_idle:-1"]
)
def test_nonsense_is_no_load(text):
    with pytest.raises(BadAnnotation) as bad:
        read_behavior({"simulate.gpuhub/load": text}, 1_000)
    assert bad.value.key == "simulate.gpuhub/load"


@pytest.mark.parametrize(
    ("key", "text"),
    [("duration_s", "inf"), ("start_s", "-1"), ("stop_s", "soon"), ("exit_code", "256"), ("color", "red")],
)
def test_unreadable_annotation_is_named(key, text):
    with pytest.raises(BadAnnotation) as bad:
        read_behavior({f"simulate.gpuhub/{key}": text, "other.io/anything": "goes"}, 1_000)
    assert bad.value.key == f"simulate.gpuhub/{key}"
