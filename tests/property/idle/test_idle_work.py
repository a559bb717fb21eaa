"""Work and bins against what they mean, computed the long way."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from quota.clock import HOUR_MS
from quota.idle.activity import BIN_MS, spread
from quota.idle.rules import Bin, worked_until
from quota.schemas.idle import IdleRules
from quota.usage.service import Gain

RULES = IdleRules()
HOUR = 500_000 * HOUR_MS

CELLS = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, 4000), st.integers(0, 40_000)),
        st.sampled_from([0, 60_000, BIN_MS]),
    ),
    max_size=40,
)


def _is_work(bins: list[Bin]) -> bool:
    """Whether some stretch has more busy time than noise and one stray sample, looking at every stretch."""
    for begin in range(len(bins)):
        for end in range(begin, len(bins)):
            stretch = bins[begin : end + 1]
            noise = sum(part.observed_ms for part in stretch) * RULES.noise_thousandths
            if sum(part.busy_ms for part in stretch) * 1000 >= RULES.noise_busy_ms * 1000 + noise:
                return True
    return False


@given(CELLS)
def test_work_is_found_where_some_stretch_has_it_and_nowhere_else(cells: list[tuple[int, int]]) -> None:
    bins = [Bin(at * BIN_MS, (at + 1) * BIN_MS, busy, seen) for at, (busy, seen) in enumerate(cells)]
    last = worked_until(bins, RULES)
    assert (last is not None) == _is_work(bins)
    if last is not None:
        assert not _is_work([part for part in bins if part.from_ms >= last]), "work after the last work"
        assert _is_work([part for part in bins if part.until_ms <= last])


@given(
    since=st.integers(-HOUR_MS, 2 * HOUR_MS),
    now=st.integers(1, 3 * HOUR_MS),
    observed=st.integers(0, HOUR_MS),
    busy=st.integers(0, 1000),
)
def test_a_gain_is_spread_whole_within_its_time_and_busy_last(
    since: int, now: int, observed: int, busy: int
) -> None:
    busy_ms = observed * busy // 1000
    gain = Gain("job-1", 1, "GPU-1", HOUR, HOUR + since, busy_ms, observed)
    parts = sorted(spread(gain, HOUR + now))
    assert sum(part[1] for part in parts) == busy_ms
    assert sum(part[2] for part in parts) == observed
    end = min(HOUR + HOUR_MS, HOUR + now)
    begin = max(HOUR, min(HOUR + since, end - 1))
    for from_ms, _, _ in parts:
        assert from_ms % BIN_MS == 0
        assert begin < from_ms + BIN_MS
        assert from_ms < end
    working = [part for part in parts if part[1]]
    if working:
        after_first = [part for part in parts if part[0] > working[0][0]]
        assert all(part[1] == part[2] for part in after_first), "it could have been later"
