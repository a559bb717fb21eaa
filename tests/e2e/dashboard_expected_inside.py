"""What the dashboards of nodes, scheduler and trust must show; see `dashboard_expected.py`."""

from __future__ import annotations

import pytest
from dashboard_expected import (
    ALL_GPUS,
    FIRM,
    FIRST,
    FOREIGN_GPUS,
    HELD,
    LAB,
    LAB_CLASS,
    LAB_GPUS,
    LAB_LOAD,
    OPERATORS,
    OVERVIEW,
    RATE_S,
    RUNNING,
    SPEED,
    THEN,
    TOTAL_UTILIZATION,
    Expected,
    about,
    all_gpus,
    counted,
    ended,
    exactly,
    lab_only,
    one,
    sched_gpus,
    waits,
)
from dashboard_lived import Between, Lived, Loosely, Perhaps, Series
from dashboard_world import (
    COMPARED,
    COMPARED_DAY_S,
    DIFFERENCES,
    JOULES,
    MODEL,
    NODES_OF_CLUSTER,
    PODS_S,
    REPLAYS,
    SILENT_S,
    SPOOL_ROWS,
    THROTTLED_S,
    XID_LOST,
    XID_OF_JOB,
)

VERDICTS = 2 * 2 + 1
"""An XID and what the driver asks for, of two GPUs; an XID of a third."""
LAB_VERDICTS = 3 + 2
"""A memory error, a row to be replaced and what the driver asks for; an XID and the loss. Nobody takes them."""
STARTED = len(FIRST) + len(THEN)


def held_by_whom(lived: Lived) -> list[Series]:
    """Every held GPU with its job and how busy it is."""
    ids = {job.id: job for job in lived.running().values()}
    return [
        {
            f"{gpu.node} {gpu.uuid} {gpu.job_id} {ids[gpu.job_id].attempt}": about(
                lived.load_of(gpu), least=0.01
            )
            for gpu in lived.gpus
            if gpu.job_id
        }
    ]


def by_node(lived: Lived) -> list[Series]:
    """All, held and foreign GPUs of each node."""
    keys = {gpu.node: f"sim {gpu.node} {gpu.gpu_class}" for gpu in lived.gpus}
    total = {key: sum(gpu.node == node for gpu in lived.gpus) for node, key in keys.items()}
    held = {
        key: sum(gpu.node == node and bool(gpu.job_id) for gpu in lived.gpus) for node, key in keys.items()
    }
    return [total, held, {key: FOREIGN_GPUS if node == "sim-1" else 0 for node, key in keys.items()}]


def there_are(lived: Lived) -> list[Series]:
    """Every GPU with its description and its driver."""
    simulated: dict[str, object] = {
        " ".join((gpu.node, gpu.uuid, gpu.gpu_class, gpu.model, "simulated")): 1 for gpu in lived.gpus
    }
    lab = {
        " ".join((LAB, uuid, LAB_CLASS, MODEL, "570.86.15")): int(uuid != LAB_GPUS[2]) for uuid in LAB_GPUS
    }
    return [simulated | lab]


def xids(lived: Lived) -> list[Series]:
    """All XIDs with their times."""
    keys = (
        f"{LAB} {LAB_GPUS[0]} {XID_OF_JOB} application",
        f"{LAB} {LAB_GPUS[2]} {XID_LOST} hardware",
        *(" ".join(named) for named in lived.world.broken.xids().items()),
    )
    lately = Between(1000 * (lived.at_s - 300), 1000 * lived.at_s)
    return [dict.fromkeys(keys, 1), dict.fromkeys(keys, lately)]


def health(lived: Lived) -> list[Series]:
    """As agents call them: the lab's are healthy, in want of a reset, and lost."""
    return all_gpus(lived, lambda gpu: lived.world.broken.health((gpu.node, gpu.uuid)), (0, 2, 3))


NODES: Expected = {
    "GPUs that can be read": lambda _: one(ALL_GPUS + 2),
    "GPUs that cannot be read": lambda _: one(1),
    "GPUs held": lambda _: one(HELD),
    "Utilisation of the GPUs chosen": lambda _: one(about(TOTAL_UTILIZATION, 0.1)),
    "Energy in the window": lambda _: one(about(JOULES)),
    "Hottest GPU": lambda _: one(88),
    "Utilisation by GPU": lambda lived: all_gpus(
        lived, lambda gpu: about(lived.load_of(gpu), least=0.01), tuple(about(load) for load in LAB_LOAD)
    ),
    "Multiprocessors busy": lambda _: lab_only(None, exactly(0.2)),
    "Held by whom": held_by_whom,
    "GPUs as the hub counts them": by_node,
    "GPUs there are": there_are,
    "Memory used": lambda lived: all_gpus(
        lived, lambda gpu: exactly(gpu.memory_used), (exactly(10 / 80), exactly(10 / 80))
    ),
    "Power": lambda lived: all_gpus(lived, lambda gpu: about(gpu.power_watts, 0.01), (350.5, 350.5)),
    "Power in its limit": lambda _: lab_only(exactly(350.5 / 700), exactly(350.5 / 700)),
    "Temperature": lambda lived: all_gpus(lived, lambda gpu: about(gpu.temperature_celsius, 0.01), (41, 88)),
    "Slowed down": lambda _: [
        Loosely({f"{LAB} {LAB_GPUS[1]} sw_thermal_slowdown": about(THROTTLED_S / RATE_S, 0.2)})
    ],
    "Slowed down now by": lambda _: [Loosely({f"{LAB} {LAB_GPUS[1]} sw_power_cap": 1})],
    "Processes": lambda _: [Loosely({f"{LAB} {LAB_GPUS[1]}": 1})],
    "Memory of dead processes": lambda _: [Loosely({})],
    "Health": health,
    "Readable": lambda lived: all_gpus(lived, lambda _: 1, (1, 1, 0)),
    "What the driver wants done": lambda lived: [
        Loosely({f"{LAB} {LAB_GPUS[1]}": 1} | lived.world.broken.recoveries())
    ],
    "XID errors": xids,
    "XID errors over time": lambda _: [Loosely({})],
    "Memory errors": lambda _: [Loosely({f"{LAB} {LAB_GPUS[1]} uncorrected": 2})],
    "Rows of memory replaced": lambda _: [
        Loosely({f"{LAB} {LAB_GPUS[1]} replaced": 1}),
        Loosely({f"{LAB} {LAB_GPUS[1]} waits for a reset": 1}),
        Loosely({}),
    ],
    "PCIe replays": lambda _: [Loosely({f"{LAB} {LAB_GPUS[1]}": about(REPLAYS / RATE_S, 0.2)})],
}


def cycles(_: Lived) -> object:
    """A loop that sleeps a part of a second between two looks."""
    return Between(0.2, 50)


SCHEDULER: Expected = {
    "Leaders": lambda _: one(1),
    "Cycles per second": lambda lived: one(cycles(lived)),
    "Mean cycle": lambda _: one(Between(1e-5, 5)),
    "Age of the forecast": lambda lived: one(Between(0, lived.business_s - lived.began_s + 60)),
    "Forecasts in vain": lambda _: one(0),
    "Calls without an answer": lambda _: one(0),
    "Changes not yet read": lambda _: [{"changes": 0}],
    "Lease": lambda _: [{"left": Between(0, 60)}],
    "Duration of a cycle": lambda _: [{q: Between(1e-5, 10)} for q in ("p50", "p95", "p99")],
    "Duration of a forecast": lambda _: [{}, {}],
    "Decisions": lambda _: [Loosely({"started": about(STARTED), "stopped": about(3)})],
    "Stops": lambda _: [Loosely({"time_limit": about(1), "cancelled": about(1), "idle_reclaimed": about(1)})],
    "Jobs that ended": lambda lived: [Loosely(ended(lived))],
    "Jobs started per second": lambda _: [{"started": 0}],
    "Waits by class": waits,
    "GPUs as the scheduler sees them": sched_gpus,
    "Actions on clusters": lambda _: [
        Loosely({"start done": about(STARTED), "stop done": about(3), "delete done": 0, "start failed": 0})
    ],
    "Cluster last answered": lambda _: [{"sim": Between(0, 120)}],
}


def unmeasured(lived: Lived) -> list[Series]:
    """All of the cluster is measured; the lab's clock is the wall's, a quarter of the hub's."""
    nodes = {node: pytest.approx(0, abs=0.8) for node in NODES_OF_CLUSTER}
    return [nodes | {LAB: about(2 - 2 / SPEED, 0.1)}]


def driver_states(lived: Lived) -> list[Series]:
    """The lab's agent has one."""
    return [{f"{lived.world.lab.instance} running": 1}]


def agents(lived: Lived, value: object, lab: object) -> list[Series]:
    """Of both agents."""
    return [{lived.world.instance("agent"): value, lived.world.lab.instance: lab}]


def without_kubelet(lived: Lived) -> object:
    """From its last answer to its next one; the script saw a little more than that."""
    return Between(0.9 * SILENT_S, 1.1 * (lived.world.lab.silent_s + PODS_S))


def nobodys(_: Lived) -> list[Series]:
    """What the lab's GPUs do, for nobody; on a machine that is short of time a part of it is unobserved."""
    busy = sum(LAB_LOAD) / SPEED
    return [{"GPUs": Between(0.5 * busy, 1.1 * busy)}]


TRUST: Expected = {
    "GPUs up that nobody measured": unmeasured,
    "Share of held time measured": lambda _: [{"measured": about(1, 0.1)}],
    "Utilisation that cannot be measured": lambda _: [dict.fromkeys((*NODES_OF_CLUSTER, LAB), 0)],
    "Busy and of nobody": nobodys,
    "Rows of unknown attempts": lambda _: one(0),
    "Rows refused": lambda _: one(0),
    # one, or two if an hour began while the lab's pod was there
    "Rows dropped": lambda _: one(Between(0.9, 2.2)),
    "Nodes without news": lambda _: [{"sim": 0}],
    "Paid by no grant": lambda lived: one(about(lived.platform_hours())),
    "Held by the books and by the nodes": lambda _: [{"books": HELD}, {"nodes": HELD}],
    "Findings": lambda lived: [dict(lived.findings)],
    "Open holds": lambda _: one(len(RUNNING)),
    "Holds without a job": lambda _: one(0),
    "Books behind the cluster": lambda _: [{"sim": Between(0, 120)}],
    "Attempts not settled": lambda _: [{"sim": len(RUNNING)}],
    "Last seal": lambda _: [{"age": Between(0, 400)}],
    "Transactions": lambda _: [{"transactions": Between(0, 100)}],
    "Last day compared": lambda _: counted(
        (f"sim {source}", exactly(value / 3600)) for source, value in COMPARED.items()
    ),
    "Day compared": lambda _: [{"sim": 1000 * COMPARED_DAY_S}],
    "Differences that day": lambda _: one(DIFFERENCES),
    "Agents read their GPUs": lambda lived: agents(lived, 1, 1),
    "Last read": lambda lived: agents(lived, Between(0, 30), Between(0, 30)),
    "Duration of a read": lambda _: [{"p95": Between(1e-4, 10)}],
    "Measurements to be sent": lambda lived: agents(lived, Between(0, 60), SPOOL_ROWS),
    "Oldest of them": lambda lived: [
        Perhaps({lived.world.instance("agent"): Between(0, 60), lived.world.lab.instance: Between(30, 600)})
    ],
    "Deliveries": lambda _: [{"answered": Between(0.1, 5)}, {"failed": Between(0, 1)}],
    "Reads and writes that failed": lambda _: [{"reads": 0}, {"disk": 0}],
    "Driver": driver_states,
    "Kubelet answers": lambda lived: [{lived.world.lab.instance: 1}],
    "Time without the kubelet": lambda lived: [{lived.world.lab.instance: without_kubelet(lived)}],
    "GPUs missing": lambda _: one(1),
    "Kubelet failures": lambda _: [Loosely({"absent": Between(0.9, 12)})],
    "Verdicts": lambda lived: agents(lived, about(VERDICTS), about(LAB_VERDICTS)),
    "Verdicts to be sent": lambda lived: agents(lived, 0, LAB_VERDICTS),
    "Verdicts that failed": lambda _: [{"failed": Between(1.8, 200)}, {"refused": 0}],
}

EXPECTED = {
    "gpuhub-overview": OVERVIEW,
    "gpuhub-firm": FIRM,
    "gpuhub-operators": OPERATORS,
    "gpuhub-nodes": NODES,
    "gpuhub-scheduler": SCHEDULER,
    "gpuhub-trust": TRUST,
}
