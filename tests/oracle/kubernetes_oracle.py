"""Judge a run of the hub on Kubernetes: the API server's audit log against the database (docs/oracle.md).

The books are judged by the checks of `oracle.py`, word for word; what pods did comes from `audit_journal.py`. Nothing
here shares code with what it judges. FACTS: what happened. CHECKS: what must not be."""

from __future__ import annotations

import argparse
import json
import os
import re
import sqlite3
from dataclasses import asdict
from pathlib import Path

from tests.oracle import audit_journal, oracle
from tests.oracle.audit_journal import JobLife, Journal, PodLife

NOT_HERE = (
    "a pod started where there was no room",
    "it got other GPUs than its object asked for",
    "no object was free to run",
    "it got other GPUs than the database decided",
    "no such GPU there",
)
"""Complaints of `oracle.py` that need what only the simulated journal tells; CHECKS has them in other words."""

TOLERANCE_MS = 1000
"""An end is told in whole seconds, cut off: evidence may show a pod that much longer."""

FACTS = """
CREATE TABLE reach AS SELECT job_id, attempt, MIN(starts) + SUM(ends - starts - IFNULL(back / (gpus * rate), 0)) AS
  booked_end FROM slices s LEFT JOIN (SELECT c.slice_id AS id, SUM(r.amount) AS back FROM transfers r JOIN transfers c
  ON c.id = r.refund_of WHERE r.refund_kind = 'correction' GROUP BY 1) USING (id) GROUP BY 1, 2;
CREATE VIEW told AS SELECT l.rowid, l.*, IFNULL((SELECT MIN(value) FROM json_each(starts) WHERE value IN
  (first_started, last_started)), started) AS told_start, IIF(finished IS NULL, NULL, IFNULL((SELECT value
  FROM json_each(ends) WHERE value = a.ended), finished)) AS told_end FROM life l LEFT JOIN attempts a
  ON (a.job_id, a.attempt) = (l.job_id, l.attempt);
CREATE TABLE pod AS SELECT l.*, told_start AS t, l.rowid AS n, o.name AS name, o.created AS object_created,
  o.suspended_version, o.abandoned, o.grace, o.pods AS all_pods, o.pods * o.gpus_per_pod AS all_gpus, claimed,
  a.state, a.ended AS recorded, a.lost AS was_lost, succeeded AS good,
  IIF(a.lost, MAX(told_start, MIN(a.ended, IFNULL(freed, 9e18))), NULL) AS died,
  CASE WHEN l.finished IS NOT NULL OR freed IS NULL OR a.ended IS NULL THEN IFNULL(told_end, freed)
    WHEN a.lost THEN MAX(told_start, MIN(ended_until, IFNULL(booked_end, a.ended)))
    ELSE MAX(told_start, ended_from, MIN(ended_until, a.ended)) END AS ended,
  d.node AS d_node, d.gpu_class AS d_class, d.gpus AS d_gpus FROM told l LEFT JOIN object o ON o.uid = job_uid
  LEFT JOIN attempts a ON (a.job_id, a.attempt) = (l.job_id, l.attempt) LEFT JOIN reach r ON
  (r.job_id, r.attempt) = (l.job_id, l.attempt) LEFT JOIN placements d ON
  (d.job_id, d.attempt, d.pod_index) = (l.job_id, l.attempt, l.pod_index) WHERE l.started IS NOT NULL AND l.job_id <> ''
  AND NOT (unseen AND IFNULL(MAX(a.first_started, a.last_started) IS NULL, 1));
CREATE TABLE stay AS SELECT told.*, told_start AS t, value AS gpu_uuid, IFNULL(MAX(freed, told.told), 9e18) AS until,
  MAX(IFNULL(freed, 9e18)) OVER (PARTITION BY value ORDER BY told_start, IFNULL(freed, 9e18), told.rowid
  ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS taken, FIRST_VALUE(node) OVER (PARTITION BY value
  ORDER BY told_start) AS home FROM told, json_each(devices) WHERE started IS NOT NULL;
CREATE INDEX i4 ON stay (job_id, attempt, gpu_uuid);
CREATE VIEW level AS SELECT *, SUM(d) OVER (PARTITION BY node, resource ORDER BY t, d > 0, n) AS taken FROM (
  SELECT node, resource, started AS t, rowid AS n, gpus AS d, pod_name FROM life WHERE started IS NOT NULL UNION ALL
  SELECT node, resource, freed, rowid, -gpus, NULL FROM life WHERE started IS NOT NULL AND freed IS NOT NULL)
  JOIN (SELECT node, resource_of(gpu_class) AS resource, SUM(total) AS total FROM node_capacity
  WHERE NOT EXISTS (SELECT 1 FROM findings WHERE code = 'capacity_lowered' AND instr(subject, node)) GROUP BY 1, 2)
  USING (node, resource);
CREATE VIEW site AS SELECT job_id, attempt, node, COUNT(*) AS here, (SELECT COUNT(*) FROM placements d WHERE
  (d.job_id, d.attempt, d.node) = (pod.job_id, pod.attempt, pod.node)) AS decided FROM pod GROUP BY 1, 2, 3;
CREATE VIEW span AS SELECT job_id, attempt, recorded, MAX(t) AS full, MAX(IIF(finished IS NULL,
  IFNULL(ended_until, (SELECT last FROM log)), finished)) AS until FROM pod WHERE was_lost GROUP BY 1, 2;
CREATE VIEW body AS SELECT o.*, claimed, a.organization_id, (SELECT COUNT(*) FROM object x WHERE (x.job_id, x.attempt)
  = (o.job_id, o.attempt) AND NOT x.born_suspended) AS able, (SELECT MIN(created) FROM object x WHERE
  (x.job_id, x.attempt) = (o.job_id, o.attempt) AND x.born_suspended) AS tombstone FROM object o LEFT JOIN attempts a
  ON (a.job_id, a.attempt) = (o.job_id, o.attempt);
"""
CHECKS = """
gpu_exclusive life: it was given other devices than it asked for, or twice
  IF given > 1 OR devices IS NOT NULL AND json_array_length(devices) <> gpus
gpu_exclusive stay: one GPU on two nodes IF home <> node
node_not_overfull level: its pods ask for more GPUs than it has IF pod_name IS NOT NULL AND taken > total
node_not_overfull run: given back though a pod still runs IF running AND NOT capacity_held
one_run_per_attempt body: two objects of one attempt could run IF able > 1 AND NOT born_suspended
one_run_per_attempt body: made in spite of a tombstone IF NOT born_suspended AND tombstone < created
one_run_per_attempt body: not called as its attempt IF name <> job_id || '-' || attempt
  OR organization <> organization_id OR namespace NOT LIKE '%' || organization
one_run_per_attempt body: not claimed IF NOT born_suspended AND IFNULL(created + 2000 < claimed, 1)
one_run_per_attempt pod: of no object IF name IS NULL
one_run_per_attempt pod: made though its object was suspended IF created_version > suspended_version
one_run_per_attempt pod: started after it was abandoned IF t > abandoned + grace + 1000
one_run_per_attempt pod: started after its attempt was over IF state = 'ended' AND NOT was_lost AND t > recorded
one_run_per_attempt pod: its container started twice IF restarts
placement_as_decided pod: other GPUs than the database decided
  IF (d_class, d_gpus) IS NOT (gpu_class, gpus) OR resource <> resource_of(gpu_class)
placement_as_decided pod: another node than the database decided IF (gated OR all_pods = 1) AND d_node IS NOT node
placement_as_decided site: more of its pods on a node than decided IF here > decided
ledger_equals_journal run: started otherwise on the cluster IF NOT settled AND first_started IS NOT NULL
  AND first_started IS NOT began
ends_agree run: over in the books, but not on the cluster IF state = 'ended' AND NOT lost AND running
ends_agree run: over on the cluster, but not in the books IF state <> 'ended' AND pods = all_pods AND NOT running
  AND gone <= seen
ends_agree run: over in the books, but it never was on the cluster IF first_started IS NOT NULL AND pods IS NULL
ends_agree pod: its end lies outside what was seen of it IF recorded IS NOT NULL AND finished IS NULL AND NOT was_lost
  AND freed IS NOT NULL AND recorded < MAX(started, ended_from)
ends_agree span: lost outside of its life IF recorded < full OR recorded > until
final body: it could still run IF NOT finished AND suspended_version IS NULL AND gone IS NULL
final pod: still running on the cluster IF freed IS NULL
"""


def main() -> int:
    """Print each violation and the verdict. 0: there is none; 1: there are; 2: this cannot be judged."""
    parser = argparse.ArgumentParser(prog="python -m tests.oracle.kubernetes_oracle", description=__doc__)
    parser.add_argument("database")
    parser.add_argument("audit_log", type=Path)
    parser.add_argument("--final", action="store_true", help="everything should have ended")
    parser.add_argument("--tolerance-ms", type=int, default=TOLERANCE_MS)
    options = parser.parse_args()
    try:
        world = load(options.database, options.audit_log)
    except Exception as trouble:  # whatever a database's driver raises
        print("oracle: cannot judge:", *str(trouble).split())
        return 2
    found = violations(world, options.final, options.tolerance_ms)
    sizes = [
        world.execute(f"SELECT COUNT(*) FROM {x}").fetchone()[0] for x in ("attempts", "pod", "transfers")
    ]
    events = world.execute("SELECT events FROM log").fetchone()[0]
    verdict = f"{len(found)} violations" if found else "ok ({} attempts, {} pods, {} transfers, {} events)"
    print(*found, "oracle: " + verdict.format(*sizes, events), sep="\n")
    return 1 if found else 0


def judge(
    database: str,
    audit_log: Path,
    final: bool = False,
    tolerance_ms: int = TOLERANCE_MS,
    horizon_ms: int = audit_journal.NEVER,
) -> list[str]:
    """Every violation as one line. `horizon_ms`: when the database was read; what was made later it cannot know."""
    return violations(load(database, audit_log, horizon_ms), final, tolerance_ms)


def violations(world: sqlite3.Connection, final: bool, tolerance_ms: int) -> list[str]:
    return oracle.violations(world, final, tolerance_ms, checks())


def checks() -> str:
    """Those of `oracle.py` that can be judged here, and the ones of this file."""
    shared = re.split(r"\n(?=\w)", oracle.CHECKS.strip())
    usable = [
        check for check in shared if not any(f": {words} " in " ".join(check.split()) for words in NOT_HERE)
    ]
    return "\n".join([*usable, CHECKS.strip()])


def load(database: str, audit_log: Path, horizon_ms: int = audit_journal.NEVER) -> sqlite3.Connection:
    """Both in one SQLite in memory, the log last: it must know whatever the database knows."""
    world = oracle.load(database, os.devnull)  # its facts of an empty journal; those about pods are replaced
    world.create_function("resource_of", 1, resource_of, deterministic=True)
    _put(world, audit_journal.read(audit_log), horizon_ms)
    for kind, name in (
        ("VIEW", "level"),
        ("TABLE", "pod"),
        ("TABLE", "stay"),
        ("TABLE", "run"),
        ("TABLE", "cut"),
    ):
        world.execute(f"DROP {kind} {name}")
    world.executescript(FACTS)
    for name in ("run", "cut"):
        world.executescript(re.search(rf"CREATE TABLE {name} AS .+?;\n", oracle.FACTS, re.S).group())
    return world


def resource_of(gpu_class: str) -> str:
    """The resource under which NVIDIA's device plugin offers a class; a MIG profile has its own (`mixed`)."""
    profile = re.search(r"-(\dg\.\d+gb)$", gpu_class or "")
    return f"nvidia.com/mig-{profile[1]}" if profile else "nvidia.com/gpu"


def _put(world: sqlite3.Connection, journal: Journal, horizon_ms: int) -> None:
    late = {job.uid for job in journal.jobs if job.created > horizon_ms}
    jobs = [asdict(job) for job in journal.jobs if job.uid not in late]
    pods = [_row(pod) for pod in journal.pods if pod.job_uid not in late]
    _fill(world, "object", [*JobLife.__slots__], jobs)
    _fill(world, "life", [name.replace("index", "pod_index") for name in PodLife.__slots__], pods)
    _fill(world, "log", ["events", "last"], [{"events": journal.events, "last": journal.last}])


def _row(pod: PodLife) -> dict[str, object]:
    row = asdict(pod)
    row["pod_index"] = row.pop("index")
    row["devices"] = None if pod.devices is None else json.dumps(pod.devices)
    row["starts"], row["ends"] = json.dumps(pod.starts), json.dumps(pod.ends)
    return row


def _fill(world: sqlite3.Connection, table: str, names: list[str], rows: list[dict[str, object]]) -> None:
    world.execute(f"CREATE TABLE {table} ({', '.join(names)})")
    marks = ", ".join(f":{name}" for name in names)
    world.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)


if __name__ == "__main__":
    raise SystemExit(main())
