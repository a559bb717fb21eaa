"""Expressions that several dashboards share.

Every replica of the quota service tells the same database, so its series are taken once (`once`) before they are
added up. An agent tells of its own GPUs only, so theirs are added up as they are.

Grants, jobs and clusters live in business time, which is the wall's unless the hub's clock was made to run faster.
"""

from __future__ import annotations

from deploy.grafana.model import once

RANGE = "$__rate_interval"

SECONDS_PER_HOUR = 3600

NOW = "scalar(max(hub_quota_business_timestamp_seconds))"
SPEED = f"scalar(max(deriv(hub_quota_business_timestamp_seconds[{RANGE}])))"
"""Business seconds per second."""


def rate(metric: str, where: str = "") -> str:
    """How fast a counter grows."""
    return f"rate({metric}{where}[{RANGE}])"


def grants(name: str, where: str = "", *labels: str) -> str:
    """A figure of each grant, kept apart by these labels and the grant's id."""
    return once(f"hub_quota_grant_{name}{where}", *labels, "grant_id")


def pace(where: str, *labels: str) -> str:
    """Reference GPUs that each grant was charged for, on the mean of the window (or of its life, if shorter)."""
    used = once(f"delta(hub_quota_grant_used_gpu_seconds{where}[${{window}}s])", *labels, "grant_id")
    passed = "scalar(max(delta(hub_quota_business_timestamp_seconds[${window}s])))"
    age = f"{NOW} - {grants('start_timestamp_seconds', where, *labels)}"
    return f"({used} / clamp_max({age}, {passed}))"


def charged_hours(where: str, *labels: str) -> str:
    """GPU hours that each grant was charged in the window."""
    used = once(f"delta(hub_quota_grant_used_gpu_seconds{where}[${{window}}s])", *labels, "grant_id")
    return f"{used} / {SECONDS_PER_HOUR}"


def elapsed(where: str, *labels: str) -> str:
    """Which part of each grant's term is over, 0-1."""
    start = grants("start_timestamp_seconds", where, *labels)
    end = grants("end_timestamp_seconds", where, *labels)
    return f"clamp(({NOW} - {start}) / ({end} - {start}), 0, 1)"


def utilization(where: str = "", by: str = "") -> str:
    """Busy time in measured time, 0-1; nothing where nothing was measured."""
    grouped = f"sum by ({by})" if by else "sum"
    busy = rate("hub_gpu_busy_seconds_total", where)
    observed = rate("hub_gpu_observed_seconds_total", where)
    return f"{grouped} ({busy}) / ({grouped} ({observed}) > 0)"


def described(expr: str, *labels: str) -> str:
    """A series per GPU with more labels from the GPU's description."""
    wanted = ", ".join(labels)
    info = once("hub_gpu_device_info", "node", "gpu_uuid", *labels)
    return f"{expr} * on (node, gpu_uuid) group_left ({wanted}) {info}"


def waited(quantile: str) -> str:
    """Waits of the jobs that started lately, by class."""
    return (
        f"histogram_quantile({quantile}, sum by (gpu_class, le)"
        f" (increase(hub_sched_queue_wait_seconds_bucket[${{window}}s])))"
    )


def of_firm(expr: str, where: str = "", *labels: str) -> str:
    """What agents tell of jobs, with the firm (and more) that each job belongs to; only firms that `where` takes."""
    wanted = ", ".join(("organization", *labels))
    holder = once(f"hub_quota_attempt_gpus{where}", "job_id", "attempt", "organization", *labels)
    return f"{expr} * on (job_id, attempt) group_left ({wanted}) ({holder} > bool 0)"


def oldest_wait(where: str = "", by: str = "") -> str:
    """How long the job waits that has waited longest."""
    grouped = f"min by ({by})" if by else "min"
    return f"{NOW} - {grouped} (hub_quota_queue_oldest_timestamp_seconds{where})"
