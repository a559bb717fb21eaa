"""Nodes and GPUs: use, memory, power, heat, and what the driver says is wrong."""

from deploy.grafana.boards.expressions import rate, utilization
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
    Variable,
    once,
)

_CHOSEN = '{node=~"$node",gpu_uuid=~"$gpu"}'
_NODES = '{node=~"$node"}'
_GPU = "{{node}} {{gpu_uuid}}"


def _counted(state: str) -> str:
    return once(f'hub_quota_node_gpus{{node=~"$node",state="{state}"}}', "cluster", "node", "gpu_class")


_USE = (
    Panel(
        "GPUs that can be read",
        "GPUs that the agents of these nodes read in their last cycle.",
        Unit.NUMBER,
        (Query(f"sum(hub_gpu_devices{_NODES})"),),
        Look.STAT,
        width=4,
        height=4,
    ),
    Panel(
        "GPUs that cannot be read",
        "GPUs that the agents know and could not read in their last cycle.",
        Unit.NUMBER,
        (Query(f"sum(hub_gpu_up{_NODES} == bool 0)"),),
        Look.STAT,
        width=4,
        height=4,
        steps=BAD_FROM_ONE,
    ),
    Panel(
        "GPUs held",
        "GPUs that a job holds, as the nodes themselves see it.",
        Unit.NUMBER,
        (Query(f"sum(hub_gpu_allocated{_CHOSEN})"),),
        Look.STAT,
        width=4,
        height=4,
    ),
    Panel(
        "Utilisation of the GPUs chosen",
        "Busy time in measured time.",
        Unit.RATIO,
        (Query(utilization(_CHOSEN)),),
        Look.STAT,
        width=4,
        height=4,
        most=1,
    ),
    Panel(
        "Energy in the window",
        "What the GPUs chosen used in the window. Only real GPUs have a meter.",
        Unit.JOULES,
        (Query(f"sum(increase(hub_gpu_energy_joules_total{_CHOSEN}[${{window}}s]))"),),
        Look.STAT,
        width=4,
        height=4,
    ),
    Panel(
        "Hottest GPU",
        "The highest temperature now.",
        Unit.CELSIUS,
        (Query(f"max(hub_gpu_temperature_celsius{_CHOSEN})"),),
        Look.STAT,
        width=4,
        height=4,
        steps=((75, YELLOW), (85, RED)),
    ),
    Panel(
        "Utilisation by GPU",
        "Busy time in measured time of each GPU.",
        Unit.RATIO,
        (Query(utilization(_CHOSEN, "node, gpu_uuid"), _GPU),),
        width=12,
        most=1,
    ),
    Panel(
        "Multiprocessors busy",
        "Share of the multiprocessors that worked in the last cycle. A GPU can be busy all the time and use few.",
        Unit.RATIO,
        (Query(f"hub_gpu_sm_activity_ratio{_CHOSEN}", _GPU),),
        width=12,
        most=1,
    ),
    Panel(
        "Held by whom",
        "Which job holds each GPU now, and how busy it keeps it.",
        Unit.RATIO,
        (
            Query(
                "sum by (node, gpu_uuid, job_id, attempt) "
                f"({rate('hub_gpu_workload_busy_seconds_total', _CHOSEN)})"
                " / (sum by (node, gpu_uuid, job_id, attempt) "
                f"({rate('hub_gpu_workload_observed_seconds_total', _CHOSEN)}) > 0)",
                "Utilisation",
            ),
        ),
        Look.TABLE,
        width=12,
        labels={"node": "Node", "gpu_uuid": "GPU", "job_id": "Job", "attempt": "Attempt"},
    ),
    Panel(
        "GPUs as the hub counts them",
        "GPUs of each node: all, held by the hub's jobs, and used by others.",
        Unit.NUMBER,
        (
            Query(_counted("total"), "All"),
            Query(_counted("used"), "Held by jobs"),
            Query(_counted("foreign"), "Used by others"),
        ),
        Look.TABLE,
        width=12,
        labels={"cluster": "Cluster", "node": "Node", "gpu_class": "Class"},
    ),
    Panel(
        "GPUs there are",
        "Each GPU with its class, model and driver. 1: read in the last cycle.",
        Unit.NUMBER,
        (
            Query(
                f"max by (node, gpu_uuid, gpu_class, model, driver) (hub_gpu_device_info{_CHOSEN})"
                f" * on (node, gpu_uuid) group_left () max by (node, gpu_uuid) (hub_gpu_up{_CHOSEN})",
                "Readable",
            ),
        ),
        Look.TABLE,
        width=12,
        labels={
            "node": "Node",
            "gpu_uuid": "GPU",
            "gpu_class": "Class",
            "model": "Model",
            "driver": "Driver",
        },
    ),
)

_BODY = (
    Panel(
        "Memory used",
        "Share of each GPU's memory that is in use.",
        Unit.RATIO,
        (
            Query(
                f"sum by (node, gpu_uuid) (hub_gpu_memory_used_bytes{_CHOSEN})"
                f" / (sum by (node, gpu_uuid) (hub_gpu_memory_total_bytes{_CHOSEN}) > 0)",
                _GPU,
            ),
        ),
        most=1,
    ),
    Panel(
        "Power",
        "What each GPU draws.",
        Unit.WATTS,
        (Query(f"hub_gpu_power_watts{_CHOSEN}", _GPU),),
    ),
    Panel(
        "Power in its limit",
        "What each GPU draws as a share of the limit that is set. At 1 the limit slows it down.",
        Unit.RATIO,
        (
            Query(
                f"sum by (node, gpu_uuid) (hub_gpu_power_watts{_CHOSEN})"
                f" / (sum by (node, gpu_uuid) (hub_gpu_power_limit_watts{_CHOSEN}) > 0)",
                _GPU,
            ),
        ),
    ),
    Panel(
        "Temperature",
        "Temperature of each GPU.",
        Unit.CELSIUS,
        (Query(f"hub_gpu_temperature_celsius{_CHOSEN}", _GPU),),
    ),
    Panel(
        "Slowed down",
        "Share of the time that each GPU was slowed down, by what slowed it.",
        Unit.RATIO,
        (
            Query(
                f"sum by (node, gpu_uuid, reason) ({rate('hub_gpu_throttle_seconds_total', _CHOSEN)})",
                _GPU + " {{reason}}",
            ),
        ),
        steps=((0.1, YELLOW), (0.5, RED)),
    ),
    Panel(
        "Slowed down now by",
        "What slows each GPU down at this moment, as the driver says.",
        Unit.NUMBER,
        (Query(f"hub_gpu_clocks_event_reason{_CHOSEN}", _GPU + " {{reason}}"),),
        Look.TIMELINE,
        texts={0: ("no", GREEN), 1: ("yes", ORANGE)},
    ),
    Panel(
        "Processes",
        "Compute processes on each GPU.",
        Unit.NUMBER,
        (Query(f"hub_gpu_compute_processes{_CHOSEN}", _GPU),),
        width=12,
    ),
    Panel(
        "Memory of dead processes",
        "Memory that is still taken although the process that took it is gone.",
        Unit.BYTES,
        (Query(f"hub_gpu_orphan_memory_bytes{_CHOSEN}", _GPU),),
        width=12,
        steps=BAD_FROM_ONE,
    ),
)


def _is(state: str) -> str:
    return f'sum by (node, gpu_uuid) (hub_gpu_health{{node=~"$node",gpu_uuid=~"$gpu",state="{state}"}})'


_TROUBLE = (
    Panel(
        "Health",
        "How healthy its agent calls each GPU, for ten minutes longer than the last sign of trouble. An *unhealthy* or"
        " *lost* GPU is taken out of use, if the circuit breaker allows it; a *degraded* one works on.",
        Unit.NUMBER,
        (Query(f"{_is('degraded')} + 2 * {_is('unhealthy')} + 3 * {_is('lost')}", _GPU),),
        Look.TIMELINE,
        width=24,
        texts={
            0: ("healthy", GREEN),
            1: ("degraded", YELLOW),
            2: ("unhealthy", ORANGE),
            3: ("lost", RED),
        },
    ),
    Panel(
        "Readable",
        "Whether each GPU could be read. A GPU that is lost stays down until its node is repaired.",
        Unit.NUMBER,
        (Query(f"hub_gpu_up{_CHOSEN}", _GPU),),
        Look.TIMELINE,
        width=12,
        texts={0: ("down", RED), 1: ("up", GREEN)},
    ),
    Panel(
        "What the driver wants done",
        "The recovery action that the driver asks for.",
        Unit.NUMBER,
        (Query(f"hub_gpu_recovery_action{_CHOSEN}", _GPU),),
        Look.TIMELINE,
        width=12,
        texts={
            0: ("nothing", GREEN),
            1: ("reset the GPU", ORANGE),
            2: ("reboot", RED),
            3: ("drain", ORANGE),
            4: ("drain and reset", RED),
        },
    ),
    Panel(
        "XID errors",
        "Errors that the driver logged since the agent started, by number and class, and when each came last."
        " *hardware* is a matter for the operator, *application* one for the job's owner.",
        Unit.NUMBER,
        (
            Query(f"sum by (node, gpu_uuid, xid, class) (hub_gpu_xid_events_total{_CHOSEN})", "Times"),
            Query(
                f"1000 * max by (node, gpu_uuid, xid, class) (hub_gpu_last_xid_timestamp_seconds{_CHOSEN})",
                "Last",
                Unit.DATE,
            ),
        ),
        Look.TABLE,
        width=12,
        labels={"node": "Node", "gpu_uuid": "GPU", "xid": "XID", "class": "Class"},
    ),
    Panel(
        "XID errors over time",
        "How many XIDs came within the last five minutes of each moment.",
        Unit.NUMBER,
        (
            Query(
                f"sum by (node, xid) (increase(hub_gpu_xid_events_total{_CHOSEN}[5m]))",
                "{{node}} XID {{xid}}",
            ),
        ),
        Look.STACK,
        width=12,
    ),
    Panel(
        "Memory errors",
        "ECC errors since the driver was loaded. Uncorrected ones ended whatever ran.",
        Unit.NUMBER,
        (Query(f"sum by (node, gpu_uuid, type) (hub_gpu_ecc_errors_total{_CHOSEN})", _GPU + " {{type}}"),),
    ),
    Panel(
        "Rows of memory replaced",
        "Rows that were replaced after errors, and rows whose replacement waits for a reset or has failed. A failed one"
        " means that the GPU has to be exchanged.",
        Unit.NUMBER,
        (
            Query(f"sum by (node, gpu_uuid) (hub_gpu_remapped_rows{_CHOSEN})", _GPU + " replaced"),
            Query(f"hub_gpu_row_remap_pending{_CHOSEN}", _GPU + " waits for a reset"),
            Query(f"hub_gpu_row_remap_failed{_CHOSEN}", _GPU + " failed"),
        ),
    ),
    Panel(
        "PCIe replays",
        "Transfers over PCIe that had to be repeated, per second. More than a few mean a bad connection.",
        Unit.PER_SECOND,
        (Query(f"sum by (node, gpu_uuid) ({rate('hub_gpu_pcie_replays_total', _CHOSEN)})", _GPU),),
    ),
)

NODES = Board(
    "gpuhub-nodes",
    "GPU hub: nodes and GPUs",
    "Use, memory, power and heat of each GPU, and what its driver says is wrong.",
    (Section("Use", _USE), Section("Memory, power and heat", _BODY), Section("Trouble", _TROUBLE)),
    variables=(
        Variable(
            "node", "Node", "GPUs of these nodes.", "label_values(hub_gpu_device_info, node)", several=True
        ),
        Variable(
            "gpu",
            "GPU",
            "These GPUs, by UUID.",
            'label_values(hub_gpu_device_info{node=~"$node"}, gpu_uuid)',
            several=True,
        ),
        WINDOW,
    ),
    tags=("operator",),
)
