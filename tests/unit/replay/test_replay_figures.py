"""The figures against a plain recomputation, and what the report makes of them."""

from __future__ import annotations

import csv
import io
import json
import math
import random
import statistics
from xml.etree import ElementTree

import numpy as np
import pytest

from scheduler.replay import plots, report
from scheduler.replay.figures import CLASSES, figures_of, jain, percentile, slowdown
from scheduler.replay.history import History, Stretch
from tests.unit.replay.replay_world import a_history, a_pool, a_record

HOUR_S = 3600


def test_waits_of_a_class_are_those_of_its_jobs() -> None:
    rng = random.Random(1)
    records = []
    for i in range(300):
        submit_s, gpus = rng.randrange(50_000), rng.choice((1, 2, 4, 5, 8, 9, 31, 32, 64))
        start_s = submit_s + rng.randrange(100_000)
        run_s = rng.randrange(20_000)
        records.append(a_record(f"j{i}", submit_s, start_s, start_s + run_s, gpus, run_s))
    figures = figures_of(a_history(records, end_s=400_000))
    for name, (least, most) in CLASSES.items():
        chosen = [r for r in records if least <= r.gpus <= most]
        hours = np.array([((r.first_start_s or 0) - r.submit_s) / HOUR_S for r in chosen])
        slow = [max(1.0, ((r.end_s or 0) - r.submit_s) / max(r.run_s, 600)) for r in chosen]
        waits = figures.waits[name]
        assert waits.jobs == len(chosen) > 10
        assert waits.mean_h == pytest.approx(hours.mean())
        assert waits.p95_h == pytest.approx(np.percentile(hours, 95))
        assert waits.p99_h == pytest.approx(np.percentile(hours, 99))
        assert waits.slowdown_mean == pytest.approx(statistics.mean(slow))
        assert waits.slowdown_p95 == pytest.approx(np.percentile(slow, 95))
    parts = list(CLASSES)[:5]
    assert sum(figures.waits[name].jobs for name in parts) == figures.waits["all"].jobs == 300


def test_delivery_is_useful_work_within_the_term_over_what_was_due() -> None:
    day = 86_400
    stretches = [
        Stretch("x", 2, 0, 1000, True),
        Stretch("x", 2, 1000, 1600, False),  # lost
        Stretch("x", 1, day - 100, day + 900, True),  # only 100 s within the term
        Stretch("y", 4, 0, 500, True),
    ]
    history = a_history(
        [a_record("a", organization="x"), a_record("b", organization="y", start_s=7200)],
        stretches,
        grants_gpu_s={"x": 4000, "y": 9000, "z": 0},
        demand_gpu_s={"x": 10_000, "y": 2500, "z": 0},
        settings=a_pool(gpus=4, days=1),
        end_s=2 * day,
    )
    figures = figures_of(history)
    assert figures.deliveries["x"].ratio == pytest.approx(2100 / 4000)
    assert figures.deliveries["y"].ratio == pytest.approx(2000 / 2500)
    assert figures.deliveries["z"].ratio is None
    assert (figures.worst_ratio, figures.best_ratio) == (pytest.approx(0.525), pytest.approx(0.8))
    assert figures.jain == pytest.approx((0.525 + 0.8) ** 2 / (2 * (0.525**2 + 0.8**2)))
    assert figures.worst_wait_h == 2.0
    assert figures.utilization == pytest.approx((2100 + 2000) / (4 * day))
    assert figures.occupied == pytest.approx((2100 + 2000 + 1200) / (4 * day))
    assert figures.utilization_by_day == (
        pytest.approx((2100 + 2000) / (4 * day)),
        pytest.approx(900 / (4 * day)),
    )


def test_a_part_of_a_day_is_a_share_of_that_part() -> None:
    figures = figures_of(a_history(stretches=[Stretch("o", 4, 0, 129_600, True)], end_s=129_600))
    assert figures.utilization_by_day == (1.0, 1.0)


def test_what_never_started_waits_to_the_end_and_what_never_came_does_not() -> None:
    records = [
        a_record("a", 0, 0, 100),
        a_record("b", HOUR_S, None, None, run_s=60),
        a_record("cut", 0, 0, None),
        a_record("late", 9 * HOUR_S, None, None),
    ]
    figures = figures_of(a_history(records, end_s=3 * HOUR_S, submitted=3))
    assert figures.unended == ("cut",)
    assert figures.never_started == ("b",)
    assert (figures.jobs, figures.ended, figures.not_submitted) == (3, 1, 1)
    assert figures.waits["all"].mean_h == pytest.approx(2 / 3)
    assert slowdown(records[1], 3 * HOUR_S) == 2 * HOUR_S / 600


def test_makespan_and_completion_time() -> None:
    records = [a_record("a", 3600, 3600, 7200), a_record("b", 3600, 7200, 18_000)]
    figures = figures_of(a_history(records))
    assert figures.makespan_h == 4.0
    assert figures.mean_jct_h == (1 + 4) / 2


def test_jain_and_percentiles_at_their_ends() -> None:
    assert jain([1, 1, 1]) == 1.0
    assert jain([1, 0, 0, 0]) == 0.25
    assert jain([]) == 1.0
    assert percentile([], 95) == 0.0
    assert percentile([3.0], 99) == 3.0
    assert percentile([1, 2, 3, 4], 50) == 2.5


def an_uneven_history() -> History:
    records = [a_record(f"j{i:02d}", i * 100, None, None) for i in range(12)]
    return a_history(
        [*records, a_record("big & <tall>", 5000, 6000, 9000, gpus=64)],
        [Stretch("o", 4, 0, 500, True)],
        grants_gpu_s={"o": 1000, "nobody": 0},
        demand_gpu_s={"o": 1000, "nobody": 0},
    )


def test_the_table_has_a_column_per_policy_and_names_who_never_started() -> None:
    figures = figures_of(an_uneven_history())
    shown = report.text([figures, figures], a_pool(), "t.csv")
    assert "t.csv: 13 jobs on 4 GPUs, counted only" in shown
    assert "12 jobs never started and count as waiting to the end" in shown
    assert "j00, j01" in shown
    assert "and 2 more (--json has them all)" in shown
    rows = [line for line in shown.splitlines() if line.startswith("  >=32 GPUs")]
    assert rows[0].split() == [">=32", "GPUs", "1", "1"]


def test_json_and_csv_say_the_same() -> None:
    figures = figures_of(an_uneven_history())
    document = json.loads(report.as_json([figures], a_pool(), "t.csv"))
    assert document["settings"]["gpus"] == 4
    assert len(document["policies"][0]["never_started"]) == 12
    rows = list(csv.DictReader(io.StringIO(report.as_csv([figures]))))
    found = {(row["section"], row["figure"]): float(row["value"]) for row in rows}
    assert found["The whole", "utilization of the term"] == document["policies"][0]["utilization"]
    assert found["Wait, mean h", "all GPUs"] == document["policies"][0]["waits"]["all"]["mean_h"]
    assert math.isnan(found["Delivered / min(grant, demand)", "nobody"])


def test_plots_are_well_formed_and_show_every_policy() -> None:
    figures = figures_of(an_uneven_history())
    found = plots.plots([figures, figures])
    assert set(found) == {"wait.svg", "delivered.svg", "utilization.svg"}
    for picture in found.values():
        root = ElementTree.fromstring(picture)
        assert sum(text.text == "p" for text in root.iter("{http://www.w3.org/2000/svg}text")) >= 1
    bars = ElementTree.fromstring(found["wait.svg"]).findall(".//{http://www.w3.org/2000/svg}rect/*")
    assert len(bars) == len(CLASSES)


def test_no_figures_make_no_trouble() -> None:
    figures = figures_of(a_history(end_s=0))
    assert "0 jobs" in report.text([figures], a_pool(), "t.csv")
    assert all(ElementTree.fromstring(picture) is not None for picture in plots.plots([figures]).values())


@pytest.mark.parametrize(
    ("value", "top"), [(0, 1), (0.9, 1), (1, 1), (1.1, 2), (2.2, 2.5), (33, 50), (7, 10)]
)
def test_axes_end_on_round_numbers(value: float, top: float) -> None:
    assert plots.nice(value) == pytest.approx(top)
