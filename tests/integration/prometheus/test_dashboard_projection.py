"""The burn-down of a grant over days: what is left, the even pace, and the day on which it runs out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dashboards import boards, panels, substituted
from tests.prometheus_server import Prometheus, a_prometheus

pytestmark = [pytest.mark.prometheus, pytest.mark.timeout(120)]

BEGAN_S = 1_700_000_000
DAY_S, HOUR_S = 86_400, 3600
GRANTED_H = 1000
TERM_DAYS, LIVED_DAYS = 30, 10
NOW_S = BEGAN_S + LIVED_DAYS * DAY_S
STEP_S = 600
LATE_S = BEGAN_S + 8 * DAY_S
"""A second grant begins; it uses two GPUs from its first hour on."""


def used_h(at_s: int) -> int:
    """Hours charged: one GPU for nine days, four on the last; booked at full hours."""
    hours = (at_s - BEGAN_S) // HOUR_S
    return min(hours, 9 * 24) + 4 * max(0, hours - 9 * 24)


def late_h(at_s: int) -> int:
    """Hours charged to the second grant."""
    return 2 * ((at_s - LATE_S) // HOUR_S)


def history() -> str:
    """Both grants as two replicas of the service told them, every ten minutes."""
    grants = (
        ("early", BEGAN_S, BEGAN_S + TERM_DAYS * DAY_S, GRANTED_H, used_h),
        ("late", LATE_S, LATE_S + TERM_DAYS * DAY_S, 500, late_h),
    )
    figures: dict[str, list[str]] = {}

    def tell(name: str, labels: str, value: float, at_s: int) -> None:
        figures.setdefault(name, []).append(f"{name}{{{labels}}} {value} {at_s}")

    for at_s in range(BEGAN_S, NOW_S + 1, STEP_S):
        for replica in ("a", "b"):
            tell("hub_quota_business_timestamp_seconds", f'instance="{replica}"', at_s, at_s)
            for grant, begins_s, ends_s, limit_h, used in grants:
                if at_s < begins_s:
                    continue
                labels = f'instance="{replica}",organization="alpha",program="ai",grant_id="{grant}"'
                tell("hub_quota_grant_limit_gpu_seconds", labels, limit_h * HOUR_S, at_s)
                tell("hub_quota_grant_used_gpu_seconds", labels, used(at_s) * HOUR_S, at_s)
                tell("hub_quota_grant_start_timestamp_seconds", labels, begins_s, at_s)
                tell("hub_quota_grant_end_timestamp_seconds", labels, ends_s, at_s)
    lines = [line for name, told in figures.items() for line in (f"# TYPE {name} gauge", *told)]
    return "\n".join([*lines, "# EOF"]) + "\n"


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with a_prometheus(tmp_path_factory.mktemp("history"), {}, history=history()) as running:
        yield running


def shown(prometheus: Prometheus, title: str, window_s: int, at_s: int = NOW_S) -> list[dict[str, float]]:
    """What the firm's panel shows of each grant, one dictionary per query."""
    values = {"organization": "alpha", "program": ".*", "window": str(window_s), "__rate_interval": "1h"}
    panel = next(panel for panel in panels(boards()["gpuhub-firm"]) if panel["title"] == title)
    return [
        {
            dict(labels)["grant_id"]: value
            for labels, value in prometheus.query(substituted(target["expr"], values), at_s).items()
        }
        for target in panel["targets"]
    ]


@pytest.mark.parametrize(
    ("window_days", "early_gpus"), [(1, 4.0), (3, (2 * 1 + 4) / 3), (7, (6 * 1 + 4) / 7), (30, (9 + 4) / 10)]
)
def test_a_grant_runs_out_as_its_pace_in_the_window_says(
    window_days: int, early_gpus: float, prometheus: Prometheus
) -> None:
    left, pace, used_up, ends, days_too_early, _ = shown(
        prometheus, "When each grant runs out", window_days * DAY_S
    )
    left_h = GRANTED_H - (9 * 24 + 4 * 24)
    assert left["early"] == left_h
    assert pace["early"] == pytest.approx(early_gpus, rel=0.02)
    # younger than some windows: its pace is that of its life
    assert pace["late"] == pytest.approx(2, rel=0.02)
    runs_out_s = NOW_S + left_h * HOUR_S / early_gpus
    assert used_up["early"] / 1000 == pytest.approx(runs_out_s, rel=0, abs=0.02 * (runs_out_s - NOW_S))
    end_s = BEGAN_S + TERM_DAYS * DAY_S
    assert ends["early"] == 1000 * end_s
    too_early = (end_s - runs_out_s) / DAY_S
    assert days_too_early["early"] == pytest.approx(too_early, rel=0, abs=0.02 * (runs_out_s - NOW_S) / DAY_S)


def test_lines_are_what_is_left_and_an_even_pace(prometheus: Prometheus) -> None:
    for day in (0, 5, 10):
        at_s = BEGAN_S + day * DAY_S
        left, even = shown(prometheus, "Burn-down", DAY_S, at_s)
        assert left["early"] == GRANTED_H - used_h(at_s)
        assert even["early"] == pytest.approx(GRANTED_H * (1 - day / TERM_DAYS))


def test_a_window_tells_what_was_charged_in_it(prometheus: Prometheus) -> None:
    (day,) = shown(prometheus, "GPU hours charged in the window", DAY_S)
    (days,) = shown(prometheus, "GPU hours charged in the window", 3 * DAY_S)
    assert day == {"early": pytest.approx(96, rel=0.02), "late": pytest.approx(48, rel=0.02)}
    assert days["early"] == pytest.approx(24 * 2 + 96, rel=0.02)


def test_a_grant_that_nobody_used_in_the_window_has_no_date(prometheus: Prometheus) -> None:
    # an hour's charge is booked at its end, so half an hour shows none
    _, pace, used_up, _, _, _ = shown(prometheus, "When each grant runs out", 1800, NOW_S - 1200)
    assert pace["early"] == 0
    assert used_up == {}
