"""Every family of series that an agent serves at `/metrics`; what is not known has no series.

Seconds are business seconds, timestamps wall time. `hub_gpu_*` carry `node` and `gpu_uuid`; a job and its attempt are
labels only of `hub_gpu_workload_*`, whose series end with the job.
"""

from quota.exposition import counter, declared, gauge, histogram, info

GPU = ("node", "gpu_uuid")
WORKLOAD = ("node", "gpu_uuid", "job_id", "attempt")

# --- GPUs, with every reader ---

DEVICE = info(
    "hub_gpu_device_info",
    "What the GPU is.",
    *(*GPU, "gpu_class", "model"),
    optional=("serial", "pci_bus_id", "driver", "parent_uuid"),
)
UP = gauge("hub_gpu_up", "1 if the last cycle read the GPU, 0 if it did not.", *GPU)
DEVICES = gauge("hub_gpu_devices", "GPUs that the last cycle read.", "node")
UTILIZATION = gauge("hub_gpu_utilization_ratio", "Latest mean utilization.", *GPU)
ALLOCATED = gauge("hub_gpu_allocated", "1 if a workload holds the GPU.", *GPU)
MEMORY_TOTAL = gauge("hub_gpu_memory_total_bytes", "Memory of the GPU.", *GPU)
MEMORY_USED = gauge("hub_gpu_memory_used_bytes", "Memory in use.", *GPU)
POWER = gauge("hub_gpu_power_watts", "Power drawn.", *GPU)
TEMPERATURE = gauge("hub_gpu_temperature_celsius", "Temperature of the GPU.", *GPU)
BUSY = counter("hub_gpu_busy_seconds_total", "Time of full use, whoever held it.", *GPU)
OBSERVED = counter("hub_gpu_observed_seconds_total", "Time that was measured at all.", *GPU)
WORKLOAD_BUSY = counter(
    "hub_gpu_workload_busy_seconds_total", "Time of full use under the workload.", *WORKLOAD
)
WORKLOAD_OBSERVED = counter(
    "hub_gpu_workload_observed_seconds_total", "Measured time under the workload.", *WORKLOAD
)

UNATTRIBUTED_BUSY = counter(
    "hub_gpu_unattributed_busy_seconds_total", "The part of it that went to no attempt of a job.", *GPU
)
ALLOCATION = info(
    "hub_gpu_allocation_info",
    "Every pod that holds the GPU; without a job it is not the hub's.",
    *(*WORKLOAD, "pod_index", "workload_namespace", "workload_pod"),
)

# --- what the driver tells of them: with the NVML reader ---

POWER_LIMIT = gauge("hub_gpu_power_limit_watts", "Power limit enforced.", *GPU)
SM_ACTIVITY = gauge(
    "hub_gpu_sm_activity_ratio", "Share of the multiprocessors that were busy in the last cycle.", *GPU
)
COMPUTE_PROCESSES = gauge("hub_gpu_compute_processes", "Compute processes on the GPU.", *GPU)
ORPHAN_MEMORY = gauge("hub_gpu_orphan_memory_bytes", "Memory of processes that no longer exist.", *GPU)
RECOVERY_ACTION = gauge(
    "hub_gpu_recovery_action",
    "What the driver wants done: 0 nothing, 1 GPU reset, 2 reboot, 3 drain, 4 drain and reset.",
    *GPU,
)
ROW_REMAP_PENDING = gauge(
    "hub_gpu_row_remap_pending", "1 if a row of memory is to be replaced at the next reset.", *GPU
)
ROW_REMAP_FAILED = gauge(
    "hub_gpu_row_remap_failed",
    "1 if a row could not be replaced: the GPU has to be exchanged.",
    *GPU,
)
LOST = gauge("hub_gpu_lost", "1 if the GPU fell off the bus.", *GPU)
WITHDRAWN = gauge(
    "hub_gpu_withdrawn",
    "1 if its node gives it to nobody any more, 0 if it does; no series if not known.",
    *GPU,
)
UTILIZATION_SUPPORTED = gauge("hub_gpu_utilization_supported", "1 if busy time can be measured.", *GPU)
ENERGY = counter("hub_gpu_energy_joules_total", "Energy used since the agent first saw the GPU.", *GPU)
PCIE_REPLAYS = counter("hub_gpu_pcie_replays_total", "PCIe replays since the driver was loaded.", *GPU)
ECC_ERRORS = counter(
    "hub_gpu_ecc_errors_total", "Memory errors since the driver was loaded.", *(*GPU, "type")
)
ECC_ERRORS_EVER = gauge("hub_gpu_ecc_errors_lifetime", "Memory errors over the GPU's life.", *(*GPU, "type"))
REMAPPED_ROWS = gauge("hub_gpu_remapped_rows", "Rows of memory replaced.", *(*GPU, "type"))
CLOCKS_EVENT_REASON = gauge(
    "hub_gpu_clocks_event_reason", "1 if this slows the GPU down now.", *(*GPU, "reason")
)
THROTTLED = counter("hub_gpu_throttle_seconds_total", "Time of being slowed down.", *(*GPU, "reason"))
EVENTS = counter("hub_gpu_events_total", "Events other than XIDs since the agent started.", *(*GPU, "event"))
UNSUPPORTED = gauge("hub_gpu_unsupported", "1 for what this GPU or driver does not have.", *(*GPU, "op"))
XID_EVENTS = counter("hub_gpu_xid_events_total", "XIDs since the agent started.", *(*GPU, "xid", "class"))
LAST_XID = gauge(
    "hub_gpu_last_xid_timestamp_seconds", "When this XID came last (wall time).", *(*GPU, "xid", "class")
)
DEVICES_EXPECTED = gauge("hub_gpu_devices_expected", "GPUs that the driver counts.", "node")
NVML_STATE = gauge("hub_agent_nvml_state", "1 for how the collector is.", "state")
NVML_RESTARTS = counter("hub_agent_nvml_restarts_total", "Collector processes that were replaced.", "reason")
NVML_ERRORS = counter("hub_agent_nvml_errors_total", "Calls that the driver refused.", "op", "code")
NVML_EVENTS_UP = gauge("hub_agent_nvml_events_up", "1 if events can be waited for.")

# --- the agent itself ---

BUILD = info("hub_agent_build_info", "The agent's version.", "version")
COLLECT_SUCCESS = gauge("hub_agent_collect_success", "1 if the last cycle read.")
COLLECT_DURATION = histogram("hub_agent_collect_duration_seconds", "How long a cycle took.")
LAST_COLLECT = gauge("hub_agent_last_collect_timestamp_seconds", "When GPUs were last read.")
COLLECT_FAILURES = counter(
    "hub_agent_collect_failures_total", "Cycles, or nodes in them, that could not be read."
)
STORE_FAILURES = counter(
    "hub_agent_store_failures_total", "Cycles that the disk did not take; they are kept in memory."
)
REPORTS_SENT = counter("hub_agent_reports_sent_total", "Deliveries that the quota service answered.")
REPORTS_FAILED = counter(
    "hub_agent_reports_failed_total", "Deliveries that failed; their rows are sent again."
)
RECORDS_SENT = counter("hub_agent_records_sent_total", "Evidence rows delivered.")
RECORDS_UNKNOWN = counter(
    "hub_agent_records_unknown_total", "Delivered rows whose attempt the service does not know."
)
RECORDS_REFUSED = counter(
    "hub_agent_records_refused_total", "Single rows that the service refused; they stay to be sent."
)
HEALTH = gauge("hub_gpu_health", "1 for how healthy the GPU is, 0 for the rest.", *(*GPU, "state"))
VERDICTS = counter("hub_agent_verdicts_total", "Verdicts on GPUs since the agent started.")
VERDICTS_UNSENT = gauge("hub_agent_verdicts_unsent", "Verdicts that the service has not taken.")
VERDICTS_FAILED = counter("hub_agent_verdicts_failed_total", "Deliveries of them that failed.")
VERDICTS_REFUSED = counter("hub_agent_verdicts_refused_total", "Rows or verdicts that were refused.")
RECORDS_DROPPED = counter(
    "hub_agent_records_dropped_total", "Rows that were let go unsent, for want of room."
)
PODS_UP = gauge("hub_agent_pods_up", "1 if the kubelet answered last time.")
PODS_FAILURES = counter(
    "hub_agent_pods_failures_total", "Questions that the kubelet did not answer.", "reason"
)
PODS_GAP = counter("hub_agent_pods_gap_seconds_total", "Time without an answer of the kubelet's.")
PODS_ANSWERED = gauge("hub_agent_pods_last_answer_timestamp_seconds", "When it answered.")
PODS = gauge("hub_agent_pods", "Pods listed with GPUs, by what they are.", "kind")
PODS_OFFERED_KNOWN = gauge(
    "hub_agent_pods_offered_known", "1 if the kubelet said lately which devices it gives to pods."
)
PODS_OFFERED_FAILURES = counter(
    "hub_agent_pods_offered_failures_total", "Times that it did not answer that question.", "reason"
)
PODS_UNKNOWN_DEVICES = gauge("hub_agent_pods_unknown_devices", "Listed devices that name no GPU.", "resource")
SPOOL_RECORDS = gauge("hub_agent_spool_records", "Evidence rows still to be sent.")
SPOOL_OLDEST = gauge("hub_agent_spool_oldest_timestamp_seconds", "Since when the oldest of them waits.")

FAMILIES = declared(globals())
