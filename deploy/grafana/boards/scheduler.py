"""Inside the scheduler: who leads, how fast it decides, what it decided, how clusters and quota answer."""

from deploy.grafana.boards.expressions import NOW, rate, waited
from deploy.grafana.model import (
    BAD_FROM_ONE,
    ORANGE,
    RED,
    WINDOW,
    YELLOW,
    Board,
    Look,
    Panel,
    Query,
    Section,
    Steps,
    Unit,
)


def _quantile(quantile: str, histogram: str) -> str:
    return f"histogram_quantile({quantile}, sum by (le) ({rate(histogram + '_bucket')}))"


def _stat(title: str, description: str, unit: Unit, expr: str, steps: Steps = ()) -> Panel:
    return Panel(title, description, unit, (Query(expr),), Look.STAT, width=4, height=4, steps=steps)


_STATE = (
    _stat(
        "Leaders",
        "Schedulers that hold the lease. One is right; none means that nothing starts, two never last longer than a"
        " lease, and the database refuses the older one.",
        Unit.NUMBER,
        "sum(hub_sched_leader)",
        ((2, RED),),
    ),
    _stat(
        "Cycles per second",
        "How often the leader looks at the hub.",
        Unit.PER_SECOND,
        f"sum({rate('hub_sched_cycle_duration_seconds_count')})",
    ),
    _stat(
        "Mean cycle",
        "How long a cycle takes on the mean.",
        Unit.SECONDS,
        f"sum({rate('hub_sched_cycle_duration_seconds_sum')})"
        f" / (sum({rate('hub_sched_cycle_duration_seconds_count')}) > 0)",
        ((1, YELLOW), (5, RED)),
    ),
    _stat(
        "Age of the forecast",
        "How old the moment is that the last published forecast of starts was made for.",
        Unit.SECONDS,
        f"{NOW} - max(hub_sched_forecast_timestamp_seconds)",
        ((600, YELLOW), (1800, ORANGE)),
    ),
    _stat(
        "Forecasts in vain",
        "Forecasts in the window that came to nothing.",
        Unit.NUMBER,
        "sum(increase(hub_sched_forecast_failures_total[${window}s]))",
        BAD_FROM_ONE,
    ),
    _stat(
        "Calls without an answer",
        "Calls to the quota service in the window that it did not answer. Each is asked again.",
        Unit.NUMBER,
        "sum(increase(hub_sched_quota_errors_total[${window}s]))",
        BAD_FROM_ONE,
    ),
)

_FEED = (
    Panel(
        "Changes not yet read",
        "Changes in the quota service's feed that the leader has not read yet. A few are normal; a growing number means"
        " that it decides on an old picture.",
        Unit.NUMBER,
        (Query("max(hub_quota_feed_head) - max(hub_sched_feed_seq)", "changes"),),
        width=12,
        steps=((1000, YELLOW), (10000, RED)),
    ),
    Panel(
        "Lease",
        "How long the scheduler's lease still holds. Below 0 nobody leads.",
        Unit.SECONDS,
        (Query("max(hub_quota_scheduler_lease_expires_timestamp_seconds) - time()", "left"),),
        width=12,
    ),
)

_CYCLE = (
    Panel(
        "Duration of a cycle",
        "Half of the cycles take no longer than p50, 99 of 100 no longer than p99.",
        Unit.SECONDS,
        (
            Query(_quantile("0.5", "hub_sched_cycle_duration_seconds"), "p50"),
            Query(_quantile("0.95", "hub_sched_cycle_duration_seconds"), "p95"),
            Query(_quantile("0.99", "hub_sched_cycle_duration_seconds"), "p99"),
        ),
        width=12,
    ),
    Panel(
        "Duration of a forecast",
        "From the question when jobs will start to the publication of the answer.",
        Unit.SECONDS,
        (
            Query(_quantile("0.5", "hub_sched_forecast_duration_seconds"), "p50"),
            Query(_quantile("0.95", "hub_sched_forecast_duration_seconds"), "p95"),
        ),
        width=12,
    ),
)

_DECISIONS = (
    Panel(
        "Decisions",
        "What the quota service answered to decisions, in the window. *refused* ones were right when they were made and"
        " no longer when they arrived; many of them mean that the scheduler's picture is old.",
        Unit.NUMBER,
        (
            Query(
                "sum by (outcome) (increase(hub_sched_decisions_total[${window}s]))",
                "{{outcome}}",
            ),
        ),
        Look.BARS,
    ),
    Panel(
        "Stops",
        "Stops of running jobs in the window, by reason.",
        Unit.NUMBER,
        (Query("sum by (reason) (increase(hub_sched_stops_total[${window}s]))", "{{reason}}"),),
        Look.BARS,
    ),
    Panel(
        "Jobs that ended",
        "Jobs that ended in the window, by how.",
        Unit.NUMBER,
        (Query("max by (end_reason) (delta(hub_quota_ended_jobs[${window}s]))", "{{end_reason}}"),),
        Look.BARS,
    ),
    Panel(
        "Jobs started per second",
        "How fast jobs are admitted.",
        Unit.PER_SECOND,
        (Query(f"sum({rate('hub_sched_admitted_jobs_total')})", "started"),),
    ),
    Panel(
        "Waits by class",
        "Waits of the jobs that started in the window: half of them no longer than p50, 95 of 100 no longer than p95.",
        Unit.SECONDS,
        (
            Query(waited("0.5"), "{{gpu_class}} p50"),
            Query(waited("0.95"), "{{gpu_class}} p95"),
        ),
        width=12,
    ),
    Panel(
        "GPUs as the scheduler sees them",
        "GPUs by what they do in the leader's picture.",
        Unit.NUMBER,
        (Query("max by (gpu_class, state) (hub_sched_gpus)", "{{gpu_class}} {{state}}"),),
        Look.STACK,
        width=12,
    ),
)

_CLUSTERS = (
    Panel(
        "Actions on clusters",
        "What clusters were asked to do in the window, and how it went.",
        Unit.NUMBER,
        (
            Query(
                "sum by (verb, outcome) (increase(hub_sched_cluster_actions_total[${window}s]))",
                "{{verb}} {{outcome}}",
            ),
        ),
        Look.BARS,
        width=12,
    ),
    Panel(
        "Cluster last answered",
        "How long ago each cluster answered. A cluster that was not seen for 60 seconds gets no jobs.",
        Unit.SECONDS,
        (Query(f"{NOW} - max by (cluster) (hub_sched_cluster_seen_timestamp_seconds)", "{{cluster}}"),),
        width=12,
        steps=((30, YELLOW), (60, RED)),
    ),
)

SCHEDULER = Board(
    "gpuhub-scheduler",
    "GPU hub: scheduler",
    "Who leads, how fast it decides, what it decided, and how clusters and the quota service answer.",
    (
        Section("State", (*_STATE, *_FEED)),
        Section("Cycle and forecast", _CYCLE),
        Section("What it decides", _DECISIONS),
        Section("Clusters", _CLUSTERS),
    ),
    variables=(WINDOW,),
    tags=("operator", "scheduler"),
)
