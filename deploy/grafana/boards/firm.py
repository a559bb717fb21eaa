"""One firm: what its grants have left and until when, what waits, how it uses what it holds, what it was charged."""

from deploy.grafana.boards.expressions import (
    NOW,
    charged_hours,
    elapsed,
    grants,
    of_firm,
    oldest_wait,
    pace,
    rate,
    waited,
)
from deploy.grafana.model import (
    ORANGE,
    RED,
    WINDOW,
    YELLOW,
    Board,
    Look,
    Panel,
    Query,
    Section,
    Unit,
    Variable,
    once,
    or_zero,
)

_ATTEMPT = ("job_id", "attempt", "program", "grant_id", "gpu_class")
_GRANTS = '{organization="$organization",program=~"$program"}'
_FIRM = '{organization="$organization"}'

_LIMIT = grants("limit_gpu_seconds", _GRANTS, "program")
_USED = grants("used_gpu_seconds", _GRANTS, "program")
_HELD = grants("held_gpu_seconds", _GRANTS, "program")
_END = grants("end_timestamp_seconds", _GRANTS, "program")
_LEFT = f"({_LIMIT} - {_USED})"
_PACE = pace(_GRANTS, "program")
_LAG = once(f"hub_quota_grant_pace_lag_seconds{_GRANTS}", "program", "grant_id")
_BUSY = of_firm(rate("hub_gpu_workload_busy_seconds_total"), _GRANTS)
_OBSERVED = of_firm(rate("hub_gpu_workload_observed_seconds_total"), _GRANTS)
_RUNS_OUT = f"({NOW} + {_LEFT} / ({_PACE} > 0))"


def _stat(
    title: str, description: str, unit: Unit, expr: str, steps: tuple[tuple[float, str], ...] = ()
) -> Panel:
    return Panel(title, description, unit, (Query(expr),), Look.STAT, width=4, height=4, steps=steps)


_BALANCE = (
    _stat(
        "Granted",
        "GPU hours of the reference GPU over the firm's grants. Other classes count at their rates.",
        Unit.HOURS,
        f"sum({_LIMIT}) / 3600",
    ),
    _stat("Charged", "GPU hours that the grants were charged so far.", Unit.HOURS, f"sum({_USED}) / 3600"),
    _stat(
        "Held for running jobs",
        "GPU hours set aside for jobs that run: what each may use until its time limit. The rest comes back.",
        Unit.HOURS,
        f"sum({_HELD}) / 3600",
    ),
    _stat(
        "Free",
        "Granted less charged less held: what new jobs can start on.",
        Unit.HOURS,
        f"(sum({_LIMIT}) - sum({_USED}) - sum({_HELD})) / 3600",
    ),
    _stat(
        "Share charged",
        "Charged hours among granted ones.",
        Unit.RATIO,
        f"sum({_USED}) / (sum({_LIMIT}) > 0)",
        ((0.8, YELLOW), (0.95, RED)),
    ),
    _stat(
        "Delivered against due",
        "Charged hours divided by what was due by now had each grant been used evenly over its term. 1 is on pace, less"
        " means that hours may expire unused, more that they will not last.",
        Unit.NUMBER,
        f"sum({_USED}) / (sum({_LIMIT} * {elapsed(_GRANTS, 'program')}) > 0)",
        ((1.5, YELLOW), (2, ORANGE)),
    ),
    Panel(
        "Burn-down",
        "GPU hours that each grant has left, and what it would have left if it were used evenly until its end. A line"
        " above its even pace will leave hours unused; below, it runs out early.",
        Unit.HOURS,
        (
            Query(f"{_LEFT} / 3600", "{{program}} {{grant_id}} left"),
            Query(
                f"{_LIMIT} * (1 - {elapsed(_GRANTS, 'program')}) / 3600", "{{program}} {{grant_id}} even pace"
            ),
        ),
        width=14,
        height=9,
    ),
    Panel(
        "When each grant runs out",
        "If the firm goes on as in the window, its grant is used up on the projected date. Charges are booked at full"
        " hours and at the end of a job, so look at a window of a day or more. A grant without charges in the window"
        " has no date.",
        Unit.DATE,
        (
            Query(f"{_LEFT} / 3600", "Hours left", Unit.HOURS),
            Query(f"{_PACE}", "GPUs on the mean", Unit.NUMBER),
            Query(f"1000 * {_RUNS_OUT}", "Used up on"),
            Query(f"1000 * {_END}", "Grant ends on"),
            Query(f"({_END} - {_RUNS_OUT}) / 86400", "Days too early", Unit.NUMBER),
            Query(_LAG, "Behind its pace", Unit.SECONDS),
        ),
        Look.TABLE,
        width=10,
        height=9,
        labels={"program": "Programme", "grant_id": "Grant"},
    ),
)

_CHARGES = (
    Panel(
        "GPU hours charged in the window",
        "What each grant was charged in the window, refunds taken off. The statement of the grant has every line.",
        Unit.HOURS,
        (Query(charged_hours(_GRANTS, "program"), "{{program}} {{grant_id}}"),),
        Look.BARS,
        width=12,
    ),
    Panel(
        "GPU hours charged so far",
        "The grants' meters. They rise at full hours and when jobs end; they fall when time is given back.",
        Unit.HOURS,
        (Query(f"{_USED} / 3600", "{{program}} {{grant_id}}"),),
        width=12,
    ),
)

_USE = (
    Panel(
        "GPUs that the firm holds",
        "GPUs that the firm's jobs hold now, by class. Compare with how busy they are.",
        Unit.NUMBER,
        (
            Query(
                f"sum by (gpu_class) ({once(f'hub_quota_attempt_gpus{_GRANTS}', *_ATTEMPT)})", "{{gpu_class}}"
            ),
        ),
        Look.STACK,
    ),
    Panel(
        "Utilisation of the firm",
        "Busy time in measured time of the GPUs that the firm's jobs hold. The firm pays for the time it holds them,"
        " busy or not.",
        Unit.RATIO,
        (Query(f"sum({_BUSY}) / (sum({_OBSERVED}) > 0)", "utilisation"),),
        most=1,
    ),
    Panel(
        "Utilisation by job",
        "The same for each job that runs.",
        Unit.RATIO,
        (
            Query(
                f"sum by (job_id, attempt) ({_BUSY}) / (sum by (job_id, attempt) ({_OBSERVED}) > 0)",
                "{{job_id}} {{attempt}}",
            ),
        ),
        most=1,
    ),
    Panel(
        "Jobs that hold GPUs",
        "The firm's jobs that hold GPUs now, and how many.",
        Unit.NUMBER,
        (Query(once(f"hub_quota_attempt_gpus{_GRANTS}", *_ATTEMPT), "GPUs"),),
        Look.TABLE,
        width=24,
        labels={
            "job_id": "Job",
            "attempt": "Attempt",
            "program": "Programme",
            "grant_id": "Grant",
            "gpu_class": "Class",
        },
    ),
)

_WAITS = (
    _stat(
        "Longest wait of the firm",
        "How long the firm's job that waits longest has waited.",
        Unit.SECONDS,
        or_zero(oldest_wait(_FIRM)),
        ((3600, YELLOW), (14400, ORANGE), (86400, RED)),
    ),
    Panel(
        "The firm's jobs",
        "The firm's jobs that have not ended, by state.",
        Unit.NUMBER,
        (
            Query(
                once('hub_quota_jobs{organization="$organization",state!="ended"}', "state"),
                "{{state}}",
            ),
        ),
        Look.STACK,
        width=10,
    ),
    Panel(
        "GPUs that the firm waits for",
        "GPUs that the firm's waiting jobs ask for: *active* ones lack only room, *blocked* ones need a person or a"
        " grant, *held* ones a moment in time.",
        Unit.NUMBER,
        (Query(once(f"hub_sched_queue_gpus_requested{_FIRM}", "status"), "{{status}}"),),
        Look.STACK,
        width=10,
    ),
    Panel(
        "Mean wait of the firm's jobs",
        "How long the firm's jobs that started in the window had waited, on the mean.",
        Unit.SECONDS,
        (
            Query(
                f"sum(increase(hub_sched_organization_wait_seconds_total{_FIRM}[${{window}}s]))"
                f" / (sum(increase(hub_sched_organization_starts_total{_FIRM}[${{window}}s])) > 0)"
            ),
        ),
        Look.STAT,
        width=6,
    ),
    Panel(
        "Waits in the whole hub",
        "How long jobs of each class waited that started in the window, of all firms: half of them no longer than p50,"
        " 95 of 100 no longer than p95. To compare with the firm's own jobs.",
        Unit.SECONDS,
        (
            Query(waited("0.5"), "{{gpu_class}} p50"),
            Query(waited("0.95"), "{{gpu_class}} p95"),
        ),
        width=18,
    ),
)

FIRM = Board(
    "gpuhub-firm",
    "GPU hub: firm",
    "The grants of one firm, their projected end, its waits, its utilisation and its charges.",
    (
        Section("Grants", _BALANCE),
        Section("Charges", _CHARGES),
        Section("Waits", _WAITS),
        Section("Utilisation", _USE),
    ),
    variables=(
        Variable(
            "organization",
            "Firm",
            "The firm that is looked at.",
            "label_values(hub_quota_grant_limit_gpu_seconds, organization)",
        ),
        Variable(
            "program",
            "Programme",
            "Grants of these programmes.",
            'label_values(hub_quota_grant_limit_gpu_seconds{organization="$organization"}, program)',
            several=True,
        ),
        WINDOW,
    ),
    tags=("firm",),
    hours=24 * 7,
)
