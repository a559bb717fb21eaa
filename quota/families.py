"""Every family of series that the quota service serves at `/metrics`.

They are made from the database's state when they are asked for, so every replica serves the same: take the greatest.
Times of grants, jobs and clusters are business time; `hub_quota_business_timestamp_seconds` is its now.
"""

from quota.exposition import counter, declared, gauge, info

_GRANT = ("organization", "program", "grant_id")

BUILD = info("hub_quota_build_info", "The quota service's version.", "version")
BUSINESS_TIME = gauge(
    "hub_quota_business_timestamp_seconds",
    "The hub's business time: the wall's, unless its clock runs faster.",
)
GRANT_LIMIT = gauge("hub_quota_grant_limit_gpu_seconds", "Reference GPU seconds granted.", *_GRANT)
GRANT_HELD = gauge("hub_quota_grant_held_gpu_seconds", "Reference GPU seconds held now.", *_GRANT)
GRANT_USED = gauge("hub_quota_grant_used_gpu_seconds", "Reference GPU seconds used.", *_GRANT)
GRANT_START = gauge("hub_quota_grant_start_timestamp_seconds", "Start of the grant's term.", *_GRANT)
GRANT_END = gauge("hub_quota_grant_end_timestamp_seconds", "End of the grant's term.", *_GRANT)
GRANT_PACE_LAG = gauge(
    "hub_quota_grant_pace_lag_seconds",
    "How far the grant is behind the pace that it needs, as the scheduler last told; negative: ahead.",
    *_GRANT,
)
PLATFORM = counter("hub_quota_platform_gpu_seconds_total", "Reference GPU seconds that no grant pays.")
JOBS = gauge(
    "hub_quota_jobs", "Jobs that have not ended, by organization and state.", "organization", "state"
)
ENDED_JOBS = gauge(
    "hub_quota_ended_jobs",
    "Jobs that have ended, by how. One that failed may wait again, so use delta() and not increase().",
    "end_reason",
)
WASTED = gauge(
    "hub_quota_wasted_gpu_seconds",
    "Reference GPU seconds of attempts that ended so that their work has to be done again, by how they ended: all"
    " their time, though a checkpoint may have saved a part. Use delta().",
    "end_reason",
)
QUEUE_OLDEST = gauge(
    "hub_quota_queue_oldest_timestamp_seconds",
    "Submission of the queued job that is the oldest, whatever it waits for.",
    "organization",
)
HOLDS_UNRESOLVED = gauge("hub_quota_holds_unresolved", "Holds that are neither settled nor released.")
ATTEMPTS_UNSETTLED = gauge(
    "hub_quota_attempts_unsettled", "Attempts whose use is not settled to its end.", "cluster"
)
GPUS = gauge(
    "hub_quota_gpus",
    "GPUs by class: total, used by the hub, used by others.",
    *("cluster", "gpu_class", "state"),
)
NODES = gauge(
    "hub_quota_nodes",
    "Nodes: open to new jobs, cordoned by operators of the hub, held back for a bad GPU, closed by their cluster.",
    *("cluster", "state"),
)
NODES_STALE = gauge(
    "hub_quota_nodes_stale",
    "Nodes with GPUs of which no agent has told the service anything for the time after which a GPU counts as"
    " vanished.",
    "cluster",
)
LEDGER_LAG = gauge("hub_quota_ledger_lag_seconds", "Business time since the cluster's watermark.", "cluster")
IDLE_GPUS = gauge(
    "hub_quota_idle_gpus",
    "GPUs of running attempts by what the idle rules found; of partly idle ones those that are idle.",
    "state",
)
IDLE_WARNINGS = counter("hub_quota_idle_warnings_total", "Warnings about idle GPUs.", "step")
IDLE_STOPS = counter(
    "hub_quota_idle_stops_total", "Attempts that were asked to stop because their GPUs were idle."
)
INVENTORY_GPUS = gauge("hub_quota_inventory_gpus", "GPUs by what the inventory says.", "state")
HEALTH_GPUS = gauge("hub_quota_health_gpus", "GPUs by health as their agents last said.", "state")
QUARANTINED_GPUS = gauge("hub_quota_quarantined_gpus", "GPUs out of use, by who took them.", "by")
BREAKER_MOST = gauge("hub_quota_gpu_breaker_most_gpus", "GPUs that verdicts may take out of use.")
BREAKER_TAKEN = gauge(
    "hub_quota_gpu_breaker_taken_gpus",
    "GPUs that nobody can get because of verdicts, closed nodes whole.",
)
BREAKER_WITHHELD = gauge(
    "hub_quota_gpu_breaker_withheld_gpus",
    "GPUs that a verdict would have taken, for an operator to decide.",
)
FEED_HEAD = gauge("hub_quota_feed_head", "Sequence of the last transaction in the feed.")
LEASE_EXPIRES = gauge(
    "hub_quota_scheduler_lease_expires_timestamp_seconds",
    "Until when the scheduler's lease was last taken or renewed (wall time).",
)
SEAL = gauge("hub_quota_seal_timestamp_seconds", "When the audit trail was last sealed.")
FINDINGS = counter("hub_quota_findings_total", "Things that should not be, ever recorded, by kind.", "code")
ATTEMPT_GPUS = gauge(
    "hub_quota_attempt_gpus",
    "GPUs that an attempt keeps; the series ends with the attempt. Joins what agents tell of jobs to their firm.",
    *("job_id", "attempt", "organization", "program", "grant_id", "gpu_class"),
)
NODE_GPUS = gauge(
    "hub_quota_node_gpus",
    "GPUs of a node: total, used by the hub, used by others.",
    *("cluster", "node", "gpu_class", "state"),
)
NODE_OPEN = gauge("hub_quota_node_open", "1 if the node takes new jobs.", "cluster", "node")
RECONCILED = gauge(
    "hub_quota_reconciled_gpu_seconds",
    "GPU seconds (of any class) of the last day that was compared: by the ledger, by the cluster's times, as agents"
    " observed them, and of those busy.",
    *("cluster", "source"),
)
RECONCILED_DAY = gauge(
    "hub_quota_reconciled_day_timestamp_seconds", "When that day began (in Seoul).", "cluster"
)
RECONCILIATION_DIFFERENCES = gauge(
    "hub_quota_reconciliation_differences", "Attempts of that day whose figures differ.", "cluster"
)

FAMILIES = declared(globals())
