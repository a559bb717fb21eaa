"""Whether the figures can be believed: what nobody measured, what belongs to nobody, where two sources disagree."""

from deploy.grafana.boards.expressions import NOW, SPEED, rate
from deploy.grafana.model import (
    BAD_FROM_ONE,
    GREEN,
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
    once,
    or_zero,
)

_HELD = once('hub_quota_gpus{state="used"}', "cluster", "gpu_class")
_NOBODYS = rate("hub_gpu_unattributed_busy_seconds_total")
_OBSERVED = rate("hub_gpu_observed_seconds_total")
_WORK_OBSERVED = rate("hub_gpu_workload_observed_seconds_total")

_UNOBSERVED = (
    Panel(
        "GPUs up that nobody measured",
        "GPUs that can be read, less those whose time was measured: how many GPUs' worth of time has no measurement."
        " Short holes come with restarts of agents; a constant one is a driver that gives no samples.",
        Unit.NUMBER,
        (
            Query(
                f"sum by (node) (hub_gpu_up) - sum by (node) ({_OBSERVED}) / {SPEED}",
                "{{node}}",
            ),
        ),
        width=8,
        steps=((0.5, YELLOW),),
    ),
    Panel(
        "Share of held time measured",
        "Of the time in which GPUs were held by jobs, the share that agents measured.",
        Unit.RATIO,
        (Query(f"sum({_WORK_OBSERVED}) / {SPEED} / (sum(hub_gpu_allocated) > 0)", "measured"),),
        width=8,
        most=1,
    ),
    Panel(
        "Utilisation that cannot be measured",
        "GPUs whose busy time the driver cannot tell, by node.",
        Unit.NUMBER,
        (Query("sum by (node) (hub_gpu_utilization_supported == bool 0)", "{{node}}"),),
        width=8,
    ),
)

_SILENT = (
    Panel(
        "Nodes without news",
        "Nodes with GPUs of which no agent has told the quota service anything for ten minutes, or ever: nothing that"
        " happens there is measured, and a GPU that breaks goes on getting jobs.",
        Unit.NUMBER,
        (Query(once("hub_quota_nodes_stale", "cluster"), "{{cluster}}"),),
        Look.BARS,
        width=8,
        steps=BAD_FROM_ONE,
    ),
)

_UNATTRIBUTED = (
    Panel(
        "Busy and of nobody",
        "Busy time that belongs to no job of the hub, in GPUs: work that nobody booked and nobody is charged for. Nodes"
        " whose kubelet is silent are left out: nobody knows who works there.",
        Unit.NUMBER,
        (Query(f"sum({_NOBODYS}) / {SPEED}", "GPUs"),),
        width=8,
        steps=((0.5, YELLOW), (1, ORANGE)),
    ),
    Panel(
        "Rows of unknown attempts",
        "Measurements in the window that agents delivered for attempts that the quota service does not know.",
        Unit.NUMBER,
        (Query("sum(increase(hub_agent_records_unknown_total[${window}s]))"),),
        Look.STAT,
        width=4,
        steps=BAD_FROM_ONE,
    ),
    Panel(
        "Rows refused",
        "Measurements in the window that the quota service refused.",
        Unit.NUMBER,
        (Query("sum(increase(hub_agent_records_refused_total[${window}s]))"),),
        Look.STAT,
        width=4,
        steps=BAD_FROM_ONE,
    ),
    Panel(
        "Rows dropped",
        "Measurements in the window that agents let go unsent, because their disks held as many as they may: time that"
        " will stay unmeasured.",
        Unit.NUMBER,
        (Query("sum(increase(hub_agent_records_dropped_total[${window}s]))"),),
        Look.STAT,
        width=4,
        steps=BAD_FROM_ONE,
    ),
    Panel(
        "Paid by no grant",
        "GPU hours of the reference GPU in the window that were booked to the platform: starts, late ends, faults.",
        Unit.HOURS,
        (Query(f"{once('increase(hub_quota_platform_gpu_seconds_total[${window}s])')} / 3600"),),
        Look.STAT,
        width=4,
    ),
)

_RECONCILED = (
    Panel(
        "Held by the books and by the nodes",
        "GPUs that the ledger's side counts as taken by jobs, and GPUs that the agents see held. They differ for the"
        " seconds of a start or an end; a lasting difference is a fault.",
        Unit.NUMBER,
        (
            Query(f"sum({_HELD})", "books"),
            Query("sum(hub_gpu_allocated)", "nodes"),
        ),
        width=12,
    ),
    Panel(
        "Findings",
        "Things that should not be and were recorded, by kind. `gpuhub findings` says what each of them is.",
        Unit.NUMBER,
        (Query(f"{once('hub_quota_findings_total', 'code')} > 0", "{{code}}"),),
        Look.BARS,
        width=4,
        steps=BAD_FROM_ONE,
    ),
    Panel(
        "Open holds",
        "Holds that are neither settled nor released. Each job that starts or runs has one; with no"
        " such job there should be none.",
        Unit.NUMBER,
        (Query(once("hub_quota_holds_unresolved")),),
        Look.STAT,
        width=4,
    ),
    Panel(
        "Holds without a job",
        "Open holds less the jobs that start, run or stop. More than none for minutes is a fault.",
        Unit.NUMBER,
        (
            Query(
                f"{once('hub_quota_holds_unresolved')} - (sum("
                + once('hub_quota_jobs{state=~"starting|running|stopping"}', "organization", "state")
                + ") or vector(0))"
            ),
        ),
        Look.STAT,
        width=4,
        steps=BAD_FROM_ONE,
    ),
    Panel(
        "Books behind the cluster",
        "How far the moment lies back up to which everything that a cluster did is in the books.",
        Unit.SECONDS,
        (Query(once("hub_quota_ledger_lag_seconds", "cluster"), "{{cluster}}"),),
        width=12,
        steps=((60, YELLOW), (600, RED)),
    ),
    Panel(
        "Attempts not settled",
        "Attempts whose use is not charged to its end yet: those that run, and those that have just ended.",
        Unit.NUMBER,
        (Query(once("hub_quota_attempts_unsettled", "cluster"), "{{cluster}}"),),
    ),
    Panel(
        "Last seal",
        "How long ago the audit trail was last sealed. It is sealed every minute.",
        Unit.SECONDS,
        (Query(f"{NOW} - {once('hub_quota_seal_timestamp_seconds')}", "age"),),
        steps=((300, YELLOW), (900, RED)),
    ),
    Panel(
        "Transactions",
        "How fast the feed of changes grows.",
        Unit.PER_SECOND,
        (Query(once("deriv(hub_quota_feed_head[$__rate_interval])"), "transactions"),),
    ),
)

_DAY = (
    Panel(
        "Last day compared",
        "GPU hours of the last day whose books, cluster times and measurements were compared: charged by the ledger,"
        " occupied by the cluster's times, looked at by agents, busy.",
        Unit.HOURS,
        (
            Query(
                f"{once('hub_quota_reconciled_gpu_seconds', 'cluster', 'source')} / 3600",
                "{{cluster}} {{source}}",
            ),
        ),
        Look.BARS,
        width=12,
    ),
    Panel(
        "Day compared",
        "Which day that is. The day before today is compared each night.",
        Unit.DATE,
        (Query(f"1000 * {once('hub_quota_reconciled_day_timestamp_seconds', 'cluster')}", "Day"),),
        Look.TABLE,
        width=6,
        labels={"cluster": "Cluster"},
    ),
    Panel(
        "Differences that day",
        "Attempts of that day whose figures differ. Each is a finding.",
        Unit.NUMBER,
        (Query(f"sum({once('hub_quota_reconciliation_differences', 'cluster')})"),),
        Look.STAT,
        width=6,
        steps=BAD_FROM_ONE,
    ),
)

_AGENTS = (
    Panel(
        "Agents read their GPUs",
        "Whether the last cycle of each agent could read.",
        Unit.NUMBER,
        (Query("hub_agent_collect_success", "{{instance}}"),),
        Look.TIMELINE,
        texts={0: ("no", RED), 1: ("yes", GREEN)},
    ),
    Panel(
        "Last read",
        "How long ago each agent last read its GPUs.",
        Unit.SECONDS,
        (Query("time() - hub_agent_last_collect_timestamp_seconds", "{{instance}}"),),
        steps=((60, YELLOW), (300, RED)),
    ),
    Panel(
        "Duration of a read",
        "95 of 100 reads of all agents take no longer.",
        Unit.SECONDS,
        (
            Query(
                f"histogram_quantile(0.95, sum by (le) ({rate('hub_agent_collect_duration_seconds_bucket')}))",
                "p95",
            ),
        ),
    ),
    Panel(
        "Measurements to be sent",
        "Rows that agents keep because they could not be delivered yet. Only an agent whose disk holds as many as it"
        " may drops some: see *Rows dropped*.",
        Unit.NUMBER,
        (Query("hub_agent_spool_records", "{{instance}}"),),
    ),
    Panel(
        "Oldest of them",
        "How long the oldest row waits at each agent.",
        Unit.SECONDS,
        (Query("time() - hub_agent_spool_oldest_timestamp_seconds", "{{instance}}"),),
        steps=((600, YELLOW), (3600, RED)),
    ),
    Panel(
        "Deliveries",
        "Deliveries of all agents, answered and failed.",
        Unit.PER_SECOND,
        (
            Query(f"sum({rate('hub_agent_reports_sent_total')})", "answered"),
            Query(f"sum({rate('hub_agent_reports_failed_total')})", "failed"),
        ),
    ),
    Panel(
        "Reads and writes that failed",
        "Cycles in the window that could not be read, and cycles that the agent's disk did not take.",
        Unit.NUMBER,
        (
            Query("sum(increase(hub_agent_collect_failures_total[${window}s]))", "reads"),
            Query("sum(increase(hub_agent_store_failures_total[${window}s]))", "disk"),
        ),
        Look.BARS,
    ),
    Panel(
        "Driver",
        "Whether the process that speaks with the driver works, by node.",
        Unit.NUMBER,
        (Query("hub_agent_nvml_state", "{{instance}} {{state}}"),),
        Look.TIMELINE,
        texts={1: ("so", ORANGE)},
    ),
    Panel(
        "Kubelet answers",
        "Whether the kubelet of each node told its agent last time which pod holds which GPU. While it is silent,"
        " holders stay as they were known, and new pods are nobody's.",
        Unit.NUMBER,
        (Query("hub_agent_pods_up", "{{instance}}"),),
        Look.TIMELINE,
        texts={0: ("no", RED), 1: ("yes", GREEN)},
    ),
    Panel(
        "Time without the kubelet",
        "How long in the window each agent had no answer of its kubelet's. Work of pods that started then may belong to"
        " nobody.",
        Unit.SECONDS,
        (Query("increase(hub_agent_pods_gap_seconds_total[${window}s])", "{{instance}}"),),
        Look.BARS,
        steps=((60, YELLOW), (600, RED)),
    ),
    Panel(
        "Kubelet failures",
        "Questions in the window that kubelets did not answer, by reason. *absent*: its socket is not there.",
        Unit.NUMBER,
        (Query("sum by (reason) (increase(hub_agent_pods_failures_total[${window}s]))", "{{reason}}"),),
        Look.BARS,
    ),
    Panel(
        "Verdicts",
        "What agents found of their GPUs in the window: signs of trouble, and GPUs that are well again.",
        Unit.NUMBER,
        (Query("increase(hub_agent_verdicts_total[${window}s])", "{{instance}}"),),
        Look.BARS,
    ),
    Panel(
        "Verdicts to be sent",
        "Verdicts that the quota service has not taken yet. Until it has, a bad GPU goes on getting jobs.",
        Unit.NUMBER,
        (Query("hub_agent_verdicts_unsent", "{{instance}}"),),
        steps=BAD_FROM_ONE,
    ),
    Panel(
        "Verdicts that failed",
        "Deliveries of verdicts in the window that failed and are tried again, and rows or verdicts that the quota"
        " service refused.",
        Unit.NUMBER,
        (
            Query("sum(increase(hub_agent_verdicts_failed_total[${window}s]))", "failed"),
            Query("sum(increase(hub_agent_verdicts_refused_total[${window}s]))", "refused"),
        ),
        Look.BARS,
    ),
    Panel(
        "GPUs missing",
        "GPUs that the driver counts less those that can be read.",
        Unit.NUMBER,
        (Query(or_zero("sum(max by (node) (hub_gpu_devices_expected) - max by (node) (hub_gpu_devices))")),),
        Look.STAT,
        steps=BAD_FROM_ONE,
    ),
)

TRUST = Board(
    "gpuhub-trust",
    "GPU hub: trust",
    "What nobody measured, what belongs to nobody, where books and nodes disagree, and how the agents are.",
    (
        Section("Unobserved", (*_UNOBSERVED, *_SILENT)),
        Section("Unattributed", _UNATTRIBUTED),
        Section("Reconciliation", (*_RECONCILED, *_DAY)),
        Section("Agents", _AGENTS),
    ),
    variables=(WINDOW,),
    tags=("operator", "trust"),
)
