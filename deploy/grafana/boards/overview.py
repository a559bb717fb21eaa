"""The hub at a glance: what is there, what is taken, who waits, what was spent."""

from deploy.grafana.boards.expressions import described, grants, oldest_wait, rate, utilization
from deploy.grafana.model import (
    BAD_FROM_ONE,
    GREEN,
    ORANGE,
    RED,
    YELLOW,
    Board,
    Look,
    Panel,
    Query,
    Section,
    Unit,
    once,
    or_zero,
)


def _gpus(state: str) -> str:
    each = once(f'hub_quota_gpus{{state="{state}"}}', "cluster", "gpu_class")
    return f"sum({each})"


def _jobs(state: str) -> str:
    each = once(f'hub_quota_jobs{{state="{state}"}}', "organization")
    return or_zero(f"sum({each})")


def _hours(what: str) -> str:
    return f"sum by (program) ({grants(f'{what}_gpu_seconds', '', 'program')}) / 3600"


_OPEN_JOBS = once('hub_quota_jobs{state!="ended"}', "organization", "state")
_WEEK = once("delta(hub_quota_grant_used_gpu_seconds[7d])", "program", "grant_id")
_ASKED = once("hub_sched_queue_gpus_requested", "organization", "status")
_BUSY = described(rate("hub_gpu_busy_seconds_total"), "gpu_class")
_OBSERVED = described(rate("hub_gpu_observed_seconds_total"), "gpu_class")

_NOW = (
    Panel(
        "GPUs in the hub",
        "All GPUs (and MIG devices) that the clusters report, whether free, taken or out of service.",
        Unit.NUMBER,
        (Query(_gpus("total")),),
        Look.STAT,
        width=3,
        height=4,
    ),
    Panel(
        "GPUs held by jobs",
        "GPUs that the hub's jobs occupy now, from the start's decision until the cluster says that they are gone.",
        Unit.NUMBER,
        (Query(_gpus("used")),),
        Look.STAT,
        width=3,
        height=4,
    ),
    Panel(
        "Share of GPUs held",
        "GPUs that jobs hold among those that the hub may use (those used by others are left out). It says nothing"
        " about how busy they are.",
        Unit.RATIO,
        (Query(f"{_gpus('used')} / ({_gpus('total')} - {_gpus('foreign')})"),),
        Look.STAT,
        width=3,
        height=4,
        most=1,
    ),
    Panel(
        "Measured utilisation",
        "How busy all GPUs were, held or not: busy time in the time that was measured. Time that nobody measured"
        " counts neither as busy nor as idle.",
        Unit.RATIO,
        (Query(utilization()),),
        Look.STAT,
        width=3,
        height=4,
        most=1,
    ),
    Panel(
        "Jobs running",
        "Jobs whose pods run now.",
        Unit.NUMBER,
        (Query(_jobs("running")),),
        Look.STAT,
        width=3,
        height=4,
    ),
    Panel(
        "Jobs waiting",
        "Jobs that are queued, whatever they wait for.",
        Unit.NUMBER,
        (Query(_jobs("queued")),),
        Look.STAT,
        width=3,
        height=4,
    ),
    Panel(
        "Longest wait now",
        "How long the job that waits longest has waited. A mean of waits sees only jobs that have started; this one"
        " sees who has not.",
        Unit.SECONDS,
        (Query(or_zero(oldest_wait())),),
        Look.STAT,
        width=3,
        height=4,
        steps=((3600, YELLOW), (14400, ORANGE), (86400, RED)),
    ),
    Panel(
        "Findings",
        "Things that should not be and were recorded: cluster, agents and ledger do not agree.",
        Unit.NUMBER,
        (Query(f"sum({once('hub_quota_findings_total', 'code')})"),),
        Look.STAT,
        width=3,
        height=4,
        steps=BAD_FROM_ONE,
    ),
)

_GPUS = (
    Panel(
        "GPUs by what they do",
        "GPUs of each class that are free, held by jobs, used by others (foreign) or out of service (quarantined), as"
        " the scheduler sees them. They add up to all GPUs.",
        Unit.NUMBER,
        (Query(once("hub_sched_gpus", "gpu_class", "state"), "{{gpu_class}} {{state}}"),),
        Look.STACK,
        width=12,
    ),
    Panel(
        "Utilisation by GPU class",
        "Busy time in measured time, of all GPUs of a class. A class that is held but not busy is a class whose jobs"
        " do not use what they hold.",
        Unit.RATIO,
        (Query(f"sum by (gpu_class) ({_BUSY}) / (sum by (gpu_class) ({_OBSERVED}) > 0)", "{{gpu_class}}"),),
        width=6,
        most=1,
    ),
    Panel(
        "Power of all GPUs",
        "What the GPUs draw together. Without the rest of the machines and without cooling.",
        Unit.WATTS,
        (Query("sum by (node) (hub_gpu_power_watts)", "{{node}}"),),
        Look.STACK,
        width=6,
    ),
)

_PROGRAMS = (
    Panel(
        "GPU hours by programme",
        "Hours of the reference GPU over all grants of a programme: granted, charged so far, set aside for running"
        " jobs, and what is left.",
        Unit.HOURS,
        (
            Query(_hours("limit"), "Granted"),
            Query(_hours("used"), "Charged"),
            Query(_hours("held"), "Held"),
            Query(f"{_hours('limit')} - {_hours('used')} - {_hours('held')}", "Free"),
        ),
        Look.TABLE,
        width=12,
        labels={"program": "Programme"},
    ),
    Panel(
        "Share of the grants charged",
        "Charged hours among granted ones, by programme. Compare with how much of the year is over.",
        Unit.RATIO,
        (Query(f"{_hours('used')} / ({_hours('limit')} > 0)", "{{program}}"),),
        Look.BARS,
        width=12,
        most=1,
    ),
    Panel(
        "GPU hours charged in the last week",
        "Hours of the reference GPU that each programme's grants were charged in the last seven days.",
        Unit.HOURS,
        (Query(f"sum by (program) ({_WEEK}) / 3600", "{{program}}"),),
        Look.BARS,
        width=12,
        height=6,
    ),
    Panel(
        "GPU hours that no grant pays",
        "Time that GPUs were occupied at the platform's expense: starting up, ending late, faults that are no firm's.",
        Unit.HOURS,
        (Query(f"{once('hub_quota_platform_gpu_seconds_total')} / 3600"),),
        Look.STAT,
        width=12,
        height=6,
    ),
)

_QUEUE = (
    Panel(
        "Jobs by state",
        "Jobs that have not ended, by state.",
        Unit.NUMBER,
        (Query(f"sum by (state) ({_OPEN_JOBS})", "{{state}}"),),
        Look.STACK,
    ),
    Panel(
        "What jobs wait for",
        "Waiting jobs by the reason that the scheduler gives. NO_FREE_GPU is a full hub; reasons that begin with GRANT"
        " or ORGANIZATION need a person.",
        Unit.NUMBER,
        (Query(once("hub_sched_unschedulable_jobs", "reason"), "{{reason}}"),),
        Look.STACK,
    ),
    Panel(
        "GPUs asked for by waiting jobs",
        "How many GPUs the queue would take if it could: *active* jobs lack only room, *blocked* ones need a person or"
        " a grant, *held* ones a moment in time.",
        Unit.NUMBER,
        (Query(f"sum by (status) ({_ASKED})", "{{status}}"),),
        Look.STACK,
    ),
)

_ENDED = (
    Panel(
        "Jobs that ended in the last week",
        "Jobs that ended in the last seven days, by how.",
        Unit.NUMBER,
        (Query(once("delta(hub_quota_ended_jobs[7d])", "end_reason"), "{{end_reason}}"),),
        Look.BARS,
        width=24,
    ),
)

_PROGRAMS_UP = (
    Panel(
        "Programs that answer",
        "Whether Prometheus could read each program of the hub.",
        Unit.NUMBER,
        (Query('up{job=~"quota|scheduler|agent"}', "{{job}} {{instance}}"),),
        Look.TIMELINE,
        width=24,
        texts={0: ("down", RED), 1: ("up", GREEN)},
    ),
)

OVERVIEW = Board(
    "gpuhub-overview",
    "GPU hub: overview",
    "What the hub has, what of it is in use, who waits and what was spent.",
    (
        Section("Now", _NOW),
        Section("GPUs", _GPUS),
        Section("Programmes", _PROGRAMS),
        Section("Queue", (*_QUEUE, *_ENDED)),
        Section("Programs of the hub", _PROGRAMS_UP),
    ),
    hours=24,
)
