"""What each panel must show under the script of `dashboard_world.py`: a list of its queries' series, per dashboard.

Keys are what a reader sees: the legend of a line, the cells of a table's row, nothing beside a single number. A panel
that is not listed here fails the test. (It holds no test itself.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import pytest
from dashboard_lived import Between, Gpu, Lived, Loosely, Series, within_buckets
from dashboard_trouble import RESET, UNKNOWN_GPUS
from dashboard_world import (
    BOOKED_GPUS,
    FIRST,
    FOREIGN_GPUS,
    GRANTS,
    JOBS,
    LAB,
    LAB_CLASS,
    LAB_GPUS,
    PROGRAMS,
    RUNNING,
    SPEED,
    THEN,
    XID_LOST,
)

RATE_S = 12
"""What `$__rate_interval` stands for."""
VALUES = {
    "__rate_interval": f"{RATE_S}s",
    "window": "86400",
    "organization": "alpha",
    "program": ".*",
    "node": ".*",
    "gpu": ".*",
    "idle_below": "0.05",
}
"""What a reader has chosen."""

Expected = Mapping[str, Callable[[Lived], list[Series]]]

LAB_LOAD = (0.5, 1.0)
"""Of the two GPUs that can be read."""
ALL_GPUS, H100, A100 = 20, 16, 4
HELD_H100 = JOBS["training"].gpus + JOBS["idle"].gpus
HELD_A100 = JOBS["small"].gpus
HELD = HELD_H100 + HELD_A100
BUSY = JOBS["training"].gpus * 0.8 + JOBS["small"].gpus * 0.5
"""GPUs' worth of work on the cluster."""


def about(value: float, part: float = 0.05, least: float = 0.0) -> object:
    """A value that Prometheus extrapolates, or that steps at the samples."""
    return pytest.approx(value, rel=part, abs=least)


def exactly(value: float) -> object:
    """A value but for floating point."""
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def one(value: object) -> list[Series]:
    """A panel with a single number."""
    return [{"": value}]


def counted(values: Iterable[tuple[str, object]]) -> list[Series]:
    """A panel with one query."""
    return [dict(values)]


def all_gpus(lived: Lived, of: Callable[[Gpu], object], lab: tuple[object, ...]) -> list[Series]:
    """A series for each GPU, the lab's in the order of LAB_GPUS; None for none."""
    simulated = {f"{gpu.node} {gpu.uuid}": of(gpu) for gpu in lived.gpus}
    of_lab = {f"{LAB} {uuid}": value for uuid, value in zip(LAB_GPUS, lab, strict=False)}
    return [{key: value for key, value in (simulated | of_lab).items() if value is not None}]


def lab_only(*values: object) -> list[Series]:
    """A series for the lab's GPUs only; None for none."""
    return [
        {f"{LAB} {uuid}": value for uuid, value in zip(LAB_GPUS, values, strict=False) if value is not None}
    ]


def by_reason(lived: Lived) -> list[Series]:
    """Waiting jobs by reason."""
    return [Loosely({code: count for code, count in lived.reasons().items()})]


def sched_gpus(_: Lived) -> list[Series]:
    """GPUs by what they do, as the script leaves them."""
    return [
        Loosely(
            {
                "h100 allocated": HELD_H100,
                "h100 foreign": FOREIGN_GPUS,
                "h100 free": H100 - HELD_H100 - FOREIGN_GPUS,
                "a100 allocated": HELD_A100,
                "a100 quarantined": A100 - HELD_A100,
            }
        )
    ]


def ended(lived: Lived) -> dict[str, object]:
    """Jobs that have ended in the script, by how; it lets one end in each of these ways."""
    found = lived.ended()
    assert found.keys() == {"succeeded", "failed", "cancelled", "time_limit", "idle_reclaimed"}
    return {reason: about(count) for reason, count in found.items()}


def waits(lived: Lived) -> list[Series]:
    """Quantiles by class of the jobs that started."""
    names = {
        gpu_class: [name for name in (*FIRST, *THEN) if JOBS[name].gpu_class == gpu_class]
        for gpu_class in ("h100", "a100")
    }
    bounds = {gpu_class: within_buckets(lived.waited_s(of_class)) for gpu_class, of_class in names.items()}
    return [{f"{name} {q}": bound for name, bound in bounds.items()} for q in ("p50", "p95")]


def mean_wait(lived: Lived, organization: str) -> object:
    """Mean wait of the organization's jobs that started; the scheduler counts until quota's answer has arrived."""
    waited = lived.waited_s(name for name in (*FIRST, *THEN) if JOBS[name].organization == organization)
    mean = sum(waited) / len(waited)
    return Between(mean, mean + 30)


def lags(lived: Lived, keys: Mapping[tuple[str, str], str]) -> Series:
    """How far grants are behind their pace, as the API says; the scheduler tells it every few seconds."""
    found = {}
    for pair, key in keys.items():
        pace = lived.grants[pair].pace
        assert pace is not None
        found[key] = pytest.approx(pace.lag_ms / 1000, abs=120)
    return found


def names_of(lived: Lived, organization: str = "") -> dict[tuple[str, str], str]:
    """`programme grant` by organization and programme."""
    return {
        (held_by, within): f"{within} {grant.id}"
        for (held_by, within), grant in lived.grants.items()
        if organization in ("", held_by)
    }


def power(lived: Lived) -> list[Series]:
    """Watts by node."""
    nodes = {gpu.node: 0.0 for gpu in lived.gpus}
    for gpu in lived.gpus:
        nodes[gpu.node] += gpu.power_watts
    return [{name: about(watts, 0.01) for name, watts in nodes.items()} | {LAB: exactly(2 * 350.5)}]


def programs_hours(lived: Lived) -> list[Series]:
    """Granted, charged, held, free by programme."""
    figures = (lived.granted, lived.used, lived.held)
    table = [{program: exactly(figure("", program)) for program in PROGRAMS} for figure in figures]
    free = {
        program: exactly(lived.granted("", program) - lived.used("", program) - lived.held("", program))
        for program in PROGRAMS
    }
    return [*table, free]


def programs_up(lived: Lived) -> list[Series]:
    """Every address that is read."""
    world = lived.world
    names = {"quota": "quota", "scheduler": "scheduler", "agent": "agent"}
    found: dict[str, object] = {f"{job} {world.instance(name)}": 1 for job, name in names.items()}
    found["quota localhost:" + world.instance("quota").rpartition(":")[2]] = 1
    found[f"agent {world.lab.instance}"] = 1
    return [found]


TOTAL_UTILIZATION = (SPEED * BUSY + sum(LAB_LOAD)) / (SPEED * ALL_GPUS + len(LAB_LOAD))

OVERVIEW: Expected = {
    "GPUs in the hub": lambda _: one(ALL_GPUS),
    "GPUs held by jobs": lambda _: one(HELD),
    "Share of GPUs held": lambda _: one(exactly(HELD / (ALL_GPUS - FOREIGN_GPUS))),
    "Measured utilisation": lambda _: one(about(TOTAL_UTILIZATION, 0.1)),
    "Jobs running": lambda _: one(len(RUNNING)),
    "Jobs waiting": lambda _: one(2),
    "Longest wait now": lambda lived: one(exactly(lived.oldest_wait_s("too-big", "too-dear"))),
    "Findings": lambda lived: one(sum(lived.findings.values())),
    "GPUs by what they do": sched_gpus,
    "Utilisation by GPU class": lambda _: [
        {
            "h100": about(JOBS["training"].gpus * 0.8 / H100),
            "a100": about(JOBS["small"].gpus * 0.5 / A100),
            LAB_CLASS: about(sum(LAB_LOAD) / 2),
        }
    ],
    "Power of all GPUs": power,
    "GPU hours by programme": programs_hours,
    "Share of the grants charged": lambda lived: counted(
        (name, exactly(lived.used("", name) / lived.granted("", name))) for name in PROGRAMS
    ),
    "GPU hours charged in the last week": lambda lived: counted(
        (name, about(lived.used("", name))) for name in PROGRAMS
    ),
    "GPU hours that no grant pays": lambda lived: one(exactly(lived.platform_hours())),
    "Jobs by state": lambda _: [Loosely({"running": len(RUNNING), "queued": 2})],
    "What jobs wait for": by_reason,
    "Jobs that ended in the last week": lambda lived: [Loosely(ended(lived))],
    "GPUs asked for by waiting jobs": lambda _: [Loosely({"active": 16, "blocked": 8})],
    "Programs that answer": programs_up,
}


def burn_down(lived: Lived) -> list[Series]:
    """What is left, and what an even pace would leave."""
    left, even = {}, {}
    for (organization, program), name in names_of(lived, "alpha").items():
        granted = lived.granted(organization, program)
        left[f"{name} left"] = exactly(granted - lived.used(organization, program))
        even[f"{name} even pace"] = exactly(
            granted * (1 - lived.elapsed(lived.grants[organization, program]))
        )
    return [left, even]


def runs_out(lived: Lived) -> list[Series]:
    """The table of projected ends: only the grant that was charged has one."""
    names = names_of(lived, "alpha")
    left = {pair: lived.granted(*pair) - lived.used(*pair) for pair in names}
    pace = {pair: lived.pace(*pair) for pair in names}
    ends = {pair: lived.grants[pair].ends_at / 1000 for pair in names}
    charged = ("alpha", "ai-seoul")
    assert [pair for pair in names if pace[pair] > 0] == [charged]
    seconds = left[charged] * 3600 / pace[charged]
    used_up = lived.business_s + seconds
    return [
        {names[pair]: exactly(value) for pair, value in left.items()},
        {names[pair]: about(value) for pair, value in pace.items()},
        {names[charged]: pytest.approx(1000 * used_up, rel=0, abs=1000 * 0.06 * seconds)},
        {names[pair]: exactly(1000 * value) for pair, value in ends.items()},
        {names[charged]: pytest.approx((ends[charged] - used_up) / 86400, rel=0, abs=0.06 * seconds / 86400)},
        lags(lived, names),
    ]


def held_by(lived: Lived) -> list[Series]:
    """The firm's attempts with their GPUs."""
    job = lived.jobs["training"]
    grant = lived.grants["alpha", "ai-seoul"].id
    return [{f"{job.id} 1 ai-seoul {grant} h100": JOBS["training"].gpus}]


def charged_by(lived: Lived, value: Callable[[float], object]) -> list[Series]:
    """GPU hours charged by grant of the firm."""
    return [{name: value(lived.used(*pair)) for pair, name in names_of(lived, "alpha").items()}]


FIRM: Expected = {
    "Granted": lambda lived: one(exactly(lived.granted("alpha"))),
    "Charged": lambda lived: one(exactly(lived.stated("alpha"))),
    "Held for running jobs": lambda lived: one(exactly(lived.held("alpha"))),
    "Free": lambda lived: one(exactly(lived.granted("alpha") - lived.used("alpha") - lived.held("alpha"))),
    "Share charged": lambda lived: one(exactly(lived.used("alpha") / lived.granted("alpha"))),
    "Delivered against due": lambda lived: one(exactly(lived.used("alpha") / lived.due("alpha"))),
    "Burn-down": burn_down,
    "When each grant runs out": runs_out,
    "GPU hours charged in the window": lambda lived: charged_by(lived, about),
    "GPU hours charged so far": lambda lived: charged_by(lived, exactly),
    "Longest wait of the firm": lambda lived: one(exactly(lived.oldest_wait_s("too-dear"))),
    "The firm's jobs": lambda _: [Loosely({"running": 1, "queued": 1})],
    "GPUs that the firm waits for": lambda _: [Loosely({"blocked": 8})],
    "Mean wait of the firm's jobs": lambda lived: one(mean_wait(lived, "alpha")),
    "Waits in the whole hub": waits,
    "GPUs that the firm holds": lambda _: [{"h100": JOBS["training"].gpus}],
    "Utilisation of the firm": lambda _: [{"utilisation": about(0.8)}],
    "Utilisation by job": lambda lived: [{f"{lived.jobs['training'].id} 1": about(0.8)}],
    "Jobs that hold GPUs": held_by,
}

FIRMS = tuple(sorted({organization for organization, _ in GRANTS}))


def delivered(lived: Lived) -> dict[str, float]:
    """Charged against due by firm."""
    return {name: lived.used(name) / lived.due(name) for name in FIRMS}


def jain(lived: Lived) -> float:
    """How alike those are."""
    ratios = list(delivered(lived).values())
    return sum(ratios) ** 2 / (len(ratios) * sum(ratio * ratio for ratio in ratios))


def shares(_: Lived) -> list[Series]:
    """Used now, weighed by rates, and granted per day of the terms."""
    kept = {"alpha": JOBS["training"].gpus * 1.0, "beta": JOBS["idle"].gpus * 1.0 + JOBS["small"].gpus * 0.4}
    per_day = dict.fromkeys(FIRMS, 0.0)
    for (organization, _program), (gpu_hours, term_hours) in GRANTS.items():
        per_day[organization] += gpu_hours * 24 / term_hours
    used = {f"{name} used": exactly(value / sum(kept.values())) for name, value in kept.items()}
    fair = {f"{name} fair share": exactly(value / sum(per_day.values())) for name, value in per_day.items()}
    return [Loosely(used), fair]


def idle_gpus(lived: Lived) -> list[Series]:
    """The GPUs of the job that does nothing."""
    job = lived.jobs["idle"].id
    return [{f"beta {job} 1 {gpu.node} {gpu.uuid}": 0 for gpu in lived.gpus_of("idle")}]


def hardware_errors(lived: Lived) -> list[Series]:
    """When the last one came, and what the driver wants done; the lab's lost GPU says nothing any more."""
    broken = [f"{key}" for key, kind in lived.world.broken.xids().items() if kind == "hardware"]
    lately = Between(1000 * (lived.at_s - 300), 1000 * lived.at_s)
    return [dict.fromkeys((f"{LAB} {LAB_GPUS[2]} {XID_LOST}", *broken), lately), dict.fromkeys(broken, RESET)]


OPERATORS: Expected = {
    "Waiting jobs by firm": lambda _: [{"gamma active": 1, "alpha blocked": 1}],
    "GPUs asked for by firm": lambda _: [{"gamma": 16, "alpha": 8}],
    "Why jobs wait": by_reason,
    "Longest wait by firm": lambda lived: [
        {"gamma": exactly(lived.oldest_wait_s("too-big")), "alpha": exactly(lived.oldest_wait_s("too-dear"))}
    ],
    "Booked GPUs": lambda _: [Loosely({"h100 kept": BOOKED_GPUS})],
    "Delivered against due by firm": lambda lived: [
        {name: exactly(value) for name, value in delivered(lived).items()}
    ],
    "Jain's index": lambda lived: one(exactly(jain(lived))),
    "GPU hours charged in the window by firm": lambda lived: [
        {name: about(lived.used(name)) for name in FIRMS}
    ],
    "GPUs held by firm": lambda _: [
        Loosely({"alpha": JOBS["training"].gpus, "beta": JOBS["idle"].gpus + HELD_A100})
    ],
    "Share used against fair share": shares,
    "Behind the pace": lambda lived: [
        lags(lived, {pair: f"{pair[0]} {name}" for pair, name in names_of(lived).items()})
    ],
    "Mean wait by firm": lambda lived: [
        {name: mean_wait(lived, name) for name in ("alpha", "beta", "delta")}
    ],
    "GPUs held and idle": lambda _: one(JOBS["idle"].gpus),
    "Held and idle now": idle_gpus,
    "GPUs held but not busy": lambda _: [{"GPUs lost": about(HELD - BUSY, 0.15)}],
    "Idle by the rules": lambda _: [Loosely({"warned": JOBS["idle"].gpus})],
    "Idle warnings in the window": lambda _: [{"warning 1": about(2), "warning 2": about(1)}],
    "Stopped for idleness": lambda _: one(about(1)),
    "GPU hours in vain": lambda lived: [Loosely({"failed": about(lived.in_vain_hours())})],
    "GPUs withdrawn by their node": lambda _: one(1),
    "GPUs out of service": lambda _: [Loosely({"a100": A100 - HELD_A100})],
    "Nodes closed to new jobs": lambda _: [{"sim sim-2 a100": HELD_A100}],
    "Nodes by state": lambda _: [Loosely({"sim open": 2, "sim cordoned": 1})],
    "GPUs that agents cannot read": lambda _: [{f"{LAB} {LAB_GPUS[2]}": 0}],
    "GPUs with hardware errors": hardware_errors,
    "GPUs by health": lambda _: [{"healthy": ALL_GPUS - 3, "degraded": 1, "unhealthy": 2, "lost": 0}],
    "GPUs in quarantine": lambda _: [{"by agent": 1, "by operator": 1}],
    "Circuit breaker": lambda _: [{"most": ALL_GPUS // 10}, {"taken": A100}],
    "Quarantine withheld": lambda _: one(1),
    "GPUs in the inventory": lambda _: [
        {"expected": ALL_GPUS - UNKNOWN_GPUS, "unknown": UNKNOWN_GPUS, "vanished": 1, "gone": 1}
    ],
}
