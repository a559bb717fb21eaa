"""What operators look at: the queue, fairness between firms, GPUs held and not used, what is out of service."""

from deploy.grafana.boards.expressions import (
    SPEED,
    charged_hours,
    elapsed,
    grants,
    of_firm,
    oldest_wait,
    rate,
)
from deploy.grafana.model import (
    BAD_FROM_ONE,
    ORANGE,
    RED,
    TO_FIRM,
    TO_FIRM_OF_ROW,
    TO_NODE_OF_ROW,
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

_LIMIT = grants("limit_gpu_seconds", "", "organization", "program")
_USED = grants("used_gpu_seconds", "", "organization", "program")
_DUE = f"({_LIMIT} * {elapsed('', 'organization', 'program')})"
_RATIO = f"(sum by (organization) ({_USED}) / (sum by (organization) ({_DUE}) > 0))"

_BUSY = rate("hub_gpu_workload_busy_seconds_total")
_OBSERVED = rate("hub_gpu_workload_observed_seconds_total")
_USE_OF_GPU = (
    f"(sum by (node, gpu_uuid, job_id, attempt) ({_BUSY})"
    f" / (sum by (node, gpu_uuid, job_id, attempt) ({_OBSERVED}) > 0))"
)
_IDLE = f"({_USE_OF_GPU} < $idle_below)"

_ON_NODES = once('hub_quota_node_gpus{state="used"}', "cluster", "node", "gpu_class")

_QUEUE = (
    Panel(
        "Waiting jobs by firm",
        "Jobs that wait, by firm and by what they lack: *active* jobs lack only room, *blocked* ones need a person or a"
        " grant, *held* ones a moment in time.",
        Unit.NUMBER,
        (
            Query(
                once("hub_sched_queue_jobs", "organization", "status"),
                "{{organization}} {{status}}",
            ),
        ),
        Look.STACK,
        leads_to=TO_FIRM,
    ),
    Panel(
        "GPUs asked for by firm",
        "GPUs that waiting jobs ask for, by firm.",
        Unit.NUMBER,
        (
            Query(
                f"sum by (organization) ({once('hub_sched_queue_gpus_requested', 'organization', 'status')})",
                "{{organization}}",
            ),
        ),
        Look.STACK,
        leads_to=TO_FIRM,
    ),
    Panel(
        "Why jobs wait",
        "Waiting jobs by the reason that the scheduler gives.",
        Unit.NUMBER,
        (Query(once("hub_sched_unschedulable_jobs", "reason"), "{{reason}}"),),
        Look.STACK,
    ),
    Panel(
        "Longest wait by firm",
        "How long the job of each firm that waits longest has waited.",
        Unit.SECONDS,
        (
            Query(
                oldest_wait(by="organization"),
                "{{organization}}",
            ),
        ),
        Look.BARS,
        width=12,
        steps=((3600, YELLOW), (14400, ORANGE), (86400, RED)),
        leads_to=TO_FIRM,
    ),
    Panel(
        "Booked GPUs",
        "GPUs of bookings that come or are on. *kept*: their room is there. *short*: it will not be free in time.",
        Unit.NUMBER,
        (Query(once("hub_sched_booked_gpus", "gpu_class", "state"), "{{gpu_class}} {{state}}"),),
        width=12,
    ),
)

_FAIRNESS = (
    Panel(
        "Delivered against due by firm",
        "Hours that each firm was charged divided by what was due to it by now had its grants been used evenly over"
        " their terms. Firms far below 1 with jobs that wait are behind; firms far above run ahead.",
        Unit.NUMBER,
        (Query(_RATIO, "{{organization}}"),),
        Look.BARS,
        width=10,
        leads_to=TO_FIRM,
    ),
    Panel(
        "Jain's index",
        "How alike those ratios are: 1 if every firm got the same part of what was due to it, 1/n if one of n firms got"
        " everything.",
        Unit.NUMBER,
        (Query(f"sum({_RATIO}) ^ 2 / (count({_RATIO}) * sum({_RATIO} ^ 2) > 0)"),),
        Look.STAT,
        width=4,
        most=1,
    ),
    Panel(
        "GPU hours charged in the window by firm",
        "What each firm was charged in the window.",
        Unit.HOURS,
        (
            Query(
                f"sum by (organization) ({charged_hours('', 'organization', 'program')})", "{{organization}}"
            ),
        ),
        Look.BARS,
        width=10,
        leads_to=TO_FIRM,
    ),
)

_SHARES = (
    Panel(
        "GPUs held by firm",
        "GPUs that each firm's jobs keep now.",
        Unit.NUMBER,
        (Query(once("hub_sched_organization_gpus_allocated", "organization"), "{{organization}}"),),
        Look.STACK,
        leads_to=TO_FIRM,
    ),
    Panel(
        "Share used against fair share",
        "What each firm keeps now of all that is kept, and its fair share: what was granted to it per day of its"
        " grants' terms, of what was granted to all.",
        Unit.RATIO,
        (
            Query(once("hub_sched_organization_usage_ratio", "organization"), "{{organization}} used"),
            Query(
                once("hub_sched_organization_fair_share_ratio", "organization"), "{{organization}} fair share"
            ),
        ),
        Look.BARS,
        most=1,
    ),
    Panel(
        "Behind the pace",
        "How far each grant is behind the pace that it needs to be usable before it ends, as the scheduler counts it;"
        " negative: ahead. Who is far behind goes first.",
        Unit.SECONDS,
        (
            Query(
                once("hub_quota_grant_pace_lag_seconds", "organization", "program", "grant_id"),
                "{{organization}} {{program}} {{grant_id}}",
            ),
        ),
        Look.BARS,
        leads_to=TO_FIRM,
    ),
    Panel(
        "Mean wait by firm",
        "How long the jobs that started in the window had waited, on the mean of each firm.",
        Unit.SECONDS,
        (
            Query(
                "sum by (organization) (increase(hub_sched_organization_wait_seconds_total[${window}s]))"
                " / (sum by (organization) (increase(hub_sched_organization_starts_total[${window}s])) > 0)",
                "{{organization}}",
            ),
        ),
        Look.BARS,
        width=24,
        leads_to=TO_FIRM,
    ),
)

_HELD_IDLE = (
    Panel(
        "GPUs held and idle",
        "GPUs that a job holds and keeps less busy than the limit chosen above.",
        Unit.NUMBER,
        (Query(or_zero(f"count({_IDLE})")),),
        Look.STAT,
        width=4,
        height=8,
        steps=((1, YELLOW), (8, ORANGE)),
    ),
    Panel(
        "Held and idle now",
        "Which firm's job holds which GPU without using it, and how busy it is. A job that loads data or waits for a"
        " person looks like this, too: ask before you stop it.",
        Unit.RATIO,
        (Query(of_firm(_IDLE), "Utilisation"),),
        Look.TABLE,
        width=12,
        labels={
            "organization": "Firm",
            "job_id": "Job",
            "attempt": "Attempt",
            "node": "Node",
            "gpu_uuid": "GPU",
        },
        leads_to=TO_FIRM_OF_ROW,
    ),
    Panel(
        "GPUs held but not busy",
        "Measured time of held GPUs less their busy time: how many GPUs' worth of work is lost at each moment.",
        Unit.NUMBER,
        (Query(f"(sum({_OBSERVED}) - sum({_BUSY})) / {SPEED}", "GPUs lost"),),
    ),
    Panel(
        "Idle by the rules",
        "GPUs of running jobs by what the idle rules found: *low_utilization* and *partly_idle* jobs are only flagged,"
        " *warned* and *warned_twice* ones will be stopped if they do not begin to work, and of *unobserved* ones the"
        " agents have said too little. `gpuhub idle list` names them.",
        Unit.NUMBER,
        (Query(once("hub_quota_idle_gpus", "state"), "{{state}}"),),
        Look.STACK,
        width=12,
    ),
    Panel(
        "Idle warnings in the window",
        "Warnings that jobs with idle GPUs were given, by step: after the second comes the stop.",
        Unit.NUMBER,
        (Query(once("increase(hub_quota_idle_warnings_total[${window}s])", "step"), "warning {{step}}"),),
        Look.BARS,
    ),
    Panel(
        "Stopped for idleness",
        "Jobs in the window that were asked to stop because their GPUs did no work.",
        Unit.NUMBER,
        (Query(once("increase(hub_quota_idle_stops_total[${window}s])")),),
        Look.STAT,
        width=4,
    ),
)

_IN_VAIN = (
    Panel(
        "GPU hours in vain",
        "Hours of the reference GPU of attempts in the window whose work has to be done again, by how they ended: they"
        " failed by themselves, died of a node or a GPU, made room, were sent back, or did not start in time. What a"
        " checkpoint saved is in it, too.",
        Unit.HOURS,
        (
            Query(
                f"{once('delta(hub_quota_wasted_gpu_seconds[${window}s])', 'end_reason')} / 3600",
                "{{end_reason}}",
            ),
        ),
        Look.BARS,
    ),
)

_OUT = (
    Panel(
        "GPUs out of service",
        "GPUs that nobody holds and that get no jobs, because their node is cordoned, not ready or under quarantine.",
        Unit.NUMBER,
        (Query(once('hub_sched_gpus{state="quarantined"}', "gpu_class"), "{{gpu_class}}"),),
        Look.BARS,
        steps=BAD_FROM_ONE,
    ),
    Panel(
        "Nodes closed to new jobs",
        "Nodes that get no new jobs, because operators cordoned them or their cluster closed them, with the GPUs on"
        " them that jobs still hold.",
        Unit.NUMBER,
        (
            Query(
                f"{_ON_NODES} and on (cluster, node) ({once('hub_quota_node_open', 'cluster', 'node')} == 0)",
                "GPUs held",
            ),
        ),
        Look.TABLE,
        labels={"cluster": "Cluster", "node": "Node", "gpu_class": "Class"},
        leads_to=TO_NODE_OF_ROW,
    ),
    Panel(
        "Nodes by state",
        "Nodes that are open to new jobs, cordoned by operators of the hub, or closed by their cluster.",
        Unit.NUMBER,
        (Query(once("hub_quota_nodes", "cluster", "state"), "{{cluster}} {{state}}"),),
        Look.STACK,
    ),
    Panel(
        "GPUs that agents cannot read",
        "GPUs that were there and cannot be read now, by node.",
        Unit.NUMBER,
        (Query("hub_gpu_up == 0", "Up"),),
        Look.TABLE,
        labels={"node": "Node", "gpu_uuid": "GPU"},
        leads_to=TO_NODE_OF_ROW,
    ),
    Panel(
        "GPUs with hardware errors",
        "XIDs of the class *hardware*, with the time of the last one, and what the driver wants done with the GPU: 0"
        " nothing, 1 reset, 2 reboot, 3 drain, 4 drain and reset.",
        Unit.NUMBER,
        (
            Query(
                '1000 * max by (node, gpu_uuid, xid) (hub_gpu_last_xid_timestamp_seconds{class="hardware"})',
                "Last",
                Unit.DATE,
            ),
            Query(
                '(max by (node, gpu_uuid, xid) (hub_gpu_xid_events_total{class="hardware"}) > bool 0)'
                " * on (node, gpu_uuid) group_left () max by (node, gpu_uuid) (hub_gpu_recovery_action)",
                "Wanted",
            ),
        ),
        Look.TABLE,
        labels={"node": "Node", "gpu_uuid": "GPU", "xid": "XID"},
        leads_to=TO_NODE_OF_ROW,
    ),
)

_VERDICTS = (
    Panel(
        "GPUs by health",
        "GPUs by how healthy their agents last called them. *unhealthy* and *lost* ones should be out of use,"
        " *degraded* ones work and want somebody to look.",
        Unit.NUMBER,
        (Query(once("hub_quota_health_gpus", "state"), "{{state}}"),),
        Look.STACK,
    ),
    Panel(
        "GPUs in quarantine",
        "GPUs that were taken out of use, by agents' verdicts or by operators. A node with one takes no new jobs,"
        " unless it gives the GPU to nobody by itself. `gpuhub gpus list --quarantined` names them.",
        Unit.NUMBER,
        (Query(once("hub_quota_quarantined_gpus", "by"), "by {{by}}"),),
        Look.BARS,
        width=6,
        steps=BAD_FROM_ONE,
    ),
    Panel(
        "Circuit breaker",
        "GPUs that nobody can get because of agents' verdicts, closed nodes whole, against how many verdicts may take."
        " The first bad GPU passes whatever its node has, so *taken* may be above *most*.",
        Unit.NUMBER,
        (
            Query(once("hub_quota_gpu_breaker_most_gpus"), "most"),
            Query(once("hub_quota_gpu_breaker_taken_gpus"), "taken"),
        ),
    ),
    Panel(
        "Quarantine withheld",
        "GPUs that agents call bad and that still get jobs, because the circuit breaker is open or verdicts are only"
        " observed. An operator has to decide: `gpuhub gpus quarantine`, or `gpuhub gpus policy`.",
        Unit.NUMBER,
        (Query(once("hub_quota_gpu_breaker_withheld_gpus")),),
        Look.STAT,
        width=4,
        steps=BAD_FROM_ONE,
    ),
    Panel(
        "GPUs withdrawn by their node",
        "GPUs that their node gives to nobody any more, as a device plugin does with what it finds broken. If that is"
        " known of a bad GPU, its node goes on with the others.",
        Unit.NUMBER,
        (Query(or_zero("count(hub_gpu_withdrawn == 1)")),),
        Look.STAT,
        width=4,
    ),
    Panel(
        "GPUs in the inventory",
        "*vanished*: registered and not seen for ten minutes, or never. *unknown*: seen and not registered; all of"
        " them, if nobody has registered any. *gone*: away as they should be.",
        Unit.NUMBER,
        (Query(once("hub_quota_inventory_gpus", "state"), "{{state}}"),),
        Look.BARS,
        width=6,
    ),
)

OPERATORS = Board(
    "gpuhub-operators",
    "GPU hub: operators",
    "The queue, fairness between firms, GPUs that are held and not used, and what is out of service.",
    (
        Section("Queue", _QUEUE),
        Section("Fairness", (*_FAIRNESS, *_SHARES)),
        Section("Held, idle and in vain", (*_HELD_IDLE, *_IN_VAIN)),
        Section("Out of service", (*_OUT, *_VERDICTS)),
    ),
    variables=(
        WINDOW,
        Variable(
            "idle_below",
            "Idle below",
            "How busy a GPU may be and still count as idle.",
            choices=(("5 %", "0.05"), ("1 %", "0.01"), ("10 %", "0.1"), ("25 %", "0.25")),
        ),
    ),
    tags=("operator",),
    hours=24,
)
