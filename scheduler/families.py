"""Every family of series that the scheduler serves at `/metrics`; a standby shows no queue and no shares."""

from quota.exposition import counter, declared, gauge, histogram, info

_QUEUE = ("organization", "status")

BUILD = info("hub_sched_build_info", "The scheduler's version.", "version")
LEADER = gauge("hub_sched_leader", "1 if this process holds the scheduler lease.")
FEED_SEQ = gauge(
    "hub_sched_feed_seq",
    "Up to which sequence of the quota service's feed the leader has read: compare `hub_quota_feed_head`.",
)
DECISIONS = counter("hub_sched_decisions_total", "Decisions answered by the quota service.", "outcome")
STOPS = counter("hub_sched_stops_total", "Stops recorded by the quota service.", "reason")
ADMITTED = counter("hub_sched_admitted_jobs_total", "Jobs started.")
ACTIONS = counter(
    "hub_sched_cluster_actions_total", "Starts, stops and deletions on clusters.", *("verb", "outcome")
)
QUOTA_ERRORS = counter("hub_sched_quota_errors_total", "Calls that the quota service did not answer.")
FORECAST_FAILURES = counter("hub_sched_forecast_failures_total", "Forecasts that came to nothing.")
CYCLE_DURATION = histogram("hub_sched_cycle_duration_seconds", "Wall time of one cycle.")
QUEUE_WAIT = histogram(
    "hub_sched_queue_wait_seconds", "From submission to the start's decision (business time).", "gpu_class"
)
FORECAST_DURATION = histogram(
    "hub_sched_forecast_duration_seconds", "Wall time of a forecast, from the question to its publication."
)
QUEUE_JOBS = gauge("hub_sched_queue_jobs", "Waiting jobs.", *_QUEUE)
QUEUE_GPUS = gauge("hub_sched_queue_gpus_requested", "GPUs asked for.", *_QUEUE)
QUEUE_OLDEST = gauge(
    "hub_sched_queue_oldest_timestamp_seconds",
    "Submission of the job that waits longest (business time).",
    *_QUEUE,
)
UNSCHEDULABLE = gauge("hub_sched_unschedulable_jobs", "Waiting jobs by what keeps them waiting.", "reason")
GPUS = gauge("hub_sched_gpus", "GPUs by what they do.", "gpu_class", "state")
ORGANIZATION_STARTS = counter(
    "hub_sched_organization_starts_total", "Jobs of an organization that were started.", "organization"
)
ORGANIZATION_WAIT = counter(
    "hub_sched_organization_wait_seconds_total",
    "How long those had waited, added up (business time): divided by the starts it is their mean wait.",
    "organization",
)
ORGANIZATION_GPUS = gauge(
    "hub_sched_organization_gpus_allocated", "GPUs that an organization's jobs keep now.", "organization"
)
FAIR_SHARE = gauge(
    "hub_sched_organization_fair_share_ratio",
    "What was granted to an organization for each day of its running grants' terms, of what was granted to all.",
    "organization",
)
USAGE = gauge(
    "hub_sched_organization_usage_ratio",
    "What is kept now on an organization's grants, of what is kept on all, GPU classes weighed by their rates.",
    "organization",
)
FORECAST_AT = gauge(
    "hub_sched_forecast_timestamp_seconds",
    "The moment that the last published forecast was made for (business time): its age is now less this.",
)
BOOKED = gauge(
    "hub_sched_booked_gpus",
    "GPUs of bookings that come or are on: whose room is kept, and that will not be free in time.",
    *("gpu_class", "state"),
)
CLUSTER_SEEN = gauge(
    "hub_sched_cluster_seen_timestamp_seconds", "When the cluster last answered (business time).", "cluster"
)

FAMILIES = declared(globals())
